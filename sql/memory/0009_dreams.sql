-- Dreams find every owner with something to sum up, a page of them at a time, and go on with what a
-- daemon died at.

SET LOCAL search_path = ksi_memory, public, pg_temp;

-- Also those whose moments are planned, and not written yet: their daemon died at it.
CREATE OR REPLACE FUNCTION lying_still(
    of_tenant text, of_owner text, least_tokens bigint, idle interval, at_most integer,
    OUT conversation text, OUT tokens bigint
) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT r.conversation, r.uncovered_tokens + coalesce(p.tokens, 0)
      FROM reading r
      JOIN ksi_completion.conversation c ON (c.tenant, c.id) = (r.tenant, r.conversation)
     CROSS JOIN LATERAL (
           SELECT sum(k.tokens)::bigint AS tokens FROM chunk k
            WHERE (k.tenant, k.conversation) = (r.tenant, r.conversation)
              AND k.state = 'planned') p
     WHERE r.tenant = of_tenant AND coalesce(c.owner, '') = of_owner
       AND (r.uncovered_tokens >= least_tokens OR p.tokens IS NOT NULL)
       AND c.updated_at < clock_timestamp() - idle
     ORDER BY c.updated_at, r.conversation LIMIT at_most
$$;

-- Whose memory has anything new, or conversations to be summed up; a page of them, by name.
DROP FUNCTION dreamers(text, timestamptz);
CREATE FUNCTION dreamers(
    of_tenant text, since timestamptz, least_tokens bigint, after text, at_most integer,
    OUT owner text
) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT d.owner
      FROM (SELECT i.owner FROM item i
             WHERE i.tenant = of_tenant AND i.valid_to IS NULL AND i.recorded_at >= since
               AND i.kind IN ('moments', 'facts', 'entities', 'associations', 'patterns')
            UNION
            SELECT coalesce(c.owner, '') FROM reading r
              JOIN ksi_completion.conversation c ON (c.tenant, c.id) = (r.tenant, r.conversation)
             WHERE r.tenant = of_tenant AND r.uncovered_tokens >= least_tokens) d
     WHERE after IS NULL OR d.owner COLLATE "C" > after COLLATE "C"
     ORDER BY d.owner COLLATE "C" LIMIT at_most
$$;
COMMENT ON FUNCTION dreamers IS 'whose memory has anything new, a page of them';

DROP FUNCTION dreaming_tenants(timestamptz);
CREATE FUNCTION dreaming_tenants(
    since timestamptz, least_tokens bigint, after text, at_most integer, OUT tenant text
) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT d.tenant
      FROM (SELECT i.tenant FROM item i
             WHERE i.recorded_at >= since AND i.kind IN ('moments', 'facts', 'entities')
            UNION
            SELECT r.tenant FROM reading r WHERE r.uncovered_tokens >= least_tokens) d
     WHERE after IS NULL OR d.tenant COLLATE "C" > after COLLATE "C"
     ORDER BY d.tenant COLLATE "C" LIMIT at_most
$$;
COMMENT ON FUNCTION dreaming_tenants IS 'names the tenants whose memory has anything new, for dreams';

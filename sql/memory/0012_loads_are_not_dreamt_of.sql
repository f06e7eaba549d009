-- A load of files leaves a moment that tells of it. No dream goes over these, or begins for them: what
-- was loaded is there as it is. A moment of a person's own may bear that word.

SET LOCAL search_path = ksi_memory, public, pg_temp;

-- What belongs to exactly this owner, of some kinds, the newest first.
CREATE OR REPLACE FUNCTION dreamt_of(
    of_tenant text, whose_owner text, kinds text[], since timestamptz, at_most integer
) RETURNS SETOF shown
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT (show_item(f)).*
      FROM (SELECT i.* FROM item i
             WHERE i.tenant = of_tenant AND i.kind = ANY (kinds) AND i.valid_to IS NULL
               AND i.owner = whose_owner
               AND (since IS NULL OR coalesce(i.ends_at, i.starts_at, i.valid_from) >= since)
               AND (i.kind, i.category, i.origin) IS DISTINCT FROM ('moments', 'upload', 'derived')
             ORDER BY coalesce(i.starts_at, i.valid_from) DESC, i.id
             LIMIT at_most) f
$$;

-- Whose memory has anything new, or conversations to be summed up; a page of them, by name.
CREATE OR REPLACE FUNCTION dreamers(
    of_tenant text, since timestamptz, least_tokens bigint, after text, at_most integer,
    OUT owner text
) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT d.owner
      FROM (SELECT i.owner FROM item i
             WHERE i.tenant = of_tenant AND i.valid_to IS NULL AND i.recorded_at >= since
               AND i.kind IN ('moments', 'facts', 'entities', 'associations', 'patterns')
               AND (i.kind, i.category, i.origin) IS DISTINCT FROM ('moments', 'upload', 'derived')
            UNION
            SELECT coalesce(c.owner, '') FROM reading r
              JOIN ksi_completion.conversation c ON (c.tenant, c.id) = (r.tenant, r.conversation)
             WHERE r.tenant = of_tenant AND r.uncovered_tokens >= least_tokens) d
     WHERE after IS NULL OR d.owner COLLATE "C" > after COLLATE "C"
     ORDER BY d.owner COLLATE "C" LIMIT at_most
$$;

CREATE OR REPLACE FUNCTION dreaming_tenants(
    since timestamptz, least_tokens bigint, after text, at_most integer, OUT tenant text
) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT d.tenant
      FROM (SELECT i.tenant FROM item i
             WHERE i.recorded_at >= since AND i.kind IN ('moments', 'facts', 'entities')
               AND (i.kind, i.category, i.origin) IS DISTINCT FROM ('moments', 'upload', 'derived')
            UNION
            SELECT r.tenant FROM reading r WHERE r.uncovered_tokens >= least_tokens) d
     WHERE after IS NULL OR d.tenant COLLATE "C" > after COLLATE "C"
     ORDER BY d.tenant COLLATE "C" LIMIT at_most
$$;

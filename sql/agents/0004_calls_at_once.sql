-- A run may make several calls at once: what another daemon had reserved for it is stale, and what
-- this one has is not. Whether money has to be reserved is said by the reservation itself. A call of
-- a tool counts in what waits for its turn, too.

SET LOCAL search_path = ksi_agents, public, pg_temp;

ALTER TABLE reservation ADD COLUMN daemon text NOT NULL DEFAULT ''; -- that makes the call

DROP FUNCTION bounds_cost(text, text[]);
DROP FUNCTION reserve(text, text, text, text[], numeric, numeric);

-- Counts a call of a model before it is made, and reserves money for it: as much as is wanted, or
-- what is left where that is not less than `least_usd`. Without `wanted_usd` the call is counted
-- only where no account bounds its cost; where one does, the bound is 'price' and nothing is done.
-- What another daemon had reserved for the same run and never settled is taken as spent: it died,
-- and nobody knows that it was not.
CREATE FUNCTION reserve(
    of_tenant text, of_id text, of_run text, of_daemon text, ids text[], wanted_usd numeric,
    least_usd numeric,
    OUT granted_usd numeric, OUT refused_by text, OUT bound text, OUT taken numeric, OUT most numeric
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    all_ids text[] := accounts_above(of_tenant, ids);
    each account;
    stale reservation;
BEGIN
    granted_usd := coalesce(wanted_usd, 0);
    -- In the order of their ids, so that two calls never wait for each other in a circle.
    PERFORM FROM account a WHERE a.tenant = of_tenant AND a.id = ANY (all_ids)
      ORDER BY a.id FOR UPDATE;
    FOR stale IN
        DELETE FROM reservation r
         WHERE (r.tenant, r.run) = (of_tenant, of_run) AND r.daemon <> of_daemon RETURNING r.*
    LOOP
        UPDATE account a SET usd = a.usd + stale.usd, reserved_usd = a.reserved_usd - stale.usd
         WHERE a.tenant = of_tenant AND a.id = ANY (stale.accounts);
    END LOOP;
    FOR each IN
        SELECT a.* FROM account a
         WHERE a.tenant = of_tenant AND a.id = ANY (all_ids) ORDER BY a.id
    LOOP
        refused_by := each.id;
        IF each.requests >= each.max_requests THEN
            bound := 'requests'; taken := each.requests; most := each.max_requests;
            RETURN;
        ELSIF each.tokens >= each.max_tokens THEN
            bound := 'tokens'; taken := each.tokens; most := each.max_tokens;
            RETURN;
        ELSIF each.max_usd IS NOT NULL AND wanted_usd IS NULL THEN
            bound := 'price'; taken := each.usd; most := each.max_usd;
            RETURN;
        ELSIF each.max_usd - each.usd - each.reserved_usd < least_usd THEN
            bound := 'cost_usd'; taken := each.usd + each.reserved_usd; most := each.max_usd;
            RETURN;
        END IF;
        granted_usd := least(granted_usd, each.max_usd - each.usd - each.reserved_usd);
    END LOOP;
    refused_by := NULL;
    UPDATE account a
       SET requests = a.requests + 1, reserved_usd = a.reserved_usd + granted_usd
     WHERE a.tenant = of_tenant AND a.id = ANY (all_ids);
    IF granted_usd > 0 THEN
        INSERT INTO reservation (tenant, id, run, daemon, accounts, usd)
        VALUES (of_tenant, of_id, of_run, of_daemon, all_ids, granted_usd);
    END IF;
END $$;
COMMENT ON FUNCTION reserve IS 'counts a call of a model, and reserves money for it, or says why not';

-- Counts a call of a tool before it is made; says no where that is one too many.
CREATE OR REPLACE FUNCTION count_tool_call(
    of_tenant text, ids text[], OUT refused_by text, OUT taken bigint, OUT most bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    all_ids text[] := accounts_above(of_tenant, ids);
BEGIN
    PERFORM FROM account a WHERE a.tenant = of_tenant AND a.id = ANY (all_ids)
      ORDER BY a.id FOR UPDATE;
    SELECT a.id, a.tool_calls, a.max_tool_calls INTO refused_by, taken, most
      FROM account a
     WHERE a.tenant = of_tenant AND a.id = ANY (all_ids) AND a.tool_calls >= a.max_tool_calls
     ORDER BY a.id LIMIT 1;
    IF refused_by IS NULL THEN
        UPDATE account a SET tool_calls = a.tool_calls + 1
         WHERE a.tenant = of_tenant AND a.id = ANY (all_ids);
    END IF;
END $$;

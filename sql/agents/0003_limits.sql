-- What turns and agents have taken, and may take: an account for each that has limits, and for each
-- turn that is part of one. Money is reserved before a model is called, and settled after it.

SET LOCAL search_path = ksi_agents, public, pg_temp;

CREATE TABLE account (
    tenant text NOT NULL,
    id text NOT NULL, -- 'run:…' of a turn, 'agent:…' of an agent in all its life
    parent text, -- of a turn that another one waits for: what it takes, that one takes
    max_requests bigint,
    max_tool_calls bigint,
    max_tokens bigint,
    max_usd numeric(18, 9),
    requests bigint NOT NULL DEFAULT 0,
    tool_calls bigint NOT NULL DEFAULT 0,
    tokens bigint NOT NULL DEFAULT 0,
    usd numeric(18, 9) NOT NULL DEFAULT 0,
    reserved_usd numeric(18, 9) NOT NULL DEFAULT 0,
    opened_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, id)
);
CREATE INDEX account_parent ON account (tenant, parent) WHERE parent IS NOT NULL;
SELECT ksi_postgres.protect('account');

-- Money that is reserved for a call of a model that is being made.
CREATE TABLE reservation (
    tenant text NOT NULL,
    id text NOT NULL,
    run text NOT NULL,
    accounts text[] NOT NULL,
    usd numeric(18, 9) NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, id)
);
CREATE INDEX reservation_run ON reservation (tenant, run);
SELECT ksi_postgres.protect('reservation');

-- Opens an account, or says anew what it may take.
CREATE FUNCTION open_account(
    of_tenant text, of_id text, of_parent text, requests_bound bigint, tool_calls_bound bigint,
    tokens_bound bigint, usd_bound numeric
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    INSERT INTO account AS a (tenant, id, parent, max_requests, max_tool_calls, max_tokens, max_usd)
    VALUES (of_tenant, of_id, of_parent, requests_bound, tool_calls_bound, tokens_bound, usd_bound)
    ON CONFLICT (tenant, id) DO UPDATE
       SET parent = coalesce(a.parent, excluded.parent), max_requests = excluded.max_requests,
           max_tool_calls = excluded.max_tool_calls, max_tokens = excluded.max_tokens,
           max_usd = excluded.max_usd
     WHERE (a.max_requests, a.max_tool_calls, a.max_tokens, a.max_usd)
           IS DISTINCT FROM (excluded.max_requests, excluded.max_tool_calls, excluded.max_tokens,
                             excluded.max_usd)
$$;
COMMENT ON FUNCTION open_account IS 'opens an account, or says anew what it may take';

-- The accounts that a call counts in: those that are named, and what they are part of.
CREATE FUNCTION accounts_above(of_tenant text, ids text[]) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    WITH RECURSIVE above (id, depth) AS (
        SELECT unnest(ids), 0
         UNION
        SELECT a.parent, above.depth + 1
          FROM above
          JOIN account a ON (a.tenant, a.id) = (of_tenant, above.id)
         WHERE a.parent IS NOT NULL AND above.depth < 100
    )
    SELECT array_agg(DISTINCT above.id ORDER BY above.id) FROM above
$$;
COMMENT ON FUNCTION accounts_above IS 'the accounts that a call counts in';

-- Is there an account that bounds the cost of calls in these?
CREATE FUNCTION bounds_cost(of_tenant text, ids text[]) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM account a
         WHERE a.tenant = of_tenant AND a.id = ANY (accounts_above(of_tenant, ids))
           AND a.max_usd IS NOT NULL)
$$;
COMMENT ON FUNCTION bounds_cost IS 'whether money has to be reserved for calls that count here';

-- Counts a call of a model before it is made, and reserves money for it: as much as is wanted, or
-- what is left where that is not less than `least_usd`. What an earlier call of the same run had
-- reserved and never settled (its daemon died) is taken as spent: nobody knows that it was not.
CREATE FUNCTION reserve(
    of_tenant text, of_id text, of_run text, ids text[], wanted_usd numeric, least_usd numeric,
    OUT granted_usd numeric, OUT refused_by text, OUT bound text, OUT taken numeric, OUT most numeric
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    all_ids text[] := accounts_above(of_tenant, ids);
    each account;
    stale reservation;
BEGIN
    granted_usd := wanted_usd;
    -- In the order of their ids, so that two calls never wait for each other in a circle.
    PERFORM FROM account a WHERE a.tenant = of_tenant AND a.id = ANY (all_ids)
      ORDER BY a.id FOR UPDATE;
    FOR stale IN
        DELETE FROM reservation r WHERE (r.tenant, r.run) = (of_tenant, of_run) RETURNING r.*
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
        INSERT INTO reservation (tenant, id, run, accounts, usd)
        VALUES (of_tenant, of_id, of_run, all_ids, granted_usd);
    END IF;
END $$;
COMMENT ON FUNCTION reserve IS 'counts a call of a model, and reserves money for it, or says why not';

-- Counts what a call took; where its cost is not known, what was reserved for it.
CREATE FUNCTION settle(
    of_tenant text, of_id text, ids text[], of_tokens bigint, of_usd numeric
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    all_ids text[] := accounts_above(of_tenant, ids);
    held reservation;
BEGIN
    PERFORM FROM account a WHERE a.tenant = of_tenant AND a.id = ANY (all_ids)
      ORDER BY a.id FOR UPDATE;
    DELETE FROM reservation r WHERE (r.tenant, r.id) = (of_tenant, of_id) RETURNING r.* INTO held;
    UPDATE account a
       SET tokens = a.tokens + of_tokens,
           usd = a.usd + coalesce(of_usd, held.usd, 0),
           reserved_usd = a.reserved_usd - coalesce(held.usd, 0)
     WHERE a.tenant = of_tenant AND a.id = ANY (all_ids);
END $$;
COMMENT ON FUNCTION settle IS 'counts what a call of a model took';

-- Counts a call of a tool before it is made; says no where that is one too many.
CREATE FUNCTION count_tool_call(
    of_tenant text, ids text[], OUT refused_by text, OUT taken bigint, OUT most bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM account a WHERE a.tenant = of_tenant AND a.id = ANY (ids) ORDER BY a.id FOR UPDATE;
    SELECT a.id, a.tool_calls, a.max_tool_calls INTO refused_by, taken, most
      FROM account a
     WHERE a.tenant = of_tenant AND a.id = ANY (ids) AND a.tool_calls >= a.max_tool_calls
     ORDER BY a.id LIMIT 1;
    IF refused_by IS NULL THEN
        UPDATE account a SET tool_calls = a.tool_calls + 1
         WHERE a.tenant = of_tenant AND a.id = ANY (ids);
    END IF;
END $$;
COMMENT ON FUNCTION count_tool_call IS 'counts a call of a tool, or says why not';

-- What an account has taken.
CREATE FUNCTION spent(of_tenant text, of_id text) RETURNS SETOF account
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT a.* FROM account a WHERE (a.tenant, a.id) = (of_tenant, of_id)
$$;
COMMENT ON FUNCTION spent IS 'what an account has taken, and may take';

-- Closes the accounts of turns that have long ended.
CREATE FUNCTION close_accounts(older_than interval, at_most integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    WITH gone AS (
        DELETE FROM account a USING (
            SELECT o.tenant, o.id FROM account o
             WHERE o.id LIKE 'run:%' AND o.opened_at < now() - older_than
               AND NOT EXISTS (SELECT FROM reservation r
                                WHERE (r.tenant, 'run:' || r.run) = (o.tenant, o.id))
             LIMIT at_most) old
         WHERE (a.tenant, a.id) = (old.tenant, old.id)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
COMMENT ON FUNCTION close_accounts IS 'deletes the accounts of turns that have long ended';

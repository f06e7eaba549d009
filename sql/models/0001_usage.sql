-- What each call of a model took: one row, written before its answer is complete. It tells which
-- messages the model saw by their range and hash, and holds no copy of them.
--
-- A row is begun when a provider is asked, so that a daemon that dies meanwhile leaves one, too: it
-- is `lost` when nobody has ended it in the time that a call may take.

CREATE TABLE usage (
    tenant text NOT NULL,
    call text NOT NULL,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    outcome text NOT NULL CHECK (outcome IN ('begun', 'ok', 'failed', 'cancelled', 'lost')),
    error text,
    model_asked text NOT NULL,
    model text NOT NULL,
    provider text NOT NULL,
    served text,
    purpose text NOT NULL,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cache_read_tokens bigint NOT NULL DEFAULT 0,
    cache_write_tokens bigint NOT NULL DEFAULT 0,
    thinking_tokens bigint NOT NULL DEFAULT 0,
    is_estimated boolean NOT NULL DEFAULT false,
    cost_usd double precision,
    latency_ms double precision NOT NULL DEFAULT 0,
    first_token_ms double precision,
    attempts integer NOT NULL DEFAULT 1,
    event text NOT NULL,
    on_behalf_of text,
    agent text,
    conversation text,
    run text,
    seen_conversation text,
    seen_first bigint,
    seen_last bigint,
    seen_sha256 text,
    PRIMARY KEY (tenant, call)
);
CREATE INDEX usage_ended_at ON usage (tenant, ended_at);
CREATE INDEX usage_age ON usage USING brin (ended_at);
CREATE INDEX usage_conversation ON usage (tenant, conversation, ended_at)
    WHERE conversation IS NOT NULL;
CREATE INDEX usage_begun ON usage (ended_at) WHERE outcome = 'begun';
CREATE INDEX usage_run ON usage (tenant, run) WHERE run IS NOT NULL;
SELECT ksi_postgres.protect('usage');
-- Nobody mends what was spent: rows come by functions, and go when they are old.
REVOKE INSERT, UPDATE, DELETE ON usage FROM ksi_app;

-- It need not last a crash of Postgres itself, so nobody waits for the disk.
CREATE FUNCTION begin(
    of_tenant text, call text, model_asked text, model text, provider text, purpose text,
    event text, on_behalf_of text, agent text, conversation text, run text
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_models, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO usage (tenant, call, outcome, model_asked, model, provider, purpose, event,
                       on_behalf_of, agent, conversation, run)
    VALUES ($1, $2, 'begun', $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT DO NOTHING;
END $$;
COMMENT ON FUNCTION begin IS 'notes that a provider is asked';

-- Told twice it is kept once: a writer that does not know whether it was heard tells it again.
CREATE FUNCTION record(
    of_tenant text, call text, ended_at timestamptz, outcome text, error text, model_asked text,
    model text, provider text, served text, purpose text, input_tokens bigint,
    output_tokens bigint, cache_read_tokens bigint, cache_write_tokens bigint,
    thinking_tokens bigint, is_estimated boolean, cost_usd double precision,
    latency_ms double precision, first_token_ms double precision, attempts integer, event text,
    on_behalf_of text, agent text, conversation text, run text, seen_conversation text,
    seen_first bigint, seen_last bigint, seen_sha256 text
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_models, pg_catalog, pg_temp AS $$
    INSERT INTO usage VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
                              $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27,
                              $28, $29)
    ON CONFLICT (tenant, call) DO UPDATE
       SET (ended_at, outcome, error, model, provider, served, input_tokens, output_tokens,
            cache_read_tokens, cache_write_tokens, thinking_tokens, is_estimated, cost_usd,
            latency_ms, first_token_ms, attempts, seen_conversation, seen_first, seen_last,
            seen_sha256)
         = (excluded.ended_at, excluded.outcome, excluded.error, excluded.model, excluded.provider,
            excluded.served, excluded.input_tokens, excluded.output_tokens,
            excluded.cache_read_tokens, excluded.cache_write_tokens, excluded.thinking_tokens,
            excluded.is_estimated, excluded.cost_usd, excluded.latency_ms, excluded.first_token_ms,
            excluded.attempts, excluded.seen_conversation, excluded.seen_first, excluded.seen_last,
            excluded.seen_sha256)
     WHERE usage.outcome IN ('begun', 'lost')
$$;
COMMENT ON FUNCTION record IS 'keeps what a call took';

-- Sums by those properties that `keys` names; a row whose keys are all null and whose `is_total` is
-- true is the sum of them all.
CREATE FUNCTION sums(
    of_tenant text, keys text[], since timestamptz, until timestamptz, of_model text,
    of_agent text, of_conversation text, of_run text, max_rows integer,
    OUT is_total boolean, OUT tenant text, OUT model text, OUT provider text, OUT agent text,
    OUT conversation text, OUT run text, OUT on_behalf_of text, OUT purpose text, OUT day text,
    OUT hour text, OUT calls bigint, OUT failed_calls bigint, OUT input_tokens bigint,
    OUT output_tokens bigint, OUT cache_read_tokens bigint, OUT cache_write_tokens bigint,
    OUT thinking_tokens bigint, OUT cost_usd double precision, OUT unpriced_calls bigint,
    OUT mean_latency_ms double precision, OUT mean_first_token_ms double precision
) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_models, pg_catalog, pg_temp AS $$
    WITH found AS (
        SELECT CASE WHEN 'tenant' = ANY (keys) THEN u.tenant END AS tenant,
               CASE WHEN 'model' = ANY (keys) THEN u.model END AS model,
               CASE WHEN 'provider' = ANY (keys) THEN u.provider END AS provider,
               CASE WHEN 'agent' = ANY (keys) THEN u.agent END AS agent,
               CASE WHEN 'conversation' = ANY (keys) THEN u.conversation END AS conversation,
               CASE WHEN 'run' = ANY (keys) THEN u.run END AS run,
               CASE WHEN 'user' = ANY (keys) THEN u.on_behalf_of END AS on_behalf_of,
               CASE WHEN 'purpose' = ANY (keys) THEN u.purpose END AS purpose,
               CASE WHEN 'day' = ANY (keys)
                    THEN to_char(u.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD') END AS day,
               CASE WHEN 'hour' = ANY (keys)
                    THEN to_char(u.ended_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:00"Z"')
               END AS hour,
               u.outcome, u.input_tokens, u.output_tokens, u.cache_read_tokens,
               u.cache_write_tokens, u.thinking_tokens, u.cost_usd, u.latency_ms,
               u.first_token_ms
          FROM usage u
         WHERE u.tenant = of_tenant
           AND u.outcome <> 'begun'
           AND (since IS NULL OR u.ended_at >= since)
           AND (until IS NULL OR u.ended_at < until)
           AND (of_model IS NULL OR u.model = of_model)
           AND (of_agent IS NULL OR u.agent = of_agent)
           AND (of_conversation IS NULL OR u.conversation = of_conversation)
           AND (of_run IS NULL OR u.run = of_run)
    )
    SELECT grouping(f.tenant, f.model, f.provider, f.agent, f.conversation, f.run,
                    f.on_behalf_of, f.purpose, f.day, f.hour) > 0,
           f.tenant, f.model, f.provider, f.agent, f.conversation, f.run, f.on_behalf_of,
           f.purpose, f.day, f.hour, count(*), count(*) FILTER (WHERE f.outcome <> 'ok'),
           coalesce(sum(f.input_tokens), 0)::bigint, coalesce(sum(f.output_tokens), 0)::bigint,
           coalesce(sum(f.cache_read_tokens), 0)::bigint,
           coalesce(sum(f.cache_write_tokens), 0)::bigint,
           coalesce(sum(f.thinking_tokens), 0)::bigint, coalesce(sum(f.cost_usd), 0),
           count(*) FILTER (WHERE f.cost_usd IS NULL),
           coalesce(avg(f.latency_ms), 0), avg(f.first_token_ms)
      FROM found f
     GROUP BY GROUPING SETS ((f.tenant, f.model, f.provider, f.agent, f.conversation, f.run,
                              f.on_behalf_of, f.purpose, f.day, f.hour), ())
     ORDER BY 1 DESC, coalesce(sum(f.cost_usd), 0) DESC,
              sum(f.input_tokens) + sum(f.output_tokens) DESC, count(*) DESC,
              2, 3, 4, 5, 6, 7, 8, 9, 10, 11
     LIMIT max_rows + 1
$$;
COMMENT ON FUNCTION sums IS 'what a tenant''s calls took, by some of their properties';

-- Whose calls are there? One look into the index for each, however many calls they have.
CREATE FUNCTION tenants(max_rows integer) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_models, pg_catalog, pg_temp AS $$
    WITH RECURSIVE found AS (
        (SELECT u.tenant FROM usage u ORDER BY u.tenant LIMIT 1)
        UNION ALL
        SELECT (SELECT u.tenant FROM usage u WHERE u.tenant > f.tenant ORDER BY u.tenant LIMIT 1)
          FROM found f WHERE f.tenant IS NOT NULL
    )
    SELECT f.tenant FROM found f WHERE f.tenant IS NOT NULL LIMIT max_rows
$$;
COMMENT ON FUNCTION tenants IS 'the tenants that have asked models';

-- Which models has a tenant asked of late?
CREATE FUNCTION models_in_use(of_tenant text, since timestamptz, max_rows integer)
RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_models, pg_catalog, pg_temp AS $$
    SELECT u.model FROM usage u
     WHERE u.tenant = of_tenant AND u.ended_at >= since
     GROUP BY u.model ORDER BY count(*) DESC, u.model LIMIT max_rows
$$;
COMMENT ON FUNCTION models_in_use IS 'the models that a tenant has asked of late';

CREATE FUNCTION lose(older_than interval) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_models, pg_catalog, pg_temp AS $$
    WITH lost AS (
        UPDATE usage u SET outcome = 'lost', error = 'lost'
         WHERE u.outcome = 'begun' AND u.ended_at < now() - older_than
        RETURNING 1
    )
    SELECT count(*) FROM lost
$$;
COMMENT ON FUNCTION lose IS 'marks calls that nobody has ended in time, whosever; says how many';

CREATE FUNCTION forget(older_than interval, max_rows integer) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_models, pg_catalog, pg_temp AS $$
    WITH old AS (
        SELECT u.tenant, u.call FROM usage u WHERE u.ended_at < now() - older_than LIMIT max_rows
    ), gone AS (
        DELETE FROM usage u USING old o WHERE (u.tenant, u.call) = (o.tenant, o.call) RETURNING 1
    )
    SELECT count(*) FROM gone
$$;
COMMENT ON FUNCTION forget IS 'deletes rows that are too old, whosever; says how many';

SELECT ksi_postgres.publish(
    'usage', 'model_calls',
    ARRAY['call', 'ended_at', 'outcome', 'error', 'model_asked', 'model', 'provider', 'served',
          'purpose', 'input_tokens', 'output_tokens', 'cache_read_tokens', 'cache_write_tokens',
          'thinking_tokens', 'is_estimated', 'cost_usd', 'latency_ms', 'first_token_ms',
          'attempts', 'on_behalf_of', 'agent', 'conversation', 'run', 'seen_conversation',
          'seen_first', 'seen_last', 'seen_sha256'],
    'calls of models: what each took, and which messages it saw');

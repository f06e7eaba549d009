-- What happened: one row for each recorded event, in an order that a reader can follow.
--
-- Positions are given out under one lock that is held until the commit, so that they become visible
-- in their own order, whichever daemon wrote: who has seen position p misses nothing by asking for
-- what is greater than p. What is recorded in a transaction of somebody else's, which may take long,
-- does not take that lock: it waits in `waiting` for the next batch of any daemon, which gives it
-- its position.
--
-- Security-relevant rows have partitions of their own, so that a flood of ordinary events can't
-- push them out. A partition is reached through its parent alone.

CREATE SEQUENCE position_seq AS bigint CACHE 1;

-- The newest position that is visible, as a reader's own snapshot has it; a sequence would tell of
-- positions whose rows are not committed yet.
CREATE TABLE head (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    position bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
INSERT INTO head DEFAULT VALUES;
SELECT ksi_postgres.share('head', 'positions are counted for all tenants together');
REVOKE INSERT, UPDATE, DELETE ON head FROM ksi_app;

CREATE TABLE event (
    position bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    is_security boolean NOT NULL,
    at timestamptz NOT NULL,
    name text NOT NULL,
    id text NOT NULL,
    parent text,
    origin text NOT NULL,
    tenant text NOT NULL,
    on_behalf_of text,
    agent text,
    conversation text,
    run text,
    outcome text,
    message text,
    duration_s double precision,
    payload json,
    payload_bytes integer NOT NULL,
    payload_sha256 bytea
) PARTITION BY LIST (is_security);
CREATE TABLE ordinary PARTITION OF event FOR VALUES IN (false) PARTITION BY RANGE (recorded_at);
CREATE TABLE security PARTITION OF event FOR VALUES IN (true) PARTITION BY RANGE (recorded_at);

CREATE INDEX event_position ON event (tenant, position);
CREATE INDEX event_id ON event (tenant, id);
CREATE INDEX event_parent ON event (tenant, parent) WHERE parent IS NOT NULL;
CREATE INDEX event_name ON event (tenant, name, position);
CREATE INDEX event_on_behalf_of ON event (tenant, on_behalf_of, position)
    WHERE on_behalf_of IS NOT NULL;
CREATE INDEX event_agent ON event (tenant, agent, position) WHERE agent IS NOT NULL;
CREATE INDEX event_conversation ON event (tenant, conversation, position)
    WHERE conversation IS NOT NULL;
CREATE INDEX event_run ON event (tenant, run, position) WHERE run IS NOT NULL;
SELECT ksi_postgres.protect('event');
-- Nobody mends what has happened: rows come by functions, and go by retention.
REVOKE INSERT, UPDATE, DELETE ON event FROM ksi_app;

-- Large payloads: each once a day for a tenant, however many events bear it.
CREATE TABLE payload (
    tenant text NOT NULL,
    sha256 bytea NOT NULL,
    kept_on date NOT NULL,
    is_security boolean NOT NULL,
    body json NOT NULL,
    PRIMARY KEY (tenant, sha256, kept_on, is_security)
) PARTITION BY LIST (is_security);
CREATE TABLE ordinary_payload PARTITION OF payload FOR VALUES IN (false)
    PARTITION BY RANGE (kept_on);
CREATE TABLE security_payload PARTITION OF payload FOR VALUES IN (true)
    PARTITION BY RANGE (kept_on);
SELECT ksi_postgres.protect('payload');
REVOKE INSERT, UPDATE, DELETE ON payload FROM ksi_app;

-- Recorded in the transaction of what they record; they have no position yet.
CREATE TABLE waiting (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    name text NOT NULL,
    id text NOT NULL,
    parent text,
    origin text NOT NULL,
    tenant text NOT NULL,
    on_behalf_of text,
    agent text,
    conversation text,
    run text,
    outcome text,
    message text,
    duration_s double precision,
    payload json,
    payload_bytes integer NOT NULL,
    payload_sha256 bytea
);
SELECT ksi_postgres.protect('waiting');
REVOKE INSERT, UPDATE, DELETE ON waiting FROM ksi_app;

-- How far each writer has come, so that a batch whose commit was not heard of is not written twice.
CREATE TABLE writer (
    name text PRIMARY KEY,
    written_through bigint NOT NULL,
    wrote_at timestamptz NOT NULL DEFAULT now()
);
SELECT ksi_postgres.share('writer', 'a daemon writes the events of all tenants in one batch');
REVOKE INSERT, UPDATE, DELETE ON writer FROM ksi_app;

-- What retention has dropped: every position up to this one may be gone.
CREATE TABLE dropped (
    is_security boolean PRIMARY KEY,
    through bigint NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT now()
);
SELECT ksi_postgres.share('dropped', 'positions are counted for all tenants together');
REVOKE INSERT, UPDATE, DELETE ON dropped FROM ksi_app;

CREATE FUNCTION today() RETURNS date
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT (now() AT TIME ZONE 'UTC')::date
$$;

-- Makes a partition without standing in anybody's way: CREATE TABLE … PARTITION OF would lock the
-- parent against readers, and wait for those that read it now.
CREATE FUNCTION attach(parent text, suffix text, starts anyelement, ends anyelement) RETURNS void
LANGUAGE plpgsql SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING INDEXES)',
                   parent || '_' || suffix, parent);
    EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   parent, parent || '_' || suffix, starts, ends);
END $$;
REVOKE EXECUTE ON FUNCTION attach FROM ksi_app;

-- Makes the partitions of a day, or of its month for what is security-relevant.
CREATE FUNCTION make_partitions(of_day date, only_security boolean) RETURNS void
LANGUAGE plpgsql SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
DECLARE
    starts date := of_day;
    ends date := of_day + 1;
    suffix text := to_char(of_day, 'YYYY_MM_DD');
    kind text := 'ordinary';
BEGIN
    IF only_security THEN
        starts := date_trunc('month', of_day)::date;
        ends := (starts + interval '1 month')::date;
        suffix := to_char(starts, 'YYYY_MM');
        kind := 'security';
    END IF;
    IF to_regclass(format('ksi_journal.%I', kind || '_' || suffix)) IS NOT NULL THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('ksi_journal.partitions', 0));
    IF to_regclass(format('ksi_journal.%I', kind || '_' || suffix)) IS NOT NULL THEN
        RETURN;
    END IF;
    -- Days are those of UTC, wherever the server stands.
    PERFORM attach(kind, suffix, starts::timestamp AT TIME ZONE 'UTC',
                   ends::timestamp AT TIME ZONE 'UTC');
    PERFORM attach(kind || '_payload', suffix, starts, ends);
END $$;
REVOKE EXECUTE ON FUNCTION make_partitions FROM ksi_app;

CREATE FUNCTION lock_positions() RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('ksi_journal.positions', 0))
$$;
REVOKE EXECUTE ON FUNCTION lock_positions FROM ksi_app;

-- Writes a batch once, and all that waits; then tells readers that there is more.
--
-- The batch is an array of objects in one text: for the daemon that is the cheapest form, since it
-- has each event as JSON already.
CREATE FUNCTION write(
    writer_name text, through bigint, security boolean, batch json,
    OUT is_new boolean, OUT last_position bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM lock_positions();
    INSERT INTO writer AS w (name, written_through) VALUES (writer_name, through)
    ON CONFLICT (name) DO UPDATE
       SET written_through = excluded.written_through, wrote_at = excluded.wrote_at
     WHERE w.written_through < excluded.written_through;
    is_new := FOUND;
    IF is_new THEN
        PERFORM make_partitions(today(), security);
        WITH given AS MATERIALIZED (
            SELECT r.*
              FROM json_to_recordset(batch) AS r (
                       at double precision, name text, id text, parent text, origin text,
                       tenant text, on_behalf_of text, agent text, conversation text, run text,
                       outcome text, message text, duration_s double precision, payload json,
                       payload_bytes integer, payload_sha256 text)
        ), large AS (
            INSERT INTO payload (tenant, sha256, kept_on, is_security, body)
            SELECT DISTINCT ON (g.tenant, g.payload_sha256)
                   g.tenant, decode(g.payload_sha256, 'hex'), today(), security, g.payload
              FROM given g
             WHERE g.payload_sha256 IS NOT NULL
            ON CONFLICT DO NOTHING
        )
        INSERT INTO event
        SELECT nextval('position_seq'), now(), security, to_timestamp(g.at), g.name, g.id, g.parent,
               g.origin, g.tenant, g.on_behalf_of, g.agent, g.conversation, g.run, g.outcome,
               g.message, g.duration_s, CASE WHEN g.payload_sha256 IS NULL THEN g.payload END,
               g.payload_bytes, decode(g.payload_sha256, 'hex')
          FROM given g;
    END IF;
    last_position := advance(take_in_waiting() OR is_new);
END $$;
COMMENT ON FUNCTION write IS 'writes a batch of events, unless its writer has come further';

-- Gives positions to what other transactions have recorded; the caller holds the lock.
CREATE FUNCTION take_in_waiting() RETURNS boolean
LANGUAGE plpgsql SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM waiting) THEN
        RETURN false;
    END IF;
    PERFORM make_partitions(today(), true);
    WITH moved AS (
        DELETE FROM waiting RETURNING *
    ), large AS (
        INSERT INTO payload (tenant, sha256, kept_on, is_security, body)
        SELECT DISTINCT ON (m.tenant, m.payload_sha256)
               m.tenant, m.payload_sha256, today(), true, m.payload
          FROM moved m
         WHERE m.payload_sha256 IS NOT NULL
        ON CONFLICT DO NOTHING
    ), ordered AS (
        SELECT * FROM moved ORDER BY number
    )
    INSERT INTO event
    SELECT nextval('position_seq'), now(), true, o.at, o.name, o.id, o.parent, o.origin, o.tenant,
           o.on_behalf_of, o.agent, o.conversation, o.run, o.outcome, o.message, o.duration_s,
           CASE WHEN o.payload_sha256 IS NULL THEN o.payload END, o.payload_bytes,
           o.payload_sha256
      FROM ordered o;
    RETURN true;
END $$;
REVOKE EXECUTE ON FUNCTION take_in_waiting FROM ksi_app;

-- Shows readers how far they can read, once this transaction commits.
CREATE FUNCTION advance(is_more boolean) RETURNS bigint
LANGUAGE plpgsql SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
DECLARE
    reached bigint;
BEGIN
    IF NOT is_more THEN
        RETURN (SELECT h.position FROM head h);
    END IF;
    reached := coalesce(pg_sequence_last_value('position_seq'), 0);
    UPDATE head SET position = reached;
    PERFORM pg_notify('ksi_journal', reached::text);
    RETURN reached;
END $$;
REVOKE EXECUTE ON FUNCTION advance FROM ksi_app;

CREATE FUNCTION take_in() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM lock_positions();
    RETURN advance(take_in_waiting());
END $$;
COMMENT ON FUNCTION take_in IS 'gives positions to what was recorded in other transactions';

CREATE FUNCTION record(entry json) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO waiting (at, name, id, parent, origin, tenant, on_behalf_of, agent, conversation,
                         run, outcome, message, duration_s, payload, payload_bytes, payload_sha256)
    SELECT to_timestamp(r.at), r.name, r.id, r.parent, r.origin, r.tenant, r.on_behalf_of, r.agent,
           r.conversation, r.run, r.outcome, r.message, r.duration_s, r.payload, r.payload_bytes,
           decode(r.payload_sha256, 'hex')
      FROM json_to_record(entry) AS r (
               at double precision, name text, id text, parent text, origin text, tenant text,
               on_behalf_of text, agent text, conversation text, run text, outcome text,
               message text, duration_s double precision, payload json, payload_bytes integer,
               payload_sha256 text);
    PERFORM pg_notify('ksi_journal_waiting', '');
END $$;
COMMENT ON FUNCTION record IS 'records in the transaction of what is recorded';

CREATE FUNCTION written_through(writer_name text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
    SELECT w.written_through FROM writer w WHERE w.name = writer_name
$$;

-- Reading. Each function is planned for the arguments that it gets: what is not asked for is no
-- condition, and the index of what is asked for is used.

CREATE FUNCTION read_after(
    of_tenant text, patterns text[], after bigint, at_most integer, max_bytes bigint,
    with_payloads boolean
) RETURNS TABLE (entry event, body json, through bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = ksi_journal, pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    reached bigint := (SELECT h.position FROM head h);
BEGIN
    RETURN QUERY
    SELECT kept, p.body, reached
      FROM (SELECT page.one AS kept,
                   sum((page.one).payload_bytes) OVER (ORDER BY (page.one).position)
                       - (page.one).payload_bytes AS before
              FROM (SELECT e
                      FROM event e
                     WHERE e.tenant = of_tenant
                       AND e.position > after
                       AND e.name LIKE ANY (patterns)
                     ORDER BY e.position
                     LIMIT at_most) AS page (one)) AS counted
      LEFT JOIN payload p ON with_payloads
                         AND (p.tenant, p.sha256, p.is_security, p.kept_on)
                           = (of_tenant, (kept).payload_sha256, (kept).is_security,
                              ((kept).recorded_at AT TIME ZONE 'UTC')::date)
     WHERE before < max_bytes
     ORDER BY (kept).position;
    IF NOT FOUND THEN
        RETURN QUERY SELECT NULL::event, NULL::json, reached;
    END IF;
END $$;
COMMENT ON FUNCTION read_after IS 'a tenant''s events in their order, and how far that reaches';

CREATE FUNCTION history(
    of_tenant text, patterns text[], since timestamptz, until timestamptz, outcomes text[],
    failed_only boolean, of_user text, of_agent text, of_conversation text, of_run text,
    containing text, before bigint, at_most integer
) RETURNS SETOF event
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100
SET search_path = ksi_journal, pg_catalog, pg_temp SET plan_cache_mode = force_custom_plan AS $$
BEGIN
    RETURN QUERY
    SELECT e.*
      FROM event e
     WHERE e.tenant = of_tenant
       AND (patterns IS NULL OR e.name LIKE ANY (patterns))
       AND (since IS NULL OR e.at >= since)
       -- Partitions go by the time of writing; a daemon's clock may go a little before ours.
       AND (since IS NULL OR e.recorded_at >= since - interval '1 day')
       AND (until IS NULL OR e.at < until)
       AND (outcomes IS NULL OR e.outcome = ANY (outcomes))
       AND (NOT failed_only OR e.outcome NOT IN ('ok', 'begun'))
       AND (of_user IS NULL OR e.on_behalf_of = of_user)
       AND (of_agent IS NULL OR e.agent = of_agent)
       AND (of_conversation IS NULL OR e.conversation = of_conversation)
       AND (of_run IS NULL OR e.run = of_run)
       AND (containing IS NULL OR strpos(lower(e.payload::text), lower(containing)) > 0)
       AND (before IS NULL OR e.position < before)
     ORDER BY e.position DESC
     LIMIT at_most;
END $$;
COMMENT ON FUNCTION history IS 'a tenant''s events that pass all filters, the newest first';

CREATE FUNCTION event_with_payload(of_tenant text, event_id text)
RETURNS TABLE (entry event, body json)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
    SELECT e, p.body
      FROM event e
      LEFT JOIN payload p ON (p.tenant, p.sha256, p.is_security, p.kept_on)
                           = (of_tenant, e.payload_sha256, e.is_security,
                              (e.recorded_at AT TIME ZONE 'UTC')::date)
     WHERE e.tenant = of_tenant
       AND e.id = event_id
     ORDER BY e.position
     LIMIT 100
$$;
COMMENT ON FUNCTION event_with_payload IS 'the records of one event';

CREATE FUNCTION root_of(of_tenant text, event_id text, max_depth integer)
RETURNS TABLE (id text, depth integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
    WITH RECURSIVE up (id, depth) AS (
        SELECT event_id, 0
        UNION
        SELECT e.parent, up.depth + 1
          FROM up
          JOIN event e ON e.tenant = of_tenant AND e.id = up.id AND e.parent IS NOT NULL
         WHERE up.depth < max_depth
           AND EXISTS (SELECT FROM event p WHERE p.tenant = of_tenant AND p.id = e.parent)
    )
    SELECT up.id, up.depth FROM up ORDER BY up.depth DESC LIMIT 1
$$;
COMMENT ON FUNCTION root_of IS 'the furthest recorded cause of an event';

CREATE FUNCTION effects(
    of_tenant text, root text, max_depth integer, max_events integer
) RETURNS TABLE (entry event, depth integer)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
    WITH RECURSIVE down (id, depth) AS (
        SELECT root, 0
        UNION
        SELECT e.id, down.depth + 1
          FROM down
          JOIN event e ON e.tenant = of_tenant AND e.parent = down.id
         WHERE down.depth <= max_depth
    ), bounded AS (
        SELECT d.id, d.depth FROM down d LIMIT max_events
    )
    SELECT e, b.depth
      FROM bounded b
      JOIN event e ON e.tenant = of_tenant AND e.id = b.id
     ORDER BY b.depth, e.position
$$;
COMMENT ON FUNCTION effects IS 'an event and all that it caused, level by level';

-- Keeping. The partitions are made ahead of their time and dropped when they are too old, or when
-- all of them together are too large; today's stays in any case.

CREATE FUNCTION partitions() RETURNS TABLE (
    partition text, is_security boolean, is_payload boolean, starts_on date, ends_on date,
    bytes bigint, estimated_rows bigint
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
    SELECT c.relname::text,
           c.relname LIKE 'security%',
           c.relname LIKE '%_payload_%',
           range.starts_on,
           CASE WHEN c.relname LIKE 'security%'
                THEN (range.starts_on + interval '1 month')::date
                ELSE range.starts_on + 1 END,
           pg_total_relation_size(c.oid),
           greatest(c.reltuples, 0)::bigint
      FROM pg_class c
      JOIN pg_inherits i ON i.inhrelid = c.oid
     CROSS JOIN LATERAL (
           SELECT to_date(substring(c.relname FROM '\d.*$')
                          || CASE WHEN c.relname LIKE 'security%' THEN '_01' ELSE '' END,
                          'YYYY_MM_DD')) AS range (starts_on)
     WHERE i.inhparent IN ('ordinary'::regclass, 'security'::regclass,
                           'ordinary_payload'::regclass, 'security_payload'::regclass)
     ORDER BY range.starts_on, c.relname
$$;
COMMENT ON FUNCTION partitions IS 'the parts of the journal, with their sizes';

CREATE FUNCTION make_ahead(days integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_journal, pg_catalog, pg_temp
SET lock_timeout = '2s' AS $$
BEGIN
    FOR day IN 0 .. days LOOP
        PERFORM make_partitions(today() + day, false);
        PERFORM make_partitions(today() + day, true);
    END LOOP;
END $$;
COMMENT ON FUNCTION make_ahead IS 'makes the partitions of the days to come';

CREATE FUNCTION drop_partition(starts date, security boolean) RETURNS bigint
LANGUAGE plpgsql SET search_path = ksi_journal, pg_catalog, pg_temp AS $$
DECLARE
    kind text := CASE WHEN security THEN 'security' ELSE 'ordinary' END;
    suffix text := to_char(starts, CASE WHEN security THEN 'YYYY_MM' ELSE 'YYYY_MM_DD' END);
    last bigint;
BEGIN
    EXECUTE format('SELECT max(position) FROM %I', kind || '_' || suffix) INTO last;
    EXECUTE format('DROP TABLE %I, %I', kind || '_' || suffix, kind || '_payload_' || suffix);
    IF last IS NOT NULL THEN
        INSERT INTO dropped AS d (is_security, through) VALUES (security, last)
        ON CONFLICT (is_security) DO UPDATE
           SET through = greatest(d.through, excluded.through), dropped_at = now();
    END IF;
    RETURN last;
END $$;
REVOKE EXECUTE ON FUNCTION drop_partition FROM ksi_app;

-- Drops one partition, if one is to go. That locks the tables against readers, so it waits for them
-- for a moment only: less than deadlock_timeout, so that it is never a reader who has to give way.
CREATE FUNCTION retain(ordinary_days integer, security_days integer, max_bytes bigint)
RETURNS TABLE (partition text, why text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_journal, pg_catalog, pg_temp
SET lock_timeout = '100ms' AS $$
DECLARE
    each record;
    total bigint;
BEGIN
    FOR each IN
        SELECT p.* FROM partitions() p WHERE NOT p.is_payload ORDER BY p.starts_on
    LOOP
        IF each.ends_on <= today() - (CASE WHEN each.is_security THEN security_days
                                           ELSE ordinary_days END) THEN
            PERFORM drop_partition(each.starts_on, each.is_security);
            partition := each.partition;
            why := 'age';
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
    SELECT sum(p.bytes) INTO total FROM partitions() p WHERE NOT p.is_security;
    FOR each IN
        SELECT p.starts_on, min(p.partition) FILTER (WHERE NOT p.is_payload) AS partition,
               sum(p.bytes) AS bytes
          FROM partitions() p
         WHERE NOT p.is_security AND p.ends_on <= today()
         GROUP BY p.starts_on
         ORDER BY p.starts_on
    LOOP
        EXIT WHEN total <= max_bytes;
        PERFORM drop_partition(each.starts_on, false);
        partition := each.partition;
        why := 'size';
        RETURN NEXT;
        RETURN;
    END LOOP;
    DELETE FROM writer w WHERE w.wrote_at < now() - interval '30 days';
END $$;
COMMENT ON FUNCTION retain IS 'drops the oldest partition, if it is too old or there is too much';

SELECT ksi_postgres.publish(
    'event', 'events',
    ARRAY['position', 'at', 'name', 'id', 'parent', 'origin', 'on_behalf_of', 'agent',
          'conversation', 'run', 'outcome', 'message', 'duration_s', 'payload', 'payload_bytes'],
    'what happened: an event a row, with its cause (parent), outcome and duration');
SELECT make_partitions(today(), false), make_partitions(today(), true);

-- The ledger of effects: what is about to be done is written before, and what came of it after.
--
-- A call belongs to the daemon that makes it by that daemon's lease (ksi_workflows.hold). One that
-- its daemon left behind is repeated where that does no harm, and else is in doubt. What a stored
-- status means:
--   running    somebody does it: the daemon that `executor` and `epoch` name
--   lost       nobody does it any more, and to do it again does no harm: asked again it is done
--   due        a person said that it is to be done again: asked again it is done
--   waiting    a person is to answer
--   in_doubt   nobody knows whether its effect came about; a person is to say
--   done, failed, dropped   for good

SET LOCAL search_path = ksi_tools, public, pg_temp;

CREATE TABLE call (
    tenant text NOT NULL,
    call_id text NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    effects text NOT NULL,
    arguments text NOT NULL,
    digest bytea NOT NULL,
    run text,
    conversation text,
    agent text,
    status text NOT NULL,
    executor text,
    epoch bigint,
    attempt uuid NOT NULL,
    attempts integer NOT NULL DEFAULT 1,
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    duration_ms double precision,
    content text,
    error text,
    size_bytes bigint NOT NULL DEFAULT 0,
    has_output boolean NOT NULL DEFAULT false,
    why text,
    is_signal_due boolean NOT NULL DEFAULT false,
    PRIMARY KEY (tenant, call_id)
);
CREATE INDEX call_newest ON call (tenant, number);
CREATE INDEX call_of_run ON call (tenant, run, number) WHERE run IS NOT NULL;
CREATE INDEX call_of_conversation ON call (tenant, conversation, number)
    WHERE conversation IS NOT NULL;
CREATE INDEX call_open ON call (tenant, status, number)
    WHERE status IN ('running', 'due', 'waiting', 'in_doubt');
CREATE INDEX call_running ON call (executor, epoch) WHERE status = 'running';
CREATE INDEX call_signal_due ON call (ended_at) WHERE is_signal_due;
CREATE INDEX call_ended ON call (ended_at) WHERE ended_at IS NOT NULL;
SELECT ksi_postgres.protect('call');

-- An output that is too large to be handed over whole, in pieces of `piece_chars` characters.
CREATE TABLE output (
    tenant text NOT NULL,
    call_id text NOT NULL,
    piece integer NOT NULL,
    content text NOT NULL,
    PRIMARY KEY (tenant, call_id, piece),
    FOREIGN KEY (tenant, call_id) REFERENCES call ON DELETE CASCADE
);
SELECT ksi_postgres.protect('output');

-- What an agent or a conversation may call, in the words of whoever said so.
CREATE TABLE permission (
    tenant text NOT NULL,
    subject text NOT NULL,
    allow text[],
    deny text[] NOT NULL DEFAULT '{}',
    parent text,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, subject)
);
SELECT ksi_postgres.protect('permission');

-- The globs have '*' and '?', and no character that LIKE takes for something else but '_'.
CREATE FUNCTION matches_any(tool text, globs text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM unnest(globs) AS glob
                    WHERE tool LIKE translate(replace(glob, '_', '\_'), '*?', '%_'))
$$;

-- May a subject call a tool, by its own word and those of all whose child it is? NULL: it has none.
-- A parent that has said nothing may call what is read-only; a chain that is too long allows
-- nothing.
CREATE FUNCTION word_of(of_tenant text, of_subject text, tool text, tool_effects text)
RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    WITH RECURSIVE chain AS (
        SELECT p.allow, p.deny, p.parent, 1 AS depth
          FROM permission p WHERE (p.tenant, p.subject) = (of_tenant, of_subject)
        UNION ALL
        SELECT p.allow, p.deny, p.parent, c.depth + 1
          FROM chain c
          JOIN permission p ON (p.tenant, p.subject) = (of_tenant, c.parent)
         WHERE c.depth < 16
    )
    SELECT bool_and(
               NOT matches_any(tool, c.deny)
               AND CASE WHEN c.allow IS NULL THEN tool_effects = 'read_only'
                        ELSE matches_any(tool, c.allow) END
               AND (c.parent IS NULL
                    OR c.depth < 16
                       AND (tool_effects = 'read_only'
                            OR EXISTS (SELECT FROM permission p
                                        WHERE (p.tenant, p.subject) = (of_tenant, c.parent)))))
      FROM chain c
$$;
COMMENT ON FUNCTION word_of IS 'may a subject call a tool? none: nothing is said of it';

-- What both the agent and the conversation allow; where nothing is said of either, what is
-- read-only.
CREATE FUNCTION is_permitted(of_tenant text, of_agent text, of_conversation text, tool text,
                             tool_effects text)
RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    SELECT coalesce(bool_and(said.word), tool_effects = 'read_only')
      FROM (SELECT word_of(of_tenant, 'agent:' || of_agent, tool, tool_effects)
             WHERE of_agent IS NOT NULL
            UNION ALL
            SELECT word_of(of_tenant, 'conversation:' || of_conversation, tool, tool_effects)
             WHERE of_conversation IS NOT NULL) AS said (word)
$$;
COMMENT ON FUNCTION is_permitted IS 'may an agent, in a conversation, call a tool?';

CREATE FUNCTION which_permitted(of_tenant text, of_agent text, of_conversation text, tools text[],
                                tools_effects text[])
RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(t.tool), '{}')
      FROM unnest(tools, tools_effects) AS t (tool, effects)
     WHERE is_permitted(of_tenant, of_agent, of_conversation, t.tool, t.effects)
$$;
COMMENT ON FUNCTION which_permitted IS 'which of these tools may an agent call in a conversation?';

-- Says what a subject may call. `only_parent`, where it is given, is who says so: an agent has a
-- say in its own children alone.
CREATE FUNCTION permit(of_tenant text, of_subject text, to_allow text[], to_deny text[],
                       under text, only_parent text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
DECLARE
    above text := under;
    depth integer := 1;
BEGIN
    -- Two changes at once could make a cycle that neither of them sees.
    PERFORM pg_advisory_xact_lock(hashtextextended('ksi_tools permissions ' || of_tenant, 0));
    IF only_parent IS NOT NULL AND EXISTS (
        SELECT FROM permission p WHERE (p.tenant, p.subject) = (of_tenant, of_subject)
           AND p.parent IS DISTINCT FROM only_parent) THEN
        RETURN 'not_its_child';
    END IF;
    WHILE above IS NOT NULL LOOP
        IF above = of_subject THEN
            RETURN 'cycle';
        END IF;
        depth := depth + 1;
        IF depth > 16 THEN
            RETURN 'too_deep';
        END IF;
        SELECT p.parent INTO above FROM permission p
         WHERE (p.tenant, p.subject) = (of_tenant, above);
    END LOOP;
    INSERT INTO permission (tenant, subject, allow, deny, parent)
    VALUES (of_tenant, of_subject, to_allow, to_deny, under)
    ON CONFLICT (tenant, subject) DO UPDATE
       SET allow = to_allow, deny = to_deny, parent = under, changed_at = clock_timestamp();
    RETURN 'ok';
END $$;
COMMENT ON FUNCTION permit IS 'says what a subject may call; or why that can''t be said';

-- Who bears the name next is somebody else: nothing is left to him.
CREATE FUNCTION forget_permission(of_tenant text, of_subject text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    DELETE FROM permission p WHERE (p.tenant, p.subject) = (of_tenant, of_subject)
$$;
COMMENT ON FUNCTION forget_permission IS 'says nothing of a subject any more';

CREATE FUNCTION find_permission(of_tenant text, of_subject text) RETURNS SETOF permission
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    SELECT * FROM permission p WHERE (p.tenant, p.subject) = (of_tenant, of_subject)
$$;
COMMENT ON FUNCTION find_permission IS 'what is said of a subject';

-- Is the daemon that began a call still the one that it was?
CREATE FUNCTION is_alive(executor_id text, held_epoch bigint) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM ksi_workflows.executor e
                    WHERE e.id = executor_id AND e.epoch = held_epoch AND e.ended_at IS NULL)
$$;

-- Writes the intent of a call, and says the how manieth time it is made; or says what is known of
-- it. Called again with the same attempt it
-- answers the same: the connection may have broken before the caller knew.
--
-- A caller that asks anew, of the very daemon that has the call, does so only where that daemon
-- has nothing in flight any more under that id.
CREATE FUNCTION begin_call(
    executor_id text, held_epoch bigint, of_tenant text, of_call text, with_attempt uuid,
    tool text, tool_effects text, args text, args_digest bytea,
    of_run text, of_conversation text, of_agent text,
    may_all boolean, is_interactive boolean, question text,
    OUT verdict text, OUT times integer, OUT known call
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM ksi_workflows.hold(executor_id, held_epoch);
    SELECT * INTO known FROM call c WHERE (c.tenant, c.call_id) = (of_tenant, of_call) FOR UPDATE;
    IF NOT FOUND THEN
        IF NOT may_all
           AND NOT is_permitted(of_tenant, of_agent, of_conversation, tool, tool_effects) THEN
            verdict := 'denied';
            RETURN;
        END IF;
        INSERT INTO call (tenant, call_id, name, effects, arguments, digest, run, conversation,
                          agent, status, executor, epoch, attempt, content)
        VALUES (of_tenant, of_call, tool, tool_effects, args, args_digest, of_run,
                of_conversation, of_agent,
                CASE WHEN is_interactive THEN 'waiting' ELSE 'running' END,
                executor_id, held_epoch, with_attempt, question)
        ON CONFLICT DO NOTHING
        RETURNING * INTO known;
        IF FOUND THEN
            verdict := CASE WHEN is_interactive THEN 'asked' ELSE 'run' END;
            times := 1;
            IF NOT is_interactive THEN
                known := NULL; -- the caller has all of it, and to tell it takes time
            END IF;
            RETURN;
        END IF;
        SELECT * INTO known FROM call c
         WHERE (c.tenant, c.call_id) = (of_tenant, of_call) FOR UPDATE;
    END IF;
    IF known.name <> tool OR known.digest <> args_digest
       OR (known.run, known.conversation, known.agent)
          IS DISTINCT FROM (of_run, of_conversation, of_agent) THEN
        verdict := 'other';
        known := NULL;
        RETURN;
    END IF;
    IF known.status = 'running' THEN
        IF known.attempt = with_attempt THEN
            verdict := 'run';
            times := known.attempts;
            known := NULL;
            RETURN;
        ELSIF (known.executor, known.epoch) <> (executor_id, held_epoch)
              AND is_alive(known.executor, known.epoch) THEN
            verdict := 'at_work';
            RETURN;
        ELSIF known.effects = 'effectful' THEN
            UPDATE call c
               SET status = 'in_doubt', ended_at = clock_timestamp(),
                   why = 'the daemon that called it died before it could tell what came of it'
             WHERE (c.tenant, c.call_id) = (of_tenant, of_call)
            RETURNING c.* INTO known;
            verdict := 'doubted';
            RETURN;
        END IF;
    ELSIF known.status NOT IN ('lost', 'due') THEN
        verdict := 'recorded';
        RETURN;
    END IF;
    IF NOT may_all
       AND NOT is_permitted(of_tenant, of_agent, of_conversation, tool, tool_effects) THEN
        verdict := 'denied';
        RETURN;
    END IF;
    UPDATE call c
       SET status = 'running', executor = executor_id, epoch = held_epoch, attempt = with_attempt,
           effects = tool_effects, attempts = c.attempts + 1, begun_at = clock_timestamp(),
           ended_at = NULL, why = NULL, is_signal_due = false
     WHERE (c.tenant, c.call_id) = (of_tenant, of_call)
    RETURNING c.attempts INTO times;
    verdict := 'run';
    known := NULL;
END $$;
COMMENT ON FUNCTION begin_call IS 'writes the intent of a call, or says what came of it before';

-- Writes what came of a call; once, by whoever began it.
CREATE FUNCTION end_call(
    executor_id text, held_epoch bigint, of_tenant text, of_call text, with_attempt uuid,
    to_status text, text_content text, error_body text, text_bytes bigint, took_ms double precision,
    reason text, pieces text[]
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
DECLARE
    known call;
BEGIN
    PERFORM ksi_workflows.hold(executor_id, held_epoch);
    SELECT * INTO known FROM call c WHERE (c.tenant, c.call_id) = (of_tenant, of_call) FOR UPDATE;
    IF NOT FOUND OR known.attempt <> with_attempt THEN
        RETURN 'lost';
    ELSIF known.status <> 'running' THEN
        -- The connection may have broken after it was written.
        RETURN CASE WHEN known.status = to_status THEN 'ok' ELSE 'lost' END;
    END IF;
    UPDATE call c
       SET status = to_status, content = text_content, error = error_body,
           size_bytes = text_bytes, duration_ms = took_ms, why = reason,
           has_output = cardinality(pieces) > 0, ended_at = clock_timestamp()
     WHERE (c.tenant, c.call_id) = (of_tenant, of_call);
    INSERT INTO output (tenant, call_id, piece, content)
    SELECT of_tenant, of_call, each.number - 1, each.piece
      FROM unnest(pieces) WITH ORDINALITY AS each (piece, number);
    RETURN 'ok';
END $$;
COMMENT ON FUNCTION end_call IS 'writes what came of a call; lost: it is no longer the caller''s';

-- A person says what became of a call in doubt, or answers one that waits. The run that waits for
-- it is to be told: `is_signal_due` until that is done.
CREATE FUNCTION settle_call(
    of_tenant text, of_call text, of_agent text, of_conversation text, of_run text,
    from_statuses text[], to_status text, text_content text, text_bytes bigint, reason text,
    OUT verdict text, OUT known call
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
BEGIN
    SELECT * INTO known FROM call c
     WHERE (c.tenant, c.call_id) = (of_tenant, of_call)
       AND (of_agent IS NULL OR c.agent = of_agent)
       AND (of_conversation IS NULL OR c.conversation = of_conversation)
       AND (of_run IS NULL OR c.run = of_run)
       FOR UPDATE;
    IF NOT FOUND THEN
        verdict := 'unknown';
    ELSIF known.status = to_status AND known.content IS NOT DISTINCT FROM text_content THEN
        verdict := 'again';
    ELSIF known.status <> ALL (from_statuses) THEN
        verdict := 'not_so';
    ELSE
        UPDATE call c
           SET status = to_status, content = text_content, error = NULL, size_bytes = text_bytes,
               why = reason,
               ended_at = CASE WHEN to_status = 'due' THEN NULL ELSE clock_timestamp() END,
               is_signal_due = c.run IS NOT NULL
         WHERE (c.tenant, c.call_id) = (of_tenant, of_call)
        RETURNING c.* INTO known;
        verdict := 'ok';
    END IF;
END $$;
COMMENT ON FUNCTION settle_call IS 'settles a call that is in doubt, or waits for a person';

CREATE FUNCTION signalled(of_tenant text, of_call text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    UPDATE call c SET is_signal_due = false WHERE (c.tenant, c.call_id) = (of_tenant, of_call)
$$;
COMMENT ON FUNCTION signalled IS 'notes that the run was told';

CREATE FUNCTION unsignalled(older_than interval, max_rows integer) RETURNS SETOF call
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    SELECT * FROM call c
     WHERE c.is_signal_due
       AND coalesce(c.ended_at, c.begun_at) < clock_timestamp() - older_than
     LIMIT max_rows
$$;
COMMENT ON FUNCTION unsignalled IS 'settled calls whose runs were not told, whosever';

-- Looks after what daemons that are gone have left: what may be repeated is lost, the rest in
-- doubt. Returns what has come to be in doubt.
CREATE FUNCTION doubt_calls(executor_id text, held_epoch bigint, max_rows integer)
RETURNS SETOF call
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM ksi_workflows.hold(executor_id, held_epoch);
    RETURN QUERY
        WITH left_behind AS (
            SELECT c.tenant, c.call_id FROM call c
             WHERE c.status = 'running' AND NOT is_alive(c.executor, c.epoch)
             LIMIT max_rows FOR UPDATE SKIP LOCKED
        ), changed AS (
            UPDATE call c
               SET status = CASE c.effects WHEN 'effectful' THEN 'in_doubt' ELSE 'lost' END,
                   ended_at = clock_timestamp(),
                   why = 'the daemon that called it died before it could tell what came of it'
              FROM left_behind l
             WHERE (c.tenant, c.call_id) = (l.tenant, l.call_id)
            RETURNING c.*
        )
        SELECT * FROM changed WHERE status = 'in_doubt';
END $$;
COMMENT ON FUNCTION doubt_calls IS 'puts in doubt what daemons that are gone have left, whosever';

-- What is shown of a call: by whom it may be seen, and under which of the public statuses.
CREATE FUNCTION list_calls(
    of_tenant text, of_agent text, of_conversation text, of_run text, with_status text,
    of_call text, max_rows integer
) RETURNS SETOF call
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    SELECT * FROM call c
     WHERE c.tenant = of_tenant
       AND (of_call IS NULL OR c.call_id = of_call)
       AND (of_agent IS NULL OR c.agent = of_agent)
       AND (of_conversation IS NULL OR c.conversation = of_conversation)
       AND (of_run IS NULL OR c.run = of_run)
       AND (with_status IS NULL
            OR c.status = ANY (CASE with_status WHEN 'failed' THEN ARRAY['failed', 'lost']
                                                WHEN 'running' THEN ARRAY['running', 'due']
                                                ELSE ARRAY[with_status] END))
     ORDER BY c.number DESC
     LIMIT max_rows
$$;
COMMENT ON FUNCTION list_calls IS 'a tenant''s calls, the newest first';

CREATE FUNCTION read_output(of_tenant text, of_call text, first_piece integer, last_piece integer)
RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    SELECT string_agg(o.content, '' ORDER BY o.piece) FROM output o
     WHERE (o.tenant, o.call_id) = (of_tenant, of_call)
       AND o.piece BETWEEN first_piece AND last_piece
$$;
COMMENT ON FUNCTION read_output IS 'some pieces of an output, as one';

CREATE FUNCTION output_chars(of_tenant text, of_call text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    SELECT sum(length(o.content)) FROM output o WHERE (o.tenant, o.call_id) = (of_tenant, of_call)
$$;
COMMENT ON FUNCTION output_chars IS 'how long is an output, in characters?';

CREATE FUNCTION count_open(of_tenant text) RETURNS TABLE (status text, calls bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    SELECT c.status, count(*) FROM call c
     WHERE c.tenant = of_tenant AND c.status IN ('waiting', 'in_doubt') GROUP BY c.status
$$;
COMMENT ON FUNCTION count_open IS 'how many calls want a person?';

-- What ended long ago is forgotten; what wants a person stays until somebody decides.
CREATE FUNCTION forget_calls(older_than interval, max_rows integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
DECLARE
    forgotten integer;
BEGIN
    DELETE FROM call c
     USING (SELECT o.tenant, o.call_id FROM call o
             WHERE o.ended_at < clock_timestamp() - older_than
               AND o.status IN ('done', 'failed', 'dropped', 'lost')
             LIMIT max_rows FOR UPDATE SKIP LOCKED) AS old
     WHERE (c.tenant, c.call_id) = (old.tenant, old.call_id);
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END $$;
COMMENT ON FUNCTION forget_calls IS 'forgets calls that ended long ago, whosever; says how many';

SELECT ksi_postgres.publish(
    'call', 'tool_calls',
    ARRAY['call_id', 'name', 'effects', 'status', 'run', 'conversation', 'agent', 'arguments',
          'content', 'why', 'size_bytes', 'duration_ms', 'attempts', 'begun_at', 'ended_at'],
    'the ledger of tool calls: what was called, by whom, and what came of it');

-- The intent and the outcome of a call, each written by one look at the table.
--
-- A call is new nearly always, and whoever ends one nearly always has it still: so it is written
-- first, and only where that doesn't succeed is it asked why.

SET LOCAL search_path = ksi_tools, public, pg_temp;

-- Writes the intent of a call, and says the how manieth time it is made; or says what is known of
-- it. Called again with the same attempt it answers the same: the connection may have broken before
-- the caller knew.
--
-- A caller that asks anew, of the very daemon that has the call, does so only where that daemon
-- has nothing in flight any more under that id.
CREATE OR REPLACE FUNCTION begin_call(
    executor_id text, held_epoch bigint, of_tenant text, of_call text, with_attempt uuid,
    tool text, tool_effects text, args text, args_digest bytea,
    of_run text, of_conversation text, of_agent text,
    may_all boolean, is_interactive boolean, question text,
    OUT verdict text, OUT times integer, OUT known call
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
DECLARE
    may_call boolean := may_all
                        OR is_permitted(of_tenant, of_agent, of_conversation, tool, tool_effects);
BEGIN
    PERFORM ksi_workflows.hold(executor_id, held_epoch);
    IF may_call THEN
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
    END IF;
    SELECT * INTO known FROM call c WHERE (c.tenant, c.call_id) = (of_tenant, of_call) FOR UPDATE;
    IF NOT FOUND THEN
        -- One that may be made, but stood in the way of itself, was forgotten in this very moment.
        verdict := CASE WHEN may_call THEN 'at_work' ELSE 'denied' END;
        RETURN;
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
    IF NOT may_call THEN
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

-- Writes what came of a call; once, by whoever began it.
CREATE OR REPLACE FUNCTION end_call(
    executor_id text, held_epoch bigint, of_tenant text, of_call text, with_attempt uuid,
    to_status text, text_content text, error_body text, text_bytes bigint, took_ms double precision,
    reason text, pieces text[]
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
DECLARE
    found_status text;
BEGIN
    PERFORM ksi_workflows.hold(executor_id, held_epoch);
    UPDATE call c
       SET status = to_status, content = text_content, error = error_body,
           size_bytes = text_bytes, duration_ms = took_ms, why = reason,
           has_output = cardinality(pieces) > 0, ended_at = clock_timestamp()
     WHERE (c.tenant, c.call_id) = (of_tenant, of_call)
       AND c.attempt = with_attempt
       AND c.status = 'running';
    IF NOT FOUND THEN
        SELECT c.status INTO found_status FROM call c
         WHERE (c.tenant, c.call_id) = (of_tenant, of_call) AND c.attempt = with_attempt;
        -- The connection may have broken after it was written.
        RETURN CASE WHEN found_status = to_status THEN 'ok' ELSE 'lost' END;
    END IF;
    INSERT INTO output (tenant, call_id, piece, content)
    SELECT of_tenant, of_call, each.number - 1, each.piece
      FROM unnest(pieces) WITH ORDINALITY AS each (piece, number);
    RETURN 'ok';
END $$;

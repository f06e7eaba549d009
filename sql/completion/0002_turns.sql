-- Turns: how they are accepted, begun, gone on with and ended.
--
-- Whatever changes a conversation's turns holds the lock of the conversation's row, so that turns
-- have an order, and one alone is at work. What the daemon at work writes is fenced besides.

-- A run's id is unique among all tenants. What is looked up by it is compared with the tenant in a
-- way that no index serves: before there are statistics, one that begins with the tenant looks as
-- good as that of the runs, and would be read from end to end.

SET LOCAL search_path = ksi_completion, public, pg_temp;

-- Begins the first of a conversation's open turns, unless one is at work or a lock holds.
CREATE FUNCTION claim_next(
    of_tenant text, of_conversation text, OUT next_run text, OUT next_context text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    head turn;
BEGIN
    PERFORM FROM conversation c WHERE (c.tenant, c.id) = (of_tenant, of_conversation) FOR UPDATE;
    SELECT t.* INTO head FROM turn t
     WHERE (t.tenant, t.conversation) = (of_tenant, of_conversation)
       AND t.status IN ('waiting', 'running', 'paused')
     ORDER BY t.number LIMIT 1;
    IF head.status IS DISTINCT FROM 'waiting' OR EXISTS (
        SELECT FROM lock l
         WHERE (l.tenant, l.conversation) = (of_tenant, of_conversation)
           AND l.expires_at > clock_timestamp()
    ) THEN
        RETURN;
    END IF;
    UPDATE turn t SET status = 'running', started_at = clock_timestamp() WHERE t.run = head.run;
    next_run := head.run;
    next_context := head.context;
END $$;
COMMENT ON FUNCTION claim_next IS 'begins the next turn of a conversation, if one may begin';

-- Two statements, each with an index of its own: as one join it could read all conversations.
CREATE FUNCTION lock_conversation_of(of_tenant text, of_run text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    locked text;
BEGIN
    SELECT t.conversation INTO locked FROM turn t
     WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant;
    PERFORM FROM conversation c WHERE (c.tenant, c.id) = (of_tenant, locked) FOR UPDATE;
END $$;
COMMENT ON FUNCTION lock_conversation_of IS 'holds the conversation of a turn until the transaction ends; returns nothing';

-- Gives what was said its numbers, up to a turn.
CREATE FUNCTION take_said(of_tenant text, of_conversation text, up_to bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    said injection;
    next_number bigint;
    taken integer := 0;
BEGIN
    FOR said IN
        SELECT i.* FROM injection i
         WHERE (i.tenant, i.conversation) = (of_tenant, of_conversation)
           AND i.message IS NULL AND i.turn <= up_to
         ORDER BY i.turn, i.id
    LOOP
        UPDATE conversation c
           SET last_message = c.last_message + 1, messages = c.messages + 1,
               updated_at = clock_timestamp()
         WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
        RETURNING c.last_message INTO next_number;
        INSERT INTO message (tenant, conversation, number, turn, role, parts, body, tokens, run)
        VALUES (of_tenant, of_conversation, next_number, said.turn, said.role, said.parts,
                said.body, said.tokens, said.run);
        UPDATE turn t SET first_message = next_number
         WHERE (t.tenant, t.conversation, t.number) = (of_tenant, of_conversation, said.turn)
           AND t.first_message IS NULL;
        IF said.request_id IS NULL THEN
            DELETE FROM injection i
             WHERE (i.tenant, i.conversation, i.id) = (of_tenant, of_conversation, said.id);
        ELSE
            UPDATE injection i SET message = next_number, parts = '', body = ''
             WHERE (i.tenant, i.conversation, i.id) = (of_tenant, of_conversation, said.id);
        END IF;
        taken := taken + 1;
    END LOOP;
    RETURN taken;
END $$;
COMMENT ON FUNCTION take_said IS 'makes messages of what was said; how many?';

-- Accepts a turn, with all that belongs to it, or says why not.
CREATE FUNCTION accept(
    of_tenant text, of_conversation text, of_run text, of_request text, of_digest text,
    of_user text, of_agent text, of_title text, of_model text, of_system text, of_tools text[],
    of_settings text, of_options text, has_schema boolean, of_context text, of_parent text,
    only_agent text, roles text[], all_parts text[], bodies text[], all_tokens integer[],
    max_waiting integer, max_depth integer,
    OUT verdict text, OUT run_id text, OUT conversation_id text, OUT turn_number bigint,
    OUT turn_status text, OUT is_made boolean, OUT next_run text, OUT next_context text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    known turn;
    into_conversation conversation;
    of_depth integer := 0;
    place integer;
BEGIN
    PERFORM pg_advisory_xact_lock(
        hashtextextended('ksi_completion ' || of_tenant || ' ' || of_request, 0));
    is_made := false;
    SELECT t.* INTO known FROM turn t
     WHERE t.request_id = of_request AND t.tenant IS NOT DISTINCT FROM of_tenant;
    IF FOUND THEN
        verdict := CASE WHEN known.digest = of_digest THEN 'same' ELSE 'other' END;
        SELECT known.run, known.conversation, known.number, known.status
          INTO run_id, conversation_id, turn_number, turn_status;
        RETURN;
    END IF;
    IF of_parent IS NOT NULL THEN
        SELECT t.depth + 1 INTO of_depth FROM turn t
         WHERE t.run = of_parent AND t.tenant IS NOT DISTINCT FROM of_tenant;
        of_depth := coalesce(of_depth, 0);
        IF of_depth > max_depth THEN
            verdict := 'deep';
            RETURN;
        END IF;
    END IF;
    INSERT INTO conversation (tenant, id, title, model, agent, owner, system, tools, settings)
    VALUES (of_tenant, of_conversation, of_title, of_model, of_agent, of_user, of_system,
            of_tools, of_settings)
    ON CONFLICT DO NOTHING;
    is_made := FOUND;
    SELECT c.* INTO into_conversation FROM conversation c
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation) FOR UPDATE;
    IF of_user IS NOT NULL AND into_conversation.owner IS DISTINCT FROM of_user
       OR only_agent IS NOT NULL AND into_conversation.agent IS DISTINCT FROM only_agent THEN
        verdict := 'denied';
        RETURN;
    END IF;
    IF into_conversation.archived_at IS NOT NULL THEN
        verdict := 'archived';
        RETURN;
    END IF;
    IF (SELECT count(*) FROM turn t
         WHERE (t.tenant, t.conversation) = (of_tenant, of_conversation)
           AND t.status IN ('waiting', 'running', 'paused')) > max_waiting THEN
        verdict := 'full';
        RETURN;
    END IF;
    UPDATE conversation c
       SET last_turn = c.last_turn + 1, updated_at = clock_timestamp()
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
    RETURNING c.last_turn INTO turn_number;
    INSERT INTO turn (tenant, conversation, number, run, request_id, digest, agent, model, options,
                      has_output, made_conversation, context, parent, depth)
    VALUES (of_tenant, of_conversation, turn_number, of_run, of_request, of_digest, of_agent,
            coalesce(of_model, into_conversation.model), of_options, has_schema, is_made,
            of_context, of_parent, of_depth);
    FOR place IN 1 .. cardinality(roles) LOOP
        INSERT INTO injection (tenant, conversation, turn, role, parts, body, tokens, run)
        VALUES (of_tenant, of_conversation, turn_number, roles[place], all_parts[place],
                bodies[place], all_tokens[place], of_run);
    END LOOP;
    SELECT n.next_run, n.next_context INTO next_run, next_context
      FROM claim_next(of_tenant, of_conversation) n;
    verdict := 'new';
    run_id := of_run;
    conversation_id := of_conversation;
    turn_status := CASE WHEN next_run = of_run THEN 'running' ELSE 'waiting' END;
END $$;
COMMENT ON FUNCTION accept IS 'accepts a turn; verdict: new, same, other, archived, full, deep, denied';

-- Says something to the turn at work, if there is one.
CREATE FUNCTION inject(
    of_tenant text, of_conversation text, of_user text, of_request text, of_parts text,
    of_body text, of_tokens integer, max_waiting integer, OUT verdict text, OUT run_id text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    into_conversation conversation;
    at_work turn;
BEGIN
    SELECT c.* INTO into_conversation FROM conversation c
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation) FOR UPDATE;
    IF NOT FOUND OR (of_user IS NOT NULL AND into_conversation.owner IS DISTINCT FROM of_user) THEN
        verdict := 'not_found';
        RETURN;
    END IF;
    SELECT i.run INTO run_id FROM injection i
     WHERE (i.tenant, i.request_id) = (of_tenant, of_request);
    IF FOUND THEN
        verdict := 'same';
        RETURN;
    END IF;
    SELECT t.* INTO at_work FROM turn t
     WHERE (t.tenant, t.conversation) = (of_tenant, of_conversation)
       AND t.status IN ('running', 'paused') AND t.stopping IS NULL
     ORDER BY t.number LIMIT 1;
    IF NOT FOUND THEN
        verdict := 'idle';
        RETURN;
    END IF;
    IF (SELECT count(*) FROM injection i
         WHERE (i.tenant, i.conversation) = (of_tenant, of_conversation)
           AND i.message IS NULL) >= max_waiting THEN
        verdict := 'full';
        RETURN;
    END IF;
    INSERT INTO injection (tenant, conversation, turn, request_id, parts, body, tokens, run)
    VALUES (of_tenant, of_conversation, at_work.number, of_request, of_parts, of_body, of_tokens,
            at_work.run);
    verdict := 'ok';
    run_id := at_work.run;
END $$;
COMMENT ON FUNCTION inject IS 'leaves a message for the turn at work; verdict: ok, same, idle, full, not_found';

-- What the daemon at work has to know of a turn.
CREATE TYPE turn_state AS (
    verdict text,
    conversation text,
    number bigint,
    request_id text,
    agent text,
    model text,
    options text,
    context text,
    system text,
    tools text[],
    settings text,
    depth integer,
    made_conversation boolean,
    attempt integer,
    is_again boolean,
    units bigint,
    marks text[],
    steps integer,
    tool_calls integer,
    usage text,
    cost_usd numeric,
    has_unknown_cost boolean,
    elapsed_s double precision,
    first_message bigint,
    last_message bigint,
    stopping text,
    waits_for text,
    waits_call text,
    done_parts text
);

CREATE FUNCTION state_of(of_tenant text, of_run text) RETURNS turn_state
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT ROW(
        CASE WHEN t.status IN ('running', 'paused') THEN 'ok' ELSE 'over' END,
        t.conversation, t.number, t.request_id, t.agent, t.model, t.options, t.context,
        c.system, c.tools, c.settings, t.depth, t.made_conversation, t.attempt, false, t.units,
        t.marks, t.steps, t.tool_calls, t.usage, t.cost_usd, t.has_unknown_cost,
        extract(epoch FROM clock_timestamp() - t.started_at) - t.paused_s
            - coalesce(extract(epoch FROM clock_timestamp() - t.paused_at), 0),
        t.first_message, c.last_message, t.stopping, t.waits_for, t.waits_call, NULL)::turn_state
      FROM turn t JOIN conversation c ON (c.tenant, c.id) = (t.tenant, t.conversation)
     WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant
$$;
COMMENT ON FUNCTION state_of IS 'what the daemon at work has to know of a turn';

-- Begins a step: what was said becomes messages, and a step that was begun before begins anew.
CREATE FUNCTION open_step(
    executor text, epoch bigint, of_tenant text, of_run text, at_step integer
) RETURNS turn_state
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    at_work turn;
    again boolean;
    found_parts text;
    state turn_state;
BEGIN
    PERFORM ksi_workflows.hold(executor, epoch);
    -- Nothing rests on this that a later commit does not make last, and the model waits for it.
    SET LOCAL synchronous_commit = off;
    PERFORM lock_conversation_of(of_tenant, of_run);
    SELECT t.* INTO at_work FROM turn t WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant;
    IF NOT FOUND THEN
        state.verdict := 'over';
        RETURN state;
    END IF;
    IF at_work.status NOT IN ('running', 'paused') OR at_work.stopping IS NOT NULL THEN
        RETURN state_of(of_tenant, of_run);
    END IF;
    SELECT m.parts INTO found_parts FROM message m
     WHERE (m.run, m.step, m.place) = (of_run, at_step, 0)
       AND m.tenant IS NOT DISTINCT FROM of_tenant;
    again := at_work.opened >= at_step AND found_parts IS NULL;
    IF found_parts IS NULL THEN
        PERFORM take_said(of_tenant, at_work.conversation, at_work.number);
        UPDATE turn t
           SET opened = greatest(t.opened, at_step), waits_for = NULL,
               attempt = t.attempt + CASE WHEN again THEN 1 ELSE 0 END
         WHERE t.run = of_run;
    END IF;
    state := state_of(of_tenant, of_run);
    state.is_again := again;
    state.done_parts := found_parts;
    IF found_parts IS NOT NULL THEN
        state.verdict := 'done';
    END IF;
    RETURN state;
END $$;
COMMENT ON FUNCTION open_step IS 'begins a step of a turn; verdict: ok, done, over';

CREATE FUNCTION begin_anew(executor text, epoch bigint, of_tenant text, of_run text)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    now_attempt integer;
BEGIN
    PERFORM ksi_workflows.hold(executor, epoch);
    UPDATE turn t SET attempt = t.attempt + 1 WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant
    RETURNING t.attempt INTO now_attempt;
    RETURN now_attempt;
END $$;
COMMENT ON FUNCTION begin_anew IS 'counts that a turn''s stream begins anew; the attempt that it is now';

-- Ends a turn, and begins the next of the conversation. What was said to it stays.
CREATE FUNCTION end_turn(
    of_tenant text, of_run text, of_status text, of_error text,
    OUT next_run text, OUT next_context text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    ended turn;
    next_open bigint;
BEGIN
    UPDATE turn t
       SET status = of_status, error = of_error, ended_at = clock_timestamp(), waits_for = NULL,
           waits_call = NULL, paused_at = NULL, marks = '{}'
     WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant
    RETURNING * INTO ended;
    SELECT min(t.number) INTO next_open FROM turn t
     WHERE (t.tenant, t.conversation) = (of_tenant, ended.conversation)
       AND t.status IN ('waiting', 'running', 'paused');
    PERFORM take_said(of_tenant, ended.conversation, coalesce(next_open - 1, 9223372036854775807));
    UPDATE conversation c SET updated_at = clock_timestamp()
     WHERE (c.tenant, c.id) = (of_tenant, ended.conversation);
    SELECT n.next_run, n.next_context INTO next_run, next_context
      FROM claim_next(of_tenant, ended.conversation) n;
END $$;
COMMENT ON FUNCTION end_turn IS 'ends a turn and begins the next one';

CREATE TYPE turn_outcome AS (
    run text,
    conversation text,
    request_id text,
    number bigint,
    status text,
    agent text,
    parent text,
    owner text,
    model text,
    waits_for text,
    waits_call text,
    stopping text,
    error text,
    steps integer,
    tool_calls integer,
    usage text,
    cost_usd numeric,
    has_unknown_cost boolean,
    attempt integer,
    units bigint,
    has_output boolean,
    accepted_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    parts text
);

CREATE FUNCTION outcome(of_tenant text, of_run text) RETURNS SETOF turn_outcome
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT t.run, t.conversation, t.request_id, t.number, t.status, t.agent, t.parent, c.owner,
           coalesce(t.served, t.model), t.waits_for, t.waits_call, t.stopping, t.error, t.steps, t.tool_calls, t.usage,
           t.cost_usd, t.has_unknown_cost, t.attempt, t.units,
           t.has_output, t.accepted_at, t.started_at, t.ended_at,
           (SELECT m.parts FROM message m
             WHERE m.run = of_run AND m.step IS NOT NULL
               AND m.tenant IS NOT DISTINCT FROM of_tenant AND m.place = 0
             ORDER BY m.step DESC LIMIT 1)
      FROM turn t JOIN conversation c ON (c.tenant, c.id) = (t.tenant, t.conversation)
     WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant
$$;
COMMENT ON FUNCTION outcome IS 'how a turn ended, or how it stands';

-- Keeps what came of a step, once, and ends the turn where it is to end; a turn to which something
-- was said meanwhile goes on instead of succeeding. Without parts it keeps nothing.
CREATE FUNCTION commit(
    executor text, epoch bigint, of_tenant text, of_run text, at_step integer, at_place integer,
    of_role text, of_parts text, of_body text, of_tokens integer, of_units bigint,
    of_attempt integer, of_model text, of_usage text, of_cost numeric, is_model_call boolean,
    total_usage text, of_calls integer, of_marks text[], ends_as text, of_error text,
    OUT verdict text, OUT message_number bigint, OUT next_run text, OUT next_context text,
    OUT ended turn_outcome
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    at_work turn;
BEGIN
    PERFORM ksi_workflows.hold(executor, epoch);
    PERFORM lock_conversation_of(of_tenant, of_run);
    SELECT t.* INTO at_work FROM turn t WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant;
    IF NOT FOUND OR at_work.status NOT IN ('running', 'paused') THEN
        verdict := 'over';
        RETURN;
    END IF;
    IF of_parts IS NOT NULL THEN
        SELECT m.number INTO message_number FROM message m
         WHERE (m.run, m.step, m.place) = (of_run, at_step, at_place)
           AND m.tenant IS NOT DISTINCT FROM of_tenant;
        IF NOT FOUND THEN
            UPDATE conversation c
               SET last_message = c.last_message + 1, messages = c.messages + 1,
                   updated_at = clock_timestamp()
             WHERE (c.tenant, c.id) = (of_tenant, at_work.conversation)
            RETURNING c.last_message INTO message_number;
            INSERT INTO message (tenant, conversation, number, turn, step, place, role, parts, body,
                                 tokens, run, model, usage, cost_usd, units, attempt)
            VALUES (of_tenant, at_work.conversation, message_number, at_work.number, at_step,
                    at_place, of_role, of_parts, of_body, of_tokens, of_run, of_model, of_usage,
                    of_cost, of_units, of_attempt);
            UPDATE turn t
               SET units = t.units + of_units,
                   steps = t.steps + CASE WHEN is_model_call THEN 1 ELSE 0 END,
                   tool_calls = t.tool_calls + of_calls,
                   usage = coalesce(total_usage, t.usage),
                   cost_usd = CASE WHEN is_model_call
                                   THEN coalesce(t.cost_usd, 0) + coalesce(of_cost, 0)
                                   ELSE t.cost_usd END,
                   has_unknown_cost = t.has_unknown_cost OR (is_model_call AND of_cost IS NULL),
                   served = coalesce(of_model, t.served),
                   marks = t.marks || of_marks
             WHERE t.run = of_run;
        END IF;
    END IF;
    verdict := 'ok';
    IF ends_as = 'succeeded' AND EXISTS (
        SELECT FROM injection i
         WHERE (i.tenant, i.conversation, i.turn)
             = (of_tenant, at_work.conversation, at_work.number)
           AND i.message IS NULL
    ) THEN
        verdict := 'more';
    ELSIF ends_as IS NOT NULL THEN
        SELECT e.next_run, e.next_context INTO next_run, next_context
          FROM end_turn(of_tenant, of_run, ends_as, of_error) e;
        SELECT o.* INTO ended FROM outcome(of_tenant, of_run) o;
        verdict := 'ended';
    ELSIF at_work.stopping IS NOT NULL THEN
        verdict := 'stopping';
    END IF;
END $$;
COMMENT ON FUNCTION commit IS 'keeps what came of a step; verdict: ok, more, ended, stopping, over';

CREATE FUNCTION set_waiting(
    executor text, epoch bigint, of_tenant text, of_run text, of_status text, waits text,
    waits_on text
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    why text;
BEGIN
    PERFORM ksi_workflows.hold(executor, epoch);
    UPDATE turn t
       SET status = of_status, waits_for = waits, waits_call = waits_on,
           paused_s = t.paused_s
               + coalesce(extract(epoch FROM clock_timestamp() - t.paused_at), 0),
           paused_at = CASE WHEN of_status = 'paused' THEN clock_timestamp() END
     WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant AND t.status IN ('running', 'paused')
    RETURNING CASE WHEN t.stopping IS NULL THEN 'ok' ELSE 'stopping' END INTO why;
    RETURN coalesce(why, 'over');
END $$;
COMMENT ON FUNCTION set_waiting IS 'notes that a turn pauses, or goes on; verdict: ok, stopping, over';

-- Has a turn cancelled: one that waits ends here, one at work by the daemon that is at it.
CREATE FUNCTION cancel(of_tenant text, of_run text, why text, OUT verdict text, OUT call_id text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    asked turn;
BEGIN
    PERFORM lock_conversation_of(of_tenant, of_run);
    SELECT t.* INTO asked FROM turn t WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant;
    IF NOT FOUND THEN
        verdict := 'not_found';
    ELSIF asked.status IN ('succeeded', 'failed', 'cancelled') THEN
        verdict := asked.status;
    ELSIF asked.status = 'waiting' THEN
        PERFORM end_turn_waiting(of_tenant, of_run, why);
        verdict := 'cancelled';
    ELSE
        UPDATE turn t SET stopping = coalesce(t.stopping, why) WHERE t.run = of_run;
        verdict := 'stopping';
        call_id := asked.waits_call;
    END IF;
END $$;
COMMENT ON FUNCTION cancel IS 'has a turn cancelled; verdict: stopping, not_found, or its status';

-- What was said stays: it becomes messages once no turn before it is open.
CREATE FUNCTION end_turn_waiting(of_tenant text, of_run text, why text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    ended turn;
    first_open bigint;
BEGIN
    UPDATE turn t
       SET status = 'cancelled', ended_at = clock_timestamp(), stopping = why
     WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant
    RETURNING * INTO ended;
    SELECT min(t.number) INTO first_open FROM turn t
     WHERE (t.tenant, t.conversation) = (of_tenant, ended.conversation)
       AND t.status IN ('waiting', 'running', 'paused');
    PERFORM take_said(of_tenant, ended.conversation, coalesce(first_open - 1, ended.number));
END $$;
COMMENT ON FUNCTION end_turn_waiting IS 'ends a turn that has not begun';

CREATE FUNCTION list_turns(
    of_tenant text, of_user text, of_conversation text, of_agent text, statuses text[],
    before_at timestamptz, before_run text, at_most integer
) RETURNS SETOF turn_outcome
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT t.run, t.conversation, t.request_id, t.number, t.status, t.agent, t.parent, c.owner,
           coalesce(t.served, t.model), t.waits_for, t.waits_call, t.stopping, t.error, t.steps, t.tool_calls, t.usage,
           t.cost_usd, t.has_unknown_cost, t.attempt, t.units, false, t.accepted_at, t.started_at,
           t.ended_at, NULL
      FROM turn t JOIN conversation c ON (c.tenant, c.id) = (t.tenant, t.conversation)
     WHERE t.tenant = of_tenant
       AND (of_user IS NULL OR c.owner = of_user)
       AND (of_conversation IS NULL OR t.conversation = of_conversation)
       AND (of_agent IS NULL OR t.agent = of_agent)
       AND (statuses IS NULL OR t.status = ANY (statuses))
       AND (before_at IS NULL OR (t.accepted_at, t.run) < (before_at, before_run))
     ORDER BY t.accepted_at DESC, t.run DESC
     LIMIT at_most
$$;
COMMENT ON FUNCTION list_turns IS 'a tenant''s turns, the newest first';

-- What a turn has said, to be streamed again.
CREATE FUNCTION said_by_turn(of_tenant text, of_run text, from_unit bigint)
RETURNS TABLE (step integer, place integer, parts text, model text, usage text, cost_usd numeric,
               units bigint, attempt integer, starts_at bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT s.step, s.place, CASE WHEN s.starts_at + s.units > from_unit THEN s.parts END, s.model,
           s.usage, s.cost_usd, s.units, s.attempt, s.starts_at
      FROM (SELECT m.*, (sum(m.units) OVER (ORDER BY m.step, m.place) - m.units)::bigint AS starts_at
              FROM message m
             WHERE m.run = of_run AND m.step IS NOT NULL
               AND m.tenant IS NOT DISTINCT FROM of_tenant) s
     ORDER BY s.step, s.place
$$;
COMMENT ON FUNCTION said_by_turn IS 'the messages that a turn has made, with their place in its stream';

-- What nobody is at: turns that may begin, and those that were begun and not handed over.
CREATE FUNCTION due(handed_over_s double precision, at_most integer)
RETURNS TABLE (of_tenant text, run_id text, context text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    seen record;
BEGIN
    FOR seen IN
        SELECT h.tenant, h.conversation FROM (
            SELECT DISTINCT ON (t.tenant, t.conversation) t.tenant, t.conversation, t.status
              FROM turn t WHERE t.status IN ('waiting', 'running', 'paused')
             ORDER BY t.tenant, t.conversation, t.number
        ) h
         WHERE h.status = 'waiting'
           AND NOT EXISTS (SELECT FROM lock l
                            WHERE (l.tenant, l.conversation) = (h.tenant, h.conversation)
                              AND l.expires_at > clock_timestamp())
         LIMIT at_most
    LOOP
        PERFORM FROM conversation c WHERE (c.tenant, c.id) = (seen.tenant, seen.conversation)
            FOR UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        SELECT seen.tenant, n.next_run, n.next_context INTO of_tenant, run_id, context
          FROM claim_next(seen.tenant, seen.conversation) n;
        IF run_id IS NOT NULL THEN
            RETURN NEXT;
        END IF;
    END LOOP;
    RETURN QUERY
    SELECT t.tenant, t.run, t.context FROM turn t
     WHERE t.status = 'running' AND t.opened = 0
       AND t.started_at < clock_timestamp() - make_interval(secs => handed_over_s)
     LIMIT at_most;
END $$;
COMMENT ON FUNCTION due IS 'begins turns that may begin and names those that nobody has taken on';

-- Turns at work, for a look at whether their runs are.
CREATE FUNCTION at_work(older_than_s double precision, at_most integer)
RETURNS TABLE (of_tenant text, run_id text, context text, status text, call_id text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT t.tenant, t.run, t.context, t.status, t.waits_call FROM turn t
     WHERE t.status IN ('running', 'paused')
       AND t.started_at < clock_timestamp() - make_interval(secs => older_than_s)
     ORDER BY t.started_at
     LIMIT at_most
$$;
COMMENT ON FUNCTION at_work IS 'turns that are at work, the oldest first';

-- What turns say just now, for those who follow them through another daemon. It needs not outlive
-- a crash: whoever is at a turn then begins its step anew.
CREATE UNLOGGED TABLE relay (
    tenant text NOT NULL,
    run text NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    chunks text NOT NULL, -- JSON of a list of ksi_completion.events.StreamChunk
    made_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, run, id)
);
SELECT ksi_postgres.protect('relay');

CREATE FUNCTION hand_on(of_tenant text, of_run text, of_chunks text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO relay (tenant, run, chunks) VALUES (of_tenant, of_run, of_chunks);
    PERFORM pg_notify('ksi_completion', 'relayed ' || of_run);
END $$;
COMMENT ON FUNCTION hand_on IS 'hands what a turn says to other daemons';

CREATE FUNCTION handed_on(of_tenant text, of_run text, after_id bigint, at_most integer)
RETURNS TABLE (id bigint, chunks text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT r.id, r.chunks FROM relay r
     WHERE (r.tenant, r.run) = (of_tenant, of_run) AND r.id > after_id
     ORDER BY r.id LIMIT at_most
$$;
COMMENT ON FUNCTION handed_on IS 'what a turn has said, as its daemon hands it on';

CREATE FUNCTION end_relay(of_tenant text, of_run text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    DELETE FROM relay r WHERE (r.tenant, r.run) = (of_tenant, of_run)
$$;
COMMENT ON FUNCTION end_relay IS 'forgets what a turn has said: its conversation has it';

-- What was left by daemons that died.
CREATE FUNCTION tidy_relay(older_than_s double precision) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    DELETE FROM relay r WHERE r.made_at < clock_timestamp() - make_interval(secs => older_than_s)
$$;
COMMENT ON FUNCTION tidy_relay IS 'forgets what daemons that died had handed on; returns nothing';

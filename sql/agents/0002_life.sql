-- The life of agents: what is wanted of each, what is so, and the messages that it is to work off.
--
-- Whatever changes an agent holds the lock of its row; several are locked in the order of their
-- names. One at rest has no due_at, and costs nothing but its row: whoever sweeps looks at those
-- alone that have one, and puts it off while he is at it.

SET LOCAL search_path = ksi_agents, public, pg_temp;

-- What agents run by, each text once: a definition that is deleted stays with those who have it.
CREATE TABLE blueprint (
    tenant text NOT NULL,
    digest text NOT NULL,
    definition text NOT NULL, -- JSON of ksi_agents.definition.Definition, with what it extends
    PRIMARY KEY (tenant, digest)
);
SELECT ksi_postgres.protect('blueprint');

CREATE TABLE agent (
    tenant text NOT NULL,
    name text NOT NULL,
    id text NOT NULL, -- who bears the name next has another
    definition text NOT NULL,
    version integer NOT NULL,
    digest text NOT NULL,
    is_inline boolean NOT NULL,
    owner text,
    parent text,
    parent_run text,
    conversation text NOT NULL,
    labels jsonb NOT NULL,
    desired text NOT NULL DEFAULT 'running',
    phase text NOT NULL DEFAULT 'Starting',
    reason text NOT NULL DEFAULT '',
    conditions jsonb NOT NULL DEFAULT '{}',
    policy text NOT NULL, -- its restarts, as its definition has them
    max_restarts integer NOT NULL,
    window_s double precision NOT NULL,
    delay_s double precision NOT NULL,
    max_delay_s double precision NOT NULL,
    failed_at timestamptz[] NOT NULL DEFAULT '{}', -- its failures within the window
    starts integer NOT NULL DEFAULT 1,
    restarts integer NOT NULL DEFAULT 0,
    next_start_at timestamptz,
    is_start_due boolean NOT NULL DEFAULT false, -- once what it is at has ended
    is_errand boolean NOT NULL, -- it ends with its mailbox
    at_work bigint, -- the message that is given
    run text, -- of that message's turn, once that is known
    last_mail bigint NOT NULL DEFAULT 0,
    waiting integer NOT NULL DEFAULT 0,
    request_id text,
    request_digest text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    used_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    due_at timestamptz, -- when somebody is to look after it
    PRIMARY KEY (tenant, name),
    UNIQUE (tenant, id),
    FOREIGN KEY (tenant, digest) REFERENCES blueprint
);
CREATE INDEX agent_due ON agent (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX agent_living ON agent (tenant) WHERE ended_at IS NULL;
CREATE INDEX agent_ended ON agent (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX agent_of_parent ON agent (tenant, parent) WHERE parent IS NOT NULL;
CREATE INDEX agent_of_blueprint ON agent (tenant, digest);
CREATE UNIQUE INDEX agent_of_request ON agent (tenant, request_id) WHERE request_id IS NOT NULL;
SELECT ksi_postgres.protect('agent');

CREATE TABLE mail (
    tenant text NOT NULL,
    agent text NOT NULL, -- its id
    number bigint NOT NULL,
    message_id text NOT NULL,
    status text NOT NULL,
    prompt text NOT NULL,
    context text NOT NULL, -- JSON of the ksi_daemon.protocol.Context in which it was sent
    sender text, -- the agent that has sent it
    channel text,
    is_awaited boolean NOT NULL, -- by its sender
    asker text, -- the daemon through which somebody waits for it; '*': through several
    run text,
    error text, -- JSON of ksi_daemon.protocol.ErrorBody
    accepted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    given_at timestamptz,
    ended_at timestamptz,
    PRIMARY KEY (tenant, agent, number),
    UNIQUE (tenant, agent, message_id),
    FOREIGN KEY (tenant, agent) REFERENCES agent (tenant, id) ON DELETE CASCADE
);
CREATE INDEX mail_waiting ON mail (tenant, agent, number) WHERE status = 'waiting';
CREATE INDEX mail_awaited ON mail (tenant, agent) WHERE is_awaited AND ended_at IS NULL;
SELECT ksi_postgres.protect('mail');

CREATE TABLE entry (
    tenant text NOT NULL,
    agent text NOT NULL, -- its id
    number bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL,
    message text NOT NULL,
    run text,
    PRIMARY KEY (tenant, agent, number),
    FOREIGN KEY (tenant, agent) REFERENCES agent (tenant, id) ON DELETE CASCADE
);
COMMENT ON TABLE entry IS 'what happened to agents';
SELECT ksi_postgres.protect('entry');

CREATE TABLE subscription (
    tenant text NOT NULL,
    channel text NOT NULL,
    agent text NOT NULL, -- its id
    PRIMARY KEY (tenant, channel, agent),
    FOREIGN KEY (tenant, agent) REFERENCES agent (tenant, id) ON DELETE CASCADE
);
CREATE INDEX subscription_of_agent ON subscription (tenant, agent);
SELECT ksi_postgres.protect('subscription');

-- A condition has changed if its status has.
CREATE FUNCTION with_condition(
    conditions jsonb, of_type text, of_status text, of_reason text, of_message text DEFAULT ''
) RETURNS jsonb
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT conditions || jsonb_build_object(of_type, jsonb_build_object(
        'status', of_status, 'reason', of_reason, 'message', of_message,
        'since', CASE WHEN conditions -> of_type ->> 'status' = of_status
                      THEN conditions -> of_type -> 'since'
                      ELSE to_jsonb(clock_timestamp()) END))
$$;
COMMENT ON FUNCTION with_condition IS 'an agent''s conditions, one of them set';

CREATE FUNCTION note(
    of_tenant text, of_agent text, of_kind text, of_message text, of_run text DEFAULT NULL
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    INSERT INTO entry (tenant, agent, kind, message, run)
    VALUES (of_tenant, of_agent, of_kind, left(of_message, 2000), of_run)
$$;
COMMENT ON FUNCTION note IS 'notes something that happened to an agent; returns nothing';

-- What was long ago is forgotten now and then: of what happened, and of messages that have ended.
CREATE FUNCTION forget_past(of_tenant text, of_agent text, kept integer) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    DELETE FROM entry e
     WHERE (e.tenant, e.agent) = (of_tenant, of_agent)
       AND e.number <= (SELECT y.number FROM entry y
                         WHERE (y.tenant, y.agent) = (of_tenant, of_agent)
                         ORDER BY y.number DESC OFFSET kept LIMIT 1);
    DELETE FROM mail m
     WHERE (m.tenant, m.agent) = (of_tenant, of_agent) AND m.ended_at IS NOT NULL
       AND m.number <= (SELECT a.last_mail - kept FROM agent a
                         WHERE (a.tenant, a.id) = (of_tenant, of_agent));
$$;
COMMENT ON FUNCTION forget_past IS 'forgets what is long past of an agent; returns nothing';

-- Gives an agent that is ready the first of its messages.
CREATE FUNCTION take_head(of_tenant text, of_agent text, OUT a agent, OUT m mail)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
BEGIN
    SELECT x.* INTO a FROM agent x WHERE (x.tenant, x.id) = (of_tenant, of_agent) FOR UPDATE;
    IF NOT FOUND OR a.desired <> 'running' OR a.phase <> 'Ready' OR a.waiting = 0 THEN
        RETURN;
    END IF;
    UPDATE mail x SET status = 'given', given_at = clock_timestamp()
     WHERE (x.tenant, x.agent) = (of_tenant, of_agent)
       AND x.number = (SELECT min(y.number) FROM mail y
                        WHERE (y.tenant, y.agent, y.status) = (of_tenant, of_agent, 'waiting'))
    RETURNING x.* INTO m;
    UPDATE agent x
       SET phase = 'Busy', reason = '', at_work = m.number, run = NULL, waiting = x.waiting - 1,
           used_at = clock_timestamp(), due_at = clock_timestamp() + interval '15 s'
     WHERE (x.tenant, x.id) = (of_tenant, of_agent)
    RETURNING x.* INTO a;
END $$;
COMMENT ON FUNCTION take_head IS 'gives a ready agent its next message, if there is one';

-- Whoever is awaited by one waits for all that this one waits for: by the messages that are open.
CREATE FUNCTION is_awaited_by(of_tenant text, of_sender text, of_name text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    WITH RECURSIVE waiting AS (
        SELECT of_sender AS name
        UNION
        SELECT m.sender
          FROM waiting w
          JOIN agent a ON (a.tenant, a.name) = (of_tenant, w.name)
          JOIN mail m ON (m.tenant, m.agent) = (of_tenant, a.id)
         WHERE m.is_awaited AND m.ended_at IS NULL
    )
    SELECT EXISTS (SELECT FROM waiting w WHERE w.name = of_name)
$$;
COMMENT ON FUNCTION is_awaited_by IS 'would two agents wait for one another?';

-- Puts a message into a mailbox, and gives it at once where the agent is ready.
CREATE FUNCTION post(
    of_tenant text, of_user text, of_name text, of_message text, of_prompt text, of_context text,
    of_sender text, of_channel text, awaited boolean, of_asker text, max_mailbox integer,
    OUT verdict text, OUT a agent, OUT m mail
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    is_given boolean;
BEGIN
    IF awaited AND of_sender IS NOT NULL THEN -- two who ask one another at once see each other
        PERFORM pg_advisory_xact_lock(hashtextextended('ksi_agents ask ' || of_tenant, 0));
    END IF;
    SELECT x.* INTO a FROM agent x WHERE (x.tenant, x.name) = (of_tenant, of_name) FOR UPDATE;
    IF NOT FOUND OR (of_user IS NOT NULL AND a.owner IS DISTINCT FROM of_user) THEN
        verdict := 'not_found';
        RETURN;
    END IF;
    UPDATE mail x
       SET asker = CASE WHEN x.asker IS NULL OR of_asker IS NULL OR x.asker = of_asker
                        THEN coalesce(of_asker, x.asker) ELSE '*' END
     WHERE (x.tenant, x.agent, x.message_id) = (of_tenant, a.id, of_message)
    RETURNING x.* INTO m;
    IF FOUND THEN
        verdict := CASE WHEN m.prompt = of_prompt THEN 'same' ELSE 'other' END;
        RETURN;
    END IF;
    IF a.ended_at IS NOT NULL THEN
        verdict := 'ended';
        RETURN;
    END IF;
    IF a.waiting >= max_mailbox THEN
        verdict := 'full';
        RETURN;
    END IF;
    IF awaited AND of_sender IS NOT NULL AND is_awaited_by(of_tenant, of_sender, of_name) THEN
        verdict := 'cycle';
        RETURN;
    END IF;
    is_given := a.phase = 'Ready' AND a.desired = 'running' AND a.waiting = 0;
    UPDATE agent x
       SET last_mail = x.last_mail + 1, used_at = clock_timestamp(),
           waiting = x.waiting + CASE WHEN is_given THEN 0 ELSE 1 END,
           phase = CASE WHEN is_given THEN 'Busy' ELSE x.phase END,
           at_work = CASE WHEN is_given THEN x.last_mail + 1 ELSE x.at_work END,
           run = CASE WHEN is_given THEN NULL ELSE x.run END,
           due_at = CASE WHEN is_given THEN clock_timestamp() + interval '15 s' ELSE x.due_at END
     WHERE (x.tenant, x.id) = (of_tenant, a.id)
    RETURNING x.* INTO a;
    INSERT INTO mail AS x (tenant, agent, number, message_id, status, prompt, context, sender,
                           channel, is_awaited, asker, given_at)
    VALUES (of_tenant, a.id, a.last_mail, of_message,
            CASE WHEN is_given THEN 'given' ELSE 'waiting' END, of_prompt, of_context, of_sender,
            of_channel, awaited AND of_sender IS NOT NULL, of_asker,
            CASE WHEN is_given THEN clock_timestamp() END)
    RETURNING x.* INTO m;
    verdict := CASE WHEN is_given THEN 'given' ELSE 'waiting' END;
END $$;
COMMENT ON FUNCTION post IS 'puts a message into a mailbox; verdict: given, waiting, same, other, not_found, ended, full, cycle';

-- Has a new agent, or says why not. One that has ended leaves its name to the next.
CREATE FUNCTION spawn(
    of_tenant text, of_user text, of_name text, of_id text, of_definition text,
    of_version integer, of_digest text, of_text text, inline boolean, of_parent text,
    of_parent_run text, of_conversation text, of_labels text, of_policy text,
    of_max_restarts integer, of_window_s double precision, of_delay_s double precision,
    of_max_delay_s double precision, errand boolean, of_request text, of_request_digest text,
    of_prompt text, of_context text, max_agents integer,
    OUT verdict text, OUT a agent
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    above agent;
BEGIN
    IF of_request IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(
            hashtextextended('ksi_agents spawn ' || of_tenant || ' ' || of_request, 0));
        SELECT x.* INTO a FROM agent x WHERE (x.tenant, x.request_id) = (of_tenant, of_request);
        IF FOUND THEN
            verdict := CASE WHEN a.request_digest = of_request_digest THEN 'same' ELSE 'other' END;
            RETURN;
        END IF;
    END IF;
    IF of_parent IS NOT NULL THEN
        SELECT x.* INTO above FROM agent x
         WHERE (x.tenant, x.name) = (of_tenant, of_parent) FOR SHARE;
        IF FOUND AND above.ended_at IS NOT NULL THEN
            verdict := 'orphan';
            RETURN;
        END IF;
    END IF;
    IF (SELECT count(*) FROM agent x WHERE x.tenant = of_tenant AND x.ended_at IS NULL)
       >= max_agents THEN
        verdict := 'full';
        RETURN;
    END IF;
    DELETE FROM agent x
     WHERE (x.tenant, x.name) = (of_tenant, of_name)
       AND x.ended_at IS NOT NULL AND x.at_work IS NULL;
    INSERT INTO blueprint (tenant, digest, definition) VALUES (of_tenant, of_digest, of_text)
    ON CONFLICT DO NOTHING;
    INSERT INTO agent AS x (tenant, name, id, definition, version, digest, is_inline, owner,
                            parent, parent_run, conversation, labels, policy, max_restarts,
                            window_s, delay_s, max_delay_s, is_errand, request_id, request_digest,
                            conditions, due_at)
    VALUES (of_tenant, of_name, of_id, of_definition, of_version, of_digest, inline, of_user,
            of_parent, of_parent_run, of_conversation, of_labels::jsonb, of_policy,
            of_max_restarts, of_window_s, of_delay_s, of_max_delay_s, errand, of_request,
            of_request_digest, with_condition('{}', 'Ready', 'False', 'Starting'),
            clock_timestamp() + interval '10 s')
    ON CONFLICT (tenant, name) DO NOTHING
    RETURNING x.* INTO a;
    IF NOT FOUND THEN
        verdict := 'exists';
        RETURN;
    END IF;
    PERFORM note(of_tenant, of_id, 'spawned', format(
        'by %s, version %s%s', of_definition, of_version, coalesce(', under ' || of_parent, '')),
        of_parent_run);
    IF of_prompt IS NOT NULL THEN
        INSERT INTO mail (tenant, agent, number, message_id, status, prompt, context, sender,
                          is_awaited)
        VALUES (of_tenant, of_id, 1, of_id || '-first', 'waiting', of_prompt, of_context, of_parent, false);
        UPDATE agent x SET last_mail = 1, waiting = 1 WHERE (x.tenant, x.id) = (of_tenant, of_id);
    END IF;
    SELECT x.* INTO a FROM agent x WHERE (x.tenant, x.id) = (of_tenant, of_id);
    verdict := 'new';
END $$;
COMMENT ON FUNCTION spawn IS 'has a new agent; verdict: new, same, other, exists, full, orphan';

-- Notes that a start has begun; a start that another one has overtaken has not.
CREATE FUNCTION begin_start(of_tenant text, of_agent text, of_start integer)
RETURNS SETOF agent
LANGUAGE sql SECURITY DEFINER ROWS 1 SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    UPDATE agent x
       SET phase = 'Starting', reason = '', next_start_at = NULL,
           due_at = clock_timestamp() + interval '15 s'
     WHERE (x.tenant, x.id, x.starts) = (of_tenant, of_agent, of_start)
       AND x.phase IN ('Pending', 'Starting') AND x.ended_at IS NULL
    RETURNING x.*
$$;
COMMENT ON FUNCTION begin_start IS 'notes that an agent is being started';

-- Counts a failure: the agent is started again after a while, or has failed for good.
CREATE FUNCTION fail(of_tenant text, of_agent text, of_reason text, of_message text)
RETURNS SETOF agent
LANGUAGE plpgsql SECURITY DEFINER ROWS 1 SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    failing agent;
    failures integer;
    pause_s double precision;
    gave_up text;
BEGIN
    UPDATE agent x
       SET failed_at = array_append(ARRAY(
               SELECT f FROM unnest(x.failed_at) AS f
                WHERE f > clock_timestamp() - make_interval(secs => x.window_s)
                ORDER BY f DESC LIMIT 1000), clock_timestamp())
     WHERE (x.tenant, x.id) = (of_tenant, of_agent)
    RETURNING x.* INTO failing;
    failures := cardinality(failing.failed_at);
    gave_up := CASE WHEN failing.policy = 'never' THEN of_reason
                    WHEN failing.policy = 'on-failure' AND failures > failing.max_restarts
                    THEN 'CrashLoopBackOff' END;
    IF gave_up IS NOT NULL THEN
        PERFORM note(of_tenant, of_agent, 'failed', gave_up || ': ' || of_message);
        RETURN QUERY
        UPDATE agent x
           SET phase = 'Failed', reason = gave_up, due_at = NULL, next_start_at = NULL,
               is_start_due = false,
               conditions = with_condition(x.conditions, 'Ready', 'False', gave_up, of_message)
         WHERE (x.tenant, x.id) = (of_tenant, of_agent)
        RETURNING x.*;
        RETURN;
    END IF;
    pause_s := least(failing.max_delay_s, failing.delay_s * 2.0 ^ least(failures - 1, 60));
    PERFORM note(of_tenant, of_agent, 'failed', format(
        '%s: %s; it is started again in %s s', of_reason, of_message, round(pause_s::numeric, 1)));
    RETURN QUERY
    UPDATE agent x
       SET phase = 'Pending', reason = 'BackOff', starts = x.starts + 1,
           restarts = x.restarts + 1, is_start_due = false,
           next_start_at = clock_timestamp() + make_interval(secs => pause_s),
           due_at = clock_timestamp() + make_interval(secs => pause_s),
           conditions = with_condition(x.conditions, 'Ready', 'False', of_reason, of_message)
     WHERE (x.tenant, x.id) = (of_tenant, of_agent)
    RETURNING x.*;
END $$;
COMMENT ON FUNCTION fail IS 'counts an agent''s failure, and says how it goes on';

-- Ends a start: the agent is ready, and given its first message; or it has failed.
CREATE FUNCTION end_start(
    of_tenant text, of_agent text, of_start integer, why_not text, of_message text, probed text,
    OUT a agent, OUT m mail
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    taken record;
BEGIN
    SELECT x.* INTO a FROM agent x
     WHERE (x.tenant, x.id, x.starts, x.phase) = (of_tenant, of_agent, of_start, 'Starting')
       AND x.ended_at IS NULL FOR UPDATE;
    IF NOT FOUND THEN
        a := NULL;
        RETURN;
    END IF;
    IF why_not IS NOT NULL THEN
        SELECT f.* INTO a FROM fail(of_tenant, of_agent, why_not, of_message) f;
        RETURN;
    END IF;
    UPDATE agent x
       SET phase = 'Ready', due_at = NULL, is_start_due = false,
           reason = CASE WHEN x.desired = 'paused' THEN 'Paused' ELSE '' END,
           conditions = with_condition(
               with_condition(x.conditions, 'Probed', 'True', probed),
               'Ready', CASE WHEN x.desired = 'paused' THEN 'False' ELSE 'True' END,
               CASE WHEN x.desired = 'paused' THEN 'Paused' ELSE 'Started' END)
     WHERE (x.tenant, x.id) = (of_tenant, of_agent)
    RETURNING x.* INTO a;
    PERFORM note(of_tenant, of_agent, 'ready',
                 CASE WHEN a.restarts = 0 THEN 'started' ELSE 'started again' END);
    IF a.waiting > 0 AND a.desired = 'running' THEN
        SELECT t.a, t.m INTO taken FROM take_head(of_tenant, of_agent) t;
        a := taken.a;
        m := taken.m;
    END IF;
END $$;
COMMENT ON FUNCTION end_start IS 'ends an agent''s start';

-- Ends the message that an agent is at, and has it go on: with the next one, or a new start.
CREATE FUNCTION end_mail(
    of_tenant text, of_agent text, of_number bigint, of_status text, of_error text, of_run text,
    why_failed text, kept integer,
    OUT verdict text, OUT of_asker text, OUT a agent, OUT m mail
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    ended mail;
    taken record;
    goes_on boolean;
BEGIN
    SELECT x.* INTO a FROM agent x
     WHERE (x.tenant, x.id, x.at_work) = (of_tenant, of_agent, of_number) FOR UPDATE;
    IF NOT FOUND THEN
        verdict := 'over';
        RETURN;
    END IF;
    UPDATE mail x
       SET status = of_status, error = of_error, run = coalesce(of_run, x.run),
           ended_at = clock_timestamp()
     WHERE (x.tenant, x.agent, x.number) = (of_tenant, of_agent, of_number)
    RETURNING x.* INTO ended;
    of_asker := ended.asker;
    verdict := 'ended';
    goes_on := a.ended_at IS NULL AND NOT a.is_start_due AND of_status <> 'failed'
        AND NOT (a.is_errand AND a.waiting = 0);
    UPDATE agent x
       SET at_work = NULL, run = NULL, due_at = NULL, used_at = clock_timestamp(),
           phase = CASE WHEN goes_on THEN 'Ready' ELSE x.phase END,
           reason = CASE WHEN NOT goes_on THEN x.reason
                         WHEN x.desired = 'paused' THEN 'Paused' ELSE '' END
     WHERE (x.tenant, x.id) = (of_tenant, of_agent)
    RETURNING x.* INTO a;
    PERFORM note(of_tenant, of_agent, 'message', format('%s %s%s', of_number, of_status,
                 coalesce(': ' || why_failed, '')), of_run);
    IF of_number % 100 = 0 THEN
        PERFORM forget_past(of_tenant, of_agent, kept);
    END IF;
    IF a.ended_at IS NOT NULL THEN
        RETURN;
    END IF;
    IF a.is_start_due THEN
        SELECT r.* INTO a FROM start_anew(of_tenant, of_agent) r;
    ELSIF of_status = 'failed' THEN
        SELECT f.* INTO a FROM fail(of_tenant, of_agent, 'TurnFailed', why_failed) f;
    ELSIF NOT goes_on THEN
        UPDATE agent x
           SET phase = 'Completed', desired = 'ended', ended_at = clock_timestamp(),
               reason = CASE WHEN of_status = 'cancelled' THEN 'Cancelled' ELSE '' END,
               conditions = with_condition(x.conditions, 'Ready', 'False', 'Completed')
         WHERE (x.tenant, x.id) = (of_tenant, of_agent)
        RETURNING x.* INTO a;
        PERFORM note(of_tenant, of_agent, 'completed', 'its mailbox is worked off');
    ELSIF a.waiting > 0 AND a.desired = 'running' THEN
        SELECT t.a, t.m INTO taken FROM take_head(of_tenant, of_agent) t;
        a := taken.a;
        m := taken.m;
    END IF;
END $$;
COMMENT ON FUNCTION end_mail IS 'ends a message; verdict: ended, over';

CREATE FUNCTION start_anew(of_tenant text, of_agent text) RETURNS SETOF agent
LANGUAGE sql SECURITY DEFINER ROWS 1 SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    UPDATE agent x
       SET phase = 'Pending', reason = 'Restarted', starts = x.starts + 1, failed_at = '{}',
           restarts = x.restarts + 1, next_start_at = NULL, is_start_due = false,
           desired = 'running', ended_at = NULL, due_at = clock_timestamp() + interval '10 s',
           conditions = with_condition(x.conditions, 'Ready', 'False', 'Starting')
     WHERE (x.tenant, x.id) = (of_tenant, of_agent)
    RETURNING x.*
$$;
COMMENT ON FUNCTION start_anew IS 'has an agent started anew';

-- Starts an agent anew by another blueprint; where it is at a message, once that has ended.
CREATE FUNCTION restart(
    of_tenant text, of_agent text, of_definition text, of_version integer, of_digest text,
    of_text text, of_policy text, of_max_restarts integer, of_window_s double precision,
    of_delay_s double precision, of_max_delay_s double precision, errand boolean
) RETURNS SETOF agent
LANGUAGE plpgsql SECURITY DEFINER ROWS 1 SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO blueprint (tenant, digest, definition) VALUES (of_tenant, of_digest, of_text)
    ON CONFLICT DO NOTHING;
    UPDATE agent x
       SET definition = of_definition, version = of_version, digest = of_digest,
           policy = of_policy, max_restarts = of_max_restarts, window_s = of_window_s,
           delay_s = of_delay_s, max_delay_s = of_max_delay_s,
           is_errand = errand AND x.is_errand, is_start_due = true
     WHERE (x.tenant, x.id) = (of_tenant, of_agent) AND x.phase <> 'Terminated';
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM note(of_tenant, of_agent, 'restarted', format('by %s, version %s', of_definition,
                                                          of_version));
    RETURN QUERY SELECT x.* FROM agent x
                  WHERE (x.tenant, x.id) = (of_tenant, of_agent) AND x.at_work IS NOT NULL;
    IF NOT FOUND THEN
        RETURN QUERY SELECT * FROM start_anew(of_tenant, of_agent);
    END IF;
END $$;
COMMENT ON FUNCTION restart IS 'has an agent started anew, by what its definition says now';

-- Which agents are meant? `under` is an agent that has a say in its own descendants alone.
CREATE FUNCTION chosen(
    of_tenant text, of_user text, under text, patterns text[], of_labels text,
    idle_s double precision, with_children boolean, with_ended boolean
) RETURNS SETOF agent
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    WITH RECURSIVE below AS (
        SELECT x.name FROM agent x WHERE (x.tenant, x.parent) = (of_tenant, under)
        UNION
        SELECT x.name FROM agent x JOIN below b ON (x.tenant, x.parent) = (of_tenant, b.name)
    ), named AS (
        SELECT x.name FROM agent x
         WHERE x.tenant = of_tenant
           AND (with_ended OR x.ended_at IS NULL)
           AND (of_user IS NULL OR x.owner = of_user)
           AND (under IS NULL OR x.name IN (SELECT b.name FROM below b))
           AND (cardinality(patterns) = 0 OR EXISTS (
                    SELECT FROM unnest(patterns) AS p WHERE x.name LIKE p))
           AND x.labels @> of_labels::jsonb
           AND (idle_s IS NULL OR x.at_work IS NULL
                AND x.used_at < clock_timestamp() - make_interval(secs => idle_s))
        UNION
        SELECT x.name FROM agent x JOIN named n ON (x.tenant, x.parent) = (of_tenant, n.name)
         WHERE with_children AND (with_ended OR x.ended_at IS NULL)
    )
    SELECT x.* FROM agent x
     WHERE x.tenant = of_tenant AND x.name IN (SELECT n.name FROM named n)
     ORDER BY x.name
$$;
COMMENT ON FUNCTION chosen IS 'which agents are meant, by name';

CREATE FUNCTION pause(of_tenant text, agents text[]) RETURNS SETOF agent
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    meant agent;
BEGIN
    FOR meant IN
        SELECT x.* FROM agent x WHERE x.tenant = of_tenant AND x.id = ANY (agents)
         ORDER BY x.name FOR UPDATE
    LOOP
        IF meant.ended_at IS NULL AND meant.desired = 'running' THEN
            PERFORM note(of_tenant, meant.id, 'paused', 'it takes no more messages');
        END IF;
        RETURN QUERY
        UPDATE agent x
           SET desired = CASE WHEN x.ended_at IS NULL THEN 'paused' ELSE x.desired END,
               reason = CASE WHEN x.phase = 'Ready' THEN 'Paused' ELSE x.reason END,
               conditions = CASE WHEN x.phase IN ('Ready', 'Busy')
                   THEN with_condition(x.conditions, 'Ready', 'False', 'Paused')
                   ELSE x.conditions END
         WHERE (x.tenant, x.id) = (of_tenant, meant.id)
        RETURNING x.*;
    END LOOP;
END $$;
COMMENT ON FUNCTION pause IS 'has agents take no more messages';

CREATE FUNCTION resume(of_tenant text, of_agent text, OUT a agent, OUT m mail)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    taken record;
BEGIN
    UPDATE agent x
       SET desired = 'running',
           reason = CASE WHEN x.phase = 'Ready' THEN '' ELSE x.reason END,
           conditions = CASE WHEN x.phase IN ('Ready', 'Busy')
               THEN with_condition(x.conditions, 'Ready', 'True', 'Resumed')
               ELSE x.conditions END
     WHERE (x.tenant, x.id, x.desired) = (of_tenant, of_agent, 'paused')
    RETURNING x.* INTO a;
    IF NOT FOUND THEN
        SELECT x.* INTO a FROM agent x WHERE (x.tenant, x.id) = (of_tenant, of_agent);
        RETURN;
    END IF;
    PERFORM note(of_tenant, of_agent, 'resumed', 'it takes messages');
    IF a.phase = 'Ready' AND a.waiting > 0 THEN
        SELECT t.a, t.m INTO taken FROM take_head(of_tenant, of_agent) t;
        a := taken.a;
        m := taken.m;
    END IF;
END $$;
COMMENT ON FUNCTION resume IS 'has an agent go on';

-- Ends agents for good. What waits is cancelled here; what runs, by whoever cancels its turn, and
-- until then somebody is to look after it.
CREATE FUNCTION terminate(of_tenant text, agents text[], why text) RETURNS SETOF agent
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    meant agent;
BEGIN
    FOR meant IN
        SELECT x.* FROM agent x
         WHERE x.tenant = of_tenant AND x.id = ANY (agents) AND x.phase <> 'Terminated'
         ORDER BY x.name FOR UPDATE
    LOOP
        UPDATE mail x SET status = 'cancelled', ended_at = clock_timestamp()
         WHERE (x.tenant, x.agent, x.status) = (of_tenant, meant.id, 'waiting');
        DELETE FROM subscription s WHERE (s.tenant, s.agent) = (of_tenant, meant.id);
        PERFORM note(of_tenant, meant.id, 'terminated', why, meant.run);
        RETURN QUERY
        UPDATE agent x
           SET desired = 'ended', phase = 'Terminated', reason = left(why, 500), waiting = 0,
               ended_at = clock_timestamp(), next_start_at = NULL, is_start_due = false,
               due_at = CASE WHEN x.at_work IS NULL THEN NULL
                             ELSE clock_timestamp() + interval '5 s' END,
               conditions = with_condition(x.conditions, 'Ready', 'False', 'Terminated', why)
         WHERE (x.tenant, x.id) = (of_tenant, meant.id)
        RETURNING x.*;
    END LOOP;
END $$;
COMMENT ON FUNCTION terminate IS 'ends agents for good';

-- Agents that somebody is to look after; whoever asks is to do it, and others are not for a while.
-- At a daemon's start it is all that are not at rest: what it was at before, nobody is at now.
CREATE FUNCTION due(at_start boolean, at_most integer)
RETURNS TABLE (a agent, m mail)
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    WITH seen AS (
        SELECT x.tenant, x.name FROM agent x
         WHERE x.due_at IS NOT NULL
           AND (x.due_at <= clock_timestamp()
                OR at_start AND coalesce(x.next_start_at <= clock_timestamp(), true))
         ORDER BY x.due_at LIMIT at_most FOR UPDATE SKIP LOCKED
    ), taken AS (
        -- A message that takes long is looked after the less often.
        UPDATE agent x
           SET due_at = clock_timestamp() + least(interval '5 min', greatest(interval '15 s',
                   (SELECT (clock_timestamp() - y.given_at) / 2 FROM mail y
                     WHERE (y.tenant, y.agent, y.number) = (x.tenant, x.id, x.at_work))))
          FROM seen s
         WHERE (x.tenant, x.name) = (s.tenant, s.name)
        RETURNING x.*
    )
    SELECT t::agent, y FROM taken t
      LEFT JOIN mail y ON (y.tenant, y.agent, y.number) = (t.tenant, t.id, t.at_work)
$$;
COMMENT ON FUNCTION due IS 'agents that somebody is to look after';

CREATE FUNCTION end_wait(of_tenant text, of_agent text, of_number bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    UPDATE mail m SET is_awaited = false
     WHERE (m.tenant, m.agent, m.number) = (of_tenant, of_agent, of_number) AND m.is_awaited
$$;
COMMENT ON FUNCTION end_wait IS 'notes that a message''s sender waits no more; returns nothing';

CREATE FUNCTION note_runs(each_tenant text[], agents text[], numbers bigint[], runs text[])
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    UPDATE agent x SET run = r.run
      FROM unnest(each_tenant, agents, numbers, runs) AS r (tenant, agent, number, run)
     WHERE (x.tenant, x.id, x.at_work) = (r.tenant, r.agent, r.number)
$$;
COMMENT ON FUNCTION note_runs IS 'notes the runs of messages that are worked at; returns nothing';

CREATE FUNCTION find_agent(of_tenant text, of_user text, of_name text) RETURNS SETOF agent
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT x.* FROM agent x
     WHERE (x.tenant, x.name) = (of_tenant, of_name) AND (of_user IS NULL OR x.owner = of_user)
$$;
COMMENT ON FUNCTION find_agent IS 'the agent of that name';

-- Those that some event is to wake, whosever.
CREATE FUNCTION awaiting_events() RETURNS SETOF agent
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT x.*
      FROM agent x
      JOIN blueprint b ON (b.tenant, b.digest) = (x.tenant, x.digest)
     WHERE x.ended_at IS NULL AND b.definition LIKE '%"schedule":%'
$$;
COMMENT ON FUNCTION awaiting_events IS 'agents whose definitions say what wakes them';

CREATE FUNCTION find_blueprint(of_tenant text, of_digest text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT b.definition FROM blueprint b WHERE (b.tenant, b.digest) = (of_tenant, of_digest)
$$;
COMMENT ON FUNCTION find_blueprint IS 'what agents run by';

CREATE FUNCTION list_agents(
    of_tenant text, of_user text, pattern text, of_definition text, phases text[],
    of_labels text, of_parent text, with_ended boolean, after_name text, at_most integer
) RETURNS SETOF agent
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT x.* FROM agent x
     WHERE x.tenant = of_tenant
       AND (of_user IS NULL OR x.owner = of_user)
       AND x.name LIKE pattern
       AND (of_definition IS NULL OR x.definition = of_definition)
       AND (cardinality(phases) = 0 OR x.phase = ANY (phases))
       AND x.labels @> of_labels::jsonb
       AND (of_parent IS NULL OR x.parent = of_parent)
       AND (with_ended OR cardinality(phases) > 0 OR x.ended_at IS NULL)
       AND (after_name IS NULL OR x.name > after_name)
     ORDER BY x.name LIMIT at_most
$$;
COMMENT ON FUNCTION list_agents IS 'a tenant''s agents, by name';

CREATE FUNCTION list_mail(of_tenant text, of_agent text, at_most integer) RETURNS SETOF mail
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT m.* FROM (
        SELECT x.* FROM mail x WHERE (x.tenant, x.agent) = (of_tenant, of_agent)
         ORDER BY x.number DESC LIMIT at_most
    ) m ORDER BY m.number
$$;
COMMENT ON FUNCTION list_mail IS 'the newest messages of an agent, in their order';

CREATE FUNCTION find_mail(of_tenant text, of_agent text, of_number bigint) RETURNS SETOF mail
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT x.* FROM mail x WHERE (x.tenant, x.agent, x.number) = (of_tenant, of_agent, of_number)
$$;
COMMENT ON FUNCTION find_mail IS 'a message in a mailbox';

CREATE FUNCTION list_entries(of_tenant text, of_agent text, before_number bigint, at_most integer)
RETURNS SETOF entry
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT x.* FROM entry x
     WHERE (x.tenant, x.agent) = (of_tenant, of_agent)
       AND (before_number IS NULL OR x.number < before_number)
     ORDER BY x.number DESC LIMIT at_most
$$;
COMMENT ON FUNCTION list_entries IS 'what happened to an agent, the newest first';

-- Has an agent get what is published on a channel, or no more; returns its channels.
CREATE FUNCTION subscribe(of_tenant text, of_agent text, to_channel text, wanted boolean)
RETURNS text[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
BEGIN
    IF wanted THEN
        INSERT INTO subscription (tenant, channel, agent)
        SELECT x.tenant, to_channel, x.id FROM agent x
         WHERE (x.tenant, x.id) = (of_tenant, of_agent) AND x.ended_at IS NULL
        ON CONFLICT DO NOTHING;
    ELSE
        DELETE FROM subscription s
         WHERE (s.tenant, s.channel, s.agent) = (of_tenant, to_channel, of_agent);
    END IF;
    RETURN channels_of(of_tenant, of_agent);
END $$;
COMMENT ON FUNCTION subscribe IS 'subscribes an agent to a channel, or ends that; its channels';

CREATE FUNCTION channels_of(of_tenant text, of_agent text) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(s.channel ORDER BY s.channel), '{}') FROM subscription s
     WHERE (s.tenant, s.agent) = (of_tenant, of_agent)
$$;
COMMENT ON FUNCTION channels_of IS 'the channels that an agent is subscribed to';

-- Puts a message into the mailboxes of all who are subscribed, but of its sender.
CREATE FUNCTION publish(
    of_tenant text, of_user text, to_channel text, of_message text, of_prompt text,
    of_context text, of_sender text, max_mailbox integer
) RETURNS TABLE (verdict text, name text, a agent, m mail)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
DECLARE
    posted record;
BEGIN
    FOR name IN
        SELECT x.name FROM subscription s
          JOIN agent x ON (x.tenant, x.id) = (s.tenant, s.agent)
         WHERE (s.tenant, s.channel) = (of_tenant, to_channel)
           AND x.ended_at IS NULL AND x.name IS DISTINCT FROM of_sender
           AND (of_user IS NULL OR x.owner = of_user)
         ORDER BY x.name
    LOOP
        SELECT p.verdict, p.a, p.m INTO posted
          FROM post(of_tenant, of_user, name, of_message, of_prompt, of_context, of_sender,
                    to_channel, false, NULL, max_mailbox) p;
        verdict := posted.verdict;
        a := posted.a;
        m := posted.m;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION publish IS 'puts a message into the mailboxes of a channel''s subscribers';

-- Blueprints that nobody runs by any more.
CREATE FUNCTION forget_blueprints(at_most integer) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    DELETE FROM blueprint b
     WHERE (b.tenant, b.digest) IN (
        SELECT c.tenant, c.digest FROM blueprint c
         WHERE NOT EXISTS (SELECT FROM agent x WHERE (x.tenant, x.digest) = (c.tenant, c.digest))
         LIMIT at_most)
$$;
COMMENT ON FUNCTION forget_blueprints IS 'forgets blueprints that nobody runs by; returns nothing';

-- Agents that have ended long ago, with all that was theirs but their conversations.
CREATE FUNCTION forget_ended(older_than_s double precision, at_most integer) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    DELETE FROM agent a
     WHERE (a.tenant, a.name) IN (
        SELECT x.tenant, x.name FROM agent x
         WHERE x.ended_at < clock_timestamp() - make_interval(secs => older_than_s)
           AND x.at_work IS NULL
         LIMIT at_most FOR UPDATE SKIP LOCKED)
$$;
COMMENT ON FUNCTION forget_ended IS 'forgets agents that have ended long ago; returns nothing';

-- Signals to runs: kept until the run takes them, in the order in which they came.

SET LOCAL search_path = ksi_workflows, public, pg_temp;
SET LOCAL check_function_bodies = off; -- the engine makes its own tables when it is launched

CREATE TABLE signal (
    tenant text NOT NULL,
    run text NOT NULL,
    number bigint GENERATED ALWAYS AS IDENTITY,
    topic text NOT NULL,
    payload text NOT NULL,
    sent_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run, number)
);
SELECT ksi_postgres.protect('signal');

CREATE FUNCTION send_signal(of_tenant text, run_id text, with_topic text, with_payload text,
                            max_waiting integer) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    found_status text;
BEGIN
    SELECT w.status INTO found_status FROM dbos.workflow_status w
     WHERE w.workflow_uuid = run_id AND w.attributes ->> 'tenant' = of_tenant
       FOR KEY SHARE;
    IF NOT FOUND THEN
        RETURN 'not_found';
    ELSIF found_status IN ('SUCCESS', 'ERROR') THEN
        RETURN 'ended';
    ELSIF (SELECT count(*) FROM signal s WHERE s.run = run_id) >= max_waiting THEN
        RETURN 'full';
    END IF;
    INSERT INTO signal (tenant, run, topic, payload)
    VALUES (of_tenant, run_id, with_topic, with_payload);
    PERFORM pg_notify('ksi_workflows', 'signal ' || run_id);
    RETURN 'ok';
END $$;

-- Takes the oldest signal on a topic and records it as the run's step, in one transaction: it is
-- neither lost nor taken twice.
CREATE FUNCTION take_signal(executor_id text, held_epoch bigint, run_id text, owner text,
                            step_number integer, step_name text, started_ms bigint, of_topic text,
                            format text, OUT verdict text, OUT taken text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    oldest record;
BEGIN
    PERFORM hold(executor_id, held_epoch);
    -- The connection may have broken after it was taken and before the caller knew.
    SELECT o.output INTO taken FROM dbos.operation_outputs o
     WHERE o.workflow_uuid = run_id AND o.function_id = step_number
       AND o.started_at_epoch_ms = started_ms;
    IF FOUND THEN
        verdict := 'ok';
        RETURN;
    END IF;
    SELECT s.number, s.payload INTO oldest FROM signal s
     WHERE s.run = run_id AND s.topic = of_topic
     ORDER BY s.number LIMIT 1 FOR UPDATE;
    IF NOT FOUND THEN
        verdict := 'none';
        RETURN;
    END IF;
    verdict := end_step(executor_id, held_epoch, run_id, owner, step_number, step_name, started_ms,
                        oldest.payload, NULL, format);
    IF verdict = 'ok' THEN
        taken := oldest.payload;
        DELETE FROM signal s WHERE s.run = run_id AND s.number = oldest.number;
    END IF;
END $$;

CREATE FUNCTION tidy(executor_id text, held_epoch bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM hold(executor_id, held_epoch);
    DELETE FROM trouble t USING dbos.workflow_status w
     WHERE w.workflow_uuid = t.run AND w.status IN ('SUCCESS', 'ERROR', 'CANCELLED');
    DELETE FROM signal s USING dbos.workflow_status w
     WHERE w.workflow_uuid = s.run AND w.status IN ('SUCCESS', 'ERROR');
    DELETE FROM executor e
     WHERE e.ended_at < clock_timestamp() - interval '1 day'
       AND NOT EXISTS (SELECT FROM dbos.workflow_status w
                        WHERE w.status = 'PENDING' AND w.executor_id = e.id);
END $$;
COMMENT ON FUNCTION tidy IS 'drops what was kept for runs that have ended, and for daemons long gone';

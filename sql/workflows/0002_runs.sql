-- What the daemon asks of runs and their steps; the rows are the engine's, in the schema dbos.

SET LOCAL search_path = ksi_workflows, public, pg_temp;
SET LOCAL check_function_bodies = off; -- the engine makes its own tables when it is launched

-- How the attempts of a run ended that did not get through; gone when the run is finished.
CREATE TABLE trouble (
    tenant text NOT NULL,
    run text PRIMARY KEY,
    attempt integer NOT NULL DEFAULT 1,
    executor text,
    step_number integer,
    step text,
    begun_at timestamptz,
    why text,
    traceback text,
    noted_at timestamptz NOT NULL DEFAULT now()
);
SELECT ksi_postgres.protect('trouble');

CREATE FUNCTION begin_step(executor_id text, held_epoch bigint, run_id text, owner text,
                           step_number integer, step_name text,
                           OUT verdict text, OUT recorded_output text, OUT recorded_error text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    run record;
    recorded_name text;
BEGIN
    PERFORM hold(executor_id, held_epoch);
    SELECT w.status, w.owner_xid, w.recovery_attempts, w.attributes ->> 'tenant' AS tenant INTO run
      FROM dbos.workflow_status w WHERE w.workflow_uuid = run_id;
    IF run.status = 'CANCELLED' THEN
        verdict := 'cancelled';
        RETURN;
    ELSIF run.status IS DISTINCT FROM 'PENDING' OR run.owner_xid IS DISTINCT FROM owner THEN
        verdict := 'lost';
        RETURN;
    END IF;
    SELECT o.function_name, o.output, o.error INTO recorded_name, recorded_output, recorded_error
      FROM dbos.operation_outputs o
     WHERE o.workflow_uuid = run_id AND o.function_id = step_number;
    IF FOUND THEN
        verdict := CASE WHEN recorded_name = step_name THEN 'recorded' ELSE 'other' END;
        IF verdict = 'other' THEN
            recorded_output := recorded_name;
        END IF;
        RETURN;
    END IF;
    verdict := 'run';
    IF run.recovery_attempts > 1 THEN -- its worker has died once: what was it doing, if it dies again?
        PERFORM set_config('synchronous_commit', 'off', true);
        INSERT INTO trouble AS t (tenant, run, attempt, executor, step_number, step, begun_at)
        VALUES (run.tenant, run_id, run.recovery_attempts, executor_id, begin_step.step_number,
                step_name, now())
        ON CONFLICT ON CONSTRAINT trouble_pkey DO UPDATE
           SET attempt = excluded.attempt, executor = excluded.executor,
               step_number = excluded.step_number, step = excluded.step,
               begun_at = excluded.begun_at;
    END IF;
END $$;
COMMENT ON FUNCTION begin_step IS 'may this step run now, or what came of it before?';

-- Records a step in the form that the engine itself would. It says 'ok' again when it is told the
-- same again, since its caller can't know whether a broken connection had carried it.
CREATE FUNCTION end_step(executor_id text, held_epoch bigint, run_id text, owner text,
                         step_number integer, step_name text, started_ms bigint,
                         step_output text, step_error text, format text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    run record;
BEGIN
    PERFORM hold(executor_id, held_epoch);
    SELECT w.owner_xid, w.recovery_attempts, w.application_name INTO run
      FROM dbos.workflow_status w WHERE w.workflow_uuid = run_id
       FOR NO KEY UPDATE;
    IF run.owner_xid IS DISTINCT FROM owner THEN
        RETURN 'lost';
    END IF;
    INSERT INTO dbos.operation_outputs
           (workflow_uuid, function_id, function_name, output, error, started_at_epoch_ms,
            completed_at_epoch_ms, serialization, application_name)
    VALUES (run_id, step_number, step_name, step_output, step_error, started_ms, now_ms(), format,
            run.application_name)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND AND NOT EXISTS (
        SELECT FROM dbos.operation_outputs o
         WHERE o.workflow_uuid = run_id AND o.function_id = step_number
           AND o.function_name = step_name AND o.started_at_epoch_ms = started_ms) THEN
        RETURN 'other';
    END IF;
    IF run.recovery_attempts > 1 THEN -- it got further: what killed its worker is behind it
        UPDATE dbos.workflow_status SET recovery_attempts = 1 WHERE workflow_uuid = run_id;
    END IF;
    RETURN 'ok';
END $$;
COMMENT ON FUNCTION end_step IS 'records what came of a step, if the run is still its worker''s';

CREATE FUNCTION note_trouble(executor_id text, held_epoch bigint, run_id text, owner text,
                             why text, traceback text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM hold(executor_id, held_epoch);
    INSERT INTO trouble AS t (tenant, run, attempt, executor, why, traceback)
    SELECT w.attributes ->> 'tenant', run_id, w.recovery_attempts,
           note_trouble.executor_id, note_trouble.why, note_trouble.traceback
      FROM dbos.workflow_status w
     WHERE w.workflow_uuid = run_id AND w.owner_xid = owner
    ON CONFLICT ON CONSTRAINT trouble_pkey DO UPDATE
       SET why = excluded.why, traceback = excluded.traceback, noted_at = now();
END $$;
COMMENT ON FUNCTION note_trouble IS 'keeps the traceback of what failed and is tried again';

-- Lays a run aside that no plugin here knows, until one does; that is no attempt.
CREATE FUNCTION park(executor_id text, held_epoch bigint, run_id text, owner text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM hold(executor_id, held_epoch);
    UPDATE dbos.workflow_status
       SET status = 'ENQUEUED', owner_xid = NULL, started_at_epoch_ms = NULL, updated_at = now_ms(),
           recovery_attempts = greatest(recovery_attempts - 1, 0),
           attributes = attributes || jsonb_build_object('parked_from',
                                                         coalesce(queue_name, '_dbos_internal_queue')),
           queue_name = 'ksi_parked'
     WHERE workflow_uuid = run_id AND status = 'PENDING' AND owner_xid = owner;
    RETURN FOUND;
END $$;

-- Gives parked runs back whose workflow is known now: names with the versions that can go on.
CREATE FUNCTION unpark(executor_id text, held_epoch bigint, names text[], versions integer[])
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    unparked integer;
BEGIN
    PERFORM hold(executor_id, held_epoch);
    UPDATE dbos.workflow_status w
       SET queue_name = w.attributes ->> 'parked_from',
           attributes = w.attributes - 'parked_from',
           updated_at = now_ms()
      FROM unnest(names, versions) AS known (name, version)
     WHERE w.queue_name = 'ksi_parked'
       AND w.status = 'ENQUEUED'
       AND w.attributes ->> 'name' = known.name
       AND (w.attributes ->> 'version')::integer = known.version;
    GET DIAGNOSTICS unparked = ROW_COUNT;
    RETURN unparked;
END $$;

-- A run as callers see it. The engine's words for its states are not ours.
CREATE TYPE run_view AS (
    run text, name text, version integer, status text, queue text, key text, priority integer,
    attempts bigint, executor text, parent text, forked_from text,
    created_at timestamptz, started_at timestamptz, updated_at timestamptz,
    completed_at timestamptz, due_at timestamptz
);

CREATE FUNCTION shown_status(status text, queue text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN queue = 'ksi_parked' THEN 'waiting'
                WHEN status = 'PENDING' THEN 'running'
                WHEN status = 'ENQUEUED' THEN 'queued'
                WHEN status = 'DELAYED' THEN 'delayed'
                WHEN status = 'SUCCESS' THEN 'finished'
                WHEN status = 'ERROR' THEN 'failed'
                WHEN status = 'CANCELLED' THEN 'cancelled'
                ELSE 'quarantined' END
$$;

CREATE FUNCTION moment(ms bigint) RETURNS timestamptz
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT to_timestamp(ms / 1000.0)
$$;

CREATE FUNCTION runs(of_tenant text, with_ids text[], with_name text, with_status text[],
                     in_queue text, with_key text, since timestamptz, until timestamptz,
                     after_ms bigint, after_run text, max_rows integer)
RETURNS SETOF run_view
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
    SELECT w.workflow_uuid, w.attributes ->> 'name', (w.attributes ->> 'version')::integer,
           shown_status(w.status, w.queue_name),
           CASE WHEN w.queue_name NOT LIKE '\_dbos\_%' THEN w.queue_name END,
           w.queue_partition_key, w.priority, w.recovery_attempts, w.executor_id,
           w.attributes ->> 'parent', w.forked_from,
           moment(w.created_at), moment(w.started_at_epoch_ms), moment(w.updated_at),
           moment(w.completed_at), moment(w.delay_until_epoch_ms)
      FROM dbos.workflow_status w
     WHERE w.attributes ->> 'tenant' = of_tenant
       AND (with_ids IS NULL OR w.workflow_uuid = ANY (with_ids))
       AND (with_name IS NULL OR w.attributes ->> 'name' = with_name)
       AND (with_status IS NULL OR shown_status(w.status, w.queue_name) = ANY (with_status))
       AND (in_queue IS NULL OR w.queue_name = in_queue)
       AND (with_key IS NULL OR w.queue_partition_key = with_key)
       AND (since IS NULL OR w.created_at >= extract(epoch FROM since) * 1000)
       AND (until IS NULL OR w.created_at < extract(epoch FROM until) * 1000)
       AND (after_ms IS NULL OR (w.created_at, w.workflow_uuid) < (after_ms, after_run))
     ORDER BY w.created_at DESC, w.workflow_uuid DESC
     LIMIT max_rows
$$;
COMMENT ON FUNCTION runs IS 'a tenant''s runs, the newest first; loads no payload';

CREATE FUNCTION outcome(of_tenant text, run_id text,
                        OUT status text, OUT output text, OUT error text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
    SELECT shown_status(w.status, w.queue_name), o.output, o.error
      FROM dbos.workflow_status w
      LEFT JOIN dbos.workflow_output o USING (workflow_uuid)
     WHERE w.workflow_uuid = run_id
       AND (of_tenant IS NULL OR w.attributes ->> 'tenant' = of_tenant)
$$;

CREATE FUNCTION inputs_of(run_id text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
    SELECT i.inputs FROM dbos.workflow_input i WHERE i.workflow_uuid = run_id
$$;
REVOKE EXECUTE ON FUNCTION inputs_of FROM ksi_app;

CREATE FUNCTION arguments(of_tenant text, run_id text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
    SELECT inputs_of(run_id)
      FROM dbos.workflow_status w
     WHERE w.workflow_uuid = run_id
       AND (of_tenant IS NULL OR w.attributes ->> 'tenant' = of_tenant)
$$;

CREATE FUNCTION steps(of_tenant text, run_id text, after_number integer, max_rows integer)
RETURNS TABLE (number integer, name text, output text, error text, child text,
               started_at timestamptz, completed_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
    SELECT o.function_id, o.function_name, o.output, o.error, o.child_workflow_id,
           moment(o.started_at_epoch_ms), moment(o.completed_at_epoch_ms)
      FROM dbos.workflow_status w
      JOIN dbos.operation_outputs o USING (workflow_uuid)
     WHERE w.workflow_uuid = run_id
       AND w.attributes ->> 'tenant' = of_tenant
       AND o.function_id > after_number
     ORDER BY o.function_id
     LIMIT max_rows
$$;


-- Records a run in the form that the engine itself would: one that is begun at once is its
-- starter's, one in a queue is the engine's to hand out. Runs with a key are numbered by when they
-- came, one after the other, so that the engine's order of milliseconds is that of their starts.
CREATE FUNCTION start_run(executor_id text, held_epoch bigint, run_id text, creator text,
                          with_attributes jsonb, with_inputs text, format text,
                          in_queue text, with_key text, with_priority integer,
                          delay_s double precision, timeout_s double precision,
                          OUT verdict text, OUT deadline_ms bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    at_ms bigint := now_ms();
    before record;
BEGIN
    PERFORM hold(executor_id, held_epoch);
    IF with_key IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(in_queue || ' ' || with_key, 1));
        at_ms := greatest(at_ms, (SELECT max(w.created_at) + 1 FROM dbos.workflow_status w
                                   WHERE w.queue_name = in_queue
                                     AND w.queue_partition_key = with_key
                                     AND w.status IN ('ENQUEUED', 'PENDING')));
    END IF;
    IF in_queue IS NULL AND timeout_s IS NOT NULL THEN
        deadline_ms := at_ms + (timeout_s * 1000)::bigint;
    END IF;
    verdict := 'new';
    INSERT INTO dbos.workflow_status
           (workflow_uuid, status, name, executor_id, application_version, application_name,
            recovery_attempts, queue_name, queue_partition_key, priority, workflow_timeout_ms,
            workflow_deadline_epoch_ms, serialization, creator_xid, owner_xid,
            delay_until_epoch_ms, attributes, created_at, updated_at)
    VALUES (run_id,
            CASE WHEN in_queue IS NULL THEN 'PENDING' WHEN delay_s > 0 THEN 'DELAYED'
                 ELSE 'ENQUEUED' END,
            'ksi', CASE WHEN in_queue IS NULL THEN executor_id END, 'ksi-1', 'ksi',
            CASE WHEN in_queue IS NULL THEN 1 ELSE 0 END, in_queue, with_key, with_priority,
            (timeout_s * 1000)::bigint, deadline_ms, format, creator,
            CASE WHEN in_queue IS NULL THEN creator END,
            CASE WHEN delay_s > 0 THEN at_ms + (delay_s * 1000)::bigint END,
            with_attributes, at_ms, at_ms)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        INSERT INTO dbos.workflow_input (workflow_uuid, inputs) VALUES (run_id, with_inputs);
        RETURN;
    END IF;
    SELECT w.creator_xid, w.attributes INTO before
      FROM dbos.workflow_status w WHERE w.workflow_uuid = run_id;
    verdict := CASE WHEN before.creator_xid = creator THEN 'new'
                    WHEN before.attributes ->> 'tenant' = with_attributes ->> 'tenant'
                     AND before.attributes ->> 'name' = with_attributes ->> 'name' THEN 'again'
                    ELSE 'other' END;
END $$;
COMMENT ON FUNCTION start_run IS 'accepts a run; says whether it was there before';

CREATE FUNCTION end_run(executor_id text, held_epoch bigint, run_id text, owner text,
                        with_output text, with_error text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM hold(executor_id, held_epoch);
    UPDATE dbos.workflow_status
       SET status = CASE WHEN with_error IS NULL THEN 'SUCCESS' ELSE 'ERROR' END,
           deduplication_id = NULL, owner_xid = NULL, updated_at = now_ms(),
           completed_at = now_ms()
     WHERE workflow_uuid = run_id AND status = 'PENDING' AND owner_xid = owner;
    IF NOT FOUND THEN -- another's, or told for the second time
        RETURN EXISTS (SELECT FROM dbos.workflow_status w
                         JOIN dbos.workflow_output o USING (workflow_uuid)
                        WHERE w.workflow_uuid = run_id
                          AND w.status IN ('SUCCESS', 'ERROR')
                          AND w.creator_xid = owner
                          AND o.output IS NOT DISTINCT FROM with_output
                          AND o.error IS NOT DISTINCT FROM with_error);
    END IF;
    INSERT INTO dbos.workflow_output (workflow_uuid, output, error)
    VALUES (run_id, with_output, with_error)
    ON CONFLICT (workflow_uuid) DO UPDATE SET output = excluded.output, error = excluded.error;
    RETURN true;
END $$;
COMMENT ON FUNCTION end_run IS 'records a run''s outcome, if the run is still its worker''s';

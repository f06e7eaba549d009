-- Who runs workflows: a daemon holds a lease on them, which it renews, and which bears an epoch.
--
-- Each start of a daemon and each takeover of its runs by another raises the epoch. Whatever the
-- engine writes is checked against it in the same transaction, so that a daemon which was stopped
-- or cut off for too long writes nothing more, however late it wakes.

SET LOCAL search_path = ksi_workflows, public, pg_temp;
SET LOCAL check_function_bodies = off; -- the engine makes its own tables when it is launched

CREATE SCHEMA IF NOT EXISTS dbos; -- the engine's own

CREATE TABLE executor (
    id text PRIMARY KEY,
    epoch bigint NOT NULL DEFAULT 1,
    host text NOT NULL,
    pid integer NOT NULL,
    lease_s double precision NOT NULL,
    renewed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    taken_by text
);
SELECT ksi_postgres.share('executor', 'a daemon runs the work of all tenants');
REVOKE INSERT, UPDATE, DELETE ON executor FROM ksi_app;

-- The lock that a takeover holds alone and every write of the engine shares: the check of an epoch
-- and the commit of what it allowed can't be torn apart by a takeover.
CREATE FUNCTION lease_key(executor_id text) RETURNS bigint
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT hashtextextended('ksi_workflows.executor ' || executor_id, 0)
$$;

CREATE FUNCTION hold(executor_id text, held_epoch bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(lease_key(executor_id));
    IF NOT EXISTS (SELECT FROM executor
                    WHERE id = executor_id AND epoch = held_epoch AND ended_at IS NULL) THEN
        RAISE EXCEPTION 'executor % does not hold epoch % any more', executor_id, held_epoch
            USING ERRCODE = 'KS001';
    END IF;
END $$;
COMMENT ON FUNCTION hold IS 'fails unless the lease is held, and keeps it until this transaction ends';

-- Stands before every write to the engine's tables. Its own connections say who they are by their
-- startup options; functions of ours call hold() themselves, and say nothing.
CREATE FUNCTION fence() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    executor_id text := current_setting('ksi.executor', true);
BEGIN
    IF executor_id <> '' THEN
        PERFORM hold(executor_id, current_setting('ksi.epoch')::bigint);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION now_ms() RETURNS bigint
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint
$$;

-- Gives runs back to the queue that they came from, or to the engine's own. A run counts its
-- attempts when it is taken from there; what ended in good order does not count.
CREATE FUNCTION requeue(runs text[], is_counted boolean) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    requeued integer;
BEGIN
    UPDATE dbos.workflow_status
       SET status = 'ENQUEUED',
           owner_xid = NULL,
           started_at_epoch_ms = NULL,
           updated_at = now_ms(),
           queue_name = coalesce(queue_name, '_dbos_internal_queue'),
           recovery_attempts = CASE WHEN is_counted THEN recovery_attempts
                                    ELSE greatest(recovery_attempts - 1, 0) END
     WHERE workflow_uuid = ANY (runs)
       AND status = 'PENDING';
    GET DIAGNOSTICS requeued = ROW_COUNT;
    RETURN requeued;
END $$;
REVOKE EXECUTE ON FUNCTION requeue FROM ksi_app;

CREATE FUNCTION runs_of(executor_id text) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(w.workflow_uuid), '{}')
      FROM dbos.workflow_status w
     WHERE w.status = 'PENDING' AND w.executor_id = runs_of.executor_id
$$;
REVOKE EXECUTE ON FUNCTION runs_of FROM ksi_app;

-- A daemon starts: from here on whatever another process of that id still writes is refused.
CREATE FUNCTION take_office(executor_id text, on_host text, with_pid integer, for_s double precision,
                            OUT held_epoch bigint, OUT requeued integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(lease_key(executor_id));
    INSERT INTO executor AS e (id, host, pid, lease_s)
    VALUES (executor_id, on_host, with_pid, for_s)
    ON CONFLICT (id) DO UPDATE
       SET epoch = e.epoch + 1, host = on_host, pid = with_pid, lease_s = for_s,
           renewed_at = clock_timestamp(), ended_at = NULL, taken_by = NULL
    RETURNING e.epoch INTO held_epoch;
    requeued := requeue(runs_of(executor_id), true);
END $$;
COMMENT ON FUNCTION take_office IS 'begins an epoch, and gives back what the one before left';

CREATE FUNCTION renew(executor_id text, held_epoch bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true); -- a lost renewal is renewed
    UPDATE executor SET renewed_at = clock_timestamp()
     WHERE id = executor_id AND epoch = held_epoch AND ended_at IS NULL;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION renew IS 'prolongs a lease; false when somebody else has it';

-- A daemon stops in good order: others may go on at once.
CREATE FUNCTION leave_office(executor_id text, held_epoch bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(lease_key(executor_id));
    UPDATE executor SET ended_at = clock_timestamp()
     WHERE id = executor_id AND epoch = held_epoch AND ended_at IS NULL;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    RETURN requeue(runs_of(executor_id), false);
END $$;

-- Takes over from the executors whose lease has run out, by the database's clock, one at a time.
-- One that has a transaction open is left for the next time: the transaction is ended by its
-- idle_in_transaction_session_timeout before long.
CREATE FUNCTION take_over(own_id text, own_epoch bigint)
RETURNS TABLE (executor_id text, on_host text, with_pid integer, requeued integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    seen record;
BEGIN
    PERFORM hold(own_id, own_epoch);
    FOR seen IN
        SELECT e.id, e.epoch, e.host, e.pid
          FROM executor e
         WHERE e.id <> own_id
           AND e.ended_at IS NULL
           AND e.renewed_at < clock_timestamp() - make_interval(secs => e.lease_s)
    LOOP
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(lease_key(seen.id));
        UPDATE executor e
           SET epoch = e.epoch + 1, ended_at = clock_timestamp(), taken_by = own_id
         WHERE e.id = seen.id
           AND e.epoch = seen.epoch
           AND e.ended_at IS NULL
           AND e.renewed_at < clock_timestamp() - make_interval(secs => e.lease_s);
        CONTINUE WHEN NOT FOUND;
        executor_id := seen.id;
        on_host := seen.host;
        with_pid := seen.pid;
        requeued := requeue(runs_of(seen.id), true);
        RETURN NEXT;
    END LOOP;
END $$;

-- Gives back the runs that nobody runs: those of executors that have ended, and those of one's own
-- that one knows nothing of, such as were claimed just when the connection broke.
CREATE FUNCTION give_back_stray(own_id text, own_epoch bigint, known text[], older_than_s double precision)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM hold(own_id, own_epoch);
    RETURN requeue(ARRAY(
        SELECT w.workflow_uuid
          FROM dbos.workflow_status w
         WHERE w.status = 'PENDING'
           AND w.updated_at < now_ms() - older_than_s * 1000
           AND CASE WHEN w.executor_id = own_id THEN w.workflow_uuid <> ALL (known)
                    ELSE NOT EXISTS (SELECT FROM executor e
                                      WHERE e.id = w.executor_id AND e.ended_at IS NULL) END
    ), true);
END $$;

-- Walls off the engine's own tables, which know no tenants: they are seen by its connections alone,
-- and written by those that hold their lease. Called by the owner whenever the engine has made or
-- changed its tables; it changes only what is missing.
CREATE FUNCTION wall_engine() RETURNS void
LANGUAGE plpgsql SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    relation regclass;
BEGIN
    PERFORM pg_advisory_xact_lock(lease_key('the engine''s tables'));
    IF NOT has_schema_privilege('ksi_app', 'dbos', 'USAGE') THEN
        GRANT USAGE ON SCHEMA dbos TO ksi_app;
    END IF;
    FOR relation IN
        SELECT c.oid FROM pg_class c
         WHERE c.relnamespace = 'dbos'::regnamespace AND c.relkind IN ('r', 'p')
           AND NOT (c.relrowsecurity AND EXISTS (SELECT FROM pg_trigger t
                                                  WHERE t.tgrelid = c.oid AND t.tgname = 'ksi_fence'))
    LOOP
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO ksi_app', relation);
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
        EXECUTE format('CREATE POLICY engine ON %s '
                       'USING ((SELECT current_setting(''ksi.executor'', true)) <> '''')', relation);
        EXECUTE format('CREATE TRIGGER ksi_fence BEFORE INSERT OR UPDATE OR DELETE ON %s '
                       'FOR EACH STATEMENT EXECUTE FUNCTION ksi_workflows.fence()', relation);
    END LOOP;
    IF to_regclass('dbos.ksi_runs_of_tenant') IS NULL THEN
        CREATE INDEX ksi_runs_of_tenant ON dbos.workflow_status
            ((attributes ->> 'tenant'), created_at DESC, workflow_uuid DESC);
    END IF;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA dbos TO ksi_app;
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA dbos TO ksi_app;
END $$;
REVOKE EXECUTE ON FUNCTION wall_engine FROM ksi_app;

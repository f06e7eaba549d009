-- What has ended is kept for a time, and not for ever.

SET LOCAL search_path = ksi_workflows, public, pg_temp;
SET LOCAL check_function_bodies = off; -- the engine makes its own tables when it is launched

-- A parent that goes on may still ask for what its child returned.
CREATE FUNCTION forget_runs(executor_id text, held_epoch bigint, older_than_s double precision,
                            max_rows integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
DECLARE
    cutoff bigint := now_ms() - (older_than_s * 1000)::bigint;
    ended text[];
BEGIN
    PERFORM hold(executor_id, held_epoch);
    SELECT coalesce(array_agg(old.workflow_uuid), '{}') INTO ended
      FROM (SELECT w.workflow_uuid
              FROM dbos.workflow_status w
              LEFT JOIN dbos.workflow_status parent
                ON parent.workflow_uuid = w.attributes ->> 'parent'
             WHERE w.created_at < cutoff
               AND w.updated_at < cutoff
               AND w.status IN ('SUCCESS', 'ERROR', 'CANCELLED')
               AND (parent.status IS NULL OR parent.status IN ('SUCCESS', 'ERROR', 'CANCELLED'))
             ORDER BY w.created_at
             LIMIT max_rows
               FOR UPDATE OF w SKIP LOCKED) old;
    DELETE FROM dbos.workflow_input WHERE workflow_uuid = ANY (ended);
    DELETE FROM dbos.workflow_output WHERE workflow_uuid = ANY (ended);
    DELETE FROM dbos.operation_outputs WHERE workflow_uuid = ANY (ended);
    DELETE FROM trouble WHERE run = ANY (ended);
    DELETE FROM signal WHERE run = ANY (ended);
    DELETE FROM dbos.workflow_status WHERE workflow_uuid = ANY (ended);
    RETURN cardinality(ended);
END $$;
COMMENT ON FUNCTION forget_runs IS 'deletes runs that ended long ago; says how many, at most max_rows';

-- Schedules: when which workflow is to be started, by a cron expression or once.

SET LOCAL search_path = ksi_workflows, public, pg_temp;

CREATE TABLE schedule (
    tenant text NOT NULL,
    name text NOT NULL,
    id uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
    workflow text NOT NULL,
    version integer,
    args text NOT NULL,
    cron text,
    timezone text NOT NULL DEFAULT 'UTC',
    queue text,
    key text,
    context text NOT NULL,
    next_at timestamptz,
    last_at timestamptz,
    last_run text,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, name)
);
CREATE INDEX schedule_next_at ON schedule (next_at) WHERE next_at IS NOT NULL;
SELECT ksi_postgres.protect('schedule');

CREATE FUNCTION due_schedules(max_rows integer) RETURNS SETOF schedule
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
    SELECT * FROM schedule WHERE next_at <= clock_timestamp() ORDER BY next_at LIMIT max_rows
$$;

CREATE FUNCTION seconds_to_next_schedule() RETURNS double precision
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
    SELECT extract(epoch FROM min(next_at) - clock_timestamp()) FROM schedule
     WHERE next_at IS NOT NULL
$$;

-- Moves a schedule on, if it still stands where it was seen: whoever comes second changes nothing.
CREATE FUNCTION move_schedule(schedule_id uuid, seen_at timestamptz, then_at timestamptz,
                              started_run text, why text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_workflows, pg_catalog, pg_temp AS $$
BEGIN
    UPDATE schedule
       SET next_at = then_at, last_at = seen_at, last_run = coalesce(started_run, last_run),
           last_error = why
     WHERE id = schedule_id AND next_at = seen_at;
    RETURN FOUND;
END $$;

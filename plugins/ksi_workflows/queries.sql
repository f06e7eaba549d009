-- name: take_office
-- Begins an epoch of this daemon; how many runs did the one before leave?
SELECT held_epoch, requeued FROM ksi_workflows.take_office($1, $2, $3, $4);

-- name: renew
-- Prolongs the lease; does this daemon still hold it?
SELECT ksi_workflows.renew($1, $2);

-- name: leave_office
-- Ends the epoch in good order; how many runs can others go on with?
SELECT ksi_workflows.leave_office($1, $2);

-- name: take_over
-- Which daemons' leases have run out, and how many runs did each leave?
SELECT executor_id, on_host, with_pid, requeued FROM ksi_workflows.take_over($1, $2);

-- name: give_back_stray
-- How many runs did nobody run?
SELECT ksi_workflows.give_back_stray($1, $2, $3, $4);

-- name: tidy
-- Drops what was kept for runs that have ended.
SELECT ksi_workflows.tidy($1, $2);

-- name: forget_runs
-- Deletes some of the runs that ended long ago.
SELECT ksi_workflows.forget_runs($1, $2, $3, $4);

-- name: start_run
-- Accepts a run; was it there before?
SELECT verdict, deadline_ms
  FROM ksi_workflows.start_run($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: start_run_lightly
-- Accepts a run that its starter would start again if Postgres forgot it: nobody waits for the disk.
SELECT verdict, deadline_ms
  FROM set_config('synchronous_commit', 'off', true),
       ksi_workflows.start_run($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: end_run
-- Records a run's outcome; was it this daemon's to record?
SELECT ksi_workflows.end_run($1, $2, $3, $4, $5, $6);

-- name: begin_step
-- May this step run now, or what came of it before?
SELECT verdict, recorded_output, recorded_error
  FROM ksi_workflows.begin_step($1, $2, $3, $4, $5, $6);

-- name: end_step
-- Records what came of a step.
SELECT ksi_workflows.end_step($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: note_trouble
-- Keeps why a step failed that is tried again.
SELECT ksi_workflows.note_trouble($1, $2, $3, $4, $5, $6);

-- name: park
-- Lays aside a run of a workflow that is not known here.
SELECT ksi_workflows.park($1, $2, $3, $4);

-- name: unpark
-- How many parked runs are known here?
SELECT ksi_workflows.unpark($1, $2, $3, $4);

-- name: runs
-- A tenant's runs, the newest first.
SELECT run, name, version, status, queue, key, priority, attempts, executor, parent, forked_from,
       created_at, started_at, updated_at, completed_at, due_at
  FROM ksi_workflows.runs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: attempts
-- The how manieth attempt at a run is this?
SELECT attempts FROM ksi_workflows.runs($1, ARRAY[$2], NULL, NULL, NULL, NULL, NULL, NULL, NULL,
                                        NULL, 1);

-- name: outcome
-- What has become of a run?
SELECT status, output, error FROM ksi_workflows.outcome($1, $2);

-- name: arguments
-- What was a run given?
SELECT ksi_workflows.arguments($1, $2);

-- name: steps
-- What came of a run's steps?
SELECT number, name, output, error, child, started_at, completed_at
  FROM ksi_workflows.steps($1, $2, $3, $4);

-- name: trouble
-- What is known of the attempts that failed? Asked in a transaction that is bound to the tenant.
SELECT attempt, executor, step_number, step, begun_at, why, traceback
  FROM ksi_workflows.trouble WHERE run = $1;

-- name: send_signal
-- Leaves a signal for a run.
SELECT ksi_workflows.send_signal($1, $2, $3, $4, $5);

-- name: take_signal
-- Takes the oldest signal on a topic, and records it as a step.
SELECT verdict, taken FROM ksi_workflows.take_signal($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: queues
-- How many runs wait in each queue, and how many are being run? Of one tenant.
SELECT coalesce(queue, '') AS queue,
       count(*) FILTER (WHERE status = 'queued') AS queued,
       count(*) FILTER (WHERE status = 'delayed') AS delayed,
       count(*) FILTER (WHERE status = 'running') AS running
  FROM ksi_workflows.runs($1, NULL, NULL, ARRAY['queued', 'delayed', 'running'], NULL, NULL, NULL,
                          NULL, NULL, NULL, NULL)
 GROUP BY queue;

-- name: put_schedule
-- Makes a schedule or puts another in its place. In a transaction that is bound to the tenant.
INSERT INTO ksi_workflows.schedule
       (tenant, name, workflow, version, args, cron, timezone, queue, key, context, next_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (tenant, name) DO UPDATE
   SET id = gen_random_uuid(), workflow = excluded.workflow, version = excluded.version,
       args = excluded.args, cron = excluded.cron, timezone = excluded.timezone,
       queue = excluded.queue, key = excluded.key, context = excluded.context,
       next_at = excluded.next_at, last_at = NULL, last_run = NULL, last_error = NULL;

-- name: drop_schedule
-- Ends a schedule. In a transaction that is bound to the tenant.
DELETE FROM ksi_workflows.schedule WHERE name = $1 RETURNING name;

-- name: schedules
-- A tenant's schedules by name. In a transaction that is bound to the tenant.
SELECT name, workflow, version, args, cron, timezone, queue, key, next_at, last_at, last_run,
       last_error
  FROM ksi_workflows.schedule
 WHERE name > $1
 ORDER BY name LIMIT $2;

-- name: due_schedules
-- Which schedules are due?
SELECT tenant, name, id, workflow, version, args, cron, timezone, queue, key, context, next_at
  FROM ksi_workflows.due_schedules($1);

-- name: seconds_to_next_schedule
-- How long is it until something is due?
SELECT ksi_workflows.seconds_to_next_schedule();

-- name: move_schedule
-- Moves a schedule on to its next time.
SELECT ksi_workflows.move_schedule($1, $2, $3, $4, $5);

-- name: has_tables
-- Has the engine made its tables? When it has, their schema is opened.
SELECT EXISTS (SELECT FROM pg_namespace
                WHERE nspname = 'dbos' AND has_schema_privilege(oid, 'USAGE'));

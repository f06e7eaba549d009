-- name: going_on
-- How many of the tenant have not ended?
SELECT count(*) FROM ksi_orchestration.orchestration WHERE ended_at IS NULL;

-- name: lock_starts
-- Nobody else of the tenant starts one meanwhile.
SELECT pg_advisory_xact_lock(hashtextextended('ksi_orchestration ' || current_setting('ksi.tenant'), 0));

-- name: accept
-- Is it a new one?
INSERT INTO ksi_orchestration.orchestration
    (tenant, id, owner, digest, pattern, topic, score, limits, context, run)
VALUES (current_setting('ksi.tenant'), $1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT DO NOTHING
RETURNING true;

-- name: begun
-- The workflow knows of it.
UPDATE ksi_orchestration.orchestration SET is_begun = true WHERE id = $1;

-- name: find
-- What is known of it, as far as a user may see it?
SELECT o.*, coalesce(extract(epoch FROM clock_timestamp() - o.works_since), 0) + o.worked_s
            AS elapsed_s
  FROM ksi_orchestration.orchestration o
 WHERE o.id = $1 AND ($2::text IS NULL OR o.owner = $2);

-- name: lock
-- How does it stand? Nobody else changes it meanwhile.
SELECT o.*, coalesce(extract(epoch FROM clock_timestamp() - o.works_since), 0) + o.worked_s
            AS elapsed_s
  FROM ksi_orchestration.orchestration o
 WHERE o.id = $1 AND ($2::text IS NULL OR o.owner = $2)
   FOR UPDATE;

-- name: of_run
-- Which one is it that a workflow's run works on?
SELECT id FROM ksi_orchestration.orchestration WHERE run = $1;

-- name: page
-- Which are the newest, those before a certain one?
SELECT o.*, 0.0 AS elapsed_s
  FROM ksi_orchestration.orchestration o
 WHERE ($1::text IS NULL OR o.owner = $1)
   AND ($2::text[] IS NULL OR o.status = ANY ($2))
   AND ($3::text IS NULL OR o.pattern = $3)
   AND ($4::timestamptz IS NULL OR (o.created_at, o.id) < ($4, $5))
 ORDER BY o.created_at DESC, o.id DESC
 LIMIT $6;

-- name: taken_by_member
-- What has each member done?
SELECT member, count(*) AS turns, count(error) AS failures, coalesce(sum(cost_usd), 0) AS cost_usd
  FROM ksi_orchestration.utterance
 WHERE orchestration = $1 AND key IS NOT NULL
 GROUP BY member;

-- name: open_moves
-- Which turns are to be had, or go on?
SELECT key, stage, round, member, agent, item, asked, run, began_at
  FROM ksi_orchestration.move
 WHERE orchestration = $1 AND NOT is_finished
 ORDER BY place;

-- name: keep_move
-- A turn is to be had.
INSERT INTO ksi_orchestration.move
    (tenant, orchestration, key, place, stage, round, member, agent, item, asked, began_at)
VALUES (current_setting('ksi.tenant'), $1, $2, $3, $4, $5, $6, $7, $8, $9,
        CASE WHEN $10 THEN clock_timestamp() END);

-- name: enter
-- Where it stands; a stage that begins has seen nothing yet.
UPDATE ksi_orchestration.orchestration
   SET stage = $2, round = $3,
       stage_began_s = CASE WHEN stage = $2 THEN stage_began_s ELSE $4 END,
       seen = CASE WHEN stage = $2 THEN seen ELSE '{}' END
 WHERE id = $1;

-- name: begin_move
-- A turn is begun.
UPDATE ksi_orchestration.move SET began_at = coalesce(began_at, clock_timestamp())
 WHERE orchestration = $1 AND key = $2 AND NOT is_finished
RETURNING true;

-- name: note_run
-- Which turn it is.
UPDATE ksi_orchestration.move SET run = $3
 WHERE orchestration = $1 AND key = $2 AND NOT is_finished;

-- name: finish_move
-- A turn is over; was it open?
UPDATE ksi_orchestration.move SET is_finished = true, asked = NULL
 WHERE orchestration = $1 AND key = $2 AND NOT is_finished
RETURNING true;

-- name: finish_moves
-- No turn is open any more.
UPDATE ksi_orchestration.move SET is_finished = true, asked = NULL
 WHERE orchestration = $1 AND NOT is_finished;

-- name: utter
-- Something is said; when?
INSERT INTO ksi_orchestration.utterance
    (tenant, orchestration, number, key, message_id, stage, round, member, agent, hearers, text,
     item, run, model, tokens, cost_usd, error, after)
VALUES (current_setting('ksi.tenant'), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
        $15, $16, $17)
RETURNING said_at;

-- name: count
-- What has been taken so far?
UPDATE ksi_orchestration.orchestration
   SET last_number = $2, turns = turns + $3, tokens = tokens + $4,
       cost_usd = cost_usd + $5, is_cost_known = is_cost_known AND $6
 WHERE id = $1;

-- name: count_all
-- What has been taken, with all that the members asked?
UPDATE ksi_orchestration.orchestration
   SET tokens = greatest(tokens, $2), cost_usd = greatest(cost_usd, $3)
 WHERE id = $1;

-- name: spend
-- Nothing is left to spend.
UPDATE ksi_orchestration.orchestration SET reason = 'cost', error = $2
 WHERE id = $1 AND reason = '';

-- name: said
-- What was said after a number?
SELECT number, stage, round, member, agent, hearers, text, item, run, model, tokens, cost_usd,
       error, said_at, after
  FROM ksi_orchestration.utterance
 WHERE orchestration = $1 AND number > $2
 ORDER BY number
 LIMIT $3;

-- name: message
-- Which number has a message?
SELECT number, text FROM ksi_orchestration.utterance WHERE orchestration = $1 AND message_id = $2;

-- name: see
-- An event happened.
UPDATE ksi_orchestration.orchestration SET seen = array_append(seen, $2)
 WHERE id = $1 AND ended_at IS NULL AND NOT $2 = ANY (seen) AND cardinality(seen) < 100;

-- name: pause
-- It begins no more turns.
UPDATE ksi_orchestration.orchestration
   SET status = 'paused', worked_s = $2, works_since = NULL
 WHERE id = $1;

-- name: resume
-- It goes on.
UPDATE ksi_orchestration.orchestration
   SET status = 'running', works_since = clock_timestamp()
 WHERE id = $1;

-- name: end
-- It has come to its end.
UPDATE ksi_orchestration.orchestration
   SET status = $2, reason = $3, result = $4, error = $5, worked_s = $6, works_since = NULL,
       tokens = greatest(tokens, $7), cost_usd = greatest(cost_usd, $8),
       ended_at = clock_timestamp()
 WHERE id = $1;

-- name: due
-- Which are to be looked after?
SELECT tenant, id, run, is_begun, context FROM ksi_orchestration.due($1, $2);

-- name: forget_ended
-- How many that ended long ago were deleted?
SELECT ksi_orchestration.forget_ended($1, $2);

-- name: begin
-- May this call be made, and what is known of it? What has no effect waits for no disk: all that
-- might be built on it is written behind it, and so is lost with it or not at all.
SELECT b.verdict, b.times, (b.known).*,
       CASE WHEN $7 = 'read_only' AND NOT $14
            THEN set_config('synchronous_commit', 'off', true) END AS without_waiting
  FROM ksi_tools.begin_call($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) b;

-- name: end
-- Writes what came of a call; that of one without an effect waits for no disk, either.
SELECT ksi_tools.end_call($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12),
       CASE WHEN $13 THEN set_config('synchronous_commit', 'off', true) END AS without_waiting;

-- name: settle
-- A person settles a call.
SELECT (s.verdict) AS verdict, (s.known).*
  FROM ksi_tools.settle_call($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) s;

-- name: signalled
-- The run of a call was told.
SELECT ksi_tools.signalled($1, $2);

-- name: unsignalled
-- Whose runs were not told of what a person said?
SELECT * FROM ksi_tools.unsignalled($1, $2);

-- name: doubt
-- What have daemons that are gone left in doubt?
SELECT * FROM ksi_tools.doubt_calls($1, $2, $3);

-- name: list
-- Which calls are there, the newest first?
SELECT * FROM ksi_tools.list_calls($1, $2, $3, $4, $5, $6, $7);

-- name: output
-- Some pieces of an output.
SELECT ksi_tools.read_output($1, $2, $3, $4);

-- name: output_chars
-- How long is an output?
SELECT ksi_tools.output_chars($1, $2);

-- name: open
-- How many calls want a person?
SELECT status, calls FROM ksi_tools.count_open($1);

-- name: forget
-- Forgets calls that ended long ago.
SELECT ksi_tools.forget_calls($1, $2);

-- name: permit
-- Says what a subject may call.
SELECT ksi_tools.permit($1, $2, $3, $4, $5, $6);

-- name: forget_permission
-- Says nothing of a subject any more.
SELECT ksi_tools.forget_permission($1, $2);

-- name: permission
-- What is said of a subject?
SELECT allow, deny, parent FROM ksi_tools.find_permission($1, $2);

-- name: permitted
-- Which of these tools may an agent call in a conversation?
SELECT ksi_tools.which_permitted($1, $2, $3, $4, $5);

-- name: word
-- Which of these tools may a subject call by its own word?
SELECT array_agg(t.tool)
  FROM unnest($3::text[], $4::text[], ksi_tools.words_of($1, $2, $3::text[], $4::text[]))
    AS t (tool, effects, word)
 WHERE coalesce(t.word, t.effects = 'read_only');

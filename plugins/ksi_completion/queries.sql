-- name: accept
-- Is the turn accepted, and which one may begin now?
SELECT * FROM ksi_completion.accept($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
                                    $15, $16, $17, $18, $19, $20, $21, $22, $23, $24);

-- name: inject
-- Which turn at work will read it?
SELECT * FROM ksi_completion.inject($1, $2, $3, $4, $5, $6, $7, $8);

-- name: open_step
-- How does the turn stand as its step begins?
SELECT * FROM ksi_completion.open_step($1, $2, $3, $4, $5);

-- name: state_of
-- How does the turn stand?
SELECT * FROM ksi_completion.state_of($1, $2);

-- name: begin_anew
-- Which attempt is it now?
SELECT ksi_completion.begin_anew($1, $2, $3, $4);

-- name: commit
-- Is it kept, and how does the turn go on, or did it end?
SELECT verdict, message_number, next_run, next_context, (ended).* FROM ksi_completion.commit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
                                    $15, $16, $17, $18, $19, $20, $21);

-- name: set_waiting
-- Does the turn go on?
SELECT ksi_completion.set_waiting($1, $2, $3, $4, $5, $6, $7);

-- name: cancel
-- Does the turn end, and which call does it wait for?
SELECT * FROM ksi_completion.cancel($1, $2, $3);

-- name: claim_next
-- Which turn of the conversation may begin now?
SELECT * FROM ksi_completion.claim_next($1, $2);

-- name: outcome
-- How did a turn end, or how does it stand?
SELECT * FROM ksi_completion.outcome($1, $2);

-- name: list_turns
-- Which turns are there?
SELECT * FROM ksi_completion.list_turns($1, $2, $3, $4, $5, $6, $7, $8);

-- name: children
-- Which turns were asked for within a run?
SELECT * FROM ksi_completion.children($1, $2, $3);

-- name: said_by_turn
-- What has a turn said so far?
SELECT * FROM ksi_completion.said_by_turn($1, $2, $3);

-- name: due
-- Which turns has nobody taken on?
SELECT * FROM ksi_completion.due($1, $2);

-- name: at_work
-- Which turns are at work?
SELECT * FROM ksi_completion.at_work($1, $2);

-- name: drop_questions
-- Drops what turns that have ended had asked a person.
SELECT ksi_completion.drop_questions();

-- name: hand_on
-- Hands what a turn says to other daemons.
SELECT ksi_completion.hand_on($1, $2, $3);

-- name: handed_on
-- What has the turn said since?
SELECT * FROM ksi_completion.handed_on($1, $2, $3, $4);

-- name: end_relay
-- Forgets what was handed on of a turn.
SELECT ksi_completion.end_relay($1, $2);

-- name: tidy_relay
-- Forgets what was handed on long ago.
SELECT ksi_completion.tidy_relay($1);

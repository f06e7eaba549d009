-- name: begin_reading
-- How far was a conversation read, and how far can it be?
SELECT * FROM ksi_memory.begin_reading($1, $2);

-- name: end_reading
-- Notes how far a conversation was read.
SELECT ksi_memory.end_reading($1, $2, $3, $4, $5, $6, $7);

-- name: unread
-- Which conversations should somebody read?
SELECT * FROM ksi_memory.unread($1, $2, $3);

-- name: coverage
-- How far do the moments of a conversation go?
SELECT * FROM ksi_memory.coverage($1, $2);

-- name: plan_chunk
-- Says which messages the next moment covers.
SELECT ksi_memory.plan_chunk($1, $2, $3, $4, $5, $6, $7);

-- name: open_chunks
-- Which moments of a conversation are to be written?
SELECT * FROM ksi_memory.open_chunks($1, $2, $3);

-- name: close_chunk
-- Notes that a moment is written.
SELECT ksi_memory.close_chunk($1, $2, $3, $4, $5);

-- name: lying_still
-- Which conversations have much that no moment covers, and nobody who uses them?
SELECT * FROM ksi_memory.lying_still($1, $2, $3, $4, $5);

-- name: list_moments
-- What happened, the newest first?
SELECT * FROM ksi_memory.list_moments($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: recalled
-- What is told before every turn?
SELECT * FROM ksi_memory.recalled($1, $2, $3, $4, $5);

-- name: note_together
-- Notes which entities a message mentions together.
SELECT ksi_memory.note_together($1, $2, $3, $4, $5, $6, $7);

-- name: dreamers
-- Whose memory has anything new?
SELECT owner FROM ksi_memory.dreamers($1, $2, $3, $4, $5) AS d (owner);

-- name: dreaming_tenants
-- Which tenants' memory has anything new?
SELECT tenant FROM ksi_memory.dreaming_tenants($1, $2, $3, $4) AS d (tenant);

-- name: dreamt_of
-- What does a dream go over?
SELECT * FROM ksi_memory.dreamt_of($1, $2, $3, $4, $5);

-- name: pairs
-- What is mentioned together, and how strongly is that remembered?
SELECT * FROM ksi_memory.pairs($1, $2, $3, $4, $5);

-- name: end_items
-- Ends items in favour of another.
SELECT ksi_memory.end_items($1, $2, $3, $4);

-- name: forgotten
-- Which of some items were forgotten, and when?
SELECT * FROM ksi_memory.forgotten($1, $2);

-- name: spend
-- Adds to what the day's model calls took.
SELECT * FROM ksi_memory.spend($1, $2, $3, $4);

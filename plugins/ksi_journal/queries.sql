-- name: write
-- Writes a batch once; was it new, and which position is the last now?
SELECT is_new, last_position FROM ksi_journal.write($1, $2, $3, $4);

-- name: take_in
-- Takes in what was recorded in other transactions; which position is the last now?
SELECT ksi_journal.take_in();

-- name: record
-- Records something in the caller's transaction.
SELECT ksi_journal.record($1);

-- name: written_through
-- How far has a writer come?
SELECT ksi_journal.written_through($1);

-- name: head
-- Which position is the last, and up to which may some have been dropped?
SELECT (SELECT position FROM ksi_journal.head) AS last,
       coalesce((SELECT max(through) FROM ksi_journal.dropped), 0) AS dropped_through;

-- name: read_after
-- Which events of a tenant come after a position, in their order, and how far does that reach?
SELECT (r.entry).position, (r.entry).at, (r.entry).name, (r.entry).id, (r.entry).parent, (r.entry).origin,
       (r.entry).on_behalf_of, (r.entry).agent, (r.entry).conversation, (r.entry).run, (r.entry).outcome,
       (r.entry).message, (r.entry).duration_s, coalesce((r.entry).payload, r.body) AS payload,
       (r.entry).payload_bytes, r.through
  FROM ksi_journal.read_after($1, $2, $3, $4, $5, $6) r;

-- name: history
-- Which events of a tenant pass the filters? The newest come first.
SELECT position, at, name, id, parent, origin, on_behalf_of, agent, conversation, run, outcome,
       message, duration_s, payload, payload_bytes
  FROM ksi_journal.history($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13);

-- name: event
-- What was recorded of one event, with its payload?
SELECT (r.entry).position, (r.entry).at, (r.entry).name, (r.entry).id, (r.entry).parent, (r.entry).origin,
       (r.entry).on_behalf_of, (r.entry).agent, (r.entry).conversation, (r.entry).run, (r.entry).outcome,
       (r.entry).message, (r.entry).duration_s, coalesce((r.entry).payload, r.body) AS payload,
       (r.entry).payload_bytes
  FROM ksi_journal.event_with_payload($1, $2) r;

-- name: root
-- What is the furthest recorded cause of an event?
SELECT id, depth FROM ksi_journal.root_of($1, $2, $3);

-- name: effects
-- What did an event cause, and that in turn?
SELECT (r.entry).position, (r.entry).at, (r.entry).name, (r.entry).id, (r.entry).parent, (r.entry).origin,
       (r.entry).on_behalf_of, (r.entry).agent, (r.entry).conversation, (r.entry).run, (r.entry).outcome,
       (r.entry).message, (r.entry).duration_s, (r.entry).payload_bytes, r.depth
  FROM ksi_journal.effects($1, $2, $3, $4) r;

-- name: partitions
-- Of which parts does the journal consist, and how large are they?
SELECT partition, is_security, is_payload, starts_on, bytes, estimated_rows
  FROM ksi_journal.partitions();

-- name: make_ahead
-- Makes the partitions of the days to come.
SELECT ksi_journal.make_ahead($1);

-- name: retain
-- Drops the oldest partition if it is too old or there is too much; which was it, and why?
SELECT partition, why FROM ksi_journal.retain($1, $2, $3);

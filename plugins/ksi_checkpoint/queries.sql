-- name: save
-- Which checkpoint is this now, when was it taken, and how many others were forgotten?
SELECT saved_id, saved_at, forgotten
  FROM ksi_checkpoint.save($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: newest
-- Which checkpoint of this daemon is the newest?
SELECT id, daemon, reason, taken_at
  FROM ksi_checkpoint.checkpoint
 WHERE daemon = $1
 ORDER BY id DESC
 LIMIT 1;

-- name: find
-- Which checkpoint has this id?
SELECT id, daemon, reason, taken_at FROM ksi_checkpoint.checkpoint WHERE id = $1;

-- name: list
-- Which checkpoints does this daemon have, or without one all daemons together; newest first?
SELECT c.id, c.daemon, c.reason, c.taken_at,
       count(e.state) AS plugins,
       count(e.error) AS problems,
       coalesce(sum(octet_length(e.state)), 0) AS size_bytes
  FROM ksi_checkpoint.checkpoint c
  LEFT JOIN ksi_checkpoint.entry e ON e.checkpoint = c.id
 WHERE c.daemon = $1 OR $1 IS NULL
 GROUP BY c.id
 ORDER BY c.id DESC
 LIMIT $2;

-- name: entries
-- What does a checkpoint hold of each plugin?
SELECT plugin, version, octet_length(state) AS size_bytes, checksum, error
  FROM ksi_checkpoint.entry
 WHERE checkpoint = $1
 ORDER BY plugin;

-- name: entry_before
-- Which is a plugin's newest state of this daemon's, in this checkpoint or an earlier one?
SELECT e.checkpoint, e.version, e.state, e.checksum
  FROM ksi_checkpoint.entry e
  JOIN ksi_checkpoint.checkpoint c ON c.id = e.checkpoint
 WHERE c.daemon = $1 AND e.plugin = $2 AND c.id <= $3 AND e.state IS NOT NULL
 ORDER BY c.id DESC
 LIMIT 1;

-- name: delete
-- Was there such a checkpoint?
DELETE FROM ksi_checkpoint.checkpoint WHERE id = $1 RETURNING id;

-- name: create_subscription
-- Which subscription has this name now? None: the tenant has too many.
SELECT * FROM ksi_checkpoint.create_subscription($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: find_subscription
-- Which subscription of a tenant has this name?
SELECT * FROM ksi_checkpoint.find_subscription($1, $2);

-- name: list_subscriptions
-- Which subscriptions does a tenant have?
SELECT * FROM ksi_checkpoint.list_subscriptions($1);

-- name: move_subscription
-- Where does the cursor stand now?
SELECT ksi_checkpoint.move_subscription($1, $2, $3, $4);

-- name: delete_subscription
-- Was there such a subscription?
SELECT ksi_checkpoint.delete_subscription($1, $2);

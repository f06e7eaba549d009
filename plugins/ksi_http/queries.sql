-- name: find
-- Whose is a key that is valid?
SELECT * FROM ksi_http.find_key($1)

-- name: note_use
-- Note that a key was used.
SELECT ksi_http.note_use($1, $2)

-- name: add
-- Enter a key; whether there was room, or it is known.
SELECT ksi_http.add_key($1, $2, $3, $4, $5, $6, $7, $8, $9)

-- name: revoke
-- End a key; whether there is such a one.
SELECT ksi_http.revoke_key($1, $2)

-- name: listed
-- Which keys has the tenant?
SELECT id, name, tenant, on_behalf_of AS user, scopes, may_act_for_others, created_at, expires_at,
       revoked_at, used_at
  FROM ksi_http.key
 WHERE $1 OR (revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()))
 ORDER BY created_at, id
 LIMIT 10000

-- name: keep_raw
-- Keep what came with an event; one that is sent again is the same.
INSERT INTO ksi_http.raw (tenant, run, raw) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING

-- name: drop_raw
-- Drop what is older than it may be, a little at a time.
DELETE FROM ksi_http.raw
 WHERE (tenant, run) IN (
     SELECT tenant, run FROM ksi_http.raw
      WHERE tenant = $1 AND received_at < now() - make_interval(days => $2)
      ORDER BY received_at LIMIT 100)

-- name: raw
-- What came with the event that began this run?
SELECT raw, received_at FROM ksi_http.raw WHERE run = $1

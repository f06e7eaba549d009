-- name: tell
-- Tells every daemon that listens on a channel.
SELECT pg_notify($1, word)
  FROM unnest($2::text[]) AS word, set_config('synchronous_commit', 'off', true);

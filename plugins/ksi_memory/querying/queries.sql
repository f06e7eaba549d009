-- name: lookup
-- What bears these keys?
SELECT id, kind, key, version, owner, title, body, category, attributes, session, starts_at, ends_at,
       valid_from, valid_to, source, is_whole
  FROM ksi_memory.lookup($1, $2, $3, $4, $5, $6, $7, $8);

-- name: fuzzy
-- What has a key or a title like this?
SELECT (hit).*, score FROM ksi_memory.fuzzy($1, $2, $3, $4, $5, $6, $7, $8);

-- name: traverse
-- What hangs together with this, and how?
SELECT (hit).*, name, depth, relation, via, score, stopped
  FROM ksi_memory.traverse($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: timeline
-- What happened around this, in its order?
SELECT id, kind, key, version, owner, title, body, category, attributes, session, starts_at, ends_at,
       valid_from, valid_to, source, is_whole
  FROM ksi_memory.timeline($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: sources
-- Where do these versions come from, in words?
SELECT id, version, source FROM ksi_memory.sources_in_words($1, $2, $3, $4);

-- name: keys
-- Which keys begin so?
SELECT * FROM ksi_memory.keys_from($1, $2, $3, $4);

-- name: tables
-- Which tables have something in them?
SELECT * FROM ksi_memory.kinds_seen($1, $2);

-- name: persons
-- Which words of a question are persons?
SELECT asked, name FROM ksi_memory.persons_among($1, $2, $3, $4);

-- name: search
-- What fits a question best?
SELECT * FROM ksi_memory.search(
    $1, $2, $3, $4, $5, $6, $7, $8, $9::text::datemultirange, $10::text::datemultirange, $11, $12,
    $13, $14, $15, $16, $17);

-- name: search_but_loads
-- The same, without the moments that tell of loads; at most two hundred of them are passed over.
SELECT f.*
  FROM ksi_memory.search(
       $1, $2, $3, $4, $5, $6, $7, $8, $9::text::datemultirange, $10::text::datemultirange, $11,
       $12, $13, $14, $15, $16, $17::integer + 200) f
 WHERE (f.kind, f.category, f.origin) IS DISTINCT FROM ('moments', 'upload', 'derived')
 LIMIT $17;

-- name: weights
-- What do the features weigh?
SELECT ksi_memory.search_weights();

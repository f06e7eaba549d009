-- name: upsert
-- Remembers items, and tells what came of each.
SELECT verdicts, dangling, mixed
  FROM ksi_memory.upsert_items($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: set_days
-- Notes the days that a version's text speaks of.
SELECT ksi_memory.set_days($1, $2, $3, $4::text::datemultirange);

-- name: find
-- Which items bear this id or key, now or as of then?
SELECT * FROM ksi_memory.find_items($1, $2, $3, $4, $5, $6, $7);

-- name: pin
-- Pins an item, or lets it go.
SELECT ksi_memory.pin_item($1, $2, $3);

-- name: list
-- Which items are there, from behind a place on?
SELECT l.name, (l.item).* FROM ksi_memory.list_items($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) l;

-- name: count
-- How much does each table hold?
SELECT kind, items, versions, words FROM ksi_memory.count_kinds($1, $2);

-- name: count_rest
-- How many edges are there, and how many tombstones?
SELECT edges, forgotten FROM ksi_memory.count_rest($1, $2);

-- name: chain
-- Where does an item come from, and where do those come from?
SELECT * FROM ksi_memory.chain_of($1, $2, $3, $4);

-- name: resting_on
-- What was derived of an item?
SELECT id FROM ksi_memory.resting_on($1, $2, $3, $4);

-- name: forget
-- Forgets items, and what rests on them alone.
SELECT gone, along, rewritten, uploads, messages, said_by, led_to_by, needles
  FROM ksi_memory.forget_items($1, $2, $3, $4, $5, $6);

-- name: look_for
-- Where is what was forgotten still to be found?
SELECT looked_at, found_in FROM ksi_memory.look_for($1, $2, $3);

-- name: left_of
-- Where does something still belong to a user?
SELECT ksi_memory.left_of($1, $2);

-- name: export
-- What was forgotten, and all versions, as lines of JSON in the order in which they were recorded.
SELECT line
  FROM (SELECT NULL::timestamptz AS at, t.id, 0 AS version,
               jsonb_build_object(
                   'is', 'forgotten', 'id', t.id, 'kind', t.kind, 'owner', t.whose,
                   'text_hash', encode(t.text_hash, 'hex'), 'forgotten_at', t.forgotten_at,
                   'reason', t.reason)::text AS line
          FROM ksi_memory.tombstone t
         WHERE t.tenant = current_setting('ksi.tenant') AND $1::text IS NULL AND $3::text IS NULL
           AND ($2::text IS NULL OR t.kind = $2)
        UNION ALL
        SELECT i.recorded_at, i.id, i.version,
               (jsonb_strip_nulls(jsonb_build_object(
                   'is', 'item', 'id', i.id, 'kind', i.kind, 'owner', i.owner, 'key', i.key,
                   'version', i.version, 'title', i.title, 'body', i.body, 'category', i.category,
                   'persons', i.persons, 'session', i.session, 'place', i.place,
                   'starts_at', i.starts_at, 'ends_at', i.ends_at, 'days', i.days,
                   'words', i.words, 'hash', encode(i.hash, 'hex'), 'origin', i.origin,
                   'is_pinned', i.is_pinned, 'valid_from', i.valid_from, 'valid_to', i.valid_to,
                   'recorded_at', i.recorded_at,
                   'edges', ksi_memory.edges_of(i.tenant, i.id, i.version),
                   'sources', ksi_memory.sources_of(i.tenant, i.id, i.version)))
                || jsonb_build_object('attributes', i.attributes))::text
          FROM ksi_memory.item i
         WHERE i.tenant = current_setting('ksi.tenant')
           AND ($1::text IS NULL OR i.owner IN ('', $1))
           AND ($2::text IS NULL OR i.kind = $2)
           AND ($3::text IS NULL OR i.owner = $3)) l
 ORDER BY l.at NULLS FIRST, l.id, l.version;

-- name: import
-- Takes in lines that were exported.
SELECT ksi_memory.import_lines($1, $2, $3, $4);

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
SELECT kind, items, versions, words FROM ksi_memory.count_items($1, $2);

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
SELECT gone, rewritten, messages, said_by, led_to_by, needles
  FROM ksi_memory.forget_items($1, $2, $3, $4, $5, $6);

-- name: look_for
-- Where is what was forgotten still to be found?
SELECT looked_at, found_in FROM ksi_memory.look_for($1, $2, $3);

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

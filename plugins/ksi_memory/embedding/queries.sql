-- name: want_embedder
-- All items are to get vectors of a model.
SELECT id, is_complete FROM ksi_memory.want_embedder($1, $2);

-- name: embedders
-- Which models have vectors?
SELECT id, name, dimension, is_complete FROM ksi_memory.embedder ORDER BY wanted_at DESC LIMIT 100;

-- name: embedder_stats
-- How far are a tenant's vectors, by model?
SELECT * FROM ksi_memory.list_embedders($1);

-- name: complete
-- Has all that was there before a model got its vector?
SELECT ksi_memory.complete_embedder($1);

-- name: index
-- Makes the index of a model's vectors where it is needed.
SELECT ksi_memory.index_embedder($1);

-- name: reembed
-- Makes a tenant's vectors anew.
SELECT ksi_memory.reembed($1, $2, $3);

-- name: claim
-- Hands out texts that wait for a vector.
SELECT * FROM ksi_memory.claim_waiting($1, $2, $3);

-- name: known
-- Which of these texts have a vector?
SELECT place FROM ksi_memory.known_texts($1, $2, $3);

-- name: store
-- Keeps vectors.
SELECT ksi_memory.store_vectors($1, $2, $3, $4, $5, $6);

-- name: release
-- Gives texts back.
SELECT ksi_memory.release_waiting($1, $2, $3, $4);

-- name: set_aside
-- Sets a text aside, and says why.
SELECT ksi_memory.set_aside($1, $2, $3, $4, $5);

-- name: next_lease_end
-- In how many seconds does the next lease end, if there is any?
SELECT ksi_memory.next_lease_end($1);

-- name: fold
-- Folds the counts of words.
SELECT ksi_memory.fold_counts($1);

-- name: record
-- Keeps what a call took.
SELECT ksi_models.record($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,
                         $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29);

-- name: sums
-- What did calls take, by some of their properties? The sum of them all comes first.
SELECT is_total, tenant, model, provider, agent, conversation, run, on_behalf_of AS "user",
       purpose, day, hour, calls, failed_calls, input_tokens, output_tokens, cache_read_tokens,
       cache_write_tokens, thinking_tokens, cost_usd, unpriced_calls, mean_latency_ms,
       mean_first_token_ms
  FROM ksi_models.sums($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: models_in_use
-- Which models has a tenant asked of late?
SELECT ksi_models.models_in_use($1, $2, $3) AS model;

-- name: forget
-- How many rows of too long ago were deleted?
SELECT ksi_models.forget($1, $2);

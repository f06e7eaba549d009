-- name: begin
-- Notes that a provider is asked.
SELECT ksi_models.begin($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

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

-- name: sums_of_all
-- The same, for each tenant.
SELECT s.is_total, s.tenant, s.model, s.provider, s.agent, s.conversation, s.run,
       s.on_behalf_of AS "user", s.purpose, s.day, s.hour, s.calls, s.failed_calls,
       s.input_tokens, s.output_tokens, s.cache_read_tokens, s.cache_write_tokens,
       s.thinking_tokens, s.cost_usd, s.unpriced_calls, s.mean_latency_ms, s.mean_first_token_ms
  FROM ksi_models.tenants(1000) AS t,
       LATERAL ksi_models.sums(t, $1, $2, $3, $4, $5, $6, $7, $8) AS s
 ORDER BY s.is_total DESC, s.cost_usd DESC, s.input_tokens + s.output_tokens DESC, s.calls DESC;

-- name: models_in_use
-- Which models has a tenant asked of late?
SELECT ksi_models.models_in_use($1, $2, $3) AS model;

-- name: lose
-- How many calls has nobody ended in time?
SELECT ksi_models.lose($1);

-- name: forget
-- How many rows of too long ago were deleted?
SELECT ksi_models.forget($1, $2);

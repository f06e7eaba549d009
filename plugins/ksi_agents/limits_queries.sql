-- name: open
-- An account is to be there.
SELECT ksi_agents.open_account($1, $2, $3, $4, $5, $6, $7);

-- name: reserve
-- May the call be made, and for how much?
SELECT granted_usd, refused_by, bound, taken, most
  FROM ksi_agents.reserve($1, $2, $3, $4, $5, $6, $7);

-- name: settle
-- What did it take?
SELECT ksi_agents.settle($1, $2, $3, $4, $5);

-- name: count_tool_call
-- May the tool be called?
SELECT refused_by, taken, most FROM ksi_agents.count_tool_call($1, $2);

-- name: spent
-- What has been taken?
SELECT requests, tool_calls, tokens, usd, reserved_usd,
       max_requests, max_tool_calls, max_tokens, max_usd
  FROM ksi_agents.spent($1, $2);

-- name: close
-- How many accounts of turns were deleted?
SELECT ksi_agents.close_accounts($1, $2);

-- The turns that were asked for within another one, or within any run.

SET LOCAL search_path = ksi_completion, public, pg_temp;

CREATE INDEX turn_parent ON turn (tenant, parent, accepted_at, run) WHERE parent IS NOT NULL;

CREATE FUNCTION children(of_tenant text, of_parent text, at_most integer) RETURNS SETOF turn_outcome
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT t.run, t.conversation, t.request_id, t.number, t.status, t.agent, t.parent, c.owner,
           coalesce(t.served, t.model), t.waits_for, t.waits_call, t.stopping, t.error, t.steps, t.tool_calls, t.usage,
           t.cost_usd, t.has_unknown_cost, t.attempt, t.units, false, t.accepted_at, t.started_at,
           t.ended_at, NULL
      FROM turn t JOIN conversation c ON (c.tenant, c.id) = (t.tenant, t.conversation)
     WHERE t.tenant = of_tenant AND t.parent = of_parent
     ORDER BY t.accepted_at, t.run
     LIMIT at_most
$$;
COMMENT ON FUNCTION children IS 'the turns that were asked for within a run, the oldest first';

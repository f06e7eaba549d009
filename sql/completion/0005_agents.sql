-- How many turns may wait for one another below a turn, as its agent's limits say: whoever is asked
-- within it inherits the bound.

SET LOCAL search_path = ksi_completion, public, pg_temp;

ALTER TABLE turn ADD COLUMN max_depth integer; -- the depth that none below it may pass

DROP FUNCTION accept(
    text, text, text, text, text, text, text, text, text, text, text[], text, text, boolean, text,
    text, text, text[], text[], text[], integer[], integer, integer);

CREATE FUNCTION accept(
    of_tenant text, of_conversation text, of_run text, of_request text, of_digest text,
    of_user text, of_agent text, of_title text, of_model text, of_system text, of_tools text[],
    of_settings text, of_options text, has_schema boolean, of_context text, of_parent text,
    only_agent text, roles text[], all_parts text[], bodies text[], all_tokens integer[],
    max_waiting integer, max_depth integer, own_depth integer,
    OUT verdict text, OUT run_id text, OUT conversation_id text, OUT turn_number bigint,
    OUT turn_status text, OUT is_made boolean, OUT next_run text, OUT next_context text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    known turn;
    into_conversation conversation;
    of_depth integer := 0;
    depth_bound integer := max_depth;
    place integer;
BEGIN
    PERFORM pg_advisory_xact_lock(
        hashtextextended('ksi_completion ' || of_tenant || ' ' || of_request, 0));
    is_made := false;
    SELECT t.* INTO known FROM turn t
     WHERE t.request_id = of_request AND t.tenant IS NOT DISTINCT FROM of_tenant;
    IF FOUND THEN
        verdict := CASE WHEN known.digest = of_digest THEN 'same' ELSE 'other' END;
        SELECT known.run, known.conversation, known.number, known.status
          INTO run_id, conversation_id, turn_number, turn_status;
        RETURN;
    END IF;
    IF of_parent IS NOT NULL THEN
        SELECT t.depth + 1, least(accept.max_depth, t.max_depth) INTO of_depth, depth_bound FROM turn t
         WHERE t.run = of_parent AND t.tenant IS NOT DISTINCT FROM of_tenant;
        of_depth := coalesce(of_depth, 0);
        IF of_depth > coalesce(depth_bound, accept.max_depth) THEN
            verdict := 'deep';
            RETURN;
        END IF;
    END IF;
    INSERT INTO conversation (tenant, id, title, model, agent, owner, system, tools, settings)
    VALUES (of_tenant, of_conversation, of_title, of_model, of_agent, of_user, of_system,
            of_tools, of_settings)
    ON CONFLICT DO NOTHING;
    is_made := FOUND;
    SELECT c.* INTO into_conversation FROM conversation c
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation) FOR UPDATE;
    IF of_user IS NOT NULL AND into_conversation.owner IS DISTINCT FROM of_user
       OR only_agent IS NOT NULL AND into_conversation.agent IS DISTINCT FROM only_agent THEN
        verdict := 'denied';
        RETURN;
    END IF;
    IF into_conversation.archived_at IS NOT NULL THEN
        verdict := 'archived';
        RETURN;
    END IF;
    IF (SELECT count(*) FROM turn t
         WHERE (t.tenant, t.conversation) = (of_tenant, of_conversation)
           AND t.status IN ('waiting', 'running', 'paused')) > max_waiting THEN
        verdict := 'full';
        RETURN;
    END IF;
    UPDATE conversation c
       SET last_turn = c.last_turn + 1, updated_at = clock_timestamp()
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
    RETURNING c.last_turn INTO turn_number;
    INSERT INTO turn (tenant, conversation, number, run, request_id, digest, agent, model, options,
                      has_output, made_conversation, context, parent, depth, max_depth)
    VALUES (of_tenant, of_conversation, turn_number, of_run, of_request, of_digest, of_agent,
            coalesce(of_model, into_conversation.model), of_options, has_schema, is_made,
            of_context, of_parent, of_depth, least(depth_bound, of_depth + own_depth));
    FOR place IN 1 .. cardinality(roles) LOOP
        INSERT INTO injection (tenant, conversation, turn, role, parts, body, tokens, run)
        VALUES (of_tenant, of_conversation, turn_number, roles[place], all_parts[place],
                bodies[place], all_tokens[place], of_run);
    END LOOP;
    SELECT n.next_run, n.next_context INTO next_run, next_context
      FROM claim_next(of_tenant, of_conversation) n;
    verdict := 'new';
    run_id := of_run;
    conversation_id := of_conversation;
    turn_status := CASE WHEN next_run = of_run THEN 'running' ELSE 'waiting' END;
END $$;
COMMENT ON FUNCTION accept IS 'accepts a turn; verdict: new, same, other, archived, full, deep, denied';

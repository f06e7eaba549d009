-- What a conversation is for, by which whoever makes conversations tells them apart.

SET LOCAL search_path = ksi_completion, public, pg_temp;

ALTER TABLE conversation ADD COLUMN kind text;
CREATE INDEX conversation_kind ON conversation (tenant, kind, updated_at DESC, id)
    WHERE kind IS NOT NULL;

CREATE FUNCTION kind_of(of_tenant text, of_conversation text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT c.kind FROM conversation c WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
$$;

CREATE FUNCTION create_conversation(
    of_tenant text, of_conversation text, of_title text, of_model text, of_agent text,
    of_owner text, of_system text, of_tools text[], of_settings text,
    of_kind text
) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    WITH made AS (
        INSERT INTO conversation (tenant, id, title, model, agent, owner, system, tools, settings,
                                  kind)
        VALUES (of_tenant, of_conversation, of_title, of_model, of_agent, of_owner, of_system,
                of_tools, of_settings, of_kind)
        ON CONFLICT DO NOTHING
        RETURNING 1)
    SELECT EXISTS (SELECT FROM made)
$$;

CREATE FUNCTION list_conversations(
    of_tenant text, of_user text, of_agent text, in_conversation text,
    led_by text, owned_by text, is_archived boolean, before_at timestamptz, before_id text,
    of_kind text, at_most integer
) RETURNS SETOF described
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT c.id, c.title, c.model, c.agent, c.owner, c.system, c.tools, c.settings, c.messages,
           c.last_turn, c.last_message, c.forked_from, c.forked_at, c.created_at, c.updated_at,
           c.archived_at, o.running, o.waiting
      FROM (SELECT * FROM conversation c
             WHERE c.tenant = of_tenant
               AND c.updated_at <= coalesce(before_at, 'infinity')
               AND (before_at IS NULL OR c.updated_at < before_at OR c.id > before_id)
               AND (c.archived_at IS NOT NULL) = is_archived
               AND (led_by IS NULL OR c.agent = led_by)
               AND (owned_by IS NULL OR c.owner = owned_by)
               AND (of_kind IS NULL OR c.kind = of_kind)
               AND is_visible(c.id, c.owner, c.agent, of_user, of_agent, in_conversation)
             ORDER BY c.updated_at DESC, c.id
             LIMIT at_most) c
     CROSS JOIN LATERAL (
           SELECT min(t.run) FILTER (WHERE t.status <> 'waiting') AS running,
                  count(*) FILTER (WHERE t.status = 'waiting') AS waiting
             FROM turn t
            WHERE (t.tenant, t.conversation) = (c.tenant, c.id)
              AND t.status IN ('waiting', 'running', 'paused')) o
     ORDER BY c.updated_at DESC, c.id
$$;

CREATE OR REPLACE FUNCTION fork_conversation(
    of_tenant text, of_user text, of_agent text, in_conversation text, of_conversation text,
    up_to bigint, new_id text, new_title text
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM find_conversation(of_tenant, of_user, of_agent, in_conversation,
                                                 of_conversation)) THEN
        RETURN 'not_found';
    END IF;
    INSERT INTO conversation (tenant, id, title, model, agent, owner, system, tools, settings,
                              kind, forked_from, forked_at)
    SELECT c.tenant, new_id, coalesce(new_title, c.title), c.model, c.agent, c.owner, c.system,
           c.tools, c.settings, c.kind, c.id, up_to
      FROM conversation c WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN 'taken';
    END IF;
    WITH copied AS (
        INSERT INTO message (tenant, conversation, number, turn, step, role, parts, body, tokens,
                             model, created_at)
        SELECT m.tenant, new_id, m.number, m.turn, m.step, m.role, m.parts, m.body, m.tokens,
               m.model, m.created_at
          FROM message m
         WHERE (m.tenant, m.conversation) = (of_tenant, of_conversation) AND m.number <= up_to
        RETURNING number, turn)
    UPDATE conversation c
       SET (messages, last_message, last_turn)
         = (SELECT count(*), coalesce(max(number), 0), coalesce(max(turn), 0) FROM copied)
     WHERE (c.tenant, c.id) = (of_tenant, new_id);
    INSERT INTO summary (tenant, conversation, up_to, body, tokens, model)
    SELECT s.tenant, new_id, s.up_to, s.body, s.tokens, s.model FROM summary s
     WHERE (s.tenant, s.conversation) = (of_tenant, of_conversation)
       AND s.up_to <= fork_conversation.up_to;
    RETURN 'ok';
END $$;

-- What is said of tools, of all that are asked about at once.
--
-- Each turn asks which of its tools it may call. Asked for each tool by itself, that took nearly
-- half of all the time that Postgres had for a turn. In PL/pgSQL a query is planned once for each
-- connection; in SQL, where it can't be made a part of the one that asks, each time.

SET LOCAL search_path = ksi_tools, public, pg_temp;

CREATE FUNCTION pattern_of(glob text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT translate(replace(glob, '_', '\_'), '*?', '%_')
$$;
COMMENT ON FUNCTION pattern_of IS 'a glob as LIKE has it';

-- May a subject call these tools, by its own word and those of all whose child it is? NULL: it has
-- none. A parent that has said nothing may call what is read-only; a chain that is too long allows
-- nothing.
CREATE FUNCTION words_of(of_tenant text, of_subject text, tools text[], tools_effects text[])
RETURNS boolean[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
BEGIN
    RETURN (
        WITH RECURSIVE chain AS (
            SELECT p.allow, p.deny, p.parent, 1 AS depth
              FROM permission p WHERE (p.tenant, p.subject) = (of_tenant, of_subject)
            UNION ALL
            SELECT p.allow, p.deny, p.parent, c.depth + 1
              FROM chain c
              JOIN permission p ON (p.tenant, p.subject) = (of_tenant, c.parent)
             WHERE c.depth < 16
        ), links AS MATERIALIZED (
            SELECT c.*, EXISTS (SELECT FROM permission p
                                 WHERE (p.tenant, p.subject) = (of_tenant, c.parent)) AS has_next
              FROM chain c
        )
        SELECT array_agg(said.word ORDER BY t.number)
          FROM unnest(tools, tools_effects) WITH ORDINALITY AS t (tool, effects, number)
         CROSS JOIN LATERAL (
             SELECT bool_and(
                        NOT EXISTS (SELECT FROM unnest(l.deny) AS glob
                                     WHERE t.tool LIKE pattern_of(glob))
                        AND CASE WHEN l.allow IS NULL THEN t.effects = 'read_only'
                                 ELSE EXISTS (SELECT FROM unnest(l.allow) AS glob
                                               WHERE t.tool LIKE pattern_of(glob)) END
                        AND (l.parent IS NULL
                             OR l.depth < 16 AND (t.effects = 'read_only' OR l.has_next)))
               FROM links l
         ) AS said (word));
END $$;
COMMENT ON FUNCTION words_of IS 'may a subject call each of these tools? none: nothing is said of it';

CREATE OR REPLACE FUNCTION word_of(
    of_tenant text, of_subject text, tool text, tool_effects text
) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
BEGIN
    RETURN (words_of(of_tenant, of_subject, ARRAY[tool], ARRAY[tool_effects]))[1];
END $$;

-- What both the agent and the conversation allow; where nothing is said of either, what is
-- read-only.
CREATE OR REPLACE FUNCTION which_permitted(
    of_tenant text, of_agent text, of_conversation text, tools text[], tools_effects text[]
) RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
DECLARE
    agents boolean[];
    conversations boolean[];
BEGIN
    IF of_agent IS NOT NULL THEN
        agents := words_of(of_tenant, 'agent:' || of_agent, tools, tools_effects);
    END IF;
    IF of_conversation IS NOT NULL THEN
        conversations := words_of(of_tenant, 'conversation:' || of_conversation, tools,
                                  tools_effects);
    END IF;
    RETURN (
        SELECT coalesce(array_agg(t.tool), '{}')
          FROM unnest(tools, tools_effects, agents, conversations)
            AS t (tool, effects, agent, conversation)
         WHERE coalesce(t.agent AND coalesce(t.conversation, true), t.conversation,
                        t.effects = 'read_only'));
END $$;

CREATE OR REPLACE FUNCTION is_permitted(
    of_tenant text, of_agent text, of_conversation text, tool text, tool_effects text
) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
BEGIN
    RETURN which_permitted(of_tenant, of_agent, of_conversation, ARRAY[tool],
                           ARRAY[tool_effects]) <> '{}';
END $$;

DROP FUNCTION matches_any(text, text[]);

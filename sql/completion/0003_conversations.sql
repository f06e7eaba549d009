-- What is asked of conversations and done to them: one function each, one round trip.
--
-- Whose event it is bounds what it sees: of_user a user's conversations, in_conversation one alone,
-- of_agent those that the agent leads. Where all three are null it is the daemon's owner, who sees
-- every conversation of the tenant.

SET LOCAL search_path = ksi_completion, public, pg_temp;

CREATE FUNCTION is_visible(id text, owner text, agent text, of_user text, of_agent text,
                           in_conversation text) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT (of_user IS NULL OR coalesce(owner = of_user, false))
       AND CASE WHEN in_conversation IS NOT NULL THEN id = in_conversation
                WHEN of_agent IS NOT NULL THEN coalesce(agent = of_agent, false)
                ELSE true END
$$;

-- -- conversations -------------------------------------------------------------------------------

CREATE TYPE described AS (
    id text, title text, model text, agent text, owner text, system text, tools text[],
    settings text, messages bigint, turns bigint, last_message bigint, forked_from text,
    forked_at bigint, created_at timestamptz, updated_at timestamptz, archived_at timestamptz,
    running text, waiting bigint
);

CREATE FUNCTION find_conversation(
    of_tenant text, of_user text, of_agent text, in_conversation text, of_conversation text
) RETURNS SETOF described
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT c.id, c.title, c.model, c.agent, c.owner, c.system, c.tools, c.settings, c.messages,
           c.last_turn, c.last_message, c.forked_from, c.forked_at, c.created_at, c.updated_at,
           c.archived_at, o.running, o.waiting
      FROM conversation c
     CROSS JOIN LATERAL (
           SELECT min(t.run) FILTER (WHERE t.status <> 'waiting') AS running,
                  count(*) FILTER (WHERE t.status = 'waiting') AS waiting
             FROM turn t
            WHERE (t.tenant, t.conversation) = (c.tenant, c.id)
              AND t.status IN ('waiting', 'running', 'paused')) o
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
       AND is_visible(c.id, c.owner, c.agent, of_user, of_agent, in_conversation)
$$;
COMMENT ON FUNCTION find_conversation IS 'a conversation that the sender may see';

CREATE FUNCTION list_conversations(
    of_tenant text, of_user text, of_agent text, in_conversation text,
    led_by text, owned_by text, is_archived boolean, before_at timestamptz, before_id text,
    at_most integer
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
COMMENT ON FUNCTION list_conversations IS 'the conversations that the sender may see; reads no message';

-- One that is there already is left as it is.
CREATE FUNCTION create_conversation(
    of_tenant text, of_conversation text, of_title text, of_model text, of_agent text,
    of_owner text, of_system text, of_tools text[], of_settings text
) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    WITH made AS (
        INSERT INTO conversation (tenant, id, title, model, agent, owner, system, tools, settings)
        VALUES (of_tenant, of_conversation, of_title, of_model, of_agent, of_owner, of_system,
                of_tools, of_settings)
        ON CONFLICT DO NOTHING
        RETURNING 1)
    SELECT EXISTS (SELECT FROM made)
$$;
COMMENT ON FUNCTION create_conversation IS 'makes a conversation; was there none of that id?';

CREATE FUNCTION rename_conversation(
    of_tenant text, of_user text, of_agent text, in_conversation text, of_conversation text,
    new_title text
) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    WITH done AS (
        UPDATE conversation c SET title = new_title
         WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
           AND is_visible(c.id, c.owner, c.agent, of_user, of_agent, in_conversation)
        RETURNING 1)
    SELECT EXISTS (SELECT FROM done)
$$;

CREATE FUNCTION archive_conversation(
    of_tenant text, of_user text, of_agent text, in_conversation text, of_conversation text,
    is_archived boolean
) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    WITH done AS (
        UPDATE conversation c
           SET archived_at = CASE WHEN is_archived THEN coalesce(c.archived_at, now()) END
         WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
           AND is_visible(c.id, c.owner, c.agent, of_user, of_agent, in_conversation)
        RETURNING 1)
    SELECT EXISTS (SELECT FROM done)
$$;

-- Under the conversation's row lock, which accepting a turn takes, too: none slips in.
CREATE FUNCTION delete_conversation(
    of_tenant text, of_user text, of_agent text, in_conversation text, of_conversation text,
    OUT verdict text, OUT gone bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
BEGIN
    SELECT c.messages INTO gone FROM conversation c
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
       AND is_visible(c.id, c.owner, c.agent, of_user, of_agent, in_conversation)
       FOR UPDATE;
    IF NOT FOUND THEN
        verdict := 'not_found';
    ELSIF EXISTS (SELECT FROM turn t
                   WHERE (t.tenant, t.conversation) = (of_tenant, of_conversation)
                     AND t.status IN ('waiting', 'running', 'paused')) THEN
        verdict := 'at_work';
    ELSIF EXISTS (SELECT FROM lock l
                   WHERE (l.tenant, l.conversation) = (of_tenant, of_conversation)
                     AND l.expires_at > clock_timestamp()) THEN
        verdict := 'locked';
    ELSE
        verdict := 'ok';
        DELETE FROM lock l WHERE (l.tenant, l.conversation) = (of_tenant, of_conversation);
        DELETE FROM conversation c WHERE (c.tenant, c.id) = (of_tenant, of_conversation);
    END IF;
END $$;

-- -- messages ------------------------------------------------------------------------------------

-- A row without a number says that the conversation is there and no such message in it. Of large
-- messages fewer come, at least one.
CREATE FUNCTION read_messages(
    of_tenant text, of_user text, of_agent text, in_conversation text, of_conversation text,
    after_number bigint, before_number bigint, at_most integer, max_bytes bigint, is_last boolean,
    OUT last_message bigint, OUT number bigint, OUT turn bigint, OUT role text, OUT parts text,
    OUT tokens integer, OUT run text, OUT model text, OUT created_at timestamptz
) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT c.last_message, m.number, m.turn, m.role, m.parts, m.tokens, m.run, m.model,
           m.created_at
      FROM conversation c
      LEFT JOIN LATERAL (
           SELECT f.*, sum(octet_length(f.parts)) OVER (ORDER BY f.number) AS bytes
             FROM (SELECT * FROM message m
                    WHERE (m.tenant, m.conversation) = (c.tenant, c.id)
                      AND m.number > coalesce(after_number, 0)
                      AND m.number < coalesce(before_number, 9223372036854775807)
                      AND NOT is_last
                    ORDER BY m.number LIMIT at_most) f
           UNION ALL
           SELECT l.*, sum(octet_length(l.parts)) OVER (ORDER BY l.number DESC)
             FROM (SELECT * FROM message m
                    WHERE (m.tenant, m.conversation) = (c.tenant, c.id)
                      AND m.number > coalesce(after_number, 0)
                      AND m.number < coalesce(before_number, 9223372036854775807)
                      AND is_last
                    ORDER BY m.number DESC LIMIT at_most) l
           ) m ON m.bytes - octet_length(m.parts) < max_bytes
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
       AND is_visible(c.id, c.owner, c.agent, of_user, of_agent, in_conversation)
     ORDER BY m.number
$$;
COMMENT ON FUNCTION read_messages IS 'messages by their numbers: the first, or the last of some';

-- Numbers, turns and texts stay as they are; whose run a message came of is told by the original.
CREATE FUNCTION fork_conversation(
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
                              forked_from, forked_at)
    SELECT c.tenant, new_id, coalesce(new_title, c.title), c.model, c.agent, c.owner, c.system,
           c.tools, c.settings, c.id, up_to
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

-- All of it, or nothing where the id is taken.
CREATE FUNCTION import_conversation(
    of_tenant text, new_id text, of_title text, of_model text, of_agent text, of_owner text,
    of_system text, of_tools text[], of_settings text, turns bigint[], roles text[], parts text[],
    bodies text[], tokens integer[], models text[], created timestamptz[]
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO conversation (tenant, id, title, model, agent, owner, system, tools, settings,
                              messages, last_message, last_turn)
    VALUES (of_tenant, new_id, of_title, of_model, of_agent, of_owner, of_system, of_tools,
            of_settings, cardinality(roles), cardinality(roles),
            coalesce((SELECT max(each) FROM unnest(turns) each), 0))
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO message (tenant, conversation, number, turn, role, parts, body, tokens, model,
                         created_at)
    SELECT of_tenant, new_id, row_number() OVER (), u.*
      FROM unnest(turns, roles, parts, bodies, tokens, models, created) u;
    RETURN true;
END $$;

-- -- search --------------------------------------------------------------------------------------

-- Words as they are but for their accents and capitals: languages mix in one conversation.
CREATE TEXT SEARCH CONFIGURATION words (COPY = pg_catalog.simple);
ALTER TEXT SEARCH CONFIGURATION words
    ALTER MAPPING FOR hword, hword_part, word WITH unaccent, pg_catalog.simple;

DROP INDEX message_words;
CREATE INDEX message_words ON message
    USING gin (tenant, to_tsvector('ksi_completion.words', body));

-- Any text will do: quoted phrases, "or", and a minus before what must not be there. Words of
-- begun are beginnings.
CREATE FUNCTION words_of(text text, begun text[]) RETURNS tsquery
LANGUAGE sql STABLE SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT websearch_to_tsquery('ksi_completion.words', text)
        && coalesce((SELECT to_tsquery('ksi_completion.words',
                                       string_agg(quote_literal(each) || ':*', ' & '))
                       FROM unnest(begun) each), ''::tsquery)
$$;

-- The newest of what was found are ranked: words that every message has would take long.
CREATE FUNCTION search_messages(
    of_tenant text, of_user text, of_agent text, in_conversation text, of_conversation text,
    words text, begun text[], at_most integer, ranked integer,
    OUT conversation text, OUT title text, OUT number bigint, OUT role text, OUT snippet text,
    OUT score real, OUT created_at timestamptz
) RETURNS SETOF record
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    query tsquery := words_of(words, begun);
BEGIN
    IF querytree(query) IN ('', 'T') THEN
        RAISE invalid_parameter_value USING MESSAGE = 'no word';
    END IF;
    RETURN QUERY
    SELECT b.conversation, b.title, b.number, b.role,
           ts_headline('ksi_completion.words', b.body, query,
                       'StartSel=**, StopSel=**, MaxWords=30, MinWords=10'),
           b.score, b.created_at
      FROM (SELECT n.*, ts_rank(to_tsvector('ksi_completion.words', left(n.body, 10000)), query, 1)
                        AS score
              FROM (SELECT m.conversation, c.title, m.number, m.role, m.body, m.created_at
                      FROM message m
                      JOIN conversation c ON (c.tenant, c.id) = (m.tenant, m.conversation)
                     WHERE m.tenant = of_tenant
                       AND to_tsvector('ksi_completion.words', m.body) @@ query
                       AND (of_conversation IS NULL OR m.conversation = of_conversation)
                       AND is_visible(c.id, c.owner, c.agent, of_user, of_agent, in_conversation)
                     ORDER BY m.created_at DESC
                     LIMIT ranked) n
             ORDER BY score DESC, n.created_at DESC, n.conversation, n.number
             LIMIT at_most) b
     ORDER BY b.score DESC, b.created_at DESC, b.conversation, b.number;
END $$;

-- -- what a model is sent ------------------------------------------------------------------------

-- The end of a conversation that can fit, from the newest message back; those of a turn all the
-- same. The row with the number 0 is the summary that stands for what is before: its turn is the
-- message up to which it goes, and its run how many tokens fall out that it does not sum up.
CREATE FUNCTION read_window(
    of_tenant text, of_conversation text, of_turn bigint, max_tokens bigint, max_each integer,
    at_most integer,
    OUT number bigint, OUT turn bigint, OUT role text, OUT parts text, OUT tokens integer,
    OUT unsummed bigint
) RETURNS SETOF record
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    must_from bigint;
    lowest bigint;
    total bigint := 0;
    kept integer := 0;
    each record;
    sum_up summary;
BEGIN
    SELECT m.number INTO must_from FROM message m
     WHERE (m.tenant, m.conversation) = (of_tenant, of_conversation)
       AND (of_turn IS NULL AND m.role = 'user' OR m.turn = of_turn)
     ORDER BY CASE WHEN of_turn IS NULL THEN -m.number ELSE m.number END
     LIMIT 1;
    FOR each IN
        SELECT m.number, m.tokens FROM message m
         WHERE (m.tenant, m.conversation) = (of_tenant, of_conversation)
           AND m.turn <= coalesce(of_turn, 9223372036854775807)
         ORDER BY m.number DESC
    LOOP
        total := total + least(each.tokens, max_each);
        kept := kept + 1;
        EXIT WHEN (total > max_tokens OR kept > at_most)
              AND lowest IS NOT NULL
              AND each.number < coalesce(must_from, 9223372036854775807);
        lowest := each.number;
    END LOOP;
    number := 0;
    turn := 0;
    tokens := 0;
    unsummed := 0;
    IF lowest > 1 THEN
        SELECT s.* INTO sum_up FROM summary s
         WHERE (s.tenant, s.conversation) = (of_tenant, of_conversation)
           AND s.up_to >= lowest - 1
           AND s.up_to < coalesce(must_from, 9223372036854775807)
         ORDER BY s.up_to LIMIT 1;
        IF NOT FOUND THEN
            SELECT s.* INTO sum_up FROM summary s
             WHERE (s.tenant, s.conversation) = (of_tenant, of_conversation)
               AND s.up_to < lowest
             ORDER BY s.up_to DESC LIMIT 1;
        END IF;
        turn := coalesce(sum_up.up_to, 0);
        parts := sum_up.body;
        tokens := coalesce(sum_up.tokens, 0);
        SELECT coalesce(sum(g.tokens), 0) INTO unsummed
          FROM (SELECT m.tokens FROM message m
                 WHERE (m.tenant, m.conversation) = (of_tenant, of_conversation)
                   AND m.number > coalesce(sum_up.up_to, 0) AND m.number < lowest
                 ORDER BY m.number DESC LIMIT 1000) g;
        lowest := greatest(lowest, coalesce(sum_up.up_to, 0) + 1);
    END IF;
    RETURN NEXT;
    RETURN QUERY
    SELECT m.number, m.turn, m.role, m.parts, m.tokens, 0::bigint FROM message m
     WHERE (m.tenant, m.conversation) = (of_tenant, of_conversation)
       AND m.number >= lowest
       AND m.turn <= coalesce(of_turn, 9223372036854775807)
     ORDER BY m.turn, m.number;
END $$;
COMMENT ON FUNCTION read_window IS 'the newest messages that can fit, and the summary before them';

CREATE FUNCTION summary_of(of_tenant text, of_conversation text, through bigint) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT s.body FROM summary s
     WHERE (s.tenant, s.conversation, s.up_to) = (of_tenant, of_conversation, through)
$$;

CREATE FUNCTION save_summary(
    of_tenant text, of_conversation text, through bigint, text text, counted integer, by_model text
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    INSERT INTO summary (tenant, conversation, up_to, body, tokens, model)
    SELECT c.tenant, c.id, through, text, counted, by_model FROM conversation c
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
    ON CONFLICT DO NOTHING
$$;

-- -- locks ---------------------------------------------------------------------------------------

-- The lock is there at once, so that no turn starts any more; the verdict says whether one still
-- runs. Under the conversation's row lock, which starting a turn takes, too.
CREATE FUNCTION take_lock(
    of_tenant text, of_user text, of_agent text, in_conversation text, of_conversation text,
    lock_id text, lock_owner text, ttl interval, is_prolonged boolean,
    OUT verdict text, OUT held_by text, OUT since timestamptz, OUT until timestamptz
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    held lock;
BEGIN
    PERFORM FROM conversation c
      WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
        AND is_visible(c.id, c.owner, c.agent, of_user, of_agent, in_conversation)
        FOR UPDATE;
    IF NOT FOUND THEN
        verdict := 'not_found';
        RETURN;
    END IF;
    SELECT l.* INTO held FROM lock l WHERE (l.tenant, l.conversation) = (of_tenant, of_conversation);
    IF FOUND AND held.id <> lock_id AND held.expires_at > clock_timestamp() THEN
        verdict := 'locked';
        held_by := held.owner;
        since := held.locked_at;
        until := held.expires_at;
        RETURN;
    ELSIF is_prolonged AND held.id IS DISTINCT FROM lock_id THEN
        verdict := 'lost';
        RETURN;
    END IF;
    INSERT INTO lock AS l (tenant, conversation, id, owner, locked_at, expires_at)
    VALUES (of_tenant, of_conversation, lock_id, lock_owner, clock_timestamp(),
            clock_timestamp() + ttl)
    ON CONFLICT (tenant, conversation) DO UPDATE
       SET id = excluded.id, owner = excluded.owner, expires_at = excluded.expires_at,
           locked_at = CASE WHEN l.id = excluded.id THEN l.locked_at ELSE excluded.locked_at END
    RETURNING l.owner, l.locked_at, l.expires_at INTO held_by, since, until;
    verdict := CASE WHEN EXISTS (
        SELECT FROM turn t
         WHERE (t.tenant, t.conversation) = (of_tenant, of_conversation)
           AND t.status IN ('running', 'paused')) THEN 'running' ELSE 'ok' END;
END $$;

CREATE FUNCTION give_lock_back(
    of_tenant text, of_user text, of_agent text, in_conversation text, of_conversation text,
    lock_id text, by_force boolean
) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    held lock;
BEGIN
    IF NOT EXISTS (SELECT FROM find_conversation(of_tenant, of_user, of_agent, in_conversation,
                                                 of_conversation)) THEN
        RETURN 'not_found';
    END IF;
    SELECT l.* INTO held FROM lock l
     WHERE (l.tenant, l.conversation) = (of_tenant, of_conversation) FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'none';
    ELSIF NOT by_force AND held.id IS DISTINCT FROM lock_id
          AND held.expires_at > clock_timestamp() THEN
        RETURN 'another';
    END IF;
    DELETE FROM lock l WHERE (l.tenant, l.conversation, l.id)
                           = (of_tenant, of_conversation, held.id);
    PERFORM pg_notify('ksi_completion_locks', of_tenant || ' ' || of_conversation);
    RETURN CASE WHEN held.expires_at > clock_timestamp() THEN 'ok' ELSE 'none' END;
END $$;

CREATE FUNCTION list_locks(
    of_tenant text, of_user text, of_agent text, in_conversation text, at_most integer
) RETURNS SETOF lock
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT l.* FROM lock l
      JOIN conversation c ON (c.tenant, c.id) = (l.tenant, l.conversation)
     WHERE l.tenant = of_tenant AND l.expires_at > clock_timestamp()
       AND is_visible(c.id, c.owner, c.agent, of_user, of_agent, in_conversation)
     ORDER BY l.locked_at, l.conversation LIMIT at_most
$$;

-- Whoever waits for a conversation hears that its turn has ended.
CREATE FUNCTION tell_who_waits() RETURNS trigger
LANGUAGE plpgsql SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM lock l
                WHERE (l.tenant, l.conversation) = (NEW.tenant, NEW.conversation)) THEN
        PERFORM pg_notify('ksi_completion_locks', NEW.tenant || ' ' || NEW.conversation);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tell_who_waits AFTER UPDATE OF status ON turn FOR EACH ROW
    WHEN (OLD.status IN ('running', 'paused') AND NEW.status NOT IN ('running', 'paused'))
    EXECUTE FUNCTION tell_who_waits();

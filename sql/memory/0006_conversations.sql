-- What becomes of conversations: how far each is read, and which moments cover which messages; what
-- is mentioned together; what may not be said again; what it all has cost.
--
-- A moment is planned before it is written: its plan says which messages it covers, so that who
-- writes it again after a crash writes the same one. Where something is forgotten that a message
-- said, the moments that cover the message go in the same transaction, and are written anew without
-- its turn.

SET LOCAL search_path = ksi_memory, public, pg_temp;

CREATE TABLE reading (
    tenant text NOT NULL,
    conversation text NOT NULL,
    turn bigint NOT NULL DEFAULT 0, -- the last turn that was read
    message bigint NOT NULL DEFAULT 0, -- the last message that was read
    covered bigint NOT NULL DEFAULT 0, -- the last message that a moment covers, or is to cover
    uncovered_tokens bigint NOT NULL DEFAULT 0, -- of the messages that were read and are not covered
    chunks integer NOT NULL DEFAULT 0,
    read_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, conversation),
    FOREIGN KEY (tenant, conversation) REFERENCES ksi_completion.conversation ON DELETE CASCADE
);
SELECT ksi_postgres.protect('reading');

CREATE TABLE chunk (
    tenant text NOT NULL,
    conversation text NOT NULL,
    number integer NOT NULL, -- from 1 on
    first_message bigint NOT NULL,
    last_message bigint NOT NULL,
    tokens bigint NOT NULL,
    state text NOT NULL DEFAULT 'planned',
    changes integer NOT NULL DEFAULT 0, -- how often it was to be written anew
    moment uuid, -- the moment's id, whether it is written or not; none: it was forgotten
    planned_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, conversation, number),
    FOREIGN KEY (tenant, conversation) REFERENCES ksi_completion.conversation ON DELETE CASCADE,
    CHECK (state IN ('planned', 'written', 'empty', 'forgotten')), -- 'empty': nothing to be said
    CHECK (first_message <= last_message)
);
CREATE INDEX chunk_open ON chunk (tenant, conversation, number) WHERE state = 'planned';
CREATE INDEX chunk_moment ON chunk (tenant, moment);
SELECT ksi_postgres.protect('chunk');

-- Messages that said something which was forgotten: no moment is made of their turns any more.
CREATE TABLE left_out (
    tenant text NOT NULL,
    conversation text NOT NULL,
    message bigint NOT NULL,
    PRIMARY KEY (tenant, conversation, message),
    FOREIGN KEY (tenant, conversation, message) REFERENCES ksi_completion.message ON DELETE CASCADE
);
SELECT ksi_postgres.protect('left_out');

-- Which entities a message mentions together, by their folded names, the lesser first.
CREATE TABLE together (
    tenant text NOT NULL,
    owner text NOT NULL,
    one text NOT NULL,
    other text NOT NULL,
    conversation text NOT NULL,
    message bigint NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (tenant, owner, one, other, conversation, message),
    FOREIGN KEY (tenant, conversation, message) REFERENCES ksi_completion.message ON DELETE CASCADE,
    CHECK (one <= other)
);
CREATE INDEX together_other ON together (tenant, owner, other);
CREATE INDEX together_message ON together (tenant, conversation, message);
SELECT ksi_postgres.protect('together');

-- What a dream took for one: the item that was ended, and the one that goes on in its place.
CREATE TABLE merged (
    tenant text NOT NULL,
    ended uuid NOT NULL,
    kept uuid NOT NULL,
    merged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, ended, kept)
);
CREATE INDEX merged_kept ON merged (tenant, kept);
SELECT ksi_postgres.protect('merged');

-- What models that worked for the memory took, by day.
CREATE TABLE spending (
    tenant text NOT NULL,
    day date NOT NULL,
    tokens bigint NOT NULL DEFAULT 0,
    cost_usd numeric(18, 9) NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, day)
);
SELECT ksi_postgres.protect('spending');

-- -- reading -------------------------------------------------------------------------------------

-- Whose a conversation is, how far it was read, and how far it can be: through the last turn before
-- one that still goes on. What a fork was copied from is read there. `spoken` are the turns that
-- nobody's run asked for, but a person.
CREATE FUNCTION begin_reading(
    of_tenant text, of_conversation text,
    OUT owner text, OUT after_message bigint, OUT through_message bigint, OUT after_turn bigint,
    OUT through_turn bigint, OUT covered bigint, OUT uncovered_tokens bigint, OUT spoken bigint[]
) RETURNS SETOF record
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1
SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
DECLARE
    known ksi_completion.conversation;
BEGIN
    SELECT c.* INTO known FROM ksi_completion.conversation c
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation);
    IF NOT FOUND THEN
        RETURN;
    END IF;
    owner := coalesce(known.owner, '');
    SELECT r.message, r.turn, r.covered, r.uncovered_tokens
      INTO after_message, after_turn, begin_reading.covered, begin_reading.uncovered_tokens
      FROM reading r WHERE (r.tenant, r.conversation) = (of_tenant, of_conversation);
    IF NOT FOUND THEN
        after_message := coalesce(known.forked_at, 0);
        begin_reading.covered := after_message;
        begin_reading.uncovered_tokens := 0;
        SELECT coalesce(max(m.turn), 0) INTO after_turn FROM ksi_completion.message m
         WHERE (m.tenant, m.conversation) = (of_tenant, of_conversation)
           AND m.number <= after_message;
    END IF;
    SELECT coalesce(min(t.number) - 1, known.last_turn) INTO through_turn
      FROM ksi_completion.turn t
     WHERE (t.tenant, t.conversation) = (of_tenant, of_conversation)
       AND t.status IN ('waiting', 'running', 'paused');
    SELECT coalesce(max(m.number), after_message) INTO through_message
      FROM ksi_completion.message m
     WHERE (m.tenant, m.conversation) = (of_tenant, of_conversation)
       AND m.turn <= through_turn AND m.number >= after_message;
    SELECT coalesce(array_agg(t.number), '{}') INTO spoken FROM ksi_completion.turn t
     WHERE (t.tenant, t.conversation) = (of_tenant, of_conversation)
       AND t.number > after_turn AND t.number <= through_turn AND t.parent IS NULL;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION begin_reading IS 'how far a conversation was read, and how far it can be';

-- Only from where it was read from: who was overtaken changes nothing.
CREATE FUNCTION end_reading(
    of_tenant text, of_conversation text, from_message bigint, through_message bigint,
    through_turn bigint, of_covered bigint, of_tokens bigint
) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    WITH done AS (
        INSERT INTO reading AS r (tenant, conversation, turn, message, covered, uncovered_tokens)
        SELECT of_tenant, of_conversation, end_reading.through_turn, through_message, of_covered,
               of_tokens
          FROM ksi_completion.conversation c WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
        ON CONFLICT (tenant, conversation) DO UPDATE
           SET turn = excluded.turn, message = excluded.message,
               uncovered_tokens = r.uncovered_tokens + excluded.uncovered_tokens,
               read_at = clock_timestamp()
         WHERE r.message = from_message AND r.turn <= excluded.turn
        RETURNING 1)
    SELECT EXISTS (SELECT FROM done)
$$;
COMMENT ON FUNCTION end_reading IS 'notes how far a conversation was read; was it from there?';

-- Conversations with turns that have ended and were not read, or moments that are not written: what
-- a daemon left that died. Those that were used just now have somebody at them.
CREATE FUNCTION unread(used_within interval, but_not_within interval, at_most integer,
                       OUT tenant text, OUT conversation text, OUT owner text, OUT turn bigint)
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT c.tenant, c.id, c.owner, c.last_turn
      FROM ksi_completion.conversation c
      LEFT JOIN reading r ON (r.tenant, r.conversation) = (c.tenant, c.id)
     WHERE c.updated_at > clock_timestamp() - used_within
       AND c.updated_at < clock_timestamp() - but_not_within
       AND c.last_turn > coalesce(r.turn, 0)
       AND EXISTS (SELECT FROM ksi_completion.turn t
                    WHERE (t.tenant, t.conversation) = (c.tenant, c.id)
                      AND t.number > coalesce(r.turn, 0)
                      AND t.status IN ('succeeded', 'failed', 'cancelled'))
    UNION
    SELECT c.tenant, c.id, c.owner, c.last_turn
      FROM chunk k
      JOIN ksi_completion.conversation c ON (c.tenant, c.id) = (k.tenant, k.conversation)
     WHERE k.state = 'planned' AND k.planned_at < clock_timestamp() - but_not_within
     LIMIT at_most
$$;
COMMENT ON FUNCTION unread IS 'names the conversations that somebody should read, for the sweep';

-- -- moments of conversations --------------------------------------------------------------------

CREATE FUNCTION plan_chunk(
    of_tenant text, of_conversation text, from_covered bigint, through_message bigint,
    of_tokens bigint, of_number integer, of_moment uuid
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
BEGIN
    UPDATE reading r
       SET covered = through_message, chunks = of_number,
           uncovered_tokens = greatest(r.uncovered_tokens - of_tokens, 0)
     WHERE (r.tenant, r.conversation) = (of_tenant, of_conversation)
       AND r.covered = from_covered AND r.chunks = of_number - 1;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO chunk (tenant, conversation, number, first_message, last_message, tokens, moment)
    VALUES (of_tenant, of_conversation, of_number, from_covered + 1, through_message, of_tokens,
            of_moment);
    RETURN true;
END $$;
COMMENT ON FUNCTION plan_chunk IS 'says which messages the next moment covers; was it not said yet?';

CREATE FUNCTION coverage(
    of_tenant text, of_conversation text,
    OUT message bigint, OUT covered bigint, OUT uncovered_tokens bigint, OUT chunks integer
) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT r.message, r.covered, r.uncovered_tokens, r.chunks FROM reading r
     WHERE (r.tenant, r.conversation) = (of_tenant, of_conversation)
$$;

-- The moments of a conversation that are to be written, each with what it must leave out, and the
-- one before it.
CREATE FUNCTION open_chunks(
    of_tenant text, of_conversation text, at_most integer,
    OUT number integer, OUT first_message bigint, OUT last_message bigint, OUT tokens bigint,
    OUT changes integer, OUT left_out bigint[], OUT has_previous boolean
) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT k.number, k.first_message, k.last_message, k.tokens, k.changes,
           ARRAY(SELECT l.message FROM left_out l
                  WHERE (l.tenant, l.conversation) = (k.tenant, k.conversation)
                    AND l.message BETWEEN k.first_message AND k.last_message),
           EXISTS (SELECT FROM chunk p
                    WHERE (p.tenant, p.conversation) = (k.tenant, k.conversation)
                      AND p.number = k.number - 1 AND p.state IN ('planned', 'written'))
      FROM chunk k
     WHERE (k.tenant, k.conversation) = (of_tenant, of_conversation) AND k.state = 'planned'
     ORDER BY k.number LIMIT at_most
$$;
COMMENT ON FUNCTION open_chunks IS 'the moments of a conversation that are to be written';

-- Where something was forgotten while it was written, it is taken back, and to be written anew.
CREATE FUNCTION close_chunk(
    of_tenant text, of_conversation text, of_number integer, of_changes integer, to_state text
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    known chunk;
BEGIN
    PERFORM lock_tenant(of_tenant);
    SELECT k.* INTO known FROM chunk k
     WHERE (k.tenant, k.conversation, k.number) = (of_tenant, of_conversation, of_number)
       FOR UPDATE;
    IF known.state = 'planned' AND known.changes = of_changes THEN
        UPDATE chunk k SET state = to_state
         WHERE (k.tenant, k.conversation, k.number) = (of_tenant, of_conversation, of_number);
        RETURN true;
    ELSIF known.state = 'planned' THEN
        DELETE FROM item i WHERE (i.tenant, i.id) = (of_tenant, known.moment);
    END IF;
    RETURN known.state IS NULL OR known.state <> 'planned';
END $$;
COMMENT ON FUNCTION close_chunk IS 'notes that a moment is written; may it stand as it is?';

CREATE FUNCTION lying_still(
    of_tenant text, of_owner text, least_tokens bigint, idle interval, at_most integer,
    OUT conversation text, OUT tokens bigint
) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT r.conversation, r.uncovered_tokens
      FROM reading r
      JOIN ksi_completion.conversation c ON (c.tenant, c.id) = (r.tenant, r.conversation)
     WHERE r.tenant = of_tenant AND coalesce(c.owner, '') = of_owner
       AND r.uncovered_tokens >= least_tokens
       AND c.updated_at < clock_timestamp() - idle
     ORDER BY c.updated_at, r.conversation LIMIT at_most
$$;
COMMENT ON FUNCTION lying_still IS 'conversations with much that no moment covers, out of use';

CREATE FUNCTION list_moments(
    of_tenant text, of_owner text, of_type text, of_conversation text, of_person text,
    of_topic text, since timestamptz, until timestamptz, before_at timestamptz, before_id uuid,
    at_most integer
) RETURNS SETOF shown
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT (show_item(f)).*
      FROM (SELECT i.* FROM item i
             WHERE i.tenant = of_tenant AND i.kind = 'moments' AND i.valid_to IS NULL
               AND (of_owner IS NULL OR i.owner IN ('', of_owner))
               AND (of_type IS NULL OR i.category = of_type)
               AND (of_conversation IS NULL OR i.session = of_conversation)
               AND (of_person IS NULL OR folded(of_person) = ANY (i.persons))
               AND (of_topic IS NULL OR i.attributes -> 'topics' ? lower(of_topic))
               AND (since IS NULL OR coalesce(i.ends_at, i.starts_at, i.valid_from) >= since)
               AND (until IS NULL OR coalesce(i.starts_at, i.valid_from) < until)
               AND (before_at IS NULL
                    OR (coalesce(i.starts_at, i.valid_from), i.id) < (before_at, before_id))
             ORDER BY coalesce(i.starts_at, i.valid_from) DESC, i.id DESC
             LIMIT at_most) f
     ORDER BY coalesce(f.starts_at, f.valid_from) DESC, f.id DESC
$$;
COMMENT ON FUNCTION list_moments IS 'moments, the newest first';

-- -- before a turn -------------------------------------------------------------------------------

-- What is always told: facts, those that were pinned and what is wanted first, then the newest; and
-- the patterns that were seen lately, the surest first.
CREATE FUNCTION recalled(
    of_tenant text, of_owner text, max_facts integer, max_patterns integer,
    patterns_since timestamptz,
    OUT kind text, OUT key text, OUT body text, OUT title text, OUT owner text,
    OUT confidence double precision
) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    (SELECT i.kind, i.key, left(i.body, 2000), i.title, i.owner, NULL::double precision
       FROM item i
      WHERE i.tenant = of_tenant AND i.kind = 'facts' AND i.valid_to IS NULL
        AND i.owner IN ('', of_owner)
      ORDER BY i.is_pinned DESC, (i.category IS NOT DISTINCT FROM 'instruction') DESC, i.valid_from DESC, i.id
      LIMIT max_facts)
    UNION ALL
    (SELECT i.kind, i.key, left(i.body, 2000), i.title, i.owner,
            (i.attributes ->> 'confidence')::double precision
       FROM item i
      WHERE i.tenant = of_tenant AND i.kind = 'patterns' AND i.valid_to IS NULL
        AND i.owner IN ('', of_owner)
        AND coalesce(i.ends_at, i.valid_from) >= patterns_since
        AND jsonb_typeof(i.attributes -> 'confidence') = 'number'
      ORDER BY (i.attributes ->> 'confidence')::double precision DESC, i.id
      LIMIT max_patterns)
$$;
COMMENT ON FUNCTION recalled IS 'what is told before every turn: facts, and recent patterns';

-- -- mentions ------------------------------------------------------------------------------------

-- Which of some words are entities of this owner's, and that they were mentioned together.
CREATE FUNCTION note_together(
    of_tenant text, of_owner text, of_conversation text, of_message bigint, spoken_at timestamptz,
    words text[], at_most integer
) RETURNS integer
LANGUAGE sql SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    WITH known AS MATERIALIZED (
        SELECT DISTINCT i.name
          FROM (SELECT DISTINCT folded(w) AS name FROM unnest(words) w) g
          JOIN item i ON i.tenant = of_tenant AND i.name = g.name AND i.kind = 'entities'
                     AND i.owner IN ('', of_owner) AND i.valid_to IS NULL
         ORDER BY i.name LIMIT at_most
    ), noted AS (
        INSERT INTO together (tenant, owner, one, other, conversation, message, at)
        SELECT of_tenant, of_owner, a.name, b.name, of_conversation, of_message, spoken_at
          FROM known a JOIN known b ON a.name < b.name
         WHERE EXISTS (SELECT FROM ksi_completion.message m
                        WHERE (m.tenant, m.conversation, m.number)
                              = (of_tenant, of_conversation, of_message))
        ON CONFLICT DO NOTHING
        RETURNING 1)
    SELECT count(*)::integer FROM noted
$$;
COMMENT ON FUNCTION note_together IS 'notes which entities a message mentions together';

-- -- dreaming ------------------------------------------------------------------------------------

CREATE FUNCTION dreamers(of_tenant text, since timestamptz, OUT owner text) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT DISTINCT i.owner FROM item i
     WHERE i.tenant = of_tenant AND i.valid_to IS NULL AND i.recorded_at >= since
       AND i.kind IN ('moments', 'facts', 'entities', 'associations', 'patterns')
     ORDER BY i.owner
$$;
COMMENT ON FUNCTION dreamers IS 'whose memory has anything new';

CREATE FUNCTION dreaming_tenants(since timestamptz) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT DISTINCT i.tenant FROM item i
     WHERE i.recorded_at >= since AND i.kind IN ('moments', 'facts', 'entities')
     ORDER BY i.tenant
$$;
COMMENT ON FUNCTION dreaming_tenants IS 'names the tenants whose memory has anything new';

-- What belongs to exactly this owner, of some kinds, the newest first.
CREATE FUNCTION dreamt_of(
    of_tenant text, whose_owner text, kinds text[], since timestamptz, at_most integer
) RETURNS SETOF shown
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT (show_item(f)).*
      FROM (SELECT i.* FROM item i
             WHERE i.tenant = of_tenant AND i.kind = ANY (kinds) AND i.valid_to IS NULL
               AND i.owner = whose_owner
               AND (since IS NULL OR coalesce(i.ends_at, i.starts_at, i.valid_from) >= since)
             ORDER BY coalesce(i.starts_at, i.valid_from) DESC, i.id
             LIMIT at_most) f
$$;
COMMENT ON FUNCTION dreamt_of IS 'the items of an owner that a dream goes over';

-- How often entities were mentioned together: each mention counts the less the older it is, by
-- whole days, so that twice a day is the same. With each the newest messages that did.
CREATE FUNCTION pairs(
    of_tenant text, of_owner text, as_of timestamptz, half_life interval, at_most integer,
    OUT one text, OUT other text, OUT mentions bigint, OUT weight double precision,
    OUT last_at timestamptz, OUT conversations text[], OUT messages bigint[]
) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT g.one, g.other, count(*),
           sum(power(0.5, greatest(0, floor(extract(epoch FROM as_of - g.at) / 86400))
                          * 86400 / extract(epoch FROM half_life))),
           max(g.at),
           (array_agg(g.conversation ORDER BY g.at DESC, g.message DESC))[1:5],
           (array_agg(g.message ORDER BY g.at DESC, g.message DESC))[1:5]
      FROM together g
     WHERE g.tenant = of_tenant AND g.owner = of_owner AND g.at <= as_of
     GROUP BY g.one, g.other
     ORDER BY 4 DESC, g.one, g.other
     LIMIT at_most
$$;
COMMENT ON FUNCTION pairs IS 'what is mentioned together, and how strongly that is remembered';

-- Ends items in favour of another of the same owner; their versions stay, for what was then.
CREATE FUNCTION end_items(of_tenant text, of_owner text, ended uuid[], in_favour_of uuid)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    many bigint;
BEGIN
    PERFORM lock_tenant(of_tenant);
    WITH gone AS (
        UPDATE item i SET valid_to = greatest(clock_timestamp(), i.valid_from)
         WHERE i.tenant = of_tenant AND i.id = ANY (ended) AND i.valid_to IS NULL
           AND i.owner = of_owner AND NOT i.is_pinned AND i.id <> in_favour_of
        RETURNING i.id)
    INSERT INTO merged (tenant, ended, kept)
    SELECT of_tenant, g.id, in_favour_of FROM gone g
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS many = ROW_COUNT;
    RETURN many;
END $$;
COMMENT ON FUNCTION end_items IS 'ends items that another stands for; how many?';

-- When each of some items was forgotten last, if it was.
CREATE FUNCTION forgotten(of_tenant text, ids uuid[], OUT id uuid, OUT forgotten_at timestamptz)
RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT t.id, max(t.forgotten_at) FROM tombstone t
     WHERE t.tenant = of_tenant AND t.id = ANY (ids)
     GROUP BY t.id
$$;
COMMENT ON FUNCTION forgotten IS 'which of some items were forgotten, and when';

-- -- budget --------------------------------------------------------------------------------------

CREATE FUNCTION spend(
    of_tenant text, on_day date, of_tokens bigint, of_cost_usd double precision,
    OUT tokens bigint, OUT cost_usd double precision
)
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    INSERT INTO spending AS s (tenant, day, tokens, cost_usd)
    VALUES (of_tenant, on_day, of_tokens, of_cost_usd)
    ON CONFLICT (tenant, day) DO UPDATE
       SET tokens = s.tokens + excluded.tokens, cost_usd = s.cost_usd + excluded.cost_usd
    RETURNING s.tokens, s.cost_usd::double precision
$$;
COMMENT ON FUNCTION spend IS 'adds to what the day''s model calls took, and tells the sum';

-- -- forgetting ----------------------------------------------------------------------------------

-- What was made of something that goes, goes with it. A row's own trigger runs before those that
-- take its sources away: triggers run in the order of their names.
CREATE FUNCTION forget_what_rests_on() RETURNS trigger
LANGUAGE plpgsql SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    gone uuid[];
BEGIN
    IF OLD.kind = 'moments' AND OLD.category = 'session_chunk' THEN
        UPDATE chunk k SET state = 'forgotten', moment = NULL
         WHERE (k.tenant, k.moment) = (OLD.tenant, OLD.id) AND k.state = 'written';
    ELSIF OLD.kind IN ('facts', 'entities', 'moments', 'resources') THEN
        INSERT INTO left_out (tenant, conversation, message)
        SELECT DISTINCT s.tenant, s.conversation, s.message
          FROM source s
          JOIN ksi_completion.message m
            ON (m.tenant, m.conversation, m.number) = (s.tenant, s.conversation, s.message)
         WHERE (s.tenant, s.item, s.version) = (OLD.tenant, OLD.id, OLD.version)
        ON CONFLICT DO NOTHING;
        WITH hit AS (
            UPDATE chunk k SET state = 'planned', changes = k.changes + 1
              FROM source s
             WHERE (s.tenant, s.item, s.version) = (OLD.tenant, OLD.id, OLD.version)
               AND (k.tenant, k.conversation) = (s.tenant, s.conversation)
               AND s.message BETWEEN k.first_message AND k.last_message
               AND k.state IN ('planned', 'written')
            RETURNING k.moment)
        SELECT array_agg(h.moment) INTO gone FROM hit h;
        DELETE FROM item i WHERE i.tenant = OLD.tenant AND i.id = ANY (gone);
    END IF;
    IF OLD.kind = 'entities' THEN
        DELETE FROM together g
         WHERE (g.tenant, g.owner) = (OLD.tenant, OLD.owner) AND g.one = OLD.name;
        DELETE FROM together g
         WHERE (g.tenant, g.owner) = (OLD.tenant, OLD.owner) AND g.other = OLD.name;
    END IF;
    DELETE FROM item i
     USING source s
     WHERE s.tenant = OLD.tenant AND s.of_item = OLD.id
       AND i.tenant = OLD.tenant AND i.id = s.item AND i.id <> OLD.id
       AND i.origin = 'derived' AND i.kind IN ('moments', 'associations', 'patterns');
    DELETE FROM item i
     USING merged m
     WHERE m.tenant = OLD.tenant AND OLD.id IN (m.ended, m.kept)
       AND i.tenant = OLD.tenant AND i.id IN (m.ended, m.kept) AND i.id <> OLD.id;
    DELETE FROM merged m WHERE m.tenant = OLD.tenant AND OLD.id IN (m.ended, m.kept);
    RETURN NULL;
END $$;
CREATE TRIGGER "0_forget_what_rests_on" AFTER DELETE ON item
    FOR EACH ROW EXECUTE FUNCTION forget_what_rests_on();

-- A conversation's moments go with it.
CREATE FUNCTION forget_moment_of_chunk() RETURNS trigger
LANGUAGE plpgsql SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM item i WHERE (i.tenant, i.id) = (OLD.tenant, OLD.moment);
    RETURN NULL;
END $$;
CREATE TRIGGER forget_moment AFTER DELETE ON chunk
    FOR EACH ROW EXECUTE FUNCTION forget_moment_of_chunk();

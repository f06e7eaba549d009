-- Forgetting goes all the way: all that goes along is told, what a user uploaded goes too, an import
-- brings nothing back that went with a conversation, and a file's rows end when it has them no more.

SET LOCAL search_path = ksi_memory, public, pg_temp;

-- What went because what it came from was deleted. An import does not bring it back; where it is
-- said anew, it is remembered.
CREATE TABLE vanished (
    tenant text NOT NULL,
    id uuid NOT NULL,
    text_hash bytea NOT NULL,
    vanished_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, id, text_hash)
);
SELECT ksi_postgres.protect('vanished');

-- What goes while something is forgotten, by whichever trigger; empty whenever nobody forgets.
CREATE TABLE going (
    tenant text NOT NULL,
    id uuid NOT NULL,
    PRIMARY KEY (tenant, id)
);
SELECT ksi_postgres.protect('going');

CREATE FUNCTION note_going() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('ksi_memory.is_forgetting', true) = 'on' THEN
        INSERT INTO going (tenant, id) SELECT o.tenant, o.id FROM old_rows o
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note_going AFTER DELETE ON item REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION note_going();

-- Notes items that are about to go in all versions: as forgotten, where somebody forgets; or else
-- as vanished.
CREATE FUNCTION bury(of_tenant text, those uuid[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('ksi_memory.is_forgetting', true) = 'on' THEN
        INSERT INTO tombstone (tenant, id, kind, text_hash, reason)
        SELECT DISTINCT ON (i.id, i.text_hash) i.tenant, i.id, i.kind, i.text_hash,
               'it rested on what was forgotten'
          FROM item i WHERE i.tenant = of_tenant AND i.id = ANY (those)
            ON CONFLICT DO NOTHING;
    ELSE
        INSERT INTO vanished (tenant, id, text_hash)
        SELECT DISTINCT i.tenant, i.id, i.text_hash
          FROM item i WHERE i.tenant = of_tenant AND i.id = ANY (those)
            ON CONFLICT DO NOTHING;
    END IF;
END $$;

-- A version whose last source is gone: what a machine derived goes with it, what a person gave or
-- said stays.
CREATE OR REPLACE FUNCTION lose_sources() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    bare item[];
BEGIN
    SELECT array_agg(i) INTO bare
      FROM (SELECT DISTINCT l.tenant, l.item, l.version FROM lost l) l
      JOIN item i ON (i.tenant, i.id, i.version) = (l.tenant, l.item, l.version)
     WHERE NOT EXISTS (SELECT FROM source s
                        WHERE (s.tenant, s.item, s.version) = (l.tenant, l.item, l.version));
    IF bare IS NULL THEN
        RETURN NULL;
    END IF;
    INSERT INTO source (tenant, item, version, number, told)
    SELECT b.tenant, b.id, b.version, 1, 'what is gone'
      FROM unnest(bare) b
     WHERE b.origin <> 'derived';
    PERFORM bury(b.tenant, array_agg(b.id))
       FROM unnest(bare) b
      WHERE b.origin = 'derived' AND b.valid_to IS NULL
      GROUP BY b.tenant;
    DELETE FROM item i
     USING unnest(bare) b
     WHERE b.origin = 'derived' AND i.tenant = b.tenant AND i.id = b.id
       AND (b.valid_to IS NULL OR i.version = b.version);
    RETURN NULL;
END $$;

-- What was made of something that goes, goes with it. A row's own trigger runs before those that
-- take its sources away: triggers run in the order of their names. Moments that are written anew and
-- what is dreamt anew are not buried; what says the same as what goes is.
CREATE OR REPLACE FUNCTION forget_what_rests_on() RETURNS trigger
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
    SELECT array_agg(DISTINCT o.id) INTO gone
      FROM merged m
     CROSS JOIN LATERAL (VALUES (m.ended), (m.kept)) o (id)
     WHERE m.tenant = OLD.tenant AND OLD.id IN (m.ended, m.kept) AND o.id <> OLD.id;
    IF gone IS NOT NULL THEN
        DELETE FROM merged m WHERE m.tenant = OLD.tenant AND OLD.id IN (m.ended, m.kept);
        PERFORM bury(OLD.tenant, gone);
        DELETE FROM item i WHERE i.tenant = OLD.tenant AND i.id = ANY (gone);
    END IF;
    RETURN NULL;
END $$;

-- A conversation's moments go with it.
CREATE OR REPLACE FUNCTION forget_moment_of_chunk() RETURNS trigger
LANGUAGE plpgsql SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM bury(OLD.tenant, ARRAY[OLD.moment]);
    DELETE FROM item i WHERE (i.tenant, i.id) = (OLD.tenant, OLD.moment);
    RETURN NULL;
END $$;

-- What is a user's and no item: uploads, what they mentioned together, and what was said so far and
-- no moment covers yet, of which none is made any more.
CREATE FUNCTION forget_user(of_tenant text, of_user text, OUT uploads bigint)
LANGUAGE plpgsql SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM together g WHERE (g.tenant, g.owner) = (of_tenant, of_user);
    UPDATE chunk k SET state = 'forgotten', moment = NULL
      FROM ksi_completion.conversation c
     WHERE (c.tenant, c.id) = (k.tenant, k.conversation)
       AND (c.tenant, c.owner) = (of_tenant, of_user) AND k.state = 'planned';
    UPDATE reading r SET covered = r.message, uncovered_tokens = 0
      FROM ksi_completion.conversation c
     WHERE (c.tenant, c.id) = (r.tenant, r.conversation) AND (c.tenant, c.owner) = (of_tenant, of_user);
    DELETE FROM upload u WHERE (u.tenant, u.uploader) = (of_tenant, of_user);
    GET DIAGNOSTICS uploads = ROW_COUNT;
END $$;

-- Forgets items in all versions, and what rests on them alone; tells what went, what went along with
-- it, and what else still says the same. A dry run does all of it and takes it back.
DROP FUNCTION forget_items(text, text, uuid[], text, text, boolean);
CREATE FUNCTION forget_items(
    of_tenant text, of_owner text, roots uuid[], everything_of text, why text, is_dry boolean,
    OUT gone uuid[], OUT along uuid[], OUT rewritten uuid[], OUT uploads bigint,
    OUT messages text[], OUT said_by text[], OUT led_to_by text[], OUT needles text[]
)
LANGUAGE plpgsql SECURITY DEFINER
SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    those version_key[];
    names text[];
BEGIN
    PERFORM lock_tenant(of_tenant);
    IF everything_of IS NOT NULL THEN
        roots := ARRAY(SELECT DISTINCT i.id FROM item i
                        WHERE i.tenant = of_tenant AND i.owner = everything_of);
    END IF;
    those := going_with(of_tenant, roots);
    SELECT array_agg(DISTINCT i.id), array_agg(DISTINCT i.name) INTO gone, names
      FROM unnest(those) g
      JOIN item i ON i.tenant = of_tenant AND (i.id, i.version) = (g.id, g.version)
     WHERE NOT EXISTS (SELECT FROM item o
                        WHERE o.tenant = of_tenant AND o.id = g.id
                          AND NOT EXISTS (SELECT FROM unnest(those) h
                                           WHERE (h.id, h.version) = (o.id, o.version)));
    gone := coalesce(gone, '{}');
    uploads := 0;
    messages := ARRAY(
        SELECT DISTINCT coalesce('message ' || s.message || ' of ', 'the messages of ')
                        || s.conversation
          FROM unnest(those) g
          JOIN item i ON i.tenant = of_tenant AND (i.id, i.version) = (g.id, g.version)
          JOIN source s ON s.tenant = of_tenant AND (s.item, s.version) = (g.id, g.version)
         WHERE s.conversation IS NOT NULL
           AND (of_owner IS NULL OR i.owner IN ('', of_owner))
         ORDER BY 1 LIMIT 100);
    needles := ARRAY(
        SELECT DISTINCT lower(btrim(i.body))
          FROM unnest(those) g
          JOIN item i ON i.tenant = of_tenant AND (i.id, i.version) = (g.id, g.version)
         WHERE length(btrim(i.body)) >= 10
         ORDER BY 1 LIMIT 100);
    BEGIN
        PERFORM set_config('ksi_memory.is_forgetting', 'on', true);
        rewritten := rewrite_items(of_tenant, those, false);
        INSERT INTO tombstone (tenant, id, kind, text_hash, reason)
        SELECT DISTINCT ON (i.id, i.text_hash) of_tenant, i.id, i.kind, i.text_hash, why
          FROM unnest(those) g
          JOIN item i ON i.tenant = of_tenant AND (i.id, i.version) = (g.id, g.version)
         WHERE i.id = ANY (gone)
            ON CONFLICT (tenant, id, text_hash)
            DO UPDATE SET forgotten_at = excluded.forgotten_at, reason = excluded.reason;
        -- A moment that is itself forgotten is not written anew, whatever else goes with it.
        UPDATE chunk k SET state = 'forgotten', moment = NULL
         WHERE k.tenant = of_tenant AND k.moment = ANY (gone);
        DELETE FROM item i
         USING unnest(those) g, row_of(of_tenant, g.id, g.version) r
         WHERE i.ctid = r.place;
        IF everything_of IS NOT NULL THEN
            uploads := forget_user(of_tenant, everything_of);
        END IF;
        along := ARRAY(
            SELECT g.id FROM going g
             WHERE g.tenant = of_tenant AND NOT (g.id = ANY (gone))
               AND NOT EXISTS (SELECT FROM item i WHERE (i.tenant, i.id) = (g.tenant, g.id))
             ORDER BY 1);
        DELETE FROM going g WHERE g.tenant = of_tenant;
        -- What machines derived does not lead there any more, unless another bears that name.
        DELETE FROM edge e
         USING item i
         WHERE e.tenant = of_tenant AND e.to_name = ANY (names)
           AND (i.tenant, i.id, i.version) = (e.tenant, e.item, e.version)
           AND i.origin = 'derived'
           AND NOT EXISTS (SELECT FROM item o WHERE o.tenant = of_tenant AND o.name = e.to_name);
        led_to_by := ARRAY(
            SELECT DISTINCT i.kind || '/' || i.key
              FROM edge e
              JOIN item i ON (i.tenant, i.id, i.version) = (e.tenant, e.item, e.version)
             WHERE e.tenant = of_tenant AND e.to_name = ANY (names) AND i.valid_to IS NULL
               AND (of_owner IS NULL OR i.owner IN ('', of_owner))
               AND NOT EXISTS (SELECT FROM item o
                                WHERE o.tenant = of_tenant AND o.name = e.to_name)
             ORDER BY 1 LIMIT 20);
        said_by := ARRAY(
            SELECT DISTINCT i.kind || '/' || i.key
              FROM item i
             WHERE i.tenant = of_tenant
               AND (of_owner IS NULL OR i.owner IN ('', of_owner))
               AND EXISTS (SELECT FROM unnest(needles) n
                            WHERE strpos(lower(concat_ws(' ', i.title, i.body, i.attributes)), n) > 0)
             ORDER BY 1 LIMIT 20);
        PERFORM set_config('ksi_memory.is_forgetting', 'off', true);
        IF is_dry THEN
            RAISE EXCEPTION 'a dry run' USING ERRCODE = 'KS002';
        END IF;
    EXCEPTION WHEN SQLSTATE 'KS002' THEN
        NULL; -- what was found out stays known, and nothing has happened
    END;
END $$;
COMMENT ON FUNCTION forget_items IS 'forgets items, and what rests on them alone';

-- Where something still belongs to a user. Persons are counted by owner in a ledger, whose lines for
-- what is gone cancel each other until they are summed up.
CREATE FUNCTION left_of(of_tenant text, of_user text) RETURNS text[]
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    place record;
    is_there boolean;
    found_in text[] := '{}';
BEGIN
    FOR place IN
        SELECT c.oid::regclass AS relation, c.relname, a.attname
          FROM pg_class c
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname IN ('owner', 'uploader')
         WHERE c.relnamespace = 'ksi_memory'::regnamespace
           AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> 'person'
         ORDER BY c.relname, a.attnum
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE tenant = $1 AND %I = $2)',
                       place.relation, place.attname)
           INTO is_there USING of_tenant, of_user;
        IF is_there THEN
            found_in := found_in || (place.relname || '.' || place.attname);
        END IF;
    END LOOP;
    RETURN found_in;
END $$;
COMMENT ON FUNCTION left_of IS 'where something still belongs to a user';

-- Looks for ids in every table of the memory, and for texts where texts are kept beside the items.
CREATE OR REPLACE FUNCTION look_for(
    of_tenant text, ids uuid[], needles text[], OUT looked_at text[], OUT found_in text[]
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    place record;
    is_there boolean;
BEGIN
    looked_at := '{}';
    found_in := '{}';
    FOR place IN
        SELECT c.oid::regclass AS relation, c.relname, a.attname,
               format_type(a.atttypid, NULL) AS type
          FROM pg_class c
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.relnamespace = 'ksi_memory'::regnamespace
           AND c.relkind IN ('r', 'p') AND NOT c.relispartition
           AND EXISTS (SELECT FROM pg_attribute t
                        WHERE t.attrelid = c.oid AND t.attname = 'tenant' AND NOT t.attisdropped)
           AND format_type(a.atttypid, NULL) IN ('uuid', 'text', 'jsonb')
           AND a.attname NOT IN ('tenant', 'kind', 'owner')
           AND NOT (c.relname = 'item' AND a.attname <> 'id')
           AND NOT (c.relname IN ('tombstone', 'vanished') AND a.attname = 'id')
         ORDER BY c.relname, a.attnum
    LOOP
        IF place.type = 'uuid' THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE tenant = $1 AND %I = ANY ($2))',
                           place.relation, place.attname)
               INTO is_there USING of_tenant, ids;
        ELSE
            EXECUTE format(
                'SELECT EXISTS (SELECT FROM %s t WHERE tenant = $1 AND EXISTS ('
                'SELECT FROM unnest($2 || $3::text[]) n WHERE strpos(lower(t.%I::text), n) > 0))',
                place.relation, place.attname)
               INTO is_there USING of_tenant, needles, ids;
        END IF;
        looked_at := looked_at || (place.relname || '.' || place.attname);
        IF is_there THEN
            found_in := found_in || (place.relname || '.' || place.attname);
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION look_for IS 'where what was forgotten is still to be found';

-- A version as it was exported, unless it was forgotten here, or went with what it came from.
CREATE OR REPLACE FUNCTION write_version(of_tenant text, of_owner text, e exported, fixed text[]) RETURNS text
LANGUAGE plpgsql SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    known item;
    hash_of_text bytea := sha256(convert_to(e.title || E'\n' || e.body, 'UTF8'));
BEGIN
    SELECT i.* INTO known FROM item i
     WHERE (i.tenant, i.id, i.version) = (of_tenant, e.id, e.version);
    IF known.id IS NOT NULL THEN
        IF (known.hash, known.text_hash) IS DISTINCT FROM (decode(e.hash, 'hex'), hash_of_text) THEN
            RETURN 'differs';
        END IF;
        IF known.valid_to IS NULL AND e.valid_to >= known.valid_from THEN
            UPDATE item i SET valid_to = e.valid_to -- one that supersedes it follows
             WHERE (i.tenant, i.id, i.version) = (of_tenant, e.id, e.version);
        END IF;
        RETURN 'unchanged';
    END IF;
    IF NOT (e.kind = ANY (fixed)) AND NOT EXISTS (
            SELECT FROM item i
             WHERE i.tenant = of_tenant AND i.kind = 'schemas' AND i.name = 'table:' || e.kind
               AND i.owner = '' AND i.valid_to IS NULL) THEN
        RETURN 'no_table';
    ELSIF EXISTS (SELECT FROM tombstone t
                   WHERE (t.tenant, t.id, t.text_hash) = (of_tenant, e.id, hash_of_text)) THEN
        RETURN 'forgotten';
    ELSIF EXISTS (SELECT FROM vanished v
                   WHERE (v.tenant, v.id, v.text_hash) = (of_tenant, e.id, hash_of_text)) THEN
        RETURN 'vanished';
    ELSIF e.valid_to IS NULL AND EXISTS (
            SELECT FROM item i
             WHERE i.tenant = of_tenant AND i.id = e.id AND i.valid_to IS NULL) THEN
        RETURN 'superseded';
    END IF;
    INSERT INTO item (
        tenant, id, version, kind, owner, key, name, category, title, body, attributes, persons,
        session, place, starts_at, ends_at, days, hash, text_hash, words, lexemes, origin,
        is_pinned, valid_from, valid_to, recorded_at)
    VALUES (
        of_tenant, e.id, e.version, e.kind, e.owner, e.key, folded(e.key), e.category, e.title,
        e.body, e.attributes, folded_all(e.persons), e.session, e.place, e.starts_at, e.ends_at,
        e.days, decode(e.hash, 'hex'), hash_of_text, e.words,
        setweight(to_tsvector('ksi_memory.words', e.title || ' ' || e.body), 'A'), e.origin,
        e.is_pinned, e.valid_from, e.valid_to, e.recorded_at);
    PERFORM write_old_sources(of_tenant, of_owner, e.id, e.version, e.sources);
    INSERT INTO edge (tenant, item, version, number, from_name, relation, to_name, weight)
    SELECT of_tenant, e.id, e.version, g.number, folded(e.key), coalesce(g.relation, 'related_to'),
           folded(g.to_key), coalesce(g.weight, 1)
      FROM ROWS FROM (jsonb_to_recordset(e.edges) AS ("to" text, relation text, weight real))
           WITH ORDINALITY AS g (to_key, relation, weight, number);
    RETURN 'inserted';
END $$;

-- -- files ----------------------------------------------------------------------------------------

-- Ends what documents consist of no more: the parts from a number on, and all parts in tables that
-- they don't belong to any more; where no number is given, also the document itself, or what else
-- bears its key in that table. What is pinned stays. Returns how many items ended.
CREATE OR REPLACE FUNCTION end_parts(
    of_tenant text, of_owner text, documents text[], kinds text[], parts integer[]
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    ended bigint;
BEGIN
    PERFORM lock_tenant(of_tenant);
    WITH given AS MATERIALIZED (
        SELECT g.key, g.kind, g.part FROM unnest(documents, kinds, parts) AS g (key, kind, part)
    ), old AS MATERIALIZED (
        SELECT i.id, i.version
          FROM given g
          JOIN item i ON i.tenant = of_tenant AND i.kind = g.kind AND i.session = g.key
                     AND i.place >= coalesce(g.part, 0)
         WHERE i.valid_to IS NULL AND i.owner = of_owner AND NOT i.is_pinned
           AND i.key = i.session || '#' || i.place
        UNION
        SELECT i.id, i.version
          FROM given g
          JOIN item i ON i.tenant = of_tenant AND i.name = folded(g.key) AND i.kind = g.kind
         WHERE g.part IS NULL AND i.valid_to IS NULL AND i.owner = of_owner AND NOT i.is_pinned
    )
    UPDATE item i SET valid_to = greatest(clock_timestamp(), i.valid_from)
      FROM old o
     WHERE i.tenant = of_tenant AND i.id = o.id AND i.version = o.version;
    GET DIAGNOSTICS ended = ROW_COUNT;
    RETURN ended;
END $$;

-- Ends rows that files have no more: what was a row of one of them, rests on nothing else, and is
-- none of those that are there now. What is pinned stays. Returns how many ended.
CREATE FUNCTION end_rows(of_tenant text, files uuid[], there uuid[], as_row text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    ended bigint;
BEGIN
    PERFORM lock_tenant(of_tenant);
    WITH old AS MATERIALIZED (
        SELECT DISTINCT i.id, i.version
          FROM unnest(files) AS f (id)
          JOIN source s ON s.tenant = of_tenant AND s.of_item = f.id AND s.told = as_row
          JOIN item i ON (i.tenant, i.id, i.version) = (s.tenant, s.item, s.version)
         WHERE i.valid_to IS NULL AND NOT i.is_pinned
           AND NOT EXISTS (SELECT FROM unnest(there) t WHERE t = i.id)
           AND NOT EXISTS (SELECT FROM source o
                            WHERE (o.tenant, o.item, o.version) = (i.tenant, i.id, i.version)
                              AND (o.of_item, o.told) IS DISTINCT FROM (f.id, as_row))
    )
    UPDATE item i SET valid_to = greatest(clock_timestamp(), i.valid_from)
      FROM old o
     WHERE i.tenant = of_tenant AND i.id = o.id AND i.version = o.version;
    GET DIAGNOSTICS ended = ROW_COUNT;
    RETURN ended;
END $$;
COMMENT ON FUNCTION end_rows IS 'ends rows that files have no more; how many?';

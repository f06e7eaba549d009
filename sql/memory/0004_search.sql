-- How things are found: how often words are used, what was made of their texts, and one function
-- that searches.
--
-- A text's neighbours in its session help it to be understood. Their words count with its own when
-- it is searched, for less, so that nothing of a neighbour that changed or was forgotten stays with
-- it; their vectors are part of the one that it is searched by, which is made
-- anew when one of them comes, changes or goes.

SET LOCAL search_path = ksi_memory, public, pg_temp;

-- -- how often words are used --------------------------------------------------------------------

-- These three tables are written like a ledger: each statement that changes items adds rows, which
-- are summed up when they are read and folded now and then. So no writer waits for another one.

-- How many items a kind has at present, and how many words.
CREATE TABLE collection (
    tenant text NOT NULL,
    kind text NOT NULL,
    documents bigint NOT NULL,
    words bigint NOT NULL,
    written bigint NOT NULL DEFAULT 0 -- rows that the other two tables got with this one
);
CREATE INDEX collection_kind ON collection (tenant, kind) INCLUDE (documents, words);
SELECT ksi_postgres.protect('collection');

-- In how many of them a lexeme is.
CREATE TABLE frequency (
    tenant text NOT NULL,
    kind text NOT NULL,
    lexeme text NOT NULL,
    documents integer NOT NULL
);
CREATE INDEX frequency_lexeme ON frequency (tenant, kind, lexeme) INCLUDE (documents);
SELECT ksi_postgres.protect('frequency');

-- Who says them, or whom they are about.
CREATE TABLE person (
    tenant text NOT NULL,
    kind text NOT NULL,
    owner text NOT NULL,
    name text NOT NULL,
    items integer NOT NULL
);
CREATE INDEX person_name ON person (tenant, name, kind, owner) INCLUDE (items);
SELECT ksi_postgres.protect('person');

CREATE INDEX item_lexemes ON item USING gin ((tenant || E'\x1f' || kind), lexemes)
    WITH (gin_pending_list_limit = 256);
CREATE INDEX item_began ON item (tenant, kind, (coalesce(starts_at, valid_from)));
CREATE INDEX item_category ON item (tenant, category, kind) WHERE category IS NOT NULL;

CREATE TYPE counted AS (
    tenant text, kind text, owner text, persons text[], words integer, lexemes tsvector,
    sign integer
);

-- Counts items in (sign 1) or out (-1).
CREATE FUNCTION count_items(those counted[]) RETURNS void
LANGUAGE plpgsql SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    of_words bigint;
    of_persons bigint;
BEGIN
    IF coalesce(cardinality(those), 0) = 0 THEN
        RETURN;
    END IF;
    INSERT INTO frequency (tenant, kind, lexeme, documents)
    SELECT t.tenant, t.kind, l.lexeme, sum(t.sign)
      FROM unnest(those) t, unnest(tsvector_to_array(t.lexemes)) l (lexeme)
     GROUP BY 1, 2, 3
    HAVING sum(t.sign) <> 0
     ORDER BY 1, 2, 3;
    GET DIAGNOSTICS of_words = ROW_COUNT;
    INSERT INTO person (tenant, kind, owner, name, items)
    SELECT t.tenant, t.kind, t.owner, p.name, sum(t.sign)
      FROM unnest(those) t, unnest(t.persons) p (name)
     GROUP BY 1, 2, 3, 4
    HAVING sum(t.sign) <> 0
     ORDER BY 1, 2, 3, 4;
    GET DIAGNOSTICS of_persons = ROW_COUNT;
    INSERT INTO collection (tenant, kind, documents, words, written)
    SELECT t.tenant, t.kind, sum(t.sign), sum(t.sign * t.words), of_words + of_persons
      FROM unnest(those) t
     GROUP BY 1, 2
     ORDER BY 1, 2;
END $$;

-- Folds the rows of collections that have many; returns how many it folded.
CREATE FUNCTION fold_counts(at_most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    each record;
    folded integer := 0;
BEGIN
    FOR each IN
        SELECT c.tenant, c.kind
          FROM collection c
         GROUP BY 1, 2
        HAVING count(*) > 32 OR (count(*) > 1 AND sum(c.written) > 20000)
         LIMIT at_most
    LOOP
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(
            hashtextextended('ksi_memory fold ' || each.tenant || ' ' || each.kind, 0));
        WITH gone AS (
            DELETE FROM frequency f WHERE f.tenant = each.tenant AND f.kind = each.kind RETURNING f.*
        )
        INSERT INTO frequency (tenant, kind, lexeme, documents)
        SELECT g.tenant, g.kind, g.lexeme, sum(g.documents) FROM gone g
         GROUP BY 1, 2, 3 HAVING sum(g.documents) <> 0 ORDER BY 1, 2, 3;
        WITH gone AS (
            DELETE FROM person p WHERE p.tenant = each.tenant AND p.kind = each.kind RETURNING p.*
        )
        INSERT INTO person (tenant, kind, owner, name, items)
        SELECT g.tenant, g.kind, g.owner, g.name, sum(g.items) FROM gone g
         GROUP BY 1, 2, 3, 4 HAVING sum(g.items) <> 0 ORDER BY 1, 2, 3, 4;
        WITH gone AS (
            DELETE FROM collection c WHERE c.tenant = each.tenant AND c.kind = each.kind RETURNING c.*
        )
        INSERT INTO collection (tenant, kind, documents, words)
        SELECT g.tenant, g.kind, sum(g.documents), sum(g.words) FROM gone g
         GROUP BY 1, 2 HAVING sum(g.documents) <> 0;
        folded := folded + 1;
    END LOOP;
    RETURN folded;
END $$;

-- -- what was made of texts ----------------------------------------------------------------------

-- The models whose vectors are kept. Each has a part of `meaning` of its own.
CREATE TABLE embedder (
    id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    dimension integer NOT NULL CHECK (dimension BETWEEN 1 AND 4000),
    is_wanted boolean NOT NULL DEFAULT true, -- what is new gets a vector of it
    is_complete boolean NOT NULL DEFAULT false, -- what was there before has got one
    is_indexed boolean NOT NULL DEFAULT false,
    wanted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (name, dimension)
);
SELECT ksi_postgres.share('embedder', 'models are the same for everybody');

-- The keys of these tables begin with what tells most: a plan that was made while they were empty
-- stays a good one.

-- A text's own vector. The same text of a tenant has one.
CREATE TABLE text_vector (
    tenant text NOT NULL,
    embedder smallint NOT NULL,
    text_hash bytea NOT NULL, -- of what was embedded
    vector halfvec,
    PRIMARY KEY (text_hash, embedder, tenant)
);
ALTER TABLE text_vector ALTER COLUMN vector SET STORAGE EXTERNAL;
SELECT ksi_postgres.protect('text_vector');

-- The vector that a version is searched by: its text's own with those of its neighbours.
CREATE TABLE meaning (
    tenant text NOT NULL,
    embedder smallint NOT NULL,
    item uuid NOT NULL,
    version integer NOT NULL,
    kind text NOT NULL,
    owner text NOT NULL,
    is_current boolean NOT NULL,
    text_hash bytea NOT NULL,
    vector halfvec,
    PRIMARY KEY (item, version, embedder, tenant)
) PARTITION BY LIST (embedder);
CREATE TABLE meaning_default PARTITION OF meaning DEFAULT;
CREATE INDEX meaning_owner ON meaning (tenant, owner, kind) WHERE is_current;
CREATE INDEX meaning_text ON meaning (text_hash, tenant);
SELECT ksi_postgres.protect('meaning');

-- Which texts wait for a vector. One that can't have any is kept with the reason.
CREATE TABLE waiting (
    tenant text NOT NULL,
    embedder smallint NOT NULL,
    item uuid NOT NULL,
    version integer NOT NULL,
    is_backlog boolean NOT NULL DEFAULT false, -- it was there before the model
    number bigint GENERATED ALWAYS AS IDENTITY,
    leased_until timestamptz NOT NULL DEFAULT '-infinity',
    attempts integer NOT NULL DEFAULT 0,
    why text, -- it was set aside
    PRIMARY KEY (item, version, embedder, tenant)
);
CREATE INDEX waiting_turn ON waiting (embedder, is_backlog, number) WHERE why IS NULL;
CREATE INDEX waiting_set_aside ON waiting (tenant, embedder) WHERE why IS NOT NULL;
SELECT ksi_postgres.protect('waiting');

-- The item before a place in a session, and the one after it: of one kind and owner, and valid then.
-- Who asks switches sorting off, so that they are read from the index that has them in order,
-- whatever is known of how many a session has.
CREATE FUNCTION item_before(
    of_tenant text, of_kind text, of_owner text, of_session text, of_place integer,
    as_of timestamptz
) RETURNS TABLE (id uuid, version integer, lexemes tsvector)
LANGUAGE sql STABLE AS $$
    SELECT n.id, n.version, n.lexemes
      FROM ksi_memory.item n
     WHERE n.tenant = of_tenant AND n.kind = of_kind AND n.session = of_session
       AND n.place < of_place AND n.owner = of_owner
       AND CASE WHEN as_of IS NULL THEN n.valid_to IS NULL
           ELSE n.valid_from <= as_of AND (n.valid_to IS NULL OR n.valid_to > as_of) END
     ORDER BY n.place DESC
     LIMIT 1
$$;

CREATE FUNCTION item_after(
    of_tenant text, of_kind text, of_owner text, of_session text, of_place integer,
    as_of timestamptz
) RETURNS TABLE (id uuid, version integer, lexemes tsvector)
LANGUAGE sql STABLE AS $$
    SELECT n.id, n.version, n.lexemes
      FROM ksi_memory.item n
     WHERE n.tenant = of_tenant AND n.kind = of_kind AND n.session = of_session
       AND n.place > of_place AND n.owner = of_owner
       AND CASE WHEN as_of IS NULL THEN n.valid_to IS NULL
           ELSE n.valid_from <= as_of AND (n.valid_to IS NULL OR n.valid_to > as_of) END
     ORDER BY n.place
     LIMIT 1
$$;

-- Both of them.
CREATE FUNCTION beside(
    of_tenant text, of_kind text, of_owner text, of_session text, of_place integer,
    as_of timestamptz
) RETURNS TABLE (id uuid, version integer)
LANGUAGE sql STABLE AS $$
    SELECT b.id, b.version
      FROM ksi_memory.item_before(of_tenant, of_kind, of_owner, of_session, of_place, as_of) b
     UNION ALL
    SELECT a.id, a.version
      FROM ksi_memory.item_after(of_tenant, of_kind, of_owner, of_session, of_place, as_of) a
$$;

-- The vector of a version's own text.
CREATE FUNCTION own_vector(of_tenant text, of_embedder smallint, of_item uuid, of_version integer)
RETURNS TABLE (vector halfvec)
LANGUAGE sql STABLE AS $$
    SELECT t.vector
      FROM ksi_memory.meaning m
      JOIN ksi_memory.text_vector t ON t.text_hash = m.text_hash AND t.embedder = m.embedder
                                   AND t.tenant = m.tenant
     WHERE m.item = of_item AND m.version = of_version AND m.embedder = of_embedder
       AND m.tenant = of_tenant
    OFFSET 0
$$;

-- Makes the vectors anew by which items are searched: a text's own, 0.35 times the one before it, and
-- 0.25 times the one after it, brought to length 1.
CREATE FUNCTION refresh_meanings(of_tenant text, those uuid[]) RETURNS void
LANGUAGE sql SET search_path = ksi_memory, public, pg_catalog, pg_temp SET enable_sort = off AS $$
    WITH factor AS MATERIALIZED (
        SELECT e.id AS embedder, array_fill(0::real, ARRAY[e.dimension])::vector AS nothing,
               array_fill(0.35::real, ARRAY[e.dimension])::vector AS before,
               array_fill(0.25::real, ARRAY[e.dimension])::vector AS after
          FROM embedder e
    ), fresh AS MATERIALIZED (
        SELECT f.embedder, i.id AS item, i.version, l2_normalize(
                   own.vector::vector
                   + coalesce(before.vector::vector * f.before, f.nothing)
                   + coalesce(after.vector::vector * f.after, f.nothing))::halfvec AS vector
          FROM unnest(those) t (id)
         CROSS JOIN LATERAL (
               SELECT i.* FROM item i
                WHERE i.tenant = of_tenant AND i.id = t.id AND i.valid_to IS NULL OFFSET 0) i
         CROSS JOIN factor f
         CROSS JOIN LATERAL own_vector(of_tenant, f.embedder, i.id, i.version) own
          LEFT JOIN item_before(of_tenant, i.kind, i.owner, i.session, i.place, NULL) b ON true
          LEFT JOIN LATERAL own_vector(of_tenant, f.embedder, b.id, b.version) before ON true
          LEFT JOIN item_after(of_tenant, i.kind, i.owner, i.session, i.place, NULL) a ON true
          LEFT JOIN LATERAL own_vector(of_tenant, f.embedder, a.id, a.version) after ON true
    )
    UPDATE meaning m SET vector = fresh.vector
      FROM fresh
     WHERE m.tenant = of_tenant
       AND (m.embedder, m.item, m.version) = (fresh.embedder, fresh.item, fresh.version)
       AND m.vector IS DISTINCT FROM fresh.vector
$$;

-- Who changes the vectors of a tenant holds this until the transaction ends.
CREATE FUNCTION lock_vectors(of_tenant text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('ksi_memory vectors ' || of_tenant, 0))
$$;

-- -- what follows from changes of items ----------------------------------------------------------

CREATE FUNCTION wait_for_vectors() RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_notify('ksi_memory_waiting', '')
$$;

CREATE FUNCTION items_came() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM count_items(array_agg(
        ROW(n.tenant, n.kind, n.owner, n.persons, n.words, n.lexemes, 1)::counted))
       FROM new_rows n
      WHERE n.valid_to IS NULL;
    INSERT INTO waiting (tenant, embedder, item, version)
    SELECT n.tenant, e.id, n.id, n.version
      FROM new_rows n
     CROSS JOIN embedder e
     WHERE e.is_wanted AND (n.title <> '' OR n.body <> '')
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM wait_for_vectors();
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER came AFTER INSERT ON item
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION items_came();

CREATE FUNCTION items_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp SET enable_sort = off AS $$
DECLARE
    each record;
BEGIN
    PERFORM count_items(array_agg(c.counts)) FROM (
        SELECT ROW(r.tenant, r.kind, r.owner, r.persons, r.words, r.lexemes, r.sign)::counted
          FROM old_rows o
          JOIN new_rows n ON (n.tenant, n.id, n.version) = (o.tenant, o.id, o.version)
         CROSS JOIN LATERAL (
               VALUES (o.tenant, o.kind, o.owner, o.persons, o.words, o.lexemes, -1, o.valid_to),
                      (n.tenant, n.kind, n.owner, n.persons, n.words, n.lexemes, 1, n.valid_to)
               ) r (tenant, kind, owner, persons, words, lexemes, sign, valid_to)
         WHERE (o.valid_to IS NULL, o.kind, o.owner, o.persons, o.words, o.lexemes)
               IS DISTINCT FROM
               (n.valid_to IS NULL, n.kind, n.owner, n.persons, n.words, n.lexemes)
           AND r.valid_to IS NULL
         ) c (counts);
    FOR each IN
        SELECT n.tenant, array_agg(n.id) AS ids, array_agg(n.version) AS versions,
               array_agg(n.valid_to IS NULL) AS hold
          FROM old_rows o
          JOIN new_rows n ON (n.tenant, n.id, n.version) = (o.tenant, o.id, o.version)
         WHERE (o.valid_to IS NULL) <> (n.valid_to IS NULL)
         GROUP BY 1
    LOOP
        PERFORM lock_vectors(each.tenant);
        UPDATE meaning m SET is_current = c.holds
          FROM unnest(each.ids, each.versions, each.hold) c (item, version, holds)
         CROSS JOIN embedder e
         WHERE m.tenant = each.tenant AND m.embedder = e.id
           AND m.item = c.item AND m.version = c.version;
    END LOOP;
    -- Those that stood beside them get their vectors anew, after those that take their places.
    INSERT INTO waiting (tenant, embedder, item, version)
    SELECT DISTINCT m.tenant, m.embedder, m.item, m.version
      FROM old_rows o
      JOIN new_rows n ON (n.tenant, n.id, n.version) = (o.tenant, o.id, o.version)
     CROSS JOIN LATERAL beside(o.tenant, o.kind, o.owner, o.session, o.place, NULL) b
     CROSS JOIN embedder e
      JOIN meaning m ON m.tenant = o.tenant AND m.embedder = e.id
                    AND (m.item, m.version) = (b.id, b.version)
     WHERE o.valid_to IS NULL AND n.valid_to IS NOT NULL AND e.is_wanted
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM wait_for_vectors();
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER changed AFTER UPDATE ON item
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION items_changed();

-- Nothing that was made of an item outlasts it: neither counts nor vectors, nor its part in those of
-- its neighbours.
CREATE FUNCTION items_went() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp SET enable_sort = off AS $$
DECLARE
    each record;
BEGIN
    PERFORM count_items(array_agg(
        ROW(o.tenant, o.kind, o.owner, o.persons, o.words, o.lexemes, -1)::counted))
       FROM old_rows o
      WHERE o.valid_to IS NULL;
    DELETE FROM waiting w
     USING old_rows o, embedder e
     WHERE (w.tenant, w.embedder, w.item, w.version) = (o.tenant, e.id, o.id, o.version);
    FOR each IN
        SELECT o.tenant, array_agg(o.id) AS ids, array_agg(o.version) AS versions
          FROM old_rows o
         GROUP BY 1
         ORDER BY 1
    LOOP
        PERFORM lock_vectors(each.tenant);
        WITH gone AS (
            DELETE FROM meaning m
             USING unnest(each.ids, each.versions) o (id, version), embedder e
             WHERE m.tenant = each.tenant AND m.embedder = e.id
               AND m.item = o.id AND m.version = o.version
            RETURNING m.embedder, m.item, m.version, m.text_hash
        )
        DELETE FROM text_vector t
         USING (SELECT DISTINCT g.embedder, g.text_hash FROM gone g) g
         WHERE (t.tenant, t.embedder, t.text_hash) = (each.tenant, g.embedder, g.text_hash)
           AND NOT EXISTS (
               SELECT FROM meaning m
                WHERE (m.tenant, m.embedder, m.text_hash) = (each.tenant, g.embedder, g.text_hash)
                  AND NOT EXISTS (SELECT FROM gone d
                                   WHERE (d.embedder, d.item, d.version)
                                       = (m.embedder, m.item, m.version)));
        PERFORM refresh_meanings(each.tenant, array_agg(DISTINCT b.id))
           FROM old_rows o
          CROSS JOIN LATERAL beside(o.tenant, o.kind, o.owner, o.session, o.place, NULL) b
          WHERE o.tenant = each.tenant;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER went AFTER DELETE ON item
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION items_went();

-- -- models ---------------------------------------------------------------------------------------

-- Has all items get vectors of a model; those that are there already keep theirs.
CREATE FUNCTION want_embedder(of_name text, of_dimension integer)
RETURNS TABLE (id smallint, is_complete boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    found embedder;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('ksi_memory embedders', 0));
    SELECT e.* INTO found FROM embedder e WHERE (e.name, e.dimension) = (of_name, of_dimension);
    IF found.id IS NULL THEN
        INSERT INTO embedder AS e (name, dimension, is_wanted)
        VALUES (of_name, of_dimension, false)
        RETURNING e.* INTO found;
        EXECUTE format('CREATE TABLE meaning_%s PARTITION OF meaning FOR VALUES IN (%s)',
                       found.id, found.id);
        EXECUTE format('ALTER TABLE meaning_%s ALTER COLUMN vector SET STORAGE MAIN', found.id);
    END IF;
    IF NOT found.is_wanted THEN
        UPDATE embedder e SET is_wanted = true, is_complete = false, wanted_at = clock_timestamp()
         WHERE e.id = found.id;
        PERFORM enqueue_missing(found.id);
        PERFORM pg_notify('ksi_memory_waiting', '');
    END IF;
    RETURN QUERY SELECT e.id, e.is_complete FROM embedder e WHERE e.id = found.id;
END $$;

CREATE FUNCTION enqueue_missing(of_embedder smallint) RETURNS void
LANGUAGE sql SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    INSERT INTO waiting (tenant, embedder, item, version, is_backlog)
    SELECT i.tenant, of_embedder, i.id, i.version, true
      FROM item i
     WHERE i.valid_to IS NULL AND (i.title <> '' OR i.body <> '')
       AND NOT EXISTS (SELECT FROM meaning m
                        WHERE (m.tenant, m.embedder, m.item, m.version)
                            = (i.tenant, of_embedder, i.id, i.version) AND m.vector IS NOT NULL)
     ORDER BY i.tenant, i.kind, i.session, i.place
    ON CONFLICT DO NOTHING
$$;

-- Makes all vectors of a model anew, or tries again what was set aside.
CREATE FUNCTION reembed(of_tenant text, of_embedder smallint, only_set_aside boolean)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
BEGIN
    UPDATE waiting w SET why = NULL, attempts = 0, leased_until = '-infinity'
     WHERE (w.tenant, w.embedder) = (of_tenant, of_embedder) AND w.why IS NOT NULL;
    IF NOT only_set_aside THEN
        PERFORM lock_vectors(of_tenant);
        DELETE FROM text_vector t WHERE (t.tenant, t.embedder) = (of_tenant, of_embedder);
        INSERT INTO waiting (tenant, embedder, item, version, is_backlog)
        SELECT i.tenant, of_embedder, i.id, i.version, true
          FROM item i
         WHERE i.tenant = of_tenant AND i.valid_to IS NULL AND (i.title <> '' OR i.body <> '')
         ORDER BY i.kind, i.session, i.place
        ON CONFLICT DO NOTHING;
    END IF;
    PERFORM pg_notify('ksi_memory_waiting', '');
    RETURN (SELECT count(*) FROM waiting w
             WHERE (w.tenant, w.embedder) = (of_tenant, of_embedder) AND w.why IS NULL);
END $$;

-- What was there before a model has its vectors now: it answers, and others get no new ones.
CREATE FUNCTION complete_embedder(of_embedder smallint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('ksi_memory embedders', 0));
    IF EXISTS (SELECT FROM waiting w
                WHERE w.embedder = of_embedder AND w.is_backlog AND w.why IS NULL) THEN
        RETURN false;
    END IF;
    UPDATE embedder e SET is_complete = true WHERE e.id = of_embedder AND e.is_wanted;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE embedder e SET is_wanted = false WHERE e.id <> of_embedder AND e.is_wanted;
    DELETE FROM waiting w USING embedder e WHERE e.id = w.embedder AND NOT e.is_wanted;
    PERFORM pg_notify('ksi_memory_embedders', '');
    RETURN true;
END $$;

-- Makes the index of a model's vectors, once a tenant has too many to compare with each.
CREATE FUNCTION index_embedder(of_embedder smallint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp
SET maintenance_work_mem = '512MB' AS $$
DECLARE
    of_dimension integer;
BEGIN
    SELECT e.dimension INTO of_dimension
      FROM embedder e WHERE e.id = of_embedder AND NOT e.is_indexed;
    IF of_dimension IS NULL OR NOT EXISTS (
       SELECT FROM collection c GROUP BY c.tenant HAVING sum(c.documents) > 5000)
    THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('ksi_memory embedders', 0));
    EXECUTE format(
        'CREATE INDEX IF NOT EXISTS meaning_%s_near ON meaning_%s '
        'USING hnsw ((vector::halfvec(%s)) halfvec_cosine_ops) '
        'WITH (m = 16, ef_construction = 64)', of_embedder, of_embedder, of_dimension);
    UPDATE embedder e SET is_indexed = true WHERE e.id = of_embedder;
    RETURN true;
END $$;

CREATE FUNCTION list_embedders(of_tenant text)
RETURNS TABLE (
    id smallint, name text, dimension integer, is_wanted boolean, is_complete boolean,
    vectors bigint, waiting bigint, set_aside bigint, why text[]
)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT e.id, e.name, e.dimension, e.is_wanted, e.is_complete,
           (SELECT count(*) FROM meaning m
             WHERE m.tenant = of_tenant AND m.embedder = e.id AND m.vector IS NOT NULL),
           count(w.item) FILTER (WHERE w.why IS NULL), count(w.why),
           coalesce((array_agg(DISTINCT w.why) FILTER (WHERE w.why IS NOT NULL))[1:10], '{}')
      FROM embedder e
      LEFT JOIN waiting w ON w.tenant = of_tenant AND w.embedder = e.id
     GROUP BY e.id
     ORDER BY e.wanted_at DESC
$$;

-- -- the queue ------------------------------------------------------------------------------------

-- Hands out texts that wait, for a time. What took its daemon along twice is handed out alone, and
-- after five times no more.
CREATE FUNCTION claim_waiting(of_embedder smallint, at_most integer, lease interval)
RETURNS TABLE (
    tenant text, item uuid, version integer, title text, body text, persons text[], session text,
    said_at timestamptz
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
BEGIN
    UPDATE waiting w SET why = 'five times whoever embedded it did not come back'
     WHERE w.embedder = of_embedder AND w.why IS NULL AND w.attempts >= 5
       AND w.leased_until < clock_timestamp();
    RETURN QUERY
    WITH first AS MATERIALIZED (
        SELECT w.tenant, w.item, w.version, w.attempts, w.is_backlog, w.number
          FROM waiting w
         WHERE w.embedder = of_embedder AND w.why IS NULL AND w.leased_until < clock_timestamp()
         ORDER BY w.is_backlog, w.number
         LIMIT at_most
           FOR UPDATE SKIP LOCKED
    ), chosen AS (
        SELECT f.* FROM first f WHERE f.attempts < 2
        UNION ALL
        (SELECT f.* FROM first f
          WHERE f.attempts >= 2 AND NOT EXISTS (SELECT FROM first o WHERE o.attempts < 2)
          LIMIT 1)
    ), leased AS (
        UPDATE waiting w SET leased_until = clock_timestamp() + lease, attempts = w.attempts + 1
          FROM chosen c
         WHERE (w.tenant, w.embedder, w.item, w.version)
             = (c.tenant, of_embedder, c.item, c.version)
        RETURNING w.tenant, w.item, w.version, w.is_backlog, w.number
    )
    SELECT l.tenant, l.item, l.version, left(i.title, 2000), left(i.body, 8000), i.persons, i.session,
           coalesce(i.starts_at, i.valid_from)
      FROM leased l
     CROSS JOIN LATERAL (
           SELECT i.* FROM item i
            WHERE (i.tenant, i.id, i.version) = (l.tenant, l.item, l.version) OFFSET 0) i
     ORDER BY l.is_backlog, l.number;
END $$;

-- In how many seconds is the first lease over of what waits?
CREATE FUNCTION next_lease_end(of_embedder smallint) RETURNS double precision
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT extract(epoch FROM min(w.leased_until) - clock_timestamp())
      FROM waiting w
     WHERE w.embedder = of_embedder AND w.why IS NULL
$$;

-- Which of these texts have a vector already?
CREATE FUNCTION known_texts(of_embedder smallint, tenants text[], hashes bytea[])
RETURNS TABLE (place bigint)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT g.place
      FROM unnest(tenants, hashes) WITH ORDINALITY g (tenant, hash, place)
      JOIN text_vector t ON (t.tenant, t.embedder, t.text_hash) = (g.tenant, of_embedder, g.hash)
$$;

-- Keeps vectors of a tenant's texts, and makes anew the ones that their items and those beside them
-- are searched by. An item that is just being forgotten is passed over.
CREATE FUNCTION store_of_tenant(
    of_tenant text, of_embedder smallint, items uuid[], versions integer[], hashes bytea[],
    vectors text[]
) RETURNS integer
LANGUAGE plpgsql SET search_path = ksi_memory, public, pg_catalog, pg_temp SET enable_sort = off AS $$
DECLARE
    stored uuid[];
    stored_versions integer[];
    touched uuid[];
BEGIN
    PERFORM lock_vectors(of_tenant);
    -- No wait for who forgets: they hold the items and may wait for the lock of vectors.
    SELECT array_agg(l.id), array_agg(l.version) INTO stored, stored_versions
      FROM (SELECT i.id, i.version
              FROM unnest(items, versions) g (item, version)
             CROSS JOIN LATERAL (
                   SELECT i.id, i.version FROM item i
                    WHERE (i.tenant, i.id, i.version) = (of_tenant, g.item, g.version)
                      FOR KEY SHARE SKIP LOCKED) i) l;
    IF stored IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO text_vector AS t (tenant, embedder, text_hash, vector)
    SELECT DISTINCT ON (g.hash) of_tenant, of_embedder, g.hash,
           l2_normalize(g.vector::vector)::halfvec
      FROM unnest(items, versions, hashes, vectors) g (item, version, hash, vector)
      JOIN unnest(stored, stored_versions) s (item, version)
           ON (s.item, s.version) = (g.item, g.version)
     WHERE g.vector IS NOT NULL
     ORDER BY g.hash
    ON CONFLICT ON CONSTRAINT text_vector_pkey DO UPDATE SET vector = excluded.vector
     WHERE t.vector IS DISTINCT FROM excluded.vector;
    -- Without their vectors at first, which a row gets when it is known whose neighbour it is.
    INSERT INTO meaning AS m (
        tenant, embedder, item, version, kind, owner, is_current, text_hash)
    SELECT of_tenant, of_embedder, i.id, i.version, i.kind, i.owner, i.valid_to IS NULL, g.hash
      FROM unnest(items, versions, hashes) g (item, version, hash)
      JOIN unnest(stored, stored_versions) s (item, version)
           ON (s.item, s.version) = (g.item, g.version)
     CROSS JOIN LATERAL (
           SELECT i.* FROM item i
            WHERE (i.tenant, i.id, i.version) = (of_tenant, g.item, g.version) OFFSET 0) i
      JOIN text_vector t ON (t.tenant, t.embedder, t.text_hash) = (of_tenant, of_embedder, g.hash)
     ORDER BY i.id, i.version
    ON CONFLICT (item, version, embedder, tenant) DO UPDATE
       SET text_hash = excluded.text_hash, is_current = excluded.is_current
     WHERE (m.text_hash, m.is_current) IS DISTINCT FROM (excluded.text_hash, excluded.is_current);
    UPDATE meaning m SET vector = t.vector
      FROM unnest(stored, stored_versions) s (item, version),
           text_vector t
     WHERE m.tenant = of_tenant AND m.embedder = of_embedder
       AND (m.item, m.version) = (s.item, s.version)
       AND NOT m.is_current AND m.vector IS NULL
       AND (t.tenant, t.embedder, t.text_hash) = (of_tenant, of_embedder, m.text_hash);
    SELECT array_agg(DISTINCT b.id) INTO touched
      FROM unnest(stored, stored_versions) s (item, version)
     CROSS JOIN LATERAL (
           SELECT i.* FROM item i
            WHERE (i.tenant, i.id, i.version) = (of_tenant, s.item, s.version) OFFSET 0) i
     CROSS JOIN LATERAL beside(of_tenant, i.kind, i.owner, i.session, i.place, NULL) b
     WHERE b.id <> ALL (stored);
    PERFORM refresh_meanings(of_tenant, stored || touched);
    DELETE FROM waiting w
     USING unnest(stored, stored_versions) s (item, version), meaning m
     WHERE (w.tenant, w.embedder) = (of_tenant, of_embedder)
       AND (w.item, w.version) = (s.item, s.version)
       AND (m.tenant, m.embedder) = (of_tenant, of_embedder)
       AND (m.item, m.version) = (s.item, s.version)
       AND m.vector IS NOT NULL;
    RETURN cardinality(stored);
END $$;

-- Keeps vectors of texts, in the order of their tenants; where a text is known, none is given.
CREATE FUNCTION store_vectors(
    of_embedder smallint, tenants text[], items uuid[], versions integer[], hashes bytea[],
    vectors text[]
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    each record;
    stored bigint := 0;
BEGIN
    FOR each IN
        SELECT g.tenant, array_agg(g.item) AS items, array_agg(g.version) AS versions,
               array_agg(g.hash) AS hashes, array_agg(g.vector) AS vectors
          FROM unnest(tenants, items, versions, hashes, vectors)
               g (tenant, item, version, hash, vector)
         GROUP BY 1
         ORDER BY 1
    LOOP
        stored := stored + store_of_tenant(each.tenant, of_embedder, each.items, each.versions,
                                           each.hashes, each.vectors);
    END LOOP;
    RETURN stored;
END $$;

-- Gives texts back that were claimed: what failed had nothing to do with them.
CREATE FUNCTION release_waiting(
    of_embedder smallint, tenants text[], items uuid[], versions integer[]
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    UPDATE waiting w SET leased_until = '-infinity', attempts = greatest(w.attempts - 1, 0)
      FROM unnest(tenants, items, versions) g (tenant, item, version)
     WHERE (w.tenant, w.embedder, w.item, w.version)
         = (g.tenant, of_embedder, g.item, g.version)
$$;

-- Sets a text aside that can't have a vector.
CREATE FUNCTION set_aside(
    of_tenant text, of_embedder smallint, of_item uuid, of_version integer, reason text
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    UPDATE waiting w SET why = left(reason, 500)
     WHERE (w.tenant, w.embedder, w.item, w.version)
         = (of_tenant, of_embedder, of_item, of_version)
$$;

-- -- the search -----------------------------------------------------------------------------------

-- One lexeme as a query, whatever is in it.
CREATE FUNCTION query_of(lexeme text) RETURNS tsquery
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''')::tsquery
$$;

-- What the features of a search weigh, in their order.
CREATE FUNCTION search_weights() RETURNS double precision[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ARRAY[0.70, 0.31, 0.36, 0.09, 0.20, 0.20, 0.35, 0.35]::double precision[]
$$;

-- Which of these words, or rows of words, are persons? A person's first name alone will do.
CREATE FUNCTION persons_among(of_tenant text, of_owner text, of_kinds text[], names text[])
RETURNS TABLE (asked text, name text)
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT g.name, p.name
      FROM unnest(names) g (name)
      JOIN person p ON p.tenant = of_tenant
                   AND (p.name = g.name OR (p.name > g.name || ' ' AND p.name < g.name || '!'))
     WHERE (cardinality(of_kinds) = 0 OR p.kind = ANY (of_kinds))
       AND (of_owner IS NULL OR p.owner IN ('', of_owner))
     GROUP BY 1, 2
    HAVING sum(p.items) > 0
     LIMIT 50
$$;

-- The items nearest to a vector, of those that began in a time if one is given. A few are compared
-- one by one; many are looked up in the index, which goes on until it has found enough that fit.
CREATE FUNCTION nearest(
    of_tenant text, of_owner text, of_kinds text[], of_embedder smallint, of_vector halfvec,
    of_category text, since timestamptz, until timestamptz, as_of timestamptz, began_from timestamptz,
    began_before timestamptz, documents bigint, at_most integer
) RETURNS TABLE (item uuid, version integer, cos double precision)
LANGUAGE plpgsql STABLE
SET search_path = ksi_memory, public, pg_catalog, pg_temp
SET max_parallel_workers_per_gather = 0 AS $$
DECLARE
    exact_up_to CONSTANT integer := 5000;
    of_meaning text := '';
    of_item text := '';
    source text := format('meaning_%s m', of_embedder);
    is_indexed boolean;
    found bigint := documents;
    looked text;
    nearness text := 'm.vector <=> $4';
BEGIN
    SELECT e.is_indexed INTO is_indexed FROM embedder e WHERE e.id = of_embedder;
    IF of_owner IS NOT NULL THEN
        of_meaning := of_meaning || ' AND x.owner IN ('''', $2)';
    END IF;
    IF cardinality(of_kinds) > 0 THEN
        of_meaning := of_meaning || ' AND x.kind = ANY ($3)';
    END IF;
    IF as_of IS NOT NULL THEN
        of_item := ' AND i.valid_from <= $8 AND (i.valid_to IS NULL OR i.valid_to > $8)';
    END IF;
    IF of_category IS NOT NULL THEN
        of_item := of_item || ' AND i.category = $5';
    END IF;
    IF since IS NOT NULL THEN
        of_item := of_item || ' AND coalesce(i.ends_at, i.starts_at, i.valid_from) >= $6';
    END IF;
    IF until IS NOT NULL THEN
        of_item := of_item || ' AND coalesce(i.starts_at, i.valid_from) < $7';
    END IF;
    IF began_from IS NOT NULL THEN
        of_item := of_item || ' AND coalesce(i.starts_at, i.valid_from) >= $9'
                              ' AND coalesce(i.starts_at, i.valid_from) < $10';
    END IF;
    IF is_indexed AND documents > exact_up_to AND (of_owner IS NOT NULL OR of_item <> '') THEN
        -- Without what filters there is nothing to count: the collection is known to be large.
        EXECUTE format(
            CASE WHEN of_item = ''
            THEN 'SELECT count(*) FROM (SELECT FROM %1$s WHERE m.tenant = $1 AND m.is_current%2$s'
                 ' LIMIT %4$s) s'
            ELSE 'SELECT count(*) FROM (SELECT FROM item i WHERE i.tenant = $1%3$s%2$s LIMIT %4$s) s'
            END, source,
            replace(of_meaning, 'x.', CASE WHEN of_item = '' THEN 'm.' ELSE 'i.' END),
            of_item || CASE WHEN as_of IS NULL THEN ' AND i.valid_to IS NULL' ELSE '' END,
            exact_up_to + 1)
           INTO found
          USING of_tenant, of_owner, of_kinds, of_vector, of_category, since, until, as_of,
                began_from, began_before;
    END IF;
    IF is_indexed AND found > exact_up_to THEN
        -- No settings of the function's own: a restore makes it before the library is there that
        -- knows them, and is refused then.
        PERFORM set_config('hnsw.ef_search', '200', true),
                set_config('hnsw.iterative_scan', 'relaxed_order', true);
        nearness := format('m.vector::halfvec(%s) <=> $4::halfvec(%1$s)', vector_dims(of_vector));
        -- One look into the index is cheaper than two: it takes in those of other tenants.
        SELECT set_config('hnsw.ef_search', least(greatest(
                   at_most, 1.1 * at_most * c.reltuples / found), 2 * at_most)::integer::text, true)
          INTO looked
          FROM pg_class c
         WHERE c.oid = format('ksi_memory.meaning_%s', of_embedder)::regclass
           AND c.reltuples < 3 * found;
    END IF;
    IF of_item <> '' THEN
        source := source || ' JOIN item i ON (i.tenant, i.id, i.version)'
                            ' = (m.tenant, m.item, m.version)' || of_item;
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT m.item, m.version, 1 - (%1$s) FROM %2$s '
        'WHERE m.tenant = $1 AND m.vector IS NOT NULL%3$s%4$s ORDER BY %1$s LIMIT %5$s',
        nearness, source, CASE WHEN as_of IS NULL THEN ' AND m.is_current' ELSE '' END,
        replace(of_meaning, 'x.', 'm.'), at_most)
      USING of_tenant, of_owner, of_kinds, of_vector, of_category, since, until, as_of, began_from,
            began_before;
END $$;

-- Finds what fits a question best. The features, of candidates alone:
--   cos, max_cos     the nearness of the vectors; the greatest one in the session
--   lex, max_lex     how much of the question's rare words a text and its neighbours have, for its
--                    length, as a share of the best one's; the greatest one in the session
--   person           it is said by, or about, the one person that the question names
--   time             the question asks when, and the text speaks of a time
--   span             it is of, or speaks of, the time that the question names
--   near             it is of, or speaks of, a time within a week of the day that it names
CREATE FUNCTION search(
    of_tenant text, of_owner text, of_kinds text[], question text, of_embedder smallint,
    question_vector text, named_person text, asks_when boolean, spans datemultirange,
    days datemultirange, of_field text, of_category text, since timestamptz, until timestamptz,
    as_of timestamptz, min_similarity double precision, at_most integer
) RETURNS TABLE (
    id uuid, version integer, kind text, owner text, key text, category text, title text, body text,
    attributes jsonb, persons text[], session text, place integer, starts_at timestamptz,
    ends_at timestamptz, origin text, is_pinned boolean, valid_from timestamptz,
    valid_to timestamptz, score double precision, features double precision[]
)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 10
SET search_path = ksi_memory, public, pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_sort = off
SET enable_memoize = off
SET jit = off AS $$
#variable_conflict use_column
DECLARE
    candidates CONSTANT integer := 200;
    budget CONSTANT bigint := 4000;
    a_week CONSTANT interval := '7 days';
    weight CONSTANT double precision[] := search_weights();
    is_most boolean; -- of all items, so that it is not worth looking up which are the tenant's
    of_vector halfvec := question_vector::halfvec;
    total bigint;
    mean double precision;
    known_kinds text[] := of_kinds;
    lexemes_known text[];
    idfs double precision[];
    rare_kinds text[];
    rare_lexemes text[];
    rare_idfs double precision[];
    near_ids uuid[] := '{}';
    near_versions integer[] := '{}';
    near_cos double precision[] := '{}';
    first_day timestamptz := lower(spans)::timestamptz - a_week;
    after_days timestamptz := upper(spans)::timestamptz + a_week;
BEGIN
    SELECT coalesce(sum(c.documents), 0),
           coalesce(sum(c.words)::double precision / nullif(sum(c.documents), 0), 1),
           array_agg(DISTINCT c.kind)
      INTO total, mean, known_kinds
      FROM collection c
     WHERE c.tenant = of_tenant AND (cardinality(of_kinds) = 0 OR c.kind = ANY (of_kinds));

    SELECT total > c.reltuples / 2 INTO is_most FROM pg_class c WHERE c.oid = 'item'::regclass;

    -- The question's words with what they weigh, and where the rarest are.
    WITH counts AS MATERIALIZED (
        SELECT f.lexeme, f.kind, sum(f.documents) AS documents
          FROM unnest(tsvector_to_array(to_tsvector('ksi_memory.words', question))) q (lexeme)
         CROSS JOIN unnest(known_kinds) k (kind)
         CROSS JOIN LATERAL (
               SELECT f.* FROM frequency f
                WHERE (f.tenant, f.kind, f.lexeme) = (of_tenant, k.kind, q.lexeme) OFFSET 0) f
         GROUP BY 1, 2
        HAVING sum(f.documents) > 0
    ), words AS MATERIALIZED (
        SELECT s.lexeme, s.documents,
               ln(1 + (greatest(total, s.documents) - s.documents + 0.5) / (s.documents + 0.5))
                   AS idf,
               row_number() OVER w AS rank, sum(s.documents) OVER w AS together
          FROM (SELECT c.lexeme, sum(c.documents) AS documents FROM counts c GROUP BY 1) s
        WINDOW w AS (ORDER BY s.documents, s.lexeme)
         ORDER BY rank
         LIMIT 32
    ), parts AS (
        SELECT w.idf, w.rank, c.kind, w.lexeme
          FROM words w
          JOIN counts c ON c.lexeme = w.lexeme
         WHERE w.rank <= 2 OR (w.rank <= 6 AND w.together < budget)
    )
    SELECT (SELECT array_agg(w.lexeme ORDER BY w.rank) FROM words w),
           (SELECT array_agg(w.idf ORDER BY w.rank) FROM words w),
           (SELECT array_agg(p.kind ORDER BY p.rank, p.kind) FROM parts p),
           (SELECT array_agg(p.lexeme ORDER BY p.rank, p.kind) FROM parts p),
           (SELECT array_agg(p.idf ORDER BY p.rank, p.kind) FROM parts p)
      INTO lexemes_known, idfs, rare_kinds, rare_lexemes, rare_idfs;

    -- Of the time that the question names, and a week around it where that is not much.
    IF first_day IS NOT NULL AND 2000 < (
       SELECT count(*) FROM (
           SELECT FROM item i
            WHERE i.tenant = of_tenant AND i.kind = ANY (known_kinds)
              AND coalesce(i.starts_at, i.valid_from) >= first_day
              AND coalesce(i.starts_at, i.valid_from) < after_days
            LIMIT 2001) around)
    THEN
        first_day := first_day + a_week;
        after_days := after_days - a_week;
    END IF;

    IF of_vector IS NOT NULL THEN
        SELECT array_agg(n.item), array_agg(n.version), array_agg(n.cos)
          INTO near_ids, near_versions, near_cos
          FROM nearest(of_tenant, of_owner, of_kinds, of_embedder, of_vector, of_category, since,
                       until, as_of, NULL, NULL, total, candidates) n;
        IF first_day IS NOT NULL THEN
            SELECT near_ids || array_agg(n.item), near_versions || array_agg(n.version),
                   near_cos || array_agg(n.cos)
              INTO near_ids, near_versions, near_cos
              FROM nearest(of_tenant, of_owner, of_kinds, of_embedder, of_vector, of_category,
                           since, until, as_of, first_day, after_days, total, candidates) n;
        END IF;
    END IF;

    RETURN QUERY
    WITH words_of_question AS MATERIALIZED (
        SELECT w.idf, query_of(w.lexeme) AS query
          FROM unnest(lexemes_known, idfs) w (lexeme, idf)
    ), matched AS MATERIALIZED (
        SELECT i.id, i.version, i.kind, i.owner, i.session, i.place,
               sum(r.idf) / (1 + 1.2::float8 * (0.75::float8 + 0.25::float8 * min(i.words) / mean))
                   AS score
          FROM unnest(rare_kinds, rare_lexemes, rare_idfs) r (kind, lexeme, idf)
         CROSS JOIN LATERAL (
               SELECT i.id, i.version, i.kind, i.owner, i.session, i.place, i.words
                 FROM item i
                WHERE NOT is_most
                  AND (i.tenant || E'\x1f' || i.kind) = (of_tenant || E'\x1f' || r.kind)
                  AND i.lexemes @@ query_of(r.lexeme)
                  AND (of_owner IS NULL OR i.owner IN ('', of_owner))
                  AND CASE WHEN as_of IS NULL THEN i.valid_to IS NULL
                      ELSE i.valid_from <= as_of AND (i.valid_to IS NULL OR i.valid_to > as_of) END
                UNION ALL
               SELECT i.id, i.version, i.kind, i.owner, i.session, i.place, i.words
                 FROM item i
                WHERE is_most AND i.lexemes @@ query_of(r.lexeme)
                  -- as a CASE, so that these are looked up in no index
                  AND CASE WHEN i.tenant = of_tenant THEN i.kind = r.kind ELSE false END
                  AND (of_owner IS NULL OR i.owner IN ('', of_owner))
                  AND CASE WHEN as_of IS NULL THEN i.valid_to IS NULL
                      ELSE i.valid_from <= as_of AND (i.valid_to IS NULL OR i.valid_to > as_of) END
               ) i
         GROUP BY 1, 2, 3, 4, 5, 6
         ORDER BY score DESC, i.id
         LIMIT candidates
    ), best_matched AS (
        SELECT m.* FROM matched m ORDER BY m.score DESC, m.id LIMIT candidates / 2
    ), by_words AS (
        -- Those that have the words, and those beside the best of them.
        SELECT w.id, w.version
          FROM (SELECT m.id, m.version, m.score FROM matched m
                 UNION ALL
                SELECT a.id, a.version, 0.6::float8 * m.score
                  FROM best_matched m
                 CROSS JOIN LATERAL item_after(of_tenant, m.kind, m.owner, m.session, m.place,
                                               as_of) a
                 UNION ALL
                SELECT b.id, b.version, 0.4::float8 * m.score
                  FROM best_matched m
                 CROSS JOIN LATERAL item_before(of_tenant, m.kind, m.owner, m.session, m.place,
                                                as_of) b) w
         GROUP BY 1, 2
         ORDER BY sum(w.score) DESC, w.id
         LIMIT candidates
    ), in_span AS (
        SELECT i.id, i.version
          FROM item i
         WHERE first_day IS NOT NULL AND of_vector IS NULL
           AND i.tenant = of_tenant AND i.kind = ANY (known_kinds)
           AND coalesce(i.starts_at, i.valid_from) >= first_day
           AND coalesce(i.starts_at, i.valid_from) < after_days
           AND (of_owner IS NULL OR i.owner IN ('', of_owner))
           AND CASE WHEN as_of IS NULL THEN i.valid_to IS NULL
               ELSE i.valid_from <= as_of AND (i.valid_to IS NULL OR i.valid_to > as_of) END
         ORDER BY (i.days && spans) DESC, coalesce(i.starts_at, i.valid_from), i.id
         LIMIT candidates
    ), candidate AS MATERIALIZED (
        SELECT a.id, a.version, max(a.cos) AS cos
          FROM (SELECT w.id, w.version, NULL::float8 AS cos FROM by_words w
                 UNION ALL
                SELECT s.id, s.version, NULL FROM in_span s
                 UNION ALL
                SELECT n.id, n.version, n.cos
                  FROM unnest(near_ids, near_versions, near_cos) n (id, version, cos)) a
         GROUP BY 1, 2
    ), known AS MATERIALIZED (
        SELECT i.id, i.version, i.kind, i.owner, coalesce(i.session, i.id::text) AS session,
               i.words, i.persons, i.days, coalesce(i.starts_at, i.valid_from)::date AS day,
               CASE of_field
                    WHEN 'title' THEN to_tsvector('ksi_memory.words', i.title)
                    WHEN 'body' THEN to_tsvector('ksi_memory.words', i.body)
                    ELSE strip(i.lexemes)
               END AS own, strip(before.lexemes) AS before, strip(after.lexemes) AS after,
               coalesce(c.cos, 1 - (m.vector <=> of_vector)) AS cos
          FROM candidate c
         CROSS JOIN LATERAL (
               SELECT i.id, i.version, i.kind, i.owner, i.session, i.place, i.words, i.persons,
                      i.days, i.category, i.title, i.body, i.lexemes, i.starts_at, i.ends_at,
                      i.valid_from
                 FROM item i
                WHERE (i.tenant, i.id, i.version) = (of_tenant, c.id, c.version) OFFSET 0) i
          LEFT JOIN item_before(of_tenant, i.kind, i.owner, i.session, i.place, as_of) before
                 ON of_field IS NULL
          LEFT JOIN item_after(of_tenant, i.kind, i.owner, i.session, i.place, as_of) after
                 ON of_field IS NULL
          LEFT JOIN LATERAL (
               SELECT m.vector FROM meaning m
                WHERE m.item = c.id AND m.version = c.version AND m.embedder = of_embedder
                  AND m.tenant = of_tenant AND c.cos IS NULL OFFSET 0) m ON true
         WHERE (of_category IS NULL OR i.category = of_category)
           AND (since IS NULL OR coalesce(i.ends_at, i.starts_at, i.valid_from) >= since)
           AND (until IS NULL OR coalesce(i.starts_at, i.valid_from) < until)
    ), weighed AS MATERIALIZED (
        SELECT k.id, k.version, k.kind, k.owner, k.session, k.cos,
               coalesce(l.sum, 0)
                   / (1 + 1.2::float8 * (0.75::float8 + 0.25::float8 * k.words / mean)) AS lex,
               coalesce((named_person = ANY (k.persons))::integer, 0) AS person,
               (asks_when AND k.days <> '{}')::integer AS time,
               coalesce(spans @> k.day OR k.days && spans, false)::integer AS span,
               coalesce(week.days @> k.day OR k.days && week.days, false)::integer AS near
          FROM known k
         CROSS JOIN (SELECT range_agg(daterange(lower(d) - 7, upper(d) + 7)) AS days
                       FROM unnest(days) d) week
         CROSS JOIN LATERAL (
               SELECT sum(w.idf * CASE WHEN k.own @@ w.query THEN 1::float8
                                       WHEN k.before @@ w.query THEN 0.6::float8
                                       WHEN k.after @@ w.query THEN 0.4::float8 END) AS sum
                 FROM words_of_question w) l
         WHERE of_field IS NULL OR l.sum > 0
    ), shared AS (
        SELECT w.*, coalesce(w.cos, avg(w.cos) OVER (), 0) AS known_cos,
               coalesce(w.lex / nullif(max(w.lex) OVER (), 0), 0) AS share
          FROM weighed w
    ), featured AS (
        SELECT s.id, s.version, s.cos,
               ARRAY[s.known_cos, max(s.known_cos) OVER w, s.share, max(s.share) OVER w,
                     s.person, s.time, s.span, s.near]::double precision[] AS features
          FROM shared s
        WINDOW w AS (PARTITION BY s.kind, s.owner, s.session)
    ), best AS (
        SELECT f.id, f.version, f.features,
               f.features[1] * weight[1] + f.features[2] * weight[2] + f.features[3] * weight[3]
               + f.features[4] * weight[4] + f.features[5] * weight[5] + f.features[6] * weight[6]
               + f.features[7] * weight[7] + f.features[8] * weight[8] AS score
          FROM featured f
         WHERE min_similarity IS NULL OR of_vector IS NULL OR f.cos >= min_similarity
         ORDER BY score DESC, f.id
         LIMIT at_most
    )
    SELECT i.id, i.version, i.kind, i.owner, i.key, i.category, i.title, i.body, i.attributes,
           i.persons, i.session, i.place, i.starts_at, i.ends_at, i.origin, i.is_pinned,
           i.valid_from, i.valid_to, b.score, b.features
      FROM best b
     CROSS JOIN LATERAL (
           SELECT i.* FROM item i
            WHERE (i.tenant, i.id, i.version) = (of_tenant, b.id, b.version) OFFSET 0) i
     ORDER BY b.score DESC, b.id;
END $$;
COMMENT ON FUNCTION search IS 'finds what fits a question best, by words, meaning, person and time';

-- How things are remembered: many items in one statement, each in a new version where it differs.
--
-- All that writes for a tenant holds the tenant's lock until its transaction ends, so that versions
-- follow one another, whoever writes, and no two writers wait for each other.
--
-- Sequential scans are off where rows are looked up: plans are kept, and one that was made when a
-- table was small would read all of it for each row when it no longer is.

SET LOCAL search_path = ksi_memory, public, pg_temp;

-- What comes of a whole conversation goes with it, as what comes of a message does.
ALTER TABLE source ADD CONSTRAINT source_of_conversation
    FOREIGN KEY (tenant, conversation) REFERENCES ksi_completion.conversation ON DELETE CASCADE;
CREATE INDEX source_conversation ON source (tenant, conversation) WHERE conversation IS NOT NULL;

CREATE FUNCTION lock_tenant(of_tenant text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('ksi_memory ' || of_tenant, 0))
$$;

-- The names of many, each once, in their order.
CREATE FUNCTION folded_all(given text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE STRICT
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(f.name ORDER BY f.first), '{}')
      FROM (SELECT folded(g.name) AS name, min(g.place) AS first
              FROM unnest(given) WITH ORDINALITY g (name, place)
             GROUP BY 1) f
     WHERE f.name <> ''
$$;

-- Where a version stands, for a statement that changes many: whatever is known of the table, each is
-- looked up by its key.
CREATE FUNCTION row_of(of_tenant text, by_id uuid, by_version integer, OUT place tid)
LANGUAGE sql STABLE AS $$
    SELECT i.ctid FROM ksi_memory.item i
     WHERE i.tenant = of_tenant AND i.id = by_id AND i.version = by_version
     LIMIT 1
$$;

-- -- what is shown of an item --------------------------------------------------------------------

CREATE TYPE shown AS (
    id uuid, kind text, key text, version integer, owner text, title text, body text, category text,
    attributes text, persons text[], session text, place integer, starts_at timestamptz,
    ends_at timestamptz, edges text, sources text, origin text, is_pinned boolean,
    valid_from timestamptz, valid_to timestamptz
);

CREATE FUNCTION edges_of(of_tenant text, of_item uuid, of_version integer) RETURNS jsonb
LANGUAGE sql STABLE SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT jsonb_agg(jsonb_build_object(
               'to', e.to_name, 'relation', e.relation, 'weight', e.weight) ORDER BY e.number)
      FROM edge e
     WHERE (e.tenant, e.item, e.version) = (of_tenant, of_item, of_version)
$$;

CREATE FUNCTION sources_of(of_tenant text, by_item uuid, by_version integer) RETURNS jsonb
LANGUAGE sql STABLE SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
               'kind', CASE WHEN s.conversation IS NOT NULL THEN 'message'
                            WHEN s.of_item IS NOT NULL THEN 'item'
                            WHEN s.run IS NOT NULL THEN 'run'
                            ELSE 'person' END,
               'conversation_id', s.conversation, 'message', s.message, 'item', s.of_item,
               'version', s.of_version, 'run_id', s.run, 'told', nullif(s.told, '')))
               ORDER BY s.number)
      FROM source s
     WHERE (s.tenant, s.item, s.version) = (of_tenant, by_item, by_version)
$$;

CREATE FUNCTION show_item(i item) RETURNS shown
LANGUAGE sql STABLE SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT i.id, i.kind, i.key, i.version, i.owner, i.title, i.body, i.category,
           i.attributes::text, i.persons, i.session, i.place, i.starts_at, i.ends_at,
           edges_of(i.tenant, i.id, i.version)::text, sources_of(i.tenant, i.id, i.version)::text,
           i.origin, i.is_pinned, i.valid_from, i.valid_to
$$;

-- By its id, or by its key: then all that bear it, a few at most.
CREATE FUNCTION find_items(
    of_tenant text, of_owner text, of_id uuid, of_key text, of_kind text, with_owner text,
    as_of timestamptz
) RETURNS SETOF shown
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1
SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
BEGIN
    IF of_id IS NOT NULL THEN
        RETURN QUERY
            SELECT (show_item(i)).*
              FROM item i
             WHERE i.tenant = of_tenant AND i.id = of_id
               AND (of_owner IS NULL OR i.owner IN ('', of_owner))
               AND CASE WHEN as_of IS NULL THEN i.valid_to IS NULL
                        ELSE i.valid_from <= as_of
                             AND (i.valid_to IS NULL OR i.valid_to > as_of) END
             LIMIT 1;
    ELSE
        RETURN QUERY
            SELECT (show_item(f)).*
              FROM (SELECT i.*
                      FROM item i
                     WHERE i.tenant = of_tenant AND i.name = folded(of_key)
                       AND (of_kind IS NULL OR i.kind = of_kind)
                       AND (with_owner IS NULL OR i.owner = with_owner)
                       AND (of_owner IS NULL OR i.owner IN ('', of_owner))
                       AND CASE WHEN as_of IS NULL THEN i.valid_to IS NULL
                                ELSE i.valid_from <= as_of
                                     AND (i.valid_to IS NULL OR i.valid_to > as_of) END
                     ORDER BY i.kind, i.owner, i.id
                     LIMIT 10) f;
    END IF;
END $$;
COMMENT ON FUNCTION find_items IS 'the items that bear an id or a key, as of then or now';

-- -- writing -------------------------------------------------------------------------------------

-- An item on its way in: what was given, and what is known laid under it.
CREATE TYPE draft AS (
    spot integer, id uuid, verdict text, old_version integer, version integer, was_current boolean,
    owner text, key text, category text, title text, body text, attributes jsonb, persons text[],
    session text, place integer, starts_at timestamptz, ends_at timestamptz, days datemultirange,
    hash bytea, text_hash bytea, words integer, is_pinned boolean, valid_from timestamptz,
    is_mixed boolean, edges jsonb, sources jsonb, origin text
);

-- Edges as they are given, in the form of those that are kept.
CREATE FUNCTION edges_given(given jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT jsonb_agg(jsonb_build_object(
               'to', folded(e.to_key), 'relation', e.relation, 'weight', e.weight)
               ORDER BY e.number)
      FROM ROWS FROM (
           jsonb_to_recordset(given) AS ("to" text, relation text, weight real)
           ) WITH ORDINALITY AS e (to_key, relation, weight, number)
$$;

-- What was given, in its order; what is left out is null.
CREATE FUNCTION drafts_of(
    of_tenant text, of_owner text, of_kind text, of_origin text, even_forgotten boolean,
    needs_attributes boolean, given json
) RETURNS draft[]
LANGUAGE sql STABLE SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    WITH g AS MATERIALIZED (
        SELECT row_number() OVER () AS spot, r.*
          FROM json_to_recordset(given) AS r (
               id uuid, owner text, key text, category text, title text, body text,
               attributes jsonb, persons text[], session text, place integer,
               starts_at timestamptz, ends_at timestamptz, days datemultirange, hash bytea,
               text_hash bytea, words integer, valid_from timestamptz, edges jsonb, sources jsonb)
    ), m AS MATERIALIZED (
        SELECT g.spot, g.id, o.version AS old_version, o.id IS NOT NULL AS is_known,
               o.hash = g.hash AS is_repeated, o.origin AS old_origin, o.is_pinned AS was_pinned,
               o.valid_from AS since,
               g.owner, g.key,
               coalesce(g.category, o.category) AS category,
               coalesce(g.title, o.title, '') AS title, coalesce(g.body, o.body, '') AS body,
               coalesce(g.attributes, o.attributes, '{}') AS attributes,
               coalesce(folded_all(g.persons), o.persons, '{}') AS persons,
               coalesce(g.session, o.session) AS session, coalesce(g.place, o.place) AS place,
               coalesce(g.starts_at, o.starts_at) AS starts_at,
               coalesce(g.ends_at, o.ends_at) AS ends_at,
               coalesce(o.is_pinned, false) AS is_pinned,
               g.days, g.hash, g.text_hash, g.words, g.valid_from, g.edges, g.sources,
               o.title AS old_title, o.body AS old_body, o.attributes AS old_attributes,
               o.persons AS old_persons, o.category AS old_category, o.session AS old_session,
               o.place AS old_place, o.starts_at AS old_starts_at, o.ends_at AS old_ends_at,
               o.days AS old_days, o.text_hash AS old_text_hash, o.words AS old_words,
               l.version AS last_version,
               coalesce(g.title, o.title, '') <> coalesce(g.title, '')
               OR coalesce(g.body, o.body, '') <> coalesce(g.body, '')
               OR g.starts_at IS NULL AND o.starts_at IS NOT NULL AS is_mixed
          FROM g
          LEFT JOIN LATERAL (SELECT i.* FROM item i
                              WHERE i.tenant = of_tenant AND i.id = g.id
                              ORDER BY i.version DESC
                              LIMIT 1) l ON true
          LEFT JOIN LATERAL (SELECT l.*) o ON l.valid_to IS NULL
    ), h AS MATERIALIZED (
        SELECT m.*,
               CASE WHEN NOT m.is_mixed THEN m.text_hash
                    WHEN (m.title, m.body) = (m.old_title, m.old_body) THEN m.old_text_hash
                    ELSE sha256(convert_to(m.title || E'\n' || m.body, 'UTF8')) END AS whole_hash,
               m.is_known
               AND (of_origin = 'derived' OR m.old_origin = of_origin OR m.old_origin = 'given')
               AND (m.is_repeated
                    OR (m.title, m.body, m.attributes, m.persons)
                           = (m.old_title, m.old_body, m.old_attributes, m.old_persons)
                       AND (m.category, m.session, m.place, m.starts_at, m.ends_at)
                           IS NOT DISTINCT FROM (m.old_category, m.old_session, m.old_place,
                                                 m.old_starts_at, m.old_ends_at)
                       AND (m.edges IS NULL
                            OR edges_given(m.edges)
                               IS NOT DISTINCT FROM edges_of(of_tenant, m.id, m.old_version)))
               AS is_same
          FROM m
    )
    SELECT array_agg(ROW(
               h.spot, h.id,
               CASE WHEN NOT even_forgotten AND EXISTS (
                         SELECT FROM tombstone t
                          WHERE t.tenant = of_tenant AND t.text_hash = h.whole_hash
                            AND (t.id = h.id
                                 OR of_origin <> 'given' AND h.title || h.body <> ''))
                    THEN 'forgotten'
                    WHEN EXISTS (
                         SELECT FROM jsonb_to_recordset(h.sources) AS s (
                                conversation text, message bigint, item uuid, version integer)
                          WHERE s.message IS NOT NULL AND NOT EXISTS (
                                SELECT FROM ksi_completion.message e
                                 WHERE (e.tenant, e.conversation, e.number)
                                       = (of_tenant, s.conversation, s.message))
                             OR s.message IS NULL AND s.conversation IS NOT NULL AND NOT EXISTS (
                                SELECT FROM ksi_completion.conversation c
                                 WHERE (c.tenant, c.id) = (of_tenant, s.conversation))
                             OR s.item IS NOT NULL AND NOT EXISTS (
                                SELECT FROM item i
                                 WHERE i.tenant = of_tenant AND i.id = s.item
                                   AND (s.version IS NULL OR i.version = s.version)
                                   AND (of_owner IS NULL OR i.owner IN ('', of_owner))))
                    THEN 'no_source'
                    WHEN h.is_same THEN 'unchanged'
                    WHEN h.is_known AND of_origin = 'derived'
                         AND (h.old_origin = 'given' OR h.was_pinned) THEN 'protected'
                    WHEN h.ends_at < h.starts_at OR h.ends_at IS NOT NULL AND h.starts_at IS NULL
                    THEN 'ends_first'
                    WHEN h.is_known AND h.valid_from < h.since THEN 'too_old'
                    WHEN NOT h.is_known AND needs_attributes AND h.attributes = '{}'
                    THEN 'no_attributes'
                    WHEN h.is_known THEN 'updated'
                    ELSE 'inserted' END,
               h.old_version, coalesce(h.last_version, 0) + 1, h.is_known, h.owner, h.key,
               h.category, h.title, h.body, h.attributes, h.persons, h.session, h.place,
               h.starts_at, h.ends_at,
               CASE WHEN (h.title, h.body, h.starts_at) IS NOT DISTINCT FROM
                         (h.old_title, h.old_body, h.old_starts_at) THEN h.old_days
                    ELSE coalesce(h.days, '{}') END,
               h.hash, h.whole_hash,
               CASE WHEN h.is_mixed AND (h.title, h.body) = (h.old_title, h.old_body)
                    THEN h.old_words ELSE h.words END,
               h.is_pinned,
               least(coalesce(h.valid_from, clock_timestamp()), clock_timestamp()),
               h.is_mixed AND (h.title, h.body, h.starts_at) IS DISTINCT FROM
                              (h.old_title, h.old_body, h.old_starts_at),
               h.edges, h.sources, of_origin)::draft ORDER BY h.spot)
      FROM h
$$;

-- The sources of drafts: those that were given, or else whoever sends them.
CREATE FUNCTION write_sources(of_tenant text, batch draft[], by_run text, by_whom text)
RETURNS void
LANGUAGE sql SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    INSERT INTO source (tenant, item, version, number, conversation, message, of_item, of_version,
                        run, told)
    SELECT of_tenant, b.id, b.version, s.number, s.conversation, s.message, s.item,
           CASE WHEN s.item IS NOT NULL THEN coalesce(s.version, (
               SELECT max(i.version) FROM item i
                WHERE i.tenant = of_tenant AND i.id = s.item)) END,
           s.run, coalesce(s.told, '')
      FROM unnest(batch) b
     CROSS JOIN LATERAL ROWS FROM (
           jsonb_to_recordset(b.sources) AS (
               conversation text, message bigint, item uuid, version integer, run text, told text)
           ) WITH ORDINALITY AS s (conversation, message, item, version, run, told, number)
     WHERE b.verdict IN ('inserted', 'updated') AND b.sources IS NOT NULL;
    INSERT INTO source (tenant, item, version, number, run, told)
    SELECT of_tenant, b.id, b.version, 1, by_run, CASE WHEN by_run IS NULL THEN by_whom ELSE '' END
      FROM unnest(batch) b
     WHERE b.verdict IN ('inserted', 'updated') AND b.sources IS NULL;
$$;

-- What is known as it is, and now also comes from elsewhere.
CREATE FUNCTION add_sources(of_tenant text, batch draft[]) RETURNS void
LANGUAGE sql SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    WITH new AS (
        SELECT b.id, b.old_version AS version, s.number, s.conversation, s.message,
               s.item AS of_item,
               CASE WHEN s.item IS NOT NULL THEN coalesce(s.version, (
                   SELECT max(i.version) FROM item i
                    WHERE i.tenant = of_tenant AND i.id = s.item)) END AS of_version,
               s.run, coalesce(s.told, '') AS told
          FROM unnest(batch) b
         CROSS JOIN LATERAL ROWS FROM (
               jsonb_to_recordset(b.sources) AS (conversation text, message bigint, item uuid,
                                                 version integer, run text, told text)
               ) WITH ORDINALITY AS s (conversation, message, item, version, run, told, number)
         WHERE b.verdict = 'unchanged' AND b.sources IS NOT NULL
    )
    INSERT INTO source (tenant, item, version, number, conversation, message, of_item, of_version,
                        run, told)
    SELECT of_tenant, n.id, n.version,
           n.number + (SELECT max(s.number) FROM source s
                        WHERE (s.tenant, s.item, s.version) = (of_tenant, n.id, n.version)),
           n.conversation, n.message, n.of_item, n.of_version, n.run, n.told
      FROM new n
     WHERE NOT EXISTS (
           SELECT FROM source s
            WHERE (s.tenant, s.item, s.version) = (of_tenant, n.id, n.version)
              AND (s.conversation, s.message, s.of_item, s.run, s.told)
                  IS NOT DISTINCT FROM (n.conversation, n.message, n.of_item, n.run, n.told))
$$;

-- The edges of drafts: those that were given, or else those of the version before.
CREATE FUNCTION write_edges(of_tenant text, batch draft[]) RETURNS void
LANGUAGE sql SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    INSERT INTO edge (tenant, item, version, number, from_name, relation, to_name, weight)
    SELECT of_tenant, b.id, b.version, e.number, folded(b.key), e.relation, folded(e.to_key),
           e.weight
      FROM unnest(batch) b
     CROSS JOIN LATERAL ROWS FROM (
           jsonb_to_recordset(b.edges) AS ("to" text, relation text, weight real)
           ) WITH ORDINALITY AS e (to_key, relation, weight, number)
     WHERE b.verdict IN ('inserted', 'updated') AND b.edges IS NOT NULL;
    INSERT INTO edge (tenant, item, version, number, from_name, relation, to_name, weight)
    SELECT of_tenant, b.id, b.version, e.number, folded(b.key), e.relation, e.to_name, e.weight
      FROM unnest(batch) b
     CROSS JOIN LATERAL (
           SELECT * FROM edge e
            WHERE (e.tenant, e.item, e.version) = (of_tenant, b.id, b.old_version)
           OFFSET 0) e
     WHERE b.verdict = 'updated' AND b.edges IS NULL;
$$;

-- Writes items, in one statement; each is told of by its place among them.
CREATE FUNCTION upsert_items(
    of_tenant text, of_owner text, of_kind text, of_origin text, even_forgotten boolean,
    needs_attributes boolean, by_run text, by_whom text, given json,
    OUT verdicts text[], OUT dangling text[], OUT mixed text
)
LANGUAGE plpgsql SECURITY DEFINER
SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    batch draft[];
BEGIN
    PERFORM lock_tenant(of_tenant);
    batch := drafts_of(of_tenant, of_owner, of_kind, of_origin, even_forgotten, needs_attributes,
                       given);
    UPDATE item i SET valid_to = greatest(b.valid_from, i.valid_from)
      FROM unnest(batch) b, row_of(of_tenant, b.id, b.old_version) r
     WHERE b.verdict = 'updated' AND i.ctid = r.place;
    INSERT INTO item (
        tenant, id, version, kind, owner, key, name, category, title, body, attributes, persons,
        session, place, starts_at, ends_at, days, hash, text_hash, words, lexemes, origin,
        is_pinned, valid_from)
    SELECT of_tenant, b.id, b.version, of_kind, b.owner, b.key, folded(b.key), b.category, b.title,
           b.body, b.attributes, b.persons, b.session, b.place, b.starts_at, b.ends_at, b.days,
           b.hash, b.text_hash, b.words,
           setweight(to_tsvector('ksi_memory.words', b.title || ' ' || b.body), 'A'), b.origin,
           b.is_pinned, b.valid_from
      FROM unnest(batch) b
     WHERE b.verdict IN ('inserted', 'updated')
     ORDER BY b.session, b.place, b.spot;
    PERFORM write_sources(of_tenant, batch, by_run, by_whom);
    PERFORM add_sources(of_tenant, batch);
    PERFORM write_edges(of_tenant, batch);
    SELECT array_agg(b.verdict ORDER BY b.spot),
           jsonb_agg(jsonb_build_object('id', b.id, 'version', b.version, 'title', b.title,
                                        'body', b.body, 'starts_at', b.starts_at))
               FILTER (WHERE b.is_mixed AND b.verdict = 'updated')
      INTO verdicts, mixed
      FROM unnest(batch) b;
    SELECT array_agg(d.name) INTO dangling
      FROM (SELECT DISTINCT folded(e."to") AS name
              FROM unnest(batch) b, jsonb_to_recordset(b.edges) AS e ("to" text)
             WHERE b.verdict IN ('inserted', 'updated', 'unchanged')) d
     WHERE NOT EXISTS (
           SELECT FROM item i
            WHERE i.tenant = of_tenant AND i.name = d.name AND i.valid_to IS NULL
              AND (of_owner IS NULL OR i.owner IN ('', of_owner)));
END $$;
COMMENT ON FUNCTION upsert_items IS 'remembers items; tells of each what came of it';

-- The days that a version's text speaks of, where they could not be told before it was whole.
CREATE FUNCTION set_days(of_tenant text, of_item uuid, of_version integer, to_days datemultirange)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    UPDATE item i SET days = to_days
     WHERE i.tenant = of_tenant AND i.id = of_item AND i.version = of_version
$$;

-- A person says of an item that machines are to leave it as it is, or no longer.
CREATE FUNCTION pin_item(of_tenant text, by_id uuid, to_pinned boolean) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    UPDATE item i SET is_pinned = to_pinned
     WHERE i.tenant = of_tenant AND i.id = by_id AND i.valid_to IS NULL
       AND i.is_pinned <> to_pinned
$$;

-- -- lists and figures ---------------------------------------------------------------------------

-- By table, key and id, from behind a place on; without their texts.
CREATE FUNCTION list_items(
    of_tenant text, of_owner text, of_kind text, with_owner text, with_category text,
    with_origin text, after_kind text, after_name text, after_id uuid, at_most integer,
    OUT name text, OUT item shown
) RETURNS SETOF record
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    from_kind text := coalesce(after_kind, of_kind, '');
    from_name text := coalesce(after_name, '');
    from_id uuid := coalesce(after_id, '00000000-0000-0000-0000-000000000000');
    found item;
BEGIN
    FOR found IN
        SELECT i.*
          FROM item i
         WHERE i.tenant = of_tenant AND i.valid_to IS NULL
           AND (i.kind, i.name, i.id) > (from_kind, from_name, from_id)
           AND (of_kind IS NULL OR i.kind = of_kind)
           AND (of_owner IS NULL OR i.owner IN ('', of_owner))
           AND (with_owner IS NULL OR i.owner = with_owner)
           AND (with_category IS NULL OR i.category = with_category)
           AND (with_origin IS NULL OR i.origin = with_origin)
         ORDER BY i.kind, i.name, i.id
         LIMIT at_most
    LOOP
        found.body := '';
        name := found.name;
        item := show_item(found);
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION list_items IS 'what is remembered, a page at a time';

CREATE FUNCTION count_kinds(of_tenant text, of_owner text)
RETURNS TABLE (kind text, items bigint, versions bigint, words bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT i.kind, count(*) FILTER (WHERE i.valid_to IS NULL), count(*),
           coalesce(sum(i.words) FILTER (WHERE i.valid_to IS NULL), 0)
      FROM item i
     WHERE i.tenant = of_tenant AND (of_owner IS NULL OR i.owner IN ('', of_owner))
     GROUP BY i.kind
     ORDER BY i.kind
$$;
COMMENT ON FUNCTION count_kinds IS 'how much each table holds';

CREATE FUNCTION count_rest(of_tenant text, of_owner text, OUT edges bigint, OUT forgotten bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT (SELECT count(*)
              FROM edge e
              JOIN item i ON (i.tenant, i.id, i.version) = (e.tenant, e.item, e.version)
             WHERE e.tenant = of_tenant AND i.valid_to IS NULL
               AND (of_owner IS NULL OR i.owner IN ('', of_owner))),
           (SELECT count(DISTINCT t.id) FROM tombstone t
             WHERE t.tenant = of_tenant AND of_owner IS NULL)
$$;

-- -- where it comes from -------------------------------------------------------------------------

-- The versions of an item, those that they rest on, those that these rest on …: the nearest first.
CREATE FUNCTION chain_of(of_tenant text, of_owner text, by_id uuid, at_most integer)
RETURNS SETOF shown
LANGUAGE sql STABLE SECURITY DEFINER SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    WITH RECURSIVE chain (id, version) AS (
        (SELECT i.id, i.version FROM item i
          WHERE i.tenant = of_tenant AND i.id = by_id
            AND (of_owner IS NULL OR i.owner IN ('', of_owner))
          ORDER BY i.version DESC
          LIMIT at_most)
        UNION
        SELECT s.of_item, s.of_version
          FROM chain c
          JOIN source s ON s.tenant = of_tenant AND (s.item, s.version) = (c.id, c.version)
         WHERE s.of_item IS NOT NULL
    )
    SELECT (show_item(i)).*
      FROM (SELECT c.id, c.version FROM chain c LIMIT at_most) c
      JOIN item i ON i.tenant = of_tenant AND (i.id, i.version) = (c.id, c.version)
     WHERE of_owner IS NULL OR i.owner IN ('', of_owner)
$$;
COMMENT ON FUNCTION chain_of IS 'where an item comes from, and where that comes from';

CREATE FUNCTION resting_on(of_tenant text, of_owner text, by_id uuid, at_most integer)
RETURNS TABLE (id uuid)
LANGUAGE sql STABLE SECURITY DEFINER SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT DISTINCT s.item
      FROM source s
      JOIN item i ON (i.tenant, i.id, i.version) = (s.tenant, s.item, s.version)
     WHERE s.tenant = of_tenant AND s.of_item = by_id AND s.item <> by_id
       AND (of_owner IS NULL OR i.owner IN ('', of_owner))
     ORDER BY s.item
     LIMIT at_most
$$;
COMMENT ON FUNCTION resting_on IS 'what was derived of an item';

-- -- forgetting ----------------------------------------------------------------------------------

-- A version whose last source is gone: what a machine derived goes with it, what a person gave or
-- said stays.
CREATE FUNCTION lose_sources() RETURNS trigger
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
    DELETE FROM item i
     USING unnest(bare) b
     WHERE b.origin = 'derived' AND i.tenant = b.tenant AND i.id = b.id
       AND (b.valid_to IS NULL OR i.version = b.version);
    RETURN NULL;
END $$;
CREATE TRIGGER lose_sources AFTER DELETE ON source REFERENCING OLD TABLE AS lost
    FOR EACH STATEMENT EXECUTE FUNCTION lose_sources();

-- What somebody may look for to find a text again: the text, its sentences, its title, its key.
CREATE FUNCTION needles_of(i item) RETURNS SETOF text
LANGUAGE sql IMMUTABLE SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT DISTINCT n.needle
      FROM (SELECT lower(btrim(i.key)), 3
            UNION ALL SELECT lower(btrim(i.title)), 3
            UNION ALL SELECT lower(btrim(i.body)), 3
            UNION ALL SELECT lower(btrim(part)), 20
              FROM regexp_split_to_table(i.body, '[.!?]+\s+|\n+') part) n (needle, shortest)
     WHERE length(n.needle) >= n.shortest
$$;

CREATE TYPE version_key AS (id uuid, version integer);

-- The versions that go with some items: those that rest on nothing else, and, of what machines
-- derived from these among others, those that say the same.
CREATE FUNCTION going_with(of_tenant text, roots uuid[]) RETURNS version_key[]
LANGUAGE plpgsql STABLE SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    going version_key[];
    also version_key[];
    needles text[];
    fresh version_key[];
BEGIN
    SELECT array_agg((i.id, i.version)::version_key) INTO going
      FROM item i WHERE i.tenant = of_tenant AND i.id = ANY (roots);
    fresh := going;
    WHILE fresh IS NOT NULL LOOP
        SELECT array_agg(DISTINCT n) || needles INTO needles
          FROM unnest(fresh) f
          JOIN item i ON i.tenant = of_tenant AND (i.id, i.version) = (f.id, f.version)
         CROSS JOIN LATERAL needles_of(i) n;
        WITH known AS MATERIALIZED (
            SELECT g.id, g.version FROM unnest(going) g
        ), touched AS MATERIALIZED ( -- all versions of what rests on it in any
            SELECT DISTINCT s.item AS id
              FROM unnest(fresh) f
              JOIN source s ON s.tenant = of_tenant AND (s.of_item, s.of_version) = (f.id, f.version)
        ), next AS (
            SELECT i.id, i.version, i.valid_to
              FROM touched t
              JOIN item i ON i.tenant = of_tenant AND i.id = t.id
             WHERE i.origin <> 'given'
               AND NOT EXISTS (SELECT FROM known k WHERE (k.id, k.version) = (i.id, i.version))
               AND (NOT EXISTS (
                        SELECT FROM source s
                         WHERE (s.tenant, s.item, s.version) = (of_tenant, i.id, i.version)
                           AND (s.of_item IS NULL OR NOT EXISTS (
                                SELECT FROM known k
                                 WHERE (k.id, k.version) = (s.of_item, s.of_version))))
                    OR EXISTS (
                        SELECT FROM unnest(needles) n
                         WHERE strpos(lower(concat_ws(' ', i.key, i.title, i.body, i.attributes)),
                                      n) > 0))
        )
        SELECT array_agg(DISTINCT (i.id, i.version)::version_key) INTO also
          FROM next n
          JOIN item i ON i.tenant = of_tenant AND i.id = n.id
           AND (n.valid_to IS NULL OR i.version = n.version)
         WHERE NOT EXISTS (SELECT FROM known k WHERE (k.id, k.version) = (i.id, i.version));
        fresh := also;
        going := going || also;
    END LOOP;
    RETURN going;
END $$;

-- What still rests on something else gets a version that does not rest on what goes.
CREATE FUNCTION rewrite_items(of_tenant text, going version_key[], is_dry boolean) RETURNS uuid[]
LANGUAGE plpgsql SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    kept item[];
    at timestamptz := clock_timestamp();
BEGIN
    SELECT array_agg(i) INTO kept
      FROM item i
     WHERE i.tenant = of_tenant AND i.valid_to IS NULL
       AND NOT EXISTS (SELECT FROM unnest(going) g WHERE (g.id, g.version) = (i.id, i.version))
       AND i.id IN (SELECT s.item FROM unnest(going) g
                      JOIN source s ON s.tenant = of_tenant
                                   AND (s.of_item, s.of_version) = (g.id, g.version)
                     WHERE s.version = i.version);
    IF NOT is_dry THEN
        UPDATE item i SET valid_to = greatest(at, i.valid_from)
          FROM unnest(kept) k, row_of(of_tenant, k.id, k.version) r
         WHERE i.ctid = r.place;
        INSERT INTO item (
            tenant, id, version, kind, owner, key, name, category, title, body, attributes,
            persons, session, place, starts_at, ends_at, days, hash, text_hash, words, lexemes,
            origin, is_pinned, valid_from)
        SELECT of_tenant, k.id, k.version + 1, k.kind, k.owner, k.key, k.name, k.category, k.title,
               k.body, k.attributes, k.persons, k.session, k.place, k.starts_at, k.ends_at, k.days,
               k.hash, k.text_hash, k.words, k.lexemes, k.origin, k.is_pinned,
               greatest(at, k.valid_from)
          FROM unnest(kept) k;
        INSERT INTO source (tenant, item, version, number, conversation, message, of_item,
                            of_version, run, told)
        SELECT of_tenant, k.id, k.version + 1, s.number, s.conversation, s.message, s.of_item,
               s.of_version, s.run, s.told
          FROM unnest(kept) k
          JOIN source s ON (s.tenant, s.item, s.version) = (of_tenant, k.id, k.version)
         WHERE s.of_item IS NULL OR NOT EXISTS (
               SELECT FROM unnest(going) g WHERE (g.id, g.version) = (s.of_item, s.of_version));
        INSERT INTO source (tenant, item, version, number, told)
        SELECT of_tenant, k.id, k.version + 1, 1, 'what is gone'
          FROM unnest(kept) k
         WHERE NOT EXISTS (SELECT FROM source s
                            WHERE (s.tenant, s.item, s.version) = (of_tenant, k.id, k.version + 1));
        INSERT INTO edge (tenant, item, version, number, from_name, relation, to_name, weight)
        SELECT of_tenant, k.id, k.version + 1, e.number, e.from_name, e.relation, e.to_name, e.weight
          FROM unnest(kept) k
          JOIN edge e ON (e.tenant, e.item, e.version) = (of_tenant, k.id, k.version);
    END IF;
    RETURN ARRAY(SELECT k.id FROM unnest(kept) k ORDER BY k.id);
END $$;

-- Forgets items in all versions, and what rests on them alone; tells what went, and what else
-- still says the same.
CREATE FUNCTION forget_items(
    of_tenant text, of_owner text, roots uuid[], everything_of text, why text, is_dry boolean,
    OUT gone uuid[], OUT rewritten uuid[], OUT messages text[], OUT said_by text[],
    OUT led_to_by text[], OUT needles text[]
)
LANGUAGE plpgsql SECURITY DEFINER
SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    going version_key[];
    names text[];
BEGIN
    PERFORM lock_tenant(of_tenant);
    IF everything_of IS NOT NULL THEN
        roots := ARRAY(SELECT DISTINCT i.id FROM item i
                        WHERE i.tenant = of_tenant AND i.owner = everything_of);
    END IF;
    going := going_with(of_tenant, roots);
    SELECT array_agg(DISTINCT i.id), array_agg(DISTINCT i.name) INTO gone, names
      FROM unnest(going) g
      JOIN item i ON i.tenant = of_tenant AND (i.id, i.version) = (g.id, g.version)
     WHERE NOT EXISTS (SELECT FROM item o
                        WHERE o.tenant = of_tenant AND o.id = g.id
                          AND NOT EXISTS (SELECT FROM unnest(going) h
                                           WHERE (h.id, h.version) = (o.id, o.version)));
    gone := coalesce(gone, '{}');
    messages := ARRAY(
        SELECT DISTINCT coalesce('message ' || s.message || ' of ', 'the messages of ')
                        || s.conversation
          FROM unnest(going) g
          JOIN item i ON i.tenant = of_tenant AND (i.id, i.version) = (g.id, g.version)
          JOIN source s ON s.tenant = of_tenant AND (s.item, s.version) = (g.id, g.version)
         WHERE s.conversation IS NOT NULL
           AND (of_owner IS NULL OR i.owner IN ('', of_owner))
         ORDER BY 1 LIMIT 100);
    needles := ARRAY(
        SELECT DISTINCT lower(btrim(i.body))
          FROM unnest(going) g
          JOIN item i ON i.tenant = of_tenant AND (i.id, i.version) = (g.id, g.version)
         WHERE length(btrim(i.body)) >= 10
         ORDER BY 1 LIMIT 100);
    rewritten := rewrite_items(of_tenant, going, is_dry);
    IF NOT is_dry THEN
        INSERT INTO tombstone (tenant, id, kind, text_hash, reason)
        SELECT DISTINCT ON (i.id, i.text_hash) of_tenant, i.id, i.kind, i.text_hash, why
          FROM unnest(going) g
          JOIN item i ON i.tenant = of_tenant AND (i.id, i.version) = (g.id, g.version)
         WHERE i.id = ANY (gone)
            ON CONFLICT (tenant, id, text_hash)
            DO UPDATE SET forgotten_at = excluded.forgotten_at, reason = excluded.reason;
        DELETE FROM item i
         USING unnest(going) g, row_of(of_tenant, g.id, g.version) r
         WHERE i.ctid = r.place;
        -- What machines derived does not lead there any more, unless another bears that name.
        DELETE FROM edge e
         USING item i
         WHERE e.tenant = of_tenant AND e.to_name = ANY (names)
           AND (i.tenant, i.id, i.version) = (e.tenant, e.item, e.version)
           AND i.origin = 'derived'
           AND NOT EXISTS (SELECT FROM item o WHERE o.tenant = of_tenant AND o.name = e.to_name);
    END IF;
    led_to_by := ARRAY(
        SELECT DISTINCT i.kind || '/' || i.key
          FROM edge e
          JOIN item i ON (i.tenant, i.id, i.version) = (e.tenant, e.item, e.version)
         WHERE e.tenant = of_tenant AND e.to_name = ANY (names) AND i.valid_to IS NULL
           AND NOT (i.id = ANY (gone))
           AND (of_owner IS NULL OR i.owner IN ('', of_owner))
           AND NOT EXISTS (SELECT FROM item o
                            WHERE o.tenant = of_tenant AND o.name = e.to_name
                              AND NOT (o.id = ANY (gone)))
         ORDER BY 1 LIMIT 20);
    said_by := ARRAY(
        SELECT DISTINCT i.kind || '/' || i.key
          FROM item i
         WHERE i.tenant = of_tenant AND NOT (i.id = ANY (gone))
           AND (of_owner IS NULL OR i.owner IN ('', of_owner))
           AND EXISTS (SELECT FROM unnest(needles) n
                        WHERE strpos(lower(concat_ws(' ', i.title, i.body, i.attributes)), n) > 0)
         ORDER BY 1 LIMIT 20);
END $$;
COMMENT ON FUNCTION forget_items IS 'forgets items, and what rests on them alone';

-- Looks for ids in every table of the memory, and for texts where texts are kept beside the items.
CREATE FUNCTION look_for(
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
           AND NOT (c.relname = 'tombstone' AND a.attname = 'id')
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

-- -- lines that were exported --------------------------------------------------------------------

-- A source as it was, or in words where what it names is not here.
CREATE FUNCTION write_old_sources(
    of_tenant text, of_owner text, by_id uuid, by_version integer, given jsonb
) RETURNS void
LANGUAGE sql SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    INSERT INTO source (tenant, item, version, number, conversation, message, of_item, of_version,
                        run, told)
    SELECT of_tenant, by_id, by_version, s.number,
           CASE WHEN t.is_there THEN s.conversation_id END, CASE WHEN t.is_there THEN s.message END,
           CASE WHEN t.is_there THEN s.item END, CASE WHEN t.is_there THEN s.version END,
           CASE WHEN t.is_there THEN s.run_id END,
           CASE WHEN t.is_there THEN coalesce(s.told, '')
                ELSE left(concat_ws(', ', nullif(s.told, ''),
                     coalesce(concat('message ', s.message, ' of ', s.conversation_id),
                              concat('the item ', s.item)),
                     'which is not here'), 2000) END
      FROM ROWS FROM (jsonb_to_recordset(given) AS (
               conversation_id text, message bigint, item uuid, version integer, run_id text,
               told text)) WITH ORDINALITY
           AS s (conversation_id, message, item, version, run_id, told, number)
     CROSS JOIN LATERAL (SELECT
           CASE WHEN s.message IS NOT NULL THEN EXISTS (
                     SELECT FROM ksi_completion.message e
                      WHERE (e.tenant, e.conversation, e.number)
                            = (of_tenant, s.conversation_id, s.message))
                WHEN s.conversation_id IS NOT NULL THEN EXISTS (
                     SELECT FROM ksi_completion.conversation c
                      WHERE (c.tenant, c.id) = (of_tenant, s.conversation_id))
                WHEN s.item IS NOT NULL THEN EXISTS (
                     SELECT FROM item i
                      WHERE (i.tenant, i.id, i.version) = (of_tenant, s.item, s.version)
                        AND (of_owner IS NULL OR i.owner IN ('', of_owner)))
                ELSE true END AS is_there) t;
    INSERT INTO source (tenant, item, version, number, told)
    SELECT of_tenant, by_id, by_version, 1, 'what was imported'
     WHERE NOT EXISTS (SELECT FROM source s
                        WHERE (s.tenant, s.item, s.version) = (of_tenant, by_id, by_version))
$$;

CREATE TYPE exported AS (
    "is" text, id uuid, kind text, owner text, key text, version integer, title text, body text,
    category text, attributes jsonb, persons text[], session text, place integer,
    starts_at timestamptz, ends_at timestamptz, days datemultirange, words integer, hash text,
    text_hash text, origin text, is_pinned boolean, valid_from timestamptz, valid_to timestamptz,
    recorded_at timestamptz, edges jsonb, sources jsonb, forgotten_at timestamptz, reason text
);

CREATE FUNCTION write_version(of_tenant text, of_owner text, e exported, fixed text[]) RETURNS text
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

-- Takes in lines in their order; tells of each what came of it.
CREATE FUNCTION import_lines(of_tenant text, of_owner text, fixed text[], given jsonb)
RETURNS text[]
LANGUAGE plpgsql SECURITY DEFINER
SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    e exported;
    verdicts text[] := '{}';
    verdict text;
BEGIN
    PERFORM lock_tenant(of_tenant);
    FOR e IN SELECT * FROM jsonb_populate_recordset(NULL::exported, given) LOOP
        IF e."is" = 'forgotten' THEN
            INSERT INTO tombstone (tenant, id, kind, text_hash, forgotten_at, reason)
            VALUES (of_tenant, e.id, e.kind, decode(e.text_hash, 'hex'), e.forgotten_at,
                    coalesce(e.reason, ''))
                ON CONFLICT DO NOTHING;
            verdict := CASE WHEN FOUND THEN 'inserted' ELSE 'unchanged' END;
        ELSE
            verdict := write_version(of_tenant, of_owner, e, fixed);
        END IF;
        verdicts := verdicts || verdict;
    END LOOP;
    RETURN verdicts;
END $$;
COMMENT ON FUNCTION import_lines IS 'takes in versions that were exported';

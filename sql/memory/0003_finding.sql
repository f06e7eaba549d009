-- What is found: by key, by likeness, along edges, in the order of time; and what SQL may read.
--
-- Each function is one question and one round trip. of_tenant is whose memory it is; of_owner bounds
-- what is seen to what belongs to that user and what belongs to everybody; where it is null all of
-- the tenant is seen. as_at is the moment that is asked about; where it is null what holds now.
--
-- Sequential scans are off in them: their plans are kept, and one that was made when a table was
-- empty would read all of it when it no longer is.

SET LOCAL search_path = ksi_memory, public, pg_temp;

-- Loads the library, so that its parameters are known below.
SELECT similarity('a', 'a');

-- What a FUZZY looks at: the key, and the beginning of the title, folded. It is kept, since making it
-- takes longer than comparing it. Of a document's chunks the first has one alone: it stands for all
-- of them, and a chunk takes half as long to be written.
ALTER TABLE item ADD COLUMN label text GENERATED ALWAYS AS (
    CASE WHEN kind IN ('resources', 'ontologies') AND place > 0 THEN NULL
         WHEN title = '' THEN name
         WHEN octet_length(title) = length(title) THEN name || ' ' || left(title, 200)
         ELSE name || ' ' || folded(left(title, 200)) END) STORED;

-- What was written just now waits in a list that every FUZZY reads through: it is kept short.
CREATE INDEX item_label ON item USING gin (tenant, label gin_trgm_ops)
    WITH (gin_pending_list_limit = 256) WHERE label IS NOT NULL;
CREATE INDEX item_persons ON item USING gin (tenant, persons) WHERE persons <> '{}';
CREATE INDEX item_starts ON item (tenant, starts_at, id) WHERE starts_at IS NOT NULL;
CREATE INDEX item_owner ON item (tenant, owner, starts_at) WHERE owner <> '';

-- A result as it is shown, with its source in words; is_whole says whether the body is.
CREATE TYPE found AS (
    id uuid, kind text, key text, version integer, owner text, title text, body text,
    category text, attributes jsonb, session text, starts_at timestamptz, ends_at timestamptz,
    valid_from timestamptz, valid_to timestamptz, source text,
    is_whole boolean
);

-- Of each version where it comes from, in words: the first sources. What belongs to somebody else
-- is not named.
CREATE FUNCTION sources_in_words(of_tenant text, of_owner text, ids uuid[], versions integer[])
RETURNS TABLE (id uuid, version integer, source text)
LANGUAGE sql STABLE SECURITY DEFINER SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT s.item, s.version, string_agg(
               CASE WHEN s.of_item IS NOT NULL
                    THEN regexp_replace(regexp_replace(i.kind, 'ies$', 'y'), 's$', '')
                         || CASE WHEN of_owner IS NULL OR i.owner IN ('', of_owner)
                                 THEN ' ' || i.key ELSE ' of another user' END
                    WHEN s.message IS NOT NULL
                    THEN format('message %s of %s', s.message, s.conversation)
                    WHEN s.conversation IS NOT NULL THEN 'conversation ' || s.conversation
                    WHEN s.run IS NOT NULL THEN 'run ' || s.run
                    ELSE s.told END, ', ' ORDER BY s.number)
      FROM unnest(ids, versions) AS asked (id, version)
      JOIN source s ON (s.tenant, s.item, s.version) = (of_tenant, asked.id, asked.version)
                   AND s.number < 5
      LEFT JOIN item i ON (i.tenant, i.id, i.version) = (s.tenant, s.of_item, s.of_version)
     GROUP BY s.item, s.version
$$;
COMMENT ON FUNCTION sources_in_words IS 'where versions come from, in words';

-- Bodies are whole as long as they all together have no more than max_chars.
CREATE FUNCTION lookup(
    of_tenant text, of_owner text, keys text[], kinds text[], as_at timestamptz, at_most integer,
    max_chars integer, body_chars integer
) RETURNS SETOF found
LANGUAGE plpgsql STABLE SECURITY DEFINER SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    -- What folded() does, without what a call of it costs.
    names text[] := ARRAY(SELECT btrim(lower(unaccent('unaccent'::regdictionary, given.each)))
                            FROM unnest(keys) AS given (each));
BEGIN
    RETURN QUERY
    SELECT i.id, i.kind, i.key, i.version, i.owner, i.title,
           CASE WHEN i.chars <= max_chars THEN i.body ELSE left(i.body, body_chars) END,
           i.category, i.attributes, i.session, i.starts_at, i.ends_at, i.valid_from, i.valid_to,
           (SELECT CASE WHEN bool_or(s.of_item IS NOT NULL)
                        THEN (SELECT w.source FROM sources_in_words(
                                  of_tenant, of_owner, ARRAY[i.id], ARRAY[i.version]) w)
                        ELSE string_agg(
                            CASE WHEN s.message IS NOT NULL
                                 THEN format('message %s of %s', s.message, s.conversation)
                                 WHEN s.conversation IS NOT NULL
                                 THEN 'conversation ' || s.conversation
                                 WHEN s.run IS NOT NULL THEN 'run ' || s.run
                                 ELSE s.told END, ', ' ORDER BY s.number) END
              FROM source s
             WHERE (s.tenant, s.item, s.version) = (i.tenant, i.id, i.version) AND s.number < 5),
           i.chars <= max_chars OR length(i.body) <= body_chars
      FROM (SELECT i.*, sum(length(i.body)) OVER (
                            ORDER BY array_position(names, i.name), i.owner = '', i.kind, i.owner
                            ROWS UNBOUNDED PRECEDING) AS chars
              FROM item i
             WHERE i.tenant = of_tenant
               AND i.name = ANY (names)
               AND (kinds IS NULL OR i.kind = ANY (kinds))
               AND (of_owner IS NULL OR i.owner IN ('', of_owner))
               AND CASE WHEN as_at IS NULL THEN i.valid_to IS NULL
                        ELSE i.valid_from <= as_at AND (i.valid_to IS NULL OR i.valid_to > as_at) END
             ORDER BY array_position(names, i.name), i.owner = '', i.kind, i.owner
             LIMIT at_most) i; -- whose order stays as it is: it is only looked through
END $$;
COMMENT ON FUNCTION lookup IS 'what bears these keys';

-- The best by likeness: how much of what is asked for stands in the label (<%), and where that is
-- equal, how alike the whole key is. The index is asked for what is very much alike first, and for
-- less only where that is not enough: the more trigrams have to be there, the fewer rows are looked
-- at. Without a threshold nothing less alike is sought once there is something. Of very many that are
-- equally alike the first 50 times at_most are compared.
CREATE FUNCTION fuzzy(
    of_tenant text, of_owner text, given text, kinds text[], threshold real, as_at timestamptz,
    at_most integer, body_chars integer
) RETURNS TABLE (hit found, score real)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
SET pg_trgm.word_similarity_threshold = 0.6
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    asked text := folded(given);
    least real := greatest(coalesce(threshold, 0.3), 0.1);
    enough integer := CASE WHEN threshold IS NULL THEN 1 ELSE at_most END;
    bound real;
    ids uuid[] := '{}';
    versions integer[] := '{}';
    likes real[] := '{}';
BEGIN
    FOREACH bound IN ARRAY CASE WHEN threshold IS NULL THEN ARRAY[0.7, 0.5, least]::real[]
                                ELSE ARRAY[greatest(0.7, least), least]::real[] END LOOP
        PERFORM set_config('pg_trgm.word_similarity_threshold', bound::text, true);
        SELECT array_agg(b.id), array_agg(b.version), array_agg(b.likeness)
          INTO ids, versions, likes
          FROM (SELECT c.id, c.version, c.likeness
                  FROM (SELECT * FROM (
                            SELECT i.id, i.version, i.name,
                                   word_similarity(asked, i.label) AS likeness
                              FROM item i
                             WHERE i.tenant = of_tenant
                               AND asked <% i.label
                               AND i.label IS NOT NULL
                               AND (kinds IS NULL OR i.kind = ANY (kinds))
                               AND (of_owner IS NULL OR i.owner IN ('', of_owner))
                               AND CASE WHEN as_at IS NULL THEN i.valid_to IS NULL
                                        ELSE i.valid_from <= as_at
                                             AND (i.valid_to IS NULL OR i.valid_to > as_at) END
                             LIMIT at_most * 50) found_now
                        UNION
                        SELECT i.id, i.version, i.name, known.likeness
                          FROM unnest(ids, versions, likes) AS known (id, version, likeness)
                          JOIN item i ON (i.tenant, i.id, i.version)
                                       = (of_tenant, known.id, known.version)) c
                 ORDER BY c.likeness DESC, similarity(asked, c.name) DESC, c.name, c.id
                 LIMIT at_most) b;
        EXIT WHEN cardinality(ids) >= enough;
    END LOOP;
    RETURN QUERY
    SELECT (i.id, i.kind, i.key, i.version, i.owner, i.title, left(i.body, body_chars), i.category,
            i.attributes, i.session, i.starts_at, i.ends_at, i.valid_from, i.valid_to,
            w.source, length(i.body) <= body_chars)::found,
           b.likeness
      FROM unnest(ids, versions, likes) WITH ORDINALITY AS b (id, version, likeness, place)
      JOIN item i ON (i.tenant, i.id, i.version) = (of_tenant, b.id, b.version)
      LEFT JOIN sources_in_words(of_tenant, of_owner, ids, versions) w
             ON (w.id, w.version) = (b.id, b.version)
     ORDER BY b.place;
END $$;
COMMENT ON FUNCTION fuzzy IS 'what has a key or a title like this, the most alike first';

-- A walk along edges, breadth first, each node once. Nodes are names: what bears one is looked up in
-- the end, and a name that nothing bears is returned without an item. stopped tells which bound was
-- reached: nodes, edges or time; or depth, where a node at the last step has further edges.
CREATE FUNCTION traverse(
    of_tenant text, of_owner text, start text, max_depth integer, relations text[],
    along text, as_at timestamptz, max_nodes integer, max_edges integer, max_time interval,
    body_chars integer
) RETURNS TABLE (
    hit found, name text, depth integer, relation text, via text, score double precision,
    stopped text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    until_at timestamptz := clock_timestamp() + max_time;
    names text[] := ARRAY[folded(start)];
    depths integer[] := ARRAY[0];
    relateds text[] := ARRAY[NULL::text];
    vias text[] := ARRAY[NULL::text];
    weights double precision[] := ARRAY[1.0];
    level integer := 0;
    seen integer := 0; -- how many nodes are before those of this level
    all_nodes integer := 1;
    step record;
    why text;
BEGIN
    WHILE level < max_depth AND seen < all_nodes LOOP
        IF clock_timestamp() > until_at THEN
            why := 'time';
            EXIT;
        END IF;
        level := level + 1;
        WITH gone AS (
            SELECT n.name, n.weight, n.place
              FROM unnest(names[seen + 1:], weights[seen + 1:]) WITH ORDINALITY
                   AS n (name, weight, place)
        ), taken AS MATERIALIZED (
            SELECT g.place, g.weight * e.weight AS weight, e.relation, g.name AS via,
                   e.to_name AS name
              FROM gone g
              JOIN edge e ON e.tenant = of_tenant AND e.from_name = g.name
                         AND (relations IS NULL OR e.relation = ANY (relations))
              JOIN item i ON (i.tenant, i.id, i.version) = (e.tenant, e.item, e.version)
             WHERE along <> 'in'
               AND (of_owner IS NULL OR i.owner IN ('', of_owner))
               AND CASE WHEN as_at IS NULL THEN i.valid_to IS NULL
                        ELSE i.valid_from <= as_at
                             AND (i.valid_to IS NULL OR i.valid_to > as_at) END
            UNION ALL
            SELECT g.place, g.weight * e.weight, e.relation, g.name, e.from_name
              FROM gone g
              JOIN edge e ON e.tenant = of_tenant AND e.to_name = g.name
                         AND (relations IS NULL OR e.relation = ANY (relations))
              JOIN item i ON (i.tenant, i.id, i.version) = (e.tenant, e.item, e.version)
             WHERE along <> 'out'
               AND (of_owner IS NULL OR i.owner IN ('', of_owner))
               AND CASE WHEN as_at IS NULL THEN i.valid_to IS NULL
                        ELSE i.valid_from <= as_at
                             AND (i.valid_to IS NULL OR i.valid_to > as_at) END
             LIMIT max_edges + 1
        ), fresh AS (
            SELECT DISTINCT ON (t.name) t.*
              FROM taken t
             WHERE NOT EXISTS (SELECT FROM unnest(names) AS known (name)
                                WHERE known.name = t.name)
             ORDER BY t.name, t.weight DESC, t.place, t.relation
        ), ordered AS (
            SELECT f.* FROM fresh f
             ORDER BY f.weight DESC, f.place, f.relation, f.name
             LIMIT max_nodes - all_nodes + 1
        )
        SELECT array_agg(o.name) AS names, array_agg(o.relation) AS relateds,
               array_agg(o.via) AS vias, array_agg(o.weight) AS weights,
               (SELECT count(*) FROM taken) AS edges
          INTO step
          FROM ordered o;
        seen := all_nodes;
        names := names || step.names;
        relateds := relateds || step.relateds;
        vias := vias || step.vias;
        weights := weights || step.weights;
        depths := depths || array_fill(level, ARRAY[coalesce(cardinality(step.names), 0)]);
        all_nodes := cardinality(names);
        IF all_nodes > max_nodes THEN
            why := 'nodes';
            EXIT;
        END IF;
        IF step.edges > max_edges THEN
            why := 'edges';
            EXIT;
        END IF;
    END LOOP;
    RETURN QUERY
    SELECT b.hit, n.name, n.depth, n.relation, n.via, n.weight, why
      FROM unnest(names, depths, relateds, vias, weights) WITH ORDINALITY
           AS n (name, depth, relation, via, weight, place)
      LEFT JOIN LATERAL (
           SELECT (i.id, i.kind, i.key, i.version, i.owner, i.title, left(i.body, body_chars),
                   i.category, i.attributes, i.session, i.starts_at, i.ends_at, i.valid_from,
                   i.valid_to, NULL, length(i.body) <= body_chars)::found AS hit
             FROM item i
            WHERE i.tenant = of_tenant AND i.name = n.name
              AND (of_owner IS NULL OR i.owner IN ('', of_owner))
              AND CASE WHEN as_at IS NULL THEN i.valid_to IS NULL
                       ELSE i.valid_from <= as_at
                            AND (i.valid_to IS NULL OR i.valid_to > as_at) END
            ORDER BY i.kind <> 'entities', i.owner = '', i.kind, i.owner
            LIMIT 1) b ON true
     WHERE n.place <= max_nodes
     ORDER BY n.place;
END $$;
COMMENT ON FUNCTION traverse IS 'a walk along edges, breadth first, each node once';

-- What happened around a subject, or at all: the newest, in the order of time. A subject is a
-- conversation or a document (what is part of it, or comes from it), a user (what belongs to them), or
-- a key: what bears it, whom or what it is about, and what says that it hangs together with it.
CREATE FUNCTION timeline(
    of_tenant text, of_owner text, subject text, kinds text[], since_at timestamptz,
    until_at timestamptz, as_at timestamptz, at_most integer, body_chars integer
) RETURNS SETOF found
LANGUAGE plpgsql STABLE SECURITY DEFINER SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
DECLARE
    named text := folded(subject);
    ids uuid[];
    versions integer[];
BEGIN
    IF subject IS NULL THEN
        SELECT array_agg(n.id), array_agg(n.version) INTO ids, versions
          FROM (SELECT i.id, i.version
                  FROM item i
                 WHERE i.tenant = of_tenant
                   AND i.starts_at IS NOT NULL
                   AND i.starts_at < coalesce(until_at, 'infinity')
                   AND (since_at IS NULL OR coalesce(i.ends_at, i.starts_at) >= since_at)
                   AND (kinds IS NULL OR i.kind = ANY (kinds))
                   AND (of_owner IS NULL OR i.owner IN ('', of_owner))
                   AND CASE WHEN as_at IS NULL THEN i.valid_to IS NULL
                            ELSE i.valid_from <= as_at
                                 AND (i.valid_to IS NULL OR i.valid_to > as_at) END
                 ORDER BY i.starts_at DESC, i.id
                 LIMIT at_most) n;
    ELSE
        SELECT array_agg(n.id), array_agg(n.version) INTO ids, versions
          FROM (SELECT i.id, i.version
                  FROM (SELECT s.id, s.version FROM item s
                         WHERE s.tenant = of_tenant AND s.session = subject
                        UNION
                        SELECT s.item, s.version FROM source s
                         WHERE s.tenant = of_tenant AND s.conversation = subject
                        UNION
                        SELECT s.id, s.version FROM item s
                         WHERE s.tenant = of_tenant AND s.owner = subject AND s.owner <> ''
                        UNION
                        SELECT s.id, s.version FROM item s
                         WHERE s.tenant = of_tenant AND s.name = named
                        UNION
                        SELECT s.id, s.version FROM item s
                         WHERE s.tenant = of_tenant AND s.persons @> ARRAY[named]
                           AND s.persons <> '{}'
                        UNION
                        SELECT e.item, e.version FROM edge e
                         WHERE e.tenant = of_tenant AND e.to_name = named) about
                  JOIN item i ON (i.tenant, i.id, i.version)
                               = (of_tenant, about.id, about.version)
                 WHERE coalesce(i.starts_at, i.valid_from) < coalesce(until_at, 'infinity')
                   AND (since_at IS NULL
                        OR coalesce(i.ends_at, i.starts_at, i.valid_from) >= since_at)
                   AND (kinds IS NULL OR i.kind = ANY (kinds))
                   AND (of_owner IS NULL OR i.owner IN ('', of_owner))
                   AND CASE WHEN as_at IS NULL THEN i.valid_to IS NULL
                            ELSE i.valid_from <= as_at
                                 AND (i.valid_to IS NULL OR i.valid_to > as_at) END
                 ORDER BY coalesce(i.starts_at, i.valid_from) DESC, i.id
                 LIMIT at_most) n;
    END IF;
    RETURN QUERY
    SELECT i.id, i.kind, i.key, i.version, i.owner, i.title, left(i.body, body_chars), i.category,
           i.attributes, i.session, i.starts_at, i.ends_at, i.valid_from, i.valid_to, w.source,
           length(i.body) <= body_chars
      FROM unnest(ids, versions) WITH ORDINALITY AS b (id, version, place)
      JOIN item i ON (i.tenant, i.id, i.version) = (of_tenant, b.id, b.version)
      LEFT JOIN sources_in_words(of_tenant, of_owner, ids, versions) w
             ON (w.id, w.version) = (b.id, b.version)
     ORDER BY b.place DESC;
END $$;
COMMENT ON FUNCTION timeline IS 'what happened around a subject, in the order of time';

-- The keys that begin so, for whoever types one.
CREATE FUNCTION keys_from(of_tenant text, of_owner text, beginning text, at_most integer)
RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT min(k.key) FROM (
        SELECT i.key, i.name FROM item i
         WHERE i.tenant = of_tenant
           AND i.name >= folded(beginning)
           AND starts_with(i.name, folded(beginning))
           AND i.valid_to IS NULL
           AND (of_owner IS NULL OR i.owner IN ('', of_owner))
         ORDER BY i.name
         LIMIT at_most * 4) k
     GROUP BY k.name ORDER BY k.name LIMIT at_most
$$;
COMMENT ON FUNCTION keys_from IS 'the keys that begin so';

-- The tables that have rows that are seen: one step along the index for each.
CREATE FUNCTION kinds_seen(of_tenant text, of_owner text) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET enable_seqscan = off
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    WITH RECURSIVE step (kind) AS (
        (SELECT i.kind FROM item i
          WHERE i.tenant = of_tenant AND i.valid_to IS NULL ORDER BY i.kind LIMIT 1)
        UNION ALL
        SELECT (SELECT i.kind FROM item i
                 WHERE i.tenant = of_tenant AND i.valid_to IS NULL AND i.kind > step.kind
                 ORDER BY i.kind LIMIT 1)
          FROM step WHERE step.kind IS NOT NULL
    )
    SELECT s.kind FROM step s
     WHERE s.kind IS NOT NULL
       AND EXISTS (SELECT FROM item i
                    WHERE i.tenant = of_tenant AND i.kind = s.kind AND i.valid_to IS NULL
                      AND (of_owner IS NULL OR i.owner IN ('', of_owner)))
$$;
COMMENT ON FUNCTION kinds_seen IS 'the tables that have something in them';

-- -- what SQL may read ---------------------------------------------------------------------------

-- A view for each table that a person can name, of what holds now; `items` has all of them, and
-- `versions` what has been, too. They are nobody's but the
-- owner's, and are shown to the reader by a documented view each, bound to its tenant.
CREATE VIEW held_items AS
    SELECT i.tenant, i.id, i.kind, i.key, i.version, i.owner, i.title, i.body, i.category,
           i.attributes, i.persons, i.session, i.place, i.starts_at, i.ends_at, i.origin,
           i.is_pinned, i.valid_from
      FROM item i WHERE i.valid_to IS NULL;
CREATE VIEW held_edges AS
    SELECT e.tenant, i.kind, i.key, i.id AS item, e.from_name, e.relation, e.to_name, e.weight
      FROM edge e JOIN item i ON (i.tenant, i.id, i.version) = (e.tenant, e.item, e.version)
     WHERE i.valid_to IS NULL;

DO $$
DECLARE
    each record;
    columns text[] := ARRAY['id', 'key', 'version', 'owner', 'title', 'body', 'category',
        'attributes', 'persons', 'session', 'place', 'starts_at', 'ends_at', 'origin', 'is_pinned',
        'valid_from'];
BEGIN
    FOR each IN SELECT * FROM (VALUES
        ('resources', 'documents, in chunks'),
        ('ontologies', 'what was written down to be looked up: notes, guides'),
        ('entities', 'people, projects and things'),
        ('moments', 'what happened when'),
        ('facts', 'what is always in mind about a user or a project'),
        ('associations', 'which entities go together, and how strongly'),
        ('patterns', 'what happens again and again'),
        ('schemas', 'how rows of a table, or other objects, have to look'),
        ('files', 'what was loaded'),
        ('feedback', 'what people say of answers'),
        ('servers', 'servers that offer tools'),
        ('tools', 'what agents can do'),
        ('users', 'who uses this')) AS known (kind, description)
    LOOP
        EXECUTE format('CREATE VIEW ksi_memory.%I AS '
                       'SELECT * FROM ksi_memory.held_items WHERE kind = %L',
                       'held_' || each.kind, each.kind);
        PERFORM ksi_postgres.publish(
            format('ksi_memory.%I', 'held_' || each.kind)::regclass, each.kind, columns,
            each.description);
    END LOOP;
    PERFORM ksi_postgres.publish('ksi_memory.held_items', 'items', ARRAY['kind'] || columns,
                                 'all that is remembered, of every table (kind)');
END $$;
SELECT ksi_postgres.publish(
    'item', 'item_versions',
    ARRAY['id', 'kind', 'key', 'version', 'owner', 'title', 'body', 'category', 'attributes',
          'persons', 'session', 'place', 'starts_at', 'ends_at', 'origin', 'is_pinned',
          'valid_from', 'valid_to', 'recorded_at'],
    'all that was ever remembered and not forgotten, in all versions');
SELECT ksi_postgres.publish(
    'held_edges', 'edges', ARRAY['kind', 'key', 'item', 'from_name', 'relation', 'to_name', 'weight'],
    'what hangs together with what; both ends are keys in small letters');
SELECT ksi_postgres.publish(
    'source', 'item_sources',
    ARRAY['item', 'version', 'number', 'conversation', 'message', 'of_item', 'of_version', 'run',
          'told'],
    'where each version comes from');

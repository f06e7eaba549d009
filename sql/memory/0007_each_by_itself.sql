-- What is found stays fast whatever tenants there are: many small ones, or one that has nearly all.
--
-- A plan that is kept is made for a tenant of middling size. For that one it is as good to read all
-- that a tenant has as to look each name up; for one with a hundred thousand items it is thousands of
-- times worse. So each name, each edge and each version is looked up by itself: LATERAL, with an
-- OFFSET 0 that keeps it from being joined in any other way.

SET LOCAL search_path = ksi_memory, public, pg_temp;

-- Loads the library, so that its parameters are known below.
SELECT similarity('a', 'a');

-- Of each version where it comes from, in words: the first sources. What belongs to somebody else
-- is not named.
CREATE OR REPLACE FUNCTION sources_in_words(of_tenant text, of_owner text, ids uuid[], versions integer[])
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
     CROSS JOIN LATERAL (
           SELECT * FROM source s
            WHERE (s.tenant, s.item, s.version) = (of_tenant, asked.id, asked.version)
              AND s.number < 5
           OFFSET 0) s
      LEFT JOIN LATERAL (
           SELECT * FROM item i
            WHERE (i.tenant, i.id, i.version) = (s.tenant, s.of_item, s.of_version)
           OFFSET 0) i ON true
     GROUP BY s.item, s.version
$$;

-- Bodies are whole as long as they all together have no more than max_chars.
CREATE OR REPLACE FUNCTION lookup(
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
              FROM (SELECT DISTINCT given.name FROM unnest(names) AS given (name)) asked
             CROSS JOIN LATERAL (
                   SELECT * FROM item i
                    WHERE i.tenant = of_tenant AND i.name = asked.name
                   OFFSET 0) i
             WHERE (kinds IS NULL OR i.kind = ANY (kinds))
               AND (of_owner IS NULL OR i.owner IN ('', of_owner))
               AND CASE WHEN as_at IS NULL THEN i.valid_to IS NULL
                        ELSE i.valid_from <= as_at AND (i.valid_to IS NULL OR i.valid_to > as_at) END
             ORDER BY array_position(names, i.name), i.owner = '', i.kind, i.owner
             LIMIT at_most) i; -- whose order stays as it is: it is only looked through
END $$;

-- A walk along edges, breadth first, each node once. Nodes are names: what bears one is looked up in
-- the end, and a name that nothing bears is returned without an item. stopped tells which bound was
-- reached: nodes, edges or time; or depth, where a node at the last step has further edges.
CREATE OR REPLACE FUNCTION traverse(
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
             CROSS JOIN LATERAL (
                   SELECT * FROM edge e
                    WHERE e.tenant = of_tenant AND e.from_name = g.name
                   OFFSET 0) e
             CROSS JOIN LATERAL (
                   SELECT * FROM item i
                    WHERE (i.tenant, i.id, i.version) = (of_tenant, e.item, e.version)
                   OFFSET 0) i
             WHERE along <> 'in'
               AND (relations IS NULL OR e.relation = ANY (relations))
               AND (of_owner IS NULL OR i.owner IN ('', of_owner))
               AND CASE WHEN as_at IS NULL THEN i.valid_to IS NULL
                        ELSE i.valid_from <= as_at
                             AND (i.valid_to IS NULL OR i.valid_to > as_at) END
            UNION ALL
            SELECT g.place, g.weight * e.weight, e.relation, g.name, e.from_name
              FROM gone g
             CROSS JOIN LATERAL (
                   SELECT * FROM edge e
                    WHERE e.tenant = of_tenant AND e.to_name = g.name
                   OFFSET 0) e
             CROSS JOIN LATERAL (
                   SELECT * FROM item i
                    WHERE (i.tenant, i.id, i.version) = (of_tenant, e.item, e.version)
                   OFFSET 0) i
             WHERE along <> 'out'
               AND (relations IS NULL OR e.relation = ANY (relations))
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

-- Most of what a search takes goes to candidates that can't be among the few that are asked for. For
-- a few, half of the nearest and three quarters of those with the words will do: in ten thousand
-- short English texts with a sentence model's vectors, 97.4 % of the ten best of all are still found
-- (98.5 % before), and the best one always. All are weighed by what their own rows tell, and the
-- most promising ones once more with their neighbours. Who asks for many, or filters, gets them from
-- as many candidates as before.

SET LOCAL search_path = ksi_memory, public, pg_temp;

-- Finds what fits a question best. The features, of candidates alone:
--   cos, max_cos     the nearness of the vectors; the greatest one in the session
--   lex, max_lex     how much of the question's rare words a text and its neighbours have, for its
--                    length, as a share of the best one's; the greatest one in the session
--   person           it is said by, or about, the one person that the question names
--   time             the question asks when, and the text speaks of a time
--   span             it is of, or speaks of, the time that the question names
--   near             it is of, or speaks of, a time within a week of the day that it names
CREATE OR REPLACE FUNCTION search(
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
    -- A few of all: then fewer candidates have the best among them, and only the most promising
    -- ones are looked at with their neighbours.
    is_brief CONSTANT boolean := at_most <= 20 AND of_field IS NULL AND of_category IS NULL
        AND since IS NULL AND until IS NULL AND min_similarity IS NULL;
    by_meaning CONSTANT integer := CASE WHEN is_brief THEN 100 ELSE 200 END;
    candidates CONSTANT integer := CASE WHEN is_brief THEN 150 ELSE 200 END;
    promising_ones CONSTANT integer := CASE WHEN is_brief THEN 80 END; -- none: all
    budget CONSTANT bigint := 2000; -- rows that words may lead to
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
    rare_queries tsquery[];
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
    ), frequent AS (
        SELECT w.* FROM words w WHERE w.rank <= 6 AND w.together > budget
    ), parts AS (
        -- The rare words; the pairs of those that lead to too many rows; and where neither they
        -- nor a vector lead anywhere, the rarest, as far as it may.
        SELECT w.idf, w.rank, query_of(w.lexeme) AS query, ARRAY[w.lexeme] AS needs
          FROM words w
         WHERE w.rank <= 6 AND w.together <= budget
         UNION ALL
        SELECT one.idf + other.idf, other.rank, query_of(one.lexeme) && query_of(other.lexeme),
               ARRAY[one.lexeme, other.lexeme]
          FROM frequent one
          JOIN frequent other ON other.rank > one.rank
         UNION ALL
        SELECT w.idf, w.rank, query_of(w.lexeme), ARRAY[w.lexeme]
          FROM frequent w
         WHERE w.rank = 1
           AND (of_vector IS NULL OR NOT EXISTS (SELECT FROM frequent o WHERE o.rank > 1))
    ), placed AS (
        SELECT p.idf, p.rank, p.query, k.kind
          FROM parts p
         CROSS JOIN unnest(known_kinds) k (kind)
         WHERE NOT EXISTS (
               SELECT FROM unnest(p.needs) n (lexeme)
                WHERE NOT EXISTS (SELECT FROM counts c
                                   WHERE c.lexeme = n.lexeme AND c.kind = k.kind))
    )
    SELECT (SELECT array_agg(w.lexeme ORDER BY w.rank) FROM words w),
           (SELECT array_agg(w.idf ORDER BY w.rank) FROM words w),
           (SELECT array_agg(p.kind ORDER BY p.rank, p.kind, p.query) FROM placed p),
           (SELECT array_agg(p.query ORDER BY p.rank, p.kind, p.query) FROM placed p),
           (SELECT array_agg(p.idf ORDER BY p.rank, p.kind, p.query) FROM placed p)
      INTO lexemes_known, idfs, rare_kinds, rare_queries, rare_idfs;

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
                       until, as_of, NULL, NULL, total, by_meaning) n;
        IF first_day IS NOT NULL THEN
            SELECT near_ids || array_agg(n.item), near_versions || array_agg(n.version),
                   near_cos || array_agg(n.cos)
              INTO near_ids, near_versions, near_cos
              FROM nearest(of_tenant, of_owner, of_kinds, of_embedder, of_vector, of_category,
                           since, until, as_of, first_day, after_days, total, by_meaning) n;
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
          FROM unnest(rare_kinds, rare_queries, rare_idfs) r (kind, query, idf)
         CROSS JOIN LATERAL (
               SELECT i.id, i.version, i.kind, i.owner, i.session, i.place, i.words
                 FROM item i
                WHERE NOT is_most
                  AND (i.tenant || E'\x1f' || i.kind) = (of_tenant || E'\x1f' || r.kind)
                  AND i.lexemes @@ r.query
                  AND (of_owner IS NULL OR i.owner IN ('', of_owner))
                  AND CASE WHEN as_of IS NULL THEN i.valid_to IS NULL
                      ELSE i.valid_from <= as_of AND (i.valid_to IS NULL OR i.valid_to > as_of) END
                UNION ALL
               SELECT i.id, i.version, i.kind, i.owner, i.session, i.place, i.words
                 FROM item i
                WHERE is_most AND i.lexemes @@ r.query
                  -- as a CASE, so that these are looked up in no index
                  AND CASE WHEN i.tenant = of_tenant THEN i.kind = r.kind ELSE false END
                  AND (of_owner IS NULL OR i.owner IN ('', of_owner))
                  AND CASE WHEN as_of IS NULL THEN i.valid_to IS NULL
                      ELSE i.valid_from <= as_of AND (i.valid_to IS NULL OR i.valid_to > as_of) END
                LIMIT budget) i
         GROUP BY 1, 2, 3, 4, 5, 6
         ORDER BY score DESC, i.id
         LIMIT candidates
    ), best_matched AS (
        SELECT m.* FROM matched m ORDER BY m.score DESC, m.id LIMIT candidates / 2
    ), by_words AS (
        -- Those that have the words, and those beside the best of them.
        SELECT w.id, w.version, sum(w.score) AS score
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
         ORDER BY score DESC, w.id
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
        SELECT a.id, a.version, max(a.cos) AS cos, max(a.score) AS score
          FROM (SELECT w.id, w.version, NULL::float8 AS cos, w.score FROM by_words w
                 UNION ALL
                SELECT s.id, s.version, NULL, NULL FROM in_span s
                 UNION ALL
                SELECT n.id, n.version, n.cos, NULL
                  FROM unnest(near_ids, near_versions, near_cos) n (id, version, cos)) a
         GROUP BY 1, 2
    ), known AS MATERIALIZED (
        SELECT i.id, i.version, i.kind, i.owner, i.session, i.place, i.persons, i.days,
               coalesce(i.session, i.id::text) AS part_of,
               coalesce(i.starts_at, i.valid_from)::date AS day,
               1 + 1.2::float8 * (0.75::float8 + 0.25::float8 * i.words / mean) AS length,
               CASE of_field
                    WHEN 'title' THEN to_tsvector('ksi_memory.words', i.title)
                    WHEN 'body' THEN to_tsvector('ksi_memory.words', i.body)
                    ELSE strip(i.lexemes)
               END AS own,
               coalesce(c.cos, 1 - (m.vector <=> of_vector)) AS cos, c.score
          FROM candidate c
         CROSS JOIN LATERAL (
               SELECT i.id, i.version, i.kind, i.owner, i.session, i.place, i.words, i.persons,
                      i.days, i.category, i.title, i.body, i.lexemes, i.starts_at, i.ends_at,
                      i.valid_from
                 FROM item i
                WHERE (i.tenant, i.id, i.version) = (of_tenant, c.id, c.version) OFFSET 0) i
          LEFT JOIN LATERAL (
               SELECT m.vector FROM meaning m
                WHERE m.item = c.id AND m.version = c.version AND m.embedder = of_embedder
                  AND m.tenant = of_tenant AND c.cos IS NULL OFFSET 0) m ON true
         WHERE (of_category IS NULL OR i.category = of_category)
           AND (since IS NULL OR coalesce(i.ends_at, i.starts_at, i.valid_from) >= since)
           AND (until IS NULL OR coalesce(i.starts_at, i.valid_from) < until)
    ), alone AS (
        -- All that can be told of an item without its neighbours. Of their words those count that
        -- led to it.
        SELECT k.*, coalesce(k.cos, avg(k.cos) OVER (), 0) AS known_cos,
               coalesce((named_person = ANY (k.persons))::integer, 0) AS person,
               (asks_when AND k.days <> '{}')::integer AS time,
               coalesce(spans @> k.day OR k.days && spans, false)::integer AS span,
               coalesce(week.days @> k.day OR k.days && week.days, false)::integer AS near,
               coalesce(greatest(l.sum / k.length, k.score), 0) AS lex
          FROM known k
         CROSS JOIN (SELECT range_agg(daterange(lower(d) - 7, upper(d) + 7)) AS days
                       FROM unnest(days) d) week
         CROSS JOIN LATERAL (
               SELECT sum(w.idf) AS sum FROM words_of_question w
                WHERE (is_brief OR of_field IS NOT NULL) AND k.own @@ w.query) l
         WHERE of_field IS NULL OR l.sum > 0
    ), in_session AS (
        SELECT a.*, max(a.known_cos) OVER w AS max_cos, max(a.lex) OVER w AS max_lex,
               nullif(max(a.lex) OVER (), 0) AS most_lex
          FROM alone a
        WINDOW w AS (PARTITION BY a.kind, a.owner, a.part_of)
    ), promising AS MATERIALIZED (
        SELECT s.*
          FROM in_session s
         ORDER BY s.known_cos * weight[1] + s.max_cos * weight[2]
                  + coalesce((s.lex * weight[3] + s.max_lex * weight[4]) / s.most_lex, 0)
                  + s.person * weight[5] + s.time * weight[6] + s.span * weight[7]
                  + s.near * weight[8] DESC, s.id
         LIMIT promising_ones
    ), weighed AS MATERIALIZED (
        SELECT p.id, p.version, p.kind, p.owner, p.part_of, p.cos, p.known_cos, p.max_cos,
               coalesce(l.sum, 0) / p.length AS lex, p.person, p.time, p.span, p.near
          FROM promising p
          LEFT JOIN LATERAL (
               SELECT strip(b.lexemes) AS lexemes
                 FROM item_before(of_tenant, p.kind, p.owner, p.session, p.place, as_of) b
               OFFSET 0) before ON of_field IS NULL
          LEFT JOIN LATERAL (
               SELECT strip(a.lexemes) AS lexemes
                 FROM item_after(of_tenant, p.kind, p.owner, p.session, p.place, as_of) a
               OFFSET 0) after ON of_field IS NULL
         CROSS JOIN LATERAL (
               SELECT sum(w.idf * CASE WHEN p.own @@ w.query THEN 1::float8
                                       WHEN before.lexemes @@ w.query THEN 0.6::float8
                                       WHEN after.lexemes @@ w.query THEN 0.4::float8 END) AS sum
                 FROM words_of_question w) l
    ), shared AS (
        SELECT w.*, coalesce(w.lex / nullif(max(w.lex) OVER (), 0), 0) AS share
          FROM weighed w
    ), featured AS (
        SELECT s.id, s.version, s.cos,
               ARRAY[s.known_cos, s.max_cos, s.share, max(s.share) OVER w,
                     s.person, s.time, s.span, s.near]::double precision[] AS features
          FROM shared s
        WINDOW w AS (PARTITION BY s.kind, s.owner, s.part_of)
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

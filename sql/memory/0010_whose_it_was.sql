-- What one user has forgotten, another may say: a text stays forgotten for whose it was.

SET LOCAL search_path = ksi_memory, public, pg_temp;

ALTER TABLE tombstone ADD COLUMN whose text; -- the user's; '': everybody's; none: nobody noted that

-- Whoever forgets has the item still there.
CREATE FUNCTION note_whose() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
BEGIN
    NEW.whose := coalesce(NEW.whose, (
        SELECT i.owner FROM item i WHERE (i.tenant, i.id) = (NEW.tenant, NEW.id) LIMIT 1));
    RETURN NEW;
END $$;
CREATE TRIGGER note_whose BEFORE INSERT ON tombstone
    FOR EACH ROW EXECUTE FUNCTION note_whose();

-- What was given, in its order; what is left out is null. A machine does not remember under another
-- key what was forgotten: not for whose it was, not for everybody, and for nobody what was everybody's.
CREATE OR REPLACE FUNCTION drafts_of(
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
                                 OR of_origin <> 'given' AND h.title || h.body <> ''
                                    AND (t.whose IN ('', h.owner) OR h.owner = ''
                                         OR t.whose IS NULL)))
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

-- Takes in lines in their order; tells of each what came of it.
CREATE OR REPLACE FUNCTION import_lines(of_tenant text, of_owner text, fixed text[], given jsonb)
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
            INSERT INTO tombstone (tenant, id, kind, whose, text_hash, forgotten_at, reason)
            VALUES (of_tenant, e.id, e.kind, e.owner, decode(e.text_hash, 'hex'), e.forgotten_at,
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

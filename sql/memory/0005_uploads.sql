-- What comes in from files: uploads in pieces, and what is known of the files that were loaded.

SET LOCAL search_path = ksi_memory, public, pg_temp;

-- A file on its way; each user has names of their own for uploads.
CREATE TABLE upload (
    tenant text NOT NULL,
    uploader text NOT NULL, -- the user; '' is the daemon's owner
    upload_id text NOT NULL,
    name text NOT NULL,
    media_type text,
    size_bytes bigint NOT NULL,
    sha256 text NOT NULL, -- hexadecimal
    received int8multirange NOT NULL DEFAULT '{}', -- which of its bytes are there
    pieces integer NOT NULL DEFAULT 0,
    is_checked boolean NOT NULL DEFAULT false, -- all is there, and is what was announced
    loaded_as text, -- the key that it was remembered by; its bytes are gone then
    touched_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, uploader, upload_id),
    CHECK (size_bytes >= 0)
);
CREATE INDEX upload_touched ON upload (touched_at);
SELECT ksi_postgres.protect('upload');

CREATE TABLE upload_piece (
    tenant text NOT NULL,
    uploader text NOT NULL,
    upload_id text NOT NULL,
    begins bigint NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (tenant, uploader, upload_id, begins),
    FOREIGN KEY (tenant, uploader, upload_id) REFERENCES upload ON DELETE CASCADE
);
-- What is uploaded is often packed already.
ALTER TABLE upload_piece ALTER COLUMN content SET STORAGE EXTERNAL;
SELECT ksi_postgres.protect('upload_piece');

-- How many bytes from the first one on are there without a gap?
CREATE FUNCTION received_bytes(received int8multirange) RETURNS bigint
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN received @> 0::bigint
                THEN (SELECT upper(r) FROM unnest(received) r WHERE r @> 0::bigint)
                ELSE 0 END
$$;

CREATE TYPE upload_state AS (
    verdict text, name text, media_type text, size_bytes bigint, sha256 text,
    received_bytes bigint, is_checked boolean, loaded_as text
);

CREATE FUNCTION state_of(u upload, verdict text) RETURNS upload_state
LANGUAGE sql IMMUTABLE SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT verdict, u.name, u.media_type, u.size_bytes, u.sha256,
           CASE WHEN u.loaded_as IS NULL THEN received_bytes(u.received) ELSE u.size_bytes END,
           u.is_checked, u.loaded_as
$$;

-- Begins an upload, or goes on with it. Verdicts: 'open'; 'another', if what is given of it differs
-- from what was; 'too_many'; 'unknown'.
CREATE FUNCTION open_upload(
    of_tenant text, of_uploader text, of_id text, of_name text, of_type text, of_size bigint,
    of_sha256 text, max_open integer
) RETURNS upload_state
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
DECLARE
    known upload;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('ksi_memory uploads ' || of_tenant, 0));
    SELECT u.* INTO known FROM upload u
     WHERE (u.tenant, u.uploader, u.upload_id) = (of_tenant, of_uploader, of_id);
    IF FOUND THEN
        RETURN state_of(known, CASE
            WHEN (coalesce(of_size, known.size_bytes), coalesce(of_sha256, known.sha256))
                 = (known.size_bytes, known.sha256) THEN 'open'
            ELSE 'another' END);
    END IF;
    IF of_size IS NULL OR of_sha256 IS NULL THEN
        RETURN ROW('unknown', NULL, NULL, NULL, NULL, NULL, NULL, NULL)::upload_state;
    END IF;
    IF (SELECT count(*) FROM upload u
         WHERE u.tenant = of_tenant AND u.loaded_as IS NULL) >= max_open THEN
        RETURN ROW('too_many', NULL, NULL, NULL, NULL, NULL, NULL, NULL)::upload_state;
    END IF;
    INSERT INTO upload (tenant, uploader, upload_id, name, media_type, size_bytes, sha256)
    VALUES (of_tenant, of_uploader, of_id, coalesce(of_name, of_id), of_type, of_size, of_sha256)
    RETURNING * INTO known;
    RETURN state_of(known, 'open');
END $$;
COMMENT ON FUNCTION open_upload IS 'begins an upload, or tells how far it is';

-- Keeps what of a piece is not there yet; what is there stays as it is. When all is there it is
-- checked. Verdicts: 'open'; 'unknown'; 'too_far', if the piece reaches past the end; 'too_many'
-- pieces; 'wrong', if it is not what was announced: then it is gone.
CREATE FUNCTION add_piece(
    of_tenant text, of_uploader text, of_id text, at_byte bigint, piece bytea, max_pieces integer
) RETURNS upload_state
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
DECLARE
    known upload;
    given int8range := int8range(at_byte, at_byte + length(piece));
BEGIN
    SELECT u.* INTO known FROM upload u
     WHERE (u.tenant, u.uploader, u.upload_id) = (of_tenant, of_uploader, of_id)
       FOR UPDATE;
    IF NOT FOUND THEN
        RETURN ROW('unknown', NULL, NULL, NULL, NULL, NULL, NULL, NULL)::upload_state;
    END IF;
    IF at_byte + length(piece) > known.size_bytes THEN
        RETURN state_of(known, 'too_far');
    END IF;
    IF known.is_checked THEN
        RETURN state_of(known, 'open');
    END IF;
    IF NOT given <@ known.received THEN
        IF known.pieces >= max_pieces THEN
            RETURN state_of(known, 'too_many');
        END IF;
        INSERT INTO upload_piece (tenant, uploader, upload_id, begins, content)
        SELECT of_tenant, of_uploader, of_id, lower(gap),
               substring(piece FROM (lower(gap) - at_byte + 1)::integer
                               FOR (upper(gap) - lower(gap))::integer)
          FROM unnest(int8multirange(given) - known.received) gap;
    END IF;
    UPDATE upload u
       SET received = u.received + int8multirange(given), pieces = u.pieces + 1,
           touched_at = clock_timestamp()
     WHERE (u.tenant, u.uploader, u.upload_id) = (of_tenant, of_uploader, of_id)
    RETURNING * INTO known;
    IF received_bytes(known.received) < known.size_bytes THEN
        RETURN state_of(known, 'open');
    END IF;
    UPDATE upload u SET is_checked = true
     WHERE (u.tenant, u.uploader, u.upload_id) = (of_tenant, of_uploader, of_id)
       AND u.sha256 = encode(sha256(coalesce((
               SELECT string_agg(p.content, ''::bytea ORDER BY p.begins)
                 FROM upload_piece p
                WHERE (p.tenant, p.uploader, p.upload_id) = (of_tenant, of_uploader, of_id)), '')),
           'hex')
    RETURNING * INTO known;
    IF NOT FOUND THEN
        DELETE FROM upload u
         WHERE (u.tenant, u.uploader, u.upload_id) = (of_tenant, of_uploader, of_id);
        RETURN ROW('wrong', NULL, NULL, NULL, NULL, NULL, NULL, NULL)::upload_state;
    END IF;
    RETURN state_of(known, 'open');
END $$;
COMMENT ON FUNCTION add_piece IS 'keeps a piece of an upload; checks the whole when it is there';

-- The pieces of an upload, so many from a byte on.
CREATE FUNCTION read_pieces(
    of_tenant text, of_uploader text, of_id text, from_byte bigint, most integer
) RETURNS TABLE (begins bigint, content bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT p.begins, p.content
      FROM upload_piece p
     WHERE (p.tenant, p.uploader, p.upload_id) = (of_tenant, of_uploader, of_id)
       AND p.begins >= from_byte
     ORDER BY p.begins
     LIMIT most
$$;
COMMENT ON FUNCTION read_pieces IS 'the pieces of an upload in their order, a page of them';

-- What was uploaded is remembered: its bytes go, its name stays for who asks again.
CREATE FUNCTION close_upload(of_tenant text, of_uploader text, of_id text, as_key text)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    DELETE FROM upload_piece p
     WHERE (p.tenant, p.uploader, p.upload_id) = (of_tenant, of_uploader, of_id);
    UPDATE upload u SET loaded_as = as_key, touched_at = clock_timestamp()
     WHERE (u.tenant, u.uploader, u.upload_id) = (of_tenant, of_uploader, of_id);
$$;
COMMENT ON FUNCTION close_upload IS 'lets the bytes of an upload go';

CREATE FUNCTION expire_uploads(older_than interval) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    WITH gone AS (
        DELETE FROM upload u WHERE u.touched_at < clock_timestamp() - older_than RETURNING 1
    )
    SELECT count(*) FROM gone
$$;
COMMENT ON FUNCTION expire_uploads IS 'lets uploads go that nobody goes on with, whosever they are';

-- -- files ----------------------------------------------------------------------------------------

CREATE INDEX item_file_content ON item (tenant, (attributes ->> 'sha256'))
    WHERE kind = 'files' AND valid_to IS NULL;

CREATE TYPE known_file AS (
    key text, name text, sha256 text, made_by text, path text, kind text
);

CREATE FUNCTION shown_file(i item) RETURNS known_file
LANGUAGE sql IMMUTABLE SET search_path = ksi_memory, pg_catalog, pg_temp AS $$
    SELECT i.key, i.name, i.attributes ->> 'sha256', i.attributes ->> 'made_by',
           i.attributes ->> 'path', i.attributes ->> 'table'
$$;

-- What is known of files with these keys?
CREATE FUNCTION find_files(of_tenant text, of_owner text, keys text[]) RETURNS SETOF known_file
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT (shown_file(i)).*
      FROM unnest(keys) AS given (key)
      JOIN item i ON i.tenant = of_tenant AND i.kind = 'files' AND i.valid_to IS NULL
                     AND i.name = folded(given.key) AND i.owner = of_owner
$$;
COMMENT ON FUNCTION find_files IS 'what is known of files, by their keys';

-- The key of a file with that content, as far as the asker may see it.
CREATE FUNCTION find_content(of_tenant text, of_owner text, of_sha256 text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT i.key
      FROM item i
     WHERE i.tenant = of_tenant AND i.kind = 'files' AND i.valid_to IS NULL
       AND i.attributes ->> 'sha256' = of_sha256
       AND (of_owner IS NULL OR i.owner IN ('', of_owner))
     ORDER BY i.name
     LIMIT 1
$$;
COMMENT ON FUNCTION find_content IS 'the key of a file with that content';

-- The files below a folder that were loaded from a path below another, a page of them by name.
CREATE FUNCTION list_files(
    of_tenant text, of_owner text, below text, path_below text, after text, most integer
) RETURNS SETOF known_file
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT (shown_file(i)).*
      FROM item i
     WHERE i.tenant = of_tenant AND i.kind = 'files' AND i.valid_to IS NULL
       AND i.name > after AND i.name COLLATE "C" >= folded(below)
       AND starts_with(i.name, folded(below)) AND i.owner = of_owner
       AND starts_with(i.attributes ->> 'path', path_below)
     ORDER BY i.name
     LIMIT most
$$;
COMMENT ON FUNCTION list_files IS 'the files that were loaded from a folder, a page of them';

-- Which of these keys does nothing bear?
CREATE FUNCTION missing_keys(of_tenant text, of_owner text, keys text[]) RETURNS text[]
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = ksi_memory, public, pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(given.key), '{}')
      FROM unnest(keys) AS given (key)
     WHERE NOT EXISTS (
           SELECT FROM item i
            WHERE i.tenant = of_tenant AND i.name = folded(given.key) AND i.valid_to IS NULL
              AND (of_owner IS NULL OR i.owner IN ('', of_owner)))
$$;
COMMENT ON FUNCTION missing_keys IS 'those of some keys that nothing bears';

-- Ends what documents consist of no more: the parts from a number on, and all parts in tables that
-- they don't belong to any more; where no number is given, also the document itself and its file.
-- What is pinned stays. Returns how many items ended.
CREATE FUNCTION end_parts(
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
          JOIN item i ON i.tenant = of_tenant AND i.name = folded(g.key)
                     AND i.kind IN (g.kind, 'files')
         WHERE g.part IS NULL AND i.valid_to IS NULL AND i.owner = of_owner AND NOT i.is_pinned
    )
    UPDATE item i SET valid_to = greatest(clock_timestamp(), i.valid_from)
      FROM old o
     WHERE i.tenant = of_tenant AND i.id = o.id AND i.version = o.version;
    GET DIAGNOSTICS ended = ROW_COUNT;
    RETURN ended;
END $$;
COMMENT ON FUNCTION end_parts IS 'ends what documents consist of no more';

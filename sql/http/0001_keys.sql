-- The keys of those who come from outside: what they are for, and the hash of each.

SET LOCAL search_path = ksi_http, public, pg_temp;

-- A key that was revoked stays, so that a file which still has it can't bring it back.
CREATE TABLE key (
    tenant text NOT NULL,
    id text COLLATE "C" NOT NULL,
    digest text NOT NULL, -- SHA-256 of the whole key, in hexadecimal digits
    name text NOT NULL,
    on_behalf_of text, -- the user whom it is bound to
    scopes text[] NOT NULL,
    may_act_for_others boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz,
    revoked_at timestamptz,
    used_at timestamptz, -- by the hour
    PRIMARY KEY (id)
);
CREATE INDEX key_tenant ON key (tenant, created_at);
SELECT ksi_postgres.protect('key');
-- What a key is for is never changed: rows come and end by functions.
REVOKE INSERT, UPDATE, DELETE ON key FROM ksi_app;

-- A key by its id alone: it says itself whose it is. Its use is noted once an hour.
CREATE FUNCTION find_key(of_id text)
RETURNS TABLE (tenant text, digest text, name text, on_behalf_of text, scopes text[],
               may_act_for_others boolean, expires_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER ROWS 1
SET search_path = ksi_http, pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY
        SELECT k.tenant, k.digest, k.name, k.on_behalf_of, k.scopes, k.may_act_for_others,
               k.expires_at
          FROM key k
         WHERE k.id = of_id
           AND k.revoked_at IS NULL
           AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp());
END $$;
COMMENT ON FUNCTION find_key IS 'a valid key by its id, with its hash';

CREATE FUNCTION note_use(of_tenant text, of_id text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_http, pg_catalog, pg_temp AS $$
    UPDATE key SET used_at = date_trunc('hour', clock_timestamp())
     WHERE (tenant, id) = (of_tenant, of_id)
       AND (used_at IS NULL OR used_at < date_trunc('hour', clock_timestamp()))
$$;
COMMENT ON FUNCTION note_use IS 'notes the hour in which a key was used';

-- Whether there is room for another; an id that is known changes nothing.
CREATE FUNCTION add_key(
    of_tenant text, of_id text, of_digest text, of_name text, of_user text, of_scopes text[],
    of_others boolean, until timestamptz, max_keys integer
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_http, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('ksi_http.key ' || of_tenant, 0));
    IF (SELECT count(*) FROM key
         WHERE tenant = of_tenant AND revoked_at IS NULL
           AND (expires_at IS NULL OR expires_at > clock_timestamp())) >= max_keys THEN
        RETURN EXISTS (SELECT FROM key WHERE (tenant, id) = (of_tenant, of_id));
    END IF;
    INSERT INTO key (tenant, id, digest, name, on_behalf_of, scopes, may_act_for_others, expires_at)
    VALUES (of_tenant, of_id, of_digest, of_name, of_user, of_scopes, of_others, until)
    ON CONFLICT DO NOTHING;
    RETURN true;
END $$;
COMMENT ON FUNCTION add_key IS 'enters a key, unless there are too many';

CREATE FUNCTION revoke_key(of_tenant text, of_id text) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_http, pg_catalog, pg_temp AS $$
    WITH revoked AS (
        UPDATE key SET revoked_at = coalesce(revoked_at, clock_timestamp())
         WHERE (tenant, id) = (of_tenant, of_id)
        RETURNING true
    )
    SELECT EXISTS (SELECT FROM revoked)
$$;
COMMENT ON FUNCTION revoke_key IS 'ends a key; whether there is such a one';

-- The two walls between tenants, and the login that reads through views alone.
--
-- A table with rows of tenants is protected: row security is enabled and forced, so that a query
-- shows the rows of the tenant that its transaction is bound to. Functions of the owner's see all
-- rows and take the tenant as an argument; a policy that is constantly true costs a plan nothing.

CREATE FUNCTION protect(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', relation);
    EXECUTE format('CREATE POLICY owners ON %s TO ksi_owner USING (true)', relation);
    EXECUTE format('CREATE POLICY tenants ON %s '
                   'USING (tenant = current_setting(''ksi.tenant'', true))', relation);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO ksi_app', relation);
END $$;
COMMENT ON FUNCTION protect IS 'walls off the rows of a table by its column tenant';

CREATE FUNCTION share(relation regclass, reason text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('COMMENT ON TABLE %s IS %L', relation, 'shared: ' || reason);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO ksi_app', relation);
END $$;
COMMENT ON FUNCTION share IS 'says of a table that it has no tenants, and why';

CREATE FUNCTION open_schema(plugin text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE SCHEMA IF NOT EXISTS %I AUTHORIZATION ksi_owner', 'ksi_' || plugin);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO ksi_app', 'ksi_' || plugin);
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT USAGE ON SEQUENCES TO ksi_app',
                   'ksi_' || plugin);
END $$;

CREATE FUNCTION breaches(plugin text) RETURNS TABLE (problem text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('the table %s is neither protected nor shared', c.oid::regclass)
      FROM pg_class c
     WHERE c.relnamespace = to_regnamespace('ksi_' || plugin)
       AND c.relkind IN ('r', 'p', 'f')
       AND NOT c.relispartition
       AND NOT (c.relrowsecurity AND c.relforcerowsecurity)
       AND coalesce(obj_description(c.oid, 'pg_class'), '') NOT LIKE 'shared: _%'
    UNION ALL
    SELECT format('the shared table %s has a column tenant: protect it', c.oid::regclass)
      FROM pg_class c
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant' AND NOT a.attisdropped
     WHERE c.relnamespace = to_regnamespace('ksi_' || plugin)
       AND c.relkind IN ('r', 'p')
       AND NOT c.relispartition
       AND NOT c.relforcerowsecurity
       AND coalesce(obj_description(c.oid, 'pg_class'), '') NOT LIKE 'shared: tenants: _%'
    UNION ALL
    SELECT format('the protected table %s has a policy %s of its own: drop it, or make it '
                  'restrictive', c.oid::regclass, p.polname)
      FROM pg_class c
      JOIN pg_policy p ON p.polrelid = c.oid
     WHERE c.relnamespace = to_regnamespace('ksi_' || plugin)
       AND p.polpermissive
       AND NOT (p.polname = 'owners' AND p.polroles = ARRAY['ksi_owner'::regrole::oid])
       AND NOT (p.polname = 'tenants' AND p.polwithcheck IS NULL
                AND pg_get_expr(p.polqual, p.polrelid)
                    = '(tenant = current_setting(''ksi.tenant''::text, true))')
    UNION ALL
    SELECT format('%s is shown to the reader past the documented views: revoke that',
                  c.oid::regclass)
      FROM pg_class c
     WHERE c.relnamespace = to_regnamespace('ksi_' || plugin)
       AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
       AND has_any_column_privilege('ksi_reader', c.oid, 'SELECT, INSERT, UPDATE, REFERENCES')
    UNION ALL
    SELECT format('ksi_read.%I is no documented view: make it with ksi_postgres.publish', c.relname)
      FROM pg_class c
     WHERE c.relnamespace = to_regnamespace('ksi_read')
       AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
       AND NOT (c.relkind = 'v'
                AND coalesce(c.reloptions, '{}') && ARRAY['security_barrier=true']
                AND pg_get_viewdef(c.oid) LIKE
                    '% WHERE (tenant = ( SELECT ksi_postgres.reader_tenant() AS reader_tenant));')
    UNION ALL
    SELECT format('%s belongs to %s and not to ksi_owner', found.what, found.owner)
      FROM (SELECT c.oid::regclass::text, c.relowner::regrole FROM pg_class c
             WHERE c.relnamespace IN (to_regnamespace('ksi_' || plugin),
                                      to_regnamespace('ksi_read'))
               AND c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S')
            UNION ALL
            SELECT p.oid::regprocedure::text, p.proowner::regrole FROM pg_proc p
             WHERE p.pronamespace = to_regnamespace('ksi_' || plugin)
           ) AS found (what, owner)
     WHERE found.owner::text <> 'ksi_owner'
    UNION ALL
    SELECT format('the partition %s can be reached past its parent: revoke what was granted on it',
                  c.oid::regclass)
      FROM pg_class c
     WHERE c.relnamespace = to_regnamespace('ksi_' || plugin)
       AND c.relispartition
       AND c.relkind IN ('r', 'p')
       AND NOT c.relforcerowsecurity
       AND (has_table_privilege('ksi_app', c.oid, 'SELECT, INSERT, UPDATE, DELETE')
            OR has_table_privilege('ksi_reader', c.oid, 'SELECT'))
    UNION ALL
    SELECT format('the function %s runs with its owner''s rights and has no search_path of its own',
                  p.oid::regprocedure)
      FROM pg_proc p
     WHERE p.pronamespace = to_regnamespace('ksi_' || plugin)
       AND p.prosecdef
       AND NOT EXISTS (SELECT FROM unnest(p.proconfig) setting
                        WHERE setting LIKE 'search_path=%')
    UNION ALL
    SELECT format('the reader may execute %s: revoke that', p.oid::regprocedure)
      FROM pg_proc p
     WHERE p.pronamespace IN (to_regnamespace('ksi_' || plugin), to_regnamespace('ksi_read'))
       AND has_function_privilege('ksi_reader', p.oid, 'EXECUTE')
       AND p.oid <> to_regprocedure('ksi_postgres.reader_tenant()')
    UNION ALL
    SELECT format('the view %s runs with its owner''s rights: publish it, or make it '
                  'security_invoker', c.oid::regclass)
      FROM pg_class c
     WHERE c.relnamespace = to_regnamespace('ksi_' || plugin)
       AND c.relkind IN ('v', 'm')
       AND NOT coalesce(c.reloptions, '{}') && ARRAY['security_invoker=true', 'security_invoker=on']
       AND has_table_privilege('ksi_app', c.oid, 'SELECT')
    UNION ALL
    SELECT format('%s may be executed by everybody', p.oid::regprocedure)
      FROM pg_proc p
     WHERE p.pronamespace = to_regnamespace('ksi_' || plugin)
       AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) acl
                    WHERE acl.grantee = 0)
$$;
COMMENT ON FUNCTION breaches IS 'lists what in a plugin''s schema stands outside of the walls';

-- Which tenant a reader's session is bound to. Its own SQL can't change it: it may neither write
-- here nor take on another process id.
CREATE UNLOGGED TABLE reader_session (
    pid integer PRIMARY KEY,
    tenant text NOT NULL,
    bound_at timestamptz NOT NULL
);
COMMENT ON TABLE reader_session IS 'shared: tenants: says which tenant a session is of';

CREATE FUNCTION bind_reader(backend integer, tenant text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_postgres, pg_catalog, pg_temp AS $$
    INSERT INTO reader_session (pid, tenant, bound_at)
    VALUES (backend, bind_reader.tenant, clock_timestamp())
    ON CONFLICT (pid) DO UPDATE SET tenant = excluded.tenant, bound_at = excluded.bound_at
$$;

CREATE FUNCTION reader_tenant() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_postgres, pg_catalog, pg_temp AS $$
    SELECT s.tenant
      FROM reader_session s
      JOIN pg_stat_get_activity(pg_backend_pid()) a ON a.backend_start <= s.bound_at
     WHERE s.pid = pg_backend_pid()
$$;
GRANT EXECUTE ON FUNCTION reader_tenant TO ksi_reader;
COMMENT ON FUNCTION reader_tenant IS 'the tenant that this session is bound to; none: no rows';

CREATE FUNCTION publish(relation regclass, view_name text, columns text[], description text)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE VIEW ksi_read.%I WITH (security_barrier) AS SELECT %s FROM %s '
        'WHERE tenant = (SELECT ksi_postgres.reader_tenant())',
        view_name,
        (SELECT string_agg(quote_ident(each), ', ' ORDER BY place)
           FROM unnest(columns) WITH ORDINALITY AS listed (each, place)),
        relation);
    EXECUTE format('COMMENT ON VIEW ksi_read.%I IS %L', view_name, description);
    EXECUTE format('GRANT SELECT ON ksi_read.%I TO ksi_reader', view_name);
END $$;
COMMENT ON FUNCTION publish IS 'makes a documented view of a table, limited to the reader''s tenant';

REVOKE EXECUTE ON FUNCTION protect, share, open_schema, publish FROM ksi_app;

-- Requests that bear a key are done once, whichever daemon they reach.
CREATE TABLE idempotency_key (
    tenant text NOT NULL,
    principal text NOT NULL,
    on_behalf_of text NOT NULL,
    key text NOT NULL,
    digest bytea NOT NULL,
    boot text NOT NULL,
    answer bytea,
    began_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, principal, on_behalf_of, key)
);
CREATE INDEX idempotency_key_began_at ON idempotency_key (began_at);
SELECT ksi_postgres.protect('idempotency_key');

CREATE FUNCTION claim_key(
    key_tenant text, key_principal text, key_user text, key_text text, key_digest bytea,
    key_boot text, in_doubt_after interval,
    OUT state text, OUT answer bytea, OUT began_at timestamptz
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_postgres, pg_catalog, pg_temp AS $$
DECLARE
    kept idempotency_key; -- not found: that is what a statement sets
BEGIN
    INSERT INTO idempotency_key (tenant, principal, on_behalf_of, key, digest, boot)
    VALUES (key_tenant, key_principal, key_user, key_text, key_digest, key_boot)
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        state := 'claimed';
        RETURN;
    END IF;
    SELECT k.* INTO kept
      FROM idempotency_key k
     WHERE (k.tenant, k.principal, k.on_behalf_of, k.key)
         = (key_tenant, key_principal, key_user, key_text);
    answer := kept.answer;
    began_at := kept.began_at;
    state := CASE
        WHEN kept.digest IS NULL THEN 'at_work' -- it was given back just now
        WHEN kept.digest <> key_digest THEN 'another'
        WHEN kept.answer IS NOT NULL THEN 'answered'
        WHEN kept.boot <> key_boot AND kept.began_at <= clock_timestamp() - in_doubt_after
            THEN 'in_doubt'
        ELSE 'at_work'
    END;
END $$;

CREATE FUNCTION keep_key(
    key_tenant text, key_principal text, key_user text, key_text text, key_answer bytea
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_postgres, pg_catalog, pg_temp AS $$
    UPDATE idempotency_key SET answer = key_answer
     WHERE (tenant, principal, on_behalf_of, key)
         = (key_tenant, key_principal, key_user, key_text)
$$;

-- Only its own claim: a daemon may give a key back without knowing whether it got it.
CREATE FUNCTION release_key(
    key_tenant text, key_principal text, key_user text, key_text text, key_boot text
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_postgres, pg_catalog, pg_temp AS $$
    DELETE FROM idempotency_key
     WHERE (tenant, principal, on_behalf_of, key)
         = (key_tenant, key_principal, key_user, key_text)
       AND boot = key_boot
       AND answer IS NULL
$$;

CREATE FUNCTION forget_keys(older_than interval) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_postgres, pg_catalog, pg_temp AS $$
    DELETE FROM idempotency_key WHERE began_at < now() - older_than
$$;

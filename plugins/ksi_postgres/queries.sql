-- name: survey
-- What is there, and what this login may do? Asked at each start, before anything is changed.
SELECT current_setting('server_version_num')::int AS version,
       current_setting('server_version') AS version_text,
       current_database() AS database,
       current_user AS login,
       r.rolsuper OR r.rolbypassrls AS sees_all,
       r.rolsuper AS is_superuser,
       r.rolcreaterole OR r.rolsuper AS may_create_roles,
       ARRAY(SELECT wanted FROM unnest(ARRAY['vector', 'pg_trgm', 'unaccent', 'btree_gin']) wanted
             WHERE wanted NOT IN (SELECT extname FROM pg_extension)) AS missing_extensions,
       ARRAY(SELECT wanted FROM unnest(ARRAY['vector', 'pg_trgm', 'unaccent', 'btree_gin']) wanted
             WHERE wanted NOT IN (SELECT name FROM pg_available_extensions)) AS absent_extensions,
       ARRAY(SELECT wanted FROM unnest(ARRAY['ksi_owner', 'ksi_app', 'ksi_reader']) wanted
             WHERE wanted NOT IN (SELECT rolname FROM pg_roles)) AS missing_roles,
       ARRAY(SELECT wanted FROM unnest(ARRAY['ksi_postgres', 'ksi_read']) wanted
             WHERE wanted NOT IN (SELECT nspname FROM pg_namespace)) AS missing_schemas,
       has_database_privilege(current_user, current_database(), 'CREATE') AS may_create,
       EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = 'ksi_postgres' AND c.relname = 'migration') AS has_migrations
  FROM pg_roles r
 WHERE r.rolname = current_user;

-- name: survey_roles
-- How does this login stand to the roles, and is the reader kept from functions with effects?
SELECT pg_has_role(current_user, 'ksi_owner', 'SET') AS may_own,
       pg_has_role(current_user, 'ksi_owner', 'USAGE') AS acts_as_owner,
       pg_has_role(current_user, 'ksi_app', 'SET') AS may_be_app,
       pg_has_role(current_user, 'ksi_app', 'USAGE') AS acts_as_app,
       pg_has_role('ksi_owner', 'ksi_reader', 'USAGE') AS owner_sees_readers,
       has_database_privilege('ksi_owner', current_database(), 'CREATE')
       AND has_database_privilege('ksi_owner', current_database(), 'TEMP')
       AND has_database_privilege('ksi_app', current_database(), 'CONNECT')
       AND has_database_privilege('ksi_reader', current_database(), 'CONNECT') AS database_is_open,
       ARRAY(SELECT rolname::text FROM pg_roles
              WHERE rolname IN ('ksi_owner', 'ksi_app', 'ksi_reader')
                AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)
              ORDER BY rolname) AS strong_roles,
       ARRAY(SELECT format('%I FROM %I', r.rolname, m.rolname)
               FROM pg_auth_members g
               JOIN pg_roles m ON m.oid = g.member
               JOIN pg_roles r ON r.oid = g.roleid
              WHERE m.rolname IN ('ksi_app', 'ksi_reader')
              ORDER BY r.rolname) AS memberships,
       NOT EXISTS (
           SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE (p.provolatile = 'v' OR p.proname LIKE 'pg\_stat\_get\_activity'
                   OR p.proname LIKE 'pg\_stat\_get\_backend\_%')
              AND p.prokind IN ('f', 'p')
              AND p.proname NOT IN ('random', 'random_normal', 'clock_timestamp', 'timeofday',
                                    'gen_random_uuid', 'uuidv4', 'uuidv7')
              AND has_schema_privilege('ksi_reader', n.oid, 'USAGE')
              -- As has_function_privilege says it, which takes three times as long.
              AND EXISTS (
                  SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) granted
                   WHERE granted.privilege_type = 'EXECUTE'
                     AND (granted.grantee = 0
                          OR pg_has_role('ksi_reader', granted.grantee, 'USAGE'))))
       AND NOT has_database_privilege('ksi_reader', current_database(), 'TEMP')
       AND NOT has_language_privilege('ksi_reader', 'plpgsql', 'USAGE') AS reader_is_tied;

-- name: create_roles
-- Makes the roles that are missing; another database of this cluster may be making them, too.
DO $$
DECLARE
    role name;
BEGIN
    FOREACH role IN ARRAY ARRAY['ksi_owner', 'ksi_app', 'ksi_reader']::name[] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE '
                               'NOREPLICATION', role);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END LOOP;
END $$;

-- name: join_roles
-- Lets this login become the owner and the app, without being either all the time.
DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        IF NOT pg_has_role(current_user, 'ksi_owner', 'SET') THEN
            EXECUTE format('GRANT ksi_owner TO %I WITH INHERIT FALSE, SET TRUE', current_user);
        END IF;
        IF NOT pg_has_role(current_user, 'ksi_app', 'USAGE') THEN
            EXECUTE format('GRANT ksi_app TO %I WITH INHERIT TRUE, SET TRUE', current_user);
        END IF;
    END IF;
    IF NOT pg_has_role('ksi_owner', 'ksi_reader', 'USAGE') THEN
        GRANT ksi_reader TO ksi_owner; -- so that a function of the owner's sees when it connected
    END IF;
END $$;

-- name: create_extensions
-- Makes the extensions that are missing; pgvector and the three others are trusted ones.
CREATE EXTENSION IF NOT EXISTS vector;
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE EXTENSION IF NOT EXISTS unaccent;
CREATE EXTENSION IF NOT EXISTS btree_gin;

-- name: open_database
-- Gives the roles their rights on a database; a copy or a backup of it has them not.
DO $$
DECLARE
    opened text := coalesce(nullif(current_setting('ksi.database', true), ''), current_database());
BEGIN
    EXECUTE format('GRANT CREATE, CONNECT, TEMP ON DATABASE %I TO ksi_owner', opened);
    EXECUTE format('GRANT CONNECT, TEMP ON DATABASE %I TO ksi_app', opened);
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO ksi_reader', opened);
    IF NOT has_database_privilege('ksi_owner', opened, 'CREATE') THEN -- it only warns of that
        RAISE insufficient_privilege USING MESSAGE = 'this login may not pass on its rights';
    END IF;
END $$;

-- name: close_database
-- Takes from everybody what the reader must not have, either.
DO $$
BEGIN
    EXECUTE format('REVOKE TEMP ON DATABASE %I FROM PUBLIC',
                   coalesce(nullif(current_setting('ksi.database', true), ''), current_database()));
END $$;

-- name: create_schemas
-- Makes the schemas of the walls and of the documented views, and the table of migrations.
CREATE SCHEMA IF NOT EXISTS ksi_postgres AUTHORIZATION ksi_owner;
CREATE SCHEMA IF NOT EXISTS ksi_read AUTHORIZATION ksi_owner;
SET LOCAL ROLE ksi_owner;
GRANT USAGE ON SCHEMA ksi_postgres TO ksi_app;
GRANT USAGE ON SCHEMA ksi_read TO ksi_app, ksi_reader;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO ksi_app;
CREATE TABLE IF NOT EXISTS ksi_postgres.migration (
    plugin text NOT NULL,
    number integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    version text NOT NULL,
    duration_s double precision NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (plugin, number)
);
COMMENT ON TABLE ksi_postgres.migration IS 'shared: what was done to the schema concerns everybody';
GRANT SELECT ON ksi_postgres.migration TO ksi_app;

-- name: tie_reader
-- Keeps the reader from whatever has effects: volatile functions, temporary tables, languages; and
-- from what other sessions ask, since those of other tenants have the same login.
-- A function that this Postgres does not have yet is volatile, too, if it has effects.
DO $$
DECLARE
    each record;
BEGIN
    EXECUTE format('REVOKE TEMP ON DATABASE %I FROM PUBLIC', current_database());
    REVOKE USAGE ON LANGUAGE plpgsql, sql FROM PUBLIC;
    GRANT USAGE ON LANGUAGE plpgsql, sql TO ksi_owner;
    FOR each IN
        SELECT p.oid::regprocedure AS signature,
               CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END AS kind,
               has_function_privilege('ksi_owner', p.oid, 'EXECUTE') AS is_common
          FROM pg_proc p
          JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE (p.provolatile = 'v' OR p.proname LIKE 'pg\_stat\_get\_activity'
                OR p.proname LIKE 'pg\_stat\_get\_backend\_%')
           AND p.prokind IN ('f', 'p')
           AND p.proname NOT IN ('random', 'random_normal', 'clock_timestamp', 'timeofday',
                                 'gen_random_uuid', 'uuidv4', 'uuidv7')
           AND has_schema_privilege('ksi_reader', n.oid, 'USAGE')
           AND has_function_privilege('ksi_reader', p.oid, 'EXECUTE')
    LOOP
        EXECUTE format('REVOKE EXECUTE ON %s %s FROM PUBLIC', each.kind, each.signature);
        IF each.is_common THEN
            EXECUTE format('GRANT EXECUTE ON %s %s TO ksi_owner, ksi_app',
                           each.kind, each.signature);
        END IF;
    END LOOP;
END $$;

-- name: bound_reader
-- Bounds what a query of the reader's may write to disk; a superuser alone may say so.
ALTER ROLE ksi_reader SET temp_file_limit = '256MB';

-- name: lock_migrations
-- Holds off every other daemon until this transaction ends.
SELECT pg_advisory_xact_lock(7020395786224527731);

-- name: applied
-- Which migrations were applied?
SELECT plugin, number, name, checksum, version, applied_at
  FROM ksi_postgres.migration
 ORDER BY applied_at, plugin, number;

-- name: is_applied
-- Was this migration applied by somebody else meanwhile?
SELECT checksum FROM ksi_postgres.migration WHERE plugin = $1 AND number = $2;

-- name: note_applied
-- Notes a migration, in the transaction that applies it.
INSERT INTO ksi_postgres.migration (plugin, number, name, checksum, version, duration_s)
VALUES ($1, $2, $3, $4, $5, $6);

-- name: open_schema
-- Makes a plugin's schema if it is missing, and what its migrations are to find.
SELECT ksi_postgres.open_schema($1),
       set_config('search_path', format('%I, public, pg_temp', 'ksi_' || $1), true);

-- name: stage_migration
-- Hands a migration's text to the statement that runs it.
SELECT set_config('ksi.migration', $1, true);

-- name: run_migration
-- Runs it where Postgres itself refuses a COMMIT or a ROLLBACK, before anything has come of it.
DO $$
BEGIN
    EXECUTE current_setting('ksi.migration');
END $$;

-- name: breaches
-- What in a plugin's schema stands outside of the walls?
SELECT problem FROM ksi_postgres.breaches($1);

-- name: presume
-- Tells Postgres what to think of the tables of some plugins, where it knows nothing of them yet.
SELECT ksi_postgres.presume(plugin) FROM unnest($1::text[]) AS plugin;

-- name: bind_tenant
-- Binds the transaction to a tenant: row security shows it that tenant's rows alone.
SELECT set_config('ksi.tenant', $1, true);

-- name: backend
-- Which backend is this? Behind a pooler it is another than the protocol said.
SELECT pg_backend_pid();

-- name: reader_session
-- Whose session is this really, and may that login do no more than it should?
SELECT pg_backend_pid() AS backend,
       session_user = 'ksi_reader' AND current_user = 'ksi_reader'
       AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ksi_reader'
                          AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolreplication))
       AND NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
                        WHERE r.rolname = 'ksi_reader') AS is_reader;

-- name: bind_reader
-- Binds a reader's session to a tenant; the session itself can't.
SELECT ksi_postgres.bind_reader($1, $2);

-- name: set_password
-- Lets a role log in; only what Postgres keeps of the password comes here.
DO $$
BEGIN
    EXECUTE format('ALTER ROLE %I LOGIN PASSWORD %L',
                   current_setting('ksi.role'), current_setting('ksi.verifier'));
END $$;

-- name: has_database
-- Is the daemon's own database there?
SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'ksi');

-- name: create_database
-- Makes the daemon's own database; the template has nothing but what initdb made.
CREATE DATABASE ksi TEMPLATE template0;

-- name: may_log_in
-- Can this role log in already?
SELECT rolcanlogin FROM pg_roles WHERE rolname = $1;

-- name: claim_key
-- Is a key new? Then it is this daemon's; else how was it answered, or who is at it?
SELECT state, answer, began_at FROM ksi_postgres.claim_key($1, $2, $3, $4, $5, $6, $7);

-- name: keep_key
-- Notes how a keyed request was answered.
SELECT ksi_postgres.keep_key($1, $2, $3, $4, $5);

-- name: release_key
-- Gives a key of this daemon's back that nothing was done for.
SELECT ksi_postgres.release_key($1, $2, $3, $4, $5);

-- name: forget_keys
-- Forgets the keys that are older than an interval.
SELECT ksi_postgres.forget_keys($1);

-- The servers whose tools agents call: those that were added, and what is known of their tools.

SET LOCAL search_path = ksi_mcp, public, pg_temp;

-- Those of the settings stand there.
CREATE TABLE server (
    tenant text NOT NULL,
    name text COLLATE "C" NOT NULL,
    given text NOT NULL, -- JSON; it names secrets, and has none
    added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, name)
);
SELECT ksi_postgres.protect('server');

-- Also of the servers that stand in the settings.
CREATE TABLE known_tool (
    tenant text NOT NULL,
    server text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    accepted text, -- JSON of what may be used; nothing where it was new and held back
    pending text, -- JSON of what the server says now, held back
    is_there boolean NOT NULL, -- whether the server had it when it was last asked
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, server, name)
);
SELECT ksi_postgres.protect('known_tool');

CREATE FUNCTION all_servers() RETURNS TABLE (tenant text, name text, given text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_mcp, pg_catalog, pg_temp AS $$
    SELECT s.tenant, s.name, s.given FROM server s ORDER BY s.tenant, s.name
$$;
COMMENT ON FUNCTION all_servers IS 'the servers that were added, whosever';

CREATE FUNCTION all_known()
RETURNS TABLE (tenant text, server text, name text, accepted text, pending text, is_there boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_mcp, pg_catalog, pg_temp AS $$
    SELECT k.tenant, k.server, k.name, k.accepted, k.pending, k.is_there
      FROM known_tool k ORDER BY k.tenant, k.server, k.seen_at, k.name
$$;
COMMENT ON FUNCTION all_known IS 'what is known of the tools of all servers, whosever';

CREATE FUNCTION find_server(of_tenant text, of_name text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_mcp, pg_catalog, pg_temp AS $$
    SELECT given FROM server WHERE (tenant, name) = (of_tenant, of_name)
$$;
COMMENT ON FUNCTION find_server IS 'a server that was added';

CREATE FUNCTION known_of(of_tenant text, of_server text)
RETURNS TABLE (name text, accepted text, pending text, is_there boolean)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_mcp, pg_catalog, pg_temp AS $$
    SELECT k.name, k.accepted, k.pending, k.is_there
      FROM known_tool k WHERE (k.tenant, k.server) = (of_tenant, of_server)
     ORDER BY k.seen_at, k.name
$$;
COMMENT ON FUNCTION known_of IS 'what is known of the tools of one server';

-- ok, taken or too_many.
CREATE FUNCTION add_server(of_tenant text, of_name text, of_given text, max_servers integer)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_mcp, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('ksi_mcp.server ' || of_tenant, 0));
    IF EXISTS (SELECT FROM server WHERE (tenant, name) = (of_tenant, of_name)) THEN
        RETURN 'taken';
    END IF;
    IF (SELECT count(*) FROM server WHERE tenant = of_tenant) >= max_servers THEN
        RETURN 'too_many';
    END IF;
    INSERT INTO server (tenant, name, given) VALUES (of_tenant, of_name, of_given);
    -- One of the settings may have had the name.
    DELETE FROM known_tool WHERE (tenant, server) = (of_tenant, of_name);
    PERFORM pg_notify('ksi_mcp', of_tenant || ' ' || of_name);
    RETURN 'ok';
END $$;
COMMENT ON FUNCTION add_server IS 'enters a server, unless there is one of the name or too many';

CREATE FUNCTION remove_server(of_tenant text, of_name text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_mcp, pg_catalog, pg_temp AS $$
DECLARE
    was_there boolean;
BEGIN
    DELETE FROM server WHERE (tenant, name) = (of_tenant, of_name);
    was_there := FOUND;
    IF was_there THEN
        DELETE FROM known_tool WHERE (tenant, server) = (of_tenant, of_name);
        PERFORM pg_notify('ksi_mcp', of_tenant || ' ' || of_name);
    END IF;
    RETURN was_there;
END $$;
COMMENT ON FUNCTION remove_server IS 'takes a server back; whether there was such a one';

-- In the place of what was known before, unless the server was removed meanwhile.
CREATE FUNCTION keep_known(
    of_tenant text, of_server text, was_added boolean, names text[], accepted_texts text[],
    pending_texts text[], are_there boolean[]
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_mcp, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('ksi_mcp.server ' || of_tenant, 0));
    IF was_added AND NOT EXISTS (
        SELECT FROM server WHERE (tenant, name) = (of_tenant, of_server)
    ) THEN
        RETURN false;
    END IF;
    DELETE FROM known_tool k
     WHERE (k.tenant, k.server) = (of_tenant, of_server) AND k.name <> ALL (names);
    INSERT INTO known_tool AS k (tenant, server, name, accepted, pending, is_there)
    SELECT of_tenant, of_server, t.name, t.accepted, t.pending, t.is_there
      FROM unnest(names, accepted_texts, pending_texts, are_there)
           AS t (name, accepted, pending, is_there)
    ON CONFLICT (tenant, server, name) DO UPDATE
       SET accepted = excluded.accepted, pending = excluded.pending,
           is_there = excluded.is_there, seen_at = clock_timestamp();
    PERFORM pg_notify('ksi_mcp', of_tenant || ' ' || of_server);
    RETURN true;
END $$;
COMMENT ON FUNCTION keep_known IS 'keeps what is known of the tools of one server';

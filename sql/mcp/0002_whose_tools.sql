-- What is known of a server's tools is kept as long as the server is the one that said it.

SET LOCAL search_path = ksi_mcp, public, pg_temp;

DROP FUNCTION keep_known(text, text, boolean, text[], text[], text[], boolean[]);

-- In the place of what was known before, unless the server was removed meanwhile: another may have
-- its name by now. Those of the settings are not given.
CREATE FUNCTION keep_known(
    of_tenant text, of_server text, of_given text, names text[], accepted_texts text[],
    pending_texts text[], are_there boolean[]
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_mcp, pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('ksi_mcp.server ' || of_tenant, 0));
    IF of_given IS NOT NULL AND NOT EXISTS (
        SELECT FROM server s WHERE (s.tenant, s.name, s.given) = (of_tenant, of_server, of_given)
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

-- What Postgres is to think of a table of which it knows nothing yet.
--
-- Until a table was analysed, which takes a minute and some rows, Postgres thinks that a tenant has
-- one row of two hundred, and that next to nothing is NULL. Then any index that begins with the
-- tenant seems as good as the one that leads to the row, and a statement may read all of the
-- tenant's rows to find one. Functions keep their plans, so that all the work of a first minute
-- could be done so. What is said here holds until a table is analysed: all of its rows are of one
-- tenant, and half of what may be NULL is.

CREATE FUNCTION presume(plugin text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    young record;
BEGIN
    IF current_setting('server_version_num')::int < 180000 THEN
        RETURN; -- it can't be told
    END IF;
    FOR young IN
        SELECT c.relname::text AS name, a.attname::text AS of_column, a.attname = 'tenant' AS is_tenant
          FROM pg_class c
          JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         WHERE c.relnamespace = to_regnamespace('ksi_' || plugin)
           AND c.relkind = 'r' -- of one in parts, the parts are asked
           AND c.reltuples < 0 -- never analysed
           AND (a.attname = 'tenant'
                OR NOT a.attnotnull
                   AND EXISTS (SELECT FROM pg_index i
                                WHERE i.indrelid = c.oid AND i.indpred IS NOT NULL))
    LOOP
        IF young.is_tenant THEN
            PERFORM pg_restore_attribute_stats(
                'schemaname', 'ksi_' || plugin, 'relname', young.name, 'attname', young.of_column,
                'inherited', false, 'null_frac', 0::real, 'n_distinct', 1::real);
        ELSE
            PERFORM pg_restore_attribute_stats(
                'schemaname', 'ksi_' || plugin, 'relname', young.name, 'attname', young.of_column,
                'inherited', false, 'null_frac', 0.5::real, 'n_distinct', 0::real);
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION presume IS 'tells Postgres what to think of tables of which it knows nothing';
REVOKE EXECUTE ON FUNCTION presume FROM ksi_app;

-- What plugins had in memory, as they gave it away: a checkpoint, and an entry for each plugin.
--
-- A state is bytes, and stays what it was to the last of them: its checksum is compared before a
-- plugin gets it back. An entry without a state says why there is none.

CREATE TABLE checkpoint (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    daemon text NOT NULL,
    reason text NOT NULL,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX checkpoint_daemon ON checkpoint (daemon, id);
SELECT ksi_postgres.share('checkpoint', 'the memory of a daemon''s plugins, which serve all tenants');

CREATE TABLE entry (
    checkpoint bigint NOT NULL REFERENCES checkpoint ON DELETE CASCADE,
    plugin text NOT NULL,
    version integer,
    state bytea,
    checksum bytea,
    error text,
    PRIMARY KEY (checkpoint, plugin),
    CHECK (num_nulls(version, state, checksum) IN (0, 3)),
    CHECK ((state IS NULL) = (error IS NOT NULL))
);
SELECT ksi_postgres.share('entry', 'the memory of a daemon''s plugins, which serve all tenants');

-- Saves a checkpoint and forgets what need not be kept: of each daemon more than so many, and what
-- is too old. The newest of each daemon stays however old it is, since that is what it starts with.
CREATE FUNCTION save(
    daemon_id text, why text, plugins text[], versions integer[], states bytea[],
    checksums bytea[], errors text[], keep_count integer, keep_for interval,
    OUT saved_id bigint, OUT saved_at timestamptz, OUT forgotten bigint
)
LANGUAGE plpgsql SET search_path = ksi_checkpoint, pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO checkpoint (daemon, reason) VALUES (daemon_id, why)
    RETURNING id, taken_at INTO saved_id, saved_at;
    INSERT INTO entry (checkpoint, plugin, version, state, checksum, error)
    SELECT saved_id, each.*
      FROM unnest(plugins, versions, states, checksums, errors) AS each;
    WITH ranked AS (
        SELECT c.id, c.daemon, c.taken_at,
               row_number() OVER (PARTITION BY c.daemon ORDER BY c.id DESC) AS place
          FROM checkpoint c
    )
    DELETE FROM checkpoint c USING ranked r
     WHERE c.id = r.id AND r.place > 1
       AND ((r.daemon = daemon_id AND r.place > keep_count) OR r.taken_at < now() - keep_for);
    GET DIAGNOSTICS forgotten = ROW_COUNT;
END $$;
COMMENT ON FUNCTION save IS 'saves a checkpoint and forgets those that need not be kept';

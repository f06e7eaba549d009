-- What agents are: definitions, each of whose versions is kept as it was given and as it resolves.

SET LOCAL search_path = ksi_agents, public, pg_temp;

-- A definition that was removed keeps its number, so that no two versions ever bear the same.
CREATE TABLE definition (
    tenant text NOT NULL,
    name text COLLATE "C" NOT NULL,
    version integer NOT NULL, -- the newest
    extends text, -- of the newest version
    set_name text NOT NULL, -- what was applied together, for pruning
    removed_at timestamptz,
    PRIMARY KEY (tenant, name)
);
CREATE INDEX definition_extending ON definition (tenant, extends) WHERE extends IS NOT NULL;
SELECT ksi_postgres.protect('definition');

CREATE TABLE definition_version (
    tenant text NOT NULL,
    name text COLLATE "C" NOT NULL,
    version integer NOT NULL,
    text text NOT NULL, -- as it was given
    format text NOT NULL,
    given text NOT NULL, -- JSON of its own fields
    resolved text NOT NULL, -- JSON of its fields with those of what it extends
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_by text NOT NULL,
    PRIMARY KEY (tenant, name, version),
    FOREIGN KEY (tenant, name) REFERENCES definition ON DELETE CASCADE
);
SELECT ksi_postgres.protect('definition_version');

-- One version, also of a definition that was removed; or the newest of one that was not.
CREATE FUNCTION find_definition(of_tenant text, of_name text, of_version integer)
RETURNS TABLE (version integer, resolved text)
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = ksi_agents, pg_catalog, pg_temp AS $$
    SELECT v.version, v.resolved
      FROM definition d
      JOIN definition_version v ON (v.tenant, v.name) = (d.tenant, d.name)
     WHERE (d.tenant, d.name) = (of_tenant, of_name)
       AND CASE WHEN of_version IS NULL THEN v.version = d.version AND d.removed_at IS NULL
                ELSE v.version = of_version END
$$;
COMMENT ON FUNCTION find_definition IS 'what a definition resolves to, by name and version';

SELECT ksi_postgres.publish(
    'definition_version', 'agent_definitions',
    ARRAY['name', 'version', 'text', 'format', 'applied_at', 'applied_by'],
    'the definitions of agents in all their versions');

-- name: find
-- What does a definition resolve to?
SELECT version, resolved FROM ksi_agents.find_definition($1, $2, $3);

-- name: lock
-- Whoever changes a tenant's definitions does so alone; ends with the transaction.
SELECT pg_advisory_xact_lock(hashtextextended('ksi_agents definitions ' || $1, 0));

-- name: heads
-- Which definitions were there ever, which version is the newest, and what does it extend?
SELECT name, version, extends, set_name, removed_at IS NOT NULL AS is_removed
  FROM ksi_agents.definition
 ORDER BY name;

-- name: newest
-- What are the newest versions of these?
SELECT v.name, v.version, v.text, v.format, v.given, v.resolved
  FROM ksi_agents.definition d
  JOIN ksi_agents.definition_version v ON (v.tenant, v.name, v.version)
                                        = (d.tenant, d.name, d.version)
 WHERE d.name = ANY ($1) AND d.removed_at IS NULL;

-- name: keep
-- Keeps a version as the newest.
WITH head AS (
    INSERT INTO ksi_agents.definition (tenant, name, version, extends, set_name)
    VALUES (current_setting('ksi.tenant'), $1, $2, $3, $4)
    ON CONFLICT (tenant, name) DO UPDATE
       SET version = excluded.version, extends = excluded.extends, set_name = excluded.set_name,
           removed_at = NULL
)
INSERT INTO ksi_agents.definition_version (tenant, name, version, text, format, given, resolved,
                                           applied_by)
VALUES (current_setting('ksi.tenant'), $1, $2, $5, $6, $7, $8, $9);

-- name: move
-- These were applied with another set.
UPDATE ksi_agents.definition SET set_name = $2 WHERE name = ANY ($1) AND set_name <> $2;

-- name: remove
-- These are no more; their versions stay.
UPDATE ksi_agents.definition SET removed_at = clock_timestamp() WHERE name = ANY ($1);

-- name: forget
-- Which versions are too old to be kept?
DELETE FROM ksi_agents.definition_version v
 USING ksi_agents.definition d
 WHERE d.name = ANY ($1) AND v.name = d.name AND v.version <= d.version - $2::integer;

-- name: page
-- Which definitions come next, by name?
SELECT d.name, v.version, v.resolved, v.applied_at
  FROM ksi_agents.definition d
  JOIN ksi_agents.definition_version v ON (v.tenant, v.name, v.version)
                                        = (d.tenant, d.name, d.version)
 WHERE d.name LIKE $1 AND d.name > $2 AND d.removed_at IS NULL
 ORDER BY d.name
 LIMIT $3;

-- name: names
-- Which of these names has an applied definition?
SELECT name FROM ksi_agents.definition WHERE name = ANY ($1) AND removed_at IS NULL;

-- name: set_of
-- With which others was this applied?
SELECT set_name FROM ksi_agents.definition WHERE name = $1;

-- name: version
-- What is kept of a version?
SELECT v.version, v.text, v.format, v.given, v.resolved, v.applied_at
  FROM ksi_agents.definition d
  JOIN ksi_agents.definition_version v ON (v.tenant, v.name) = (d.tenant, d.name)
 WHERE d.name = $1
   AND CASE WHEN $2::integer IS NULL THEN v.version = d.version AND d.removed_at IS NULL
            ELSE v.version = $2 END;

-- name: history
-- Which versions are kept, the newest first?
SELECT v.version, v.text, v.resolved, v.applied_at, v.applied_by,
       d.removed_at IS NULL AND v.version = d.version AS is_current
  FROM ksi_agents.definition d
  JOIN ksi_agents.definition_version v ON (v.tenant, v.name) = (d.tenant, d.name)
 WHERE d.name = $1
 ORDER BY v.version DESC
 LIMIT $2;

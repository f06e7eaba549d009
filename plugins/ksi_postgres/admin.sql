-- name: server
-- How is the server, and what uses it?
SELECT current_setting('server_version') AS version,
       pg_postmaster_start_time() AS up_since,
       pg_database_size(current_database()) AS size_bytes,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int
           AS connections,
       current_setting('max_connections')::int AS max_connections;

-- name: sees_all
-- Does row security leave this login alone?
SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user;

-- name: become_owner
-- Becomes who sees every tenant's rows.
SET ROLE ksi_owner;

-- name: tables
-- What takes how much room? Partitions count for the table that they are of. Rows are as many as
-- there were when Postgres last looked, if it has.
SELECT n.nspname AS schema,
       c.relname AS name,
       c.oid::int8 AS id,
       EXISTS (SELECT FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname = 'tenant' AND NOT a.attisdropped)
           AND c.relrowsecurity AS has_tenants,
       CASE WHEN min(part.reltuples) >= 0 THEN sum(part.reltuples)::int8 END AS rows,
       sum(pg_relation_size(part.oid))::int8 AS heap_bytes,
       sum(pg_indexes_size(part.oid))::int8 AS index_bytes,
       sum(coalesce(pg_total_relation_size(nullif(part.reltoastrelid, 0)), 0))::int8 AS toast_bytes,
       sum(pg_total_relation_size(part.oid))::int8 AS total_bytes
  FROM pg_class part
  JOIN pg_class c ON c.oid = coalesce(pg_partition_root(part.oid), part.oid)
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE part.relkind IN ('r', 'm')
   AND n.nspname NOT IN ('pg_catalog', 'information_schema')
   AND n.nspname NOT LIKE 'pg_temp%'
 GROUP BY n.nspname, c.oid, c.relname, c.relrowsecurity
 ORDER BY total_bytes DESC, n.nspname, c.relname;

-- name: tenants_query
-- Writes the query that tells what each tenant has in a table; of a large one it reads $2 percent.
SELECT format('SELECT tenant, (count(*) * %s)::int8 AS rows, '
              '(coalesce(sum(pg_column_size(t.*)), 0) * %s)::int8 AS bytes '
              'FROM %s AS t TABLESAMPLE SYSTEM (%s) GROUP BY tenant',
              100 / $2::numeric, 100 / $2::numeric, $1::int8::oid::regclass, $2::numeric);

-- name: install_amcheck
-- Lends the checking functions to this transaction, which is rolled back.
CREATE SCHEMA ksi_verify;
CREATE EXTENSION IF NOT EXISTS amcheck WITH SCHEMA ksi_verify;

-- name: find_amcheck
-- Puts the checking functions where the queries below find them.
SELECT set_config('search_path', format('%I, pg_catalog, pg_temp', n.nspname), true)
  FROM pg_extension e
  JOIN pg_namespace n ON n.oid = e.extnamespace
 WHERE e.extname = 'amcheck';

-- name: heaps
-- Which tables are there to check, Postgres' own included?
SELECT c.oid::int8 AS id, c.oid::regclass::text AS name
  FROM pg_class c
 WHERE c.relkind IN ('r', 'm', 't')
   AND c.relpersistence <> 't'
   AND c.relam = (SELECT oid FROM pg_am WHERE amname = 'heap')
 ORDER BY c.oid;

-- name: check_heap
-- What is wrong with a table?
SELECT format('block %s: %s', blkno, msg) AS problem
  FROM verify_heapam($1::int8::oid::regclass, check_toast => true) LIMIT 5;

-- name: indexes
-- Which indexes are there to check, and of which kind?
SELECT i.indexrelid::int8 AS id, i.indexrelid::regclass::text AS name, a.amname AS kind
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_am a ON a.oid = c.relam
 WHERE i.indisready AND i.indisvalid
   AND c.relkind = 'i'
   AND c.relpersistence <> 't'
   AND a.amname IN ('btree', 'gin')
 ORDER BY i.indexrelid;

-- name: check_btree
-- Is an index in order, and does it have every row?
SELECT bt_index_check($1::int8::oid::regclass, true);

-- name: check_gin
-- Is an inverted index in order?
SELECT gin_index_check($1::int8::oid::regclass);

-- name: plugins
-- Which plugins have a schema? That of the documented views is nobody's.
SELECT substr(nspname, 5) AS plugin
  FROM pg_namespace
 WHERE nspname ~ '^ksi_' AND nspname <> 'ksi_read'
 ORDER BY 1;

-- name: drop_database
-- Writes the statement that drops a database.
SELECT format('DROP DATABASE IF EXISTS %I', $1::text);

-- name: create_database
-- Writes the statement that makes an empty database.
SELECT format('CREATE DATABASE %I TEMPLATE template0', $1::text);

-- name: rename_database
-- Writes the statement that gives a database another name.
SELECT format('ALTER DATABASE %I RENAME TO %I', $1::text, $2::text);

-- name: has_database
-- Is there a database of that name?
SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1);

-- name: is_there
-- Is this table or index still there?
SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1::oid);

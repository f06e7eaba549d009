-- name: servers
-- Which servers were added, whosever?
SELECT tenant, name, given FROM ksi_mcp.all_servers();

-- name: known
-- What is known of the tools of all servers?
SELECT tenant, server, name, accepted, pending, is_there FROM ksi_mcp.all_known();

-- name: server
-- What is a server that was added?
SELECT ksi_mcp.find_server($1, $2);

-- name: known_of
-- What is known of the tools of one server?
SELECT name, accepted, pending, is_there FROM ksi_mcp.known_of($1, $2);

-- name: add
-- Enters a server.
SELECT ksi_mcp.add_server($1, $2, $3, $4);

-- name: remove
-- Takes a server back.
SELECT ksi_mcp.remove_server($1, $2);

-- name: keep
-- Keeps what is known of a server's tools.
SELECT ksi_mcp.keep_known($1, $2, $3, $4, $5, $6, $7);

-- name: open
-- Begins an upload, or tells how far it is.
SELECT (s).* FROM ksi_memory.open_upload($1, $2, $3, $4, $5, $6, $7, $8) s;

-- name: add
-- Keeps a piece of an upload.
SELECT (s).* FROM ksi_memory.add_piece($1, $2, $3, $4, $5, $6) s;

-- name: pieces
-- What are the next pieces of an upload?
SELECT begins, content FROM ksi_memory.read_pieces($1, $2, $3, $4, $5);

-- name: close
-- What was uploaded is remembered.
SELECT ksi_memory.close_upload($1, $2, $3, $4);

-- name: expire
-- Lets uploads go that nobody goes on with.
SELECT ksi_memory.expire_uploads($1);

-- name: content
-- Which file has that content?
SELECT ksi_memory.find_content($1, $2, $3);

-- name: files
-- What is known of files with these keys?
SELECT * FROM ksi_memory.find_files($1, $2, $3);

-- name: below
-- Which files were loaded from a folder?
SELECT * FROM ksi_memory.list_files($1, $2, $3, $4, $5, $6);

-- name: missing
-- Which of these keys does nothing bear?
SELECT ksi_memory.missing_keys($1, $2, $3);

-- name: end_parts
-- Ends what documents consist of no more.
SELECT ksi_memory.end_parts($1, $2, $3, $4, $5);

-- name: end_rows
-- Ends rows that files have no more.
SELECT ksi_memory.end_rows($1, $2, $3, $4);

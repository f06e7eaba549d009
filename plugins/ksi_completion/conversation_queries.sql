-- name: create
-- Was there no conversation of this id?
SELECT ksi_completion.create_conversation($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: find
-- Which conversation has this id, if the sender may see it?
SELECT c.*, ksi_completion.kind_of($1, c.id) AS kind
  FROM ksi_completion.find_conversation($1, $2, $3, $4, $5) c;

-- name: list
-- Which conversations may the sender see, the one that was used last first?
SELECT c.*, ksi_completion.kind_of($1, c.id) AS kind
  FROM ksi_completion.list_conversations($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) c;

-- name: rename
-- Is there such a conversation, and does it have another title now?
SELECT ksi_completion.rename_conversation($1, $2, $3, $4, $5, $6);

-- name: archive
-- Is there such a conversation, and is it put away now, or taken out?
SELECT ksi_completion.archive_conversation($1, $2, $3, $4, $5, $6);

-- name: delete
-- Could it be deleted, and how many messages went with it?
SELECT verdict, gone FROM ksi_completion.delete_conversation($1, $2, $3, $4, $5);

-- name: read
-- Which messages have these numbers? A row without a number: the conversation is there.
SELECT last_message, number, turn, role, parts, tokens, run, model, created_at
  FROM ksi_completion.read_messages($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: fork
-- Could it be copied up to there?
SELECT ksi_completion.fork_conversation($1, $2, $3, $4, $5, $6, $7, $8);

-- name: import
-- Was the id free, and is the conversation there now?
SELECT ksi_completion.import_conversation($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13,
                                          $14, $15, $16);

-- name: search
-- Which messages have these words, the best match first?
SELECT conversation, title, number, role, snippet, score, created_at
  FROM ksi_completion.search_messages($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: window
-- Which messages can fit, and what stands for those before?
SELECT number, turn, role, parts, tokens, unsummed
  FROM ksi_completion.read_window($1, $2, $3, $4, $5, $6);

-- name: summary
-- What sums up a conversation up to this message?
SELECT ksi_completion.summary_of($1, $2, $3);

-- name: save_summary
-- Keeps what sums up a conversation up to a message.
SELECT ksi_completion.save_summary($1, $2, $3, $4, $5, $6);

-- name: take_lock
-- Does the lock hold, and does a turn still run?
SELECT verdict, held_by, since, until
  FROM ksi_completion.take_lock($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: give_lock_back
-- Was there such a lock?
SELECT ksi_completion.give_lock_back($1, $2, $3, $4, $5, $6, $7);

-- name: list_locks
-- Which locks hold?
SELECT conversation, owner, locked_at, expires_at FROM ksi_completion.list_locks($1, $2, $3, $4, $5);

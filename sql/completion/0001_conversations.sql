-- Conversations, their messages and their turns.
--
-- Messages have numbers of their own within a conversation, given under its row's lock, so that
-- two never tie. A turn is one piece of work in it: what a user said, and all that came of that.

SET LOCAL search_path = ksi_completion, public, pg_temp;

CREATE TABLE conversation (
    tenant text NOT NULL,
    id text NOT NULL,
    title text NOT NULL DEFAULT '',
    model text,
    agent text,
    owner text, -- the user it belongs to; none: the daemon's owner
    system text,
    tools text[],
    settings text, -- JSON of ksi_models.events.ModelSettings
    last_message bigint NOT NULL DEFAULT 0,
    last_turn bigint NOT NULL DEFAULT 0,
    messages bigint NOT NULL DEFAULT 0,
    forked_from text,
    forked_at bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    archived_at timestamptz,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX conversation_used ON conversation (tenant, updated_at DESC, id);
SELECT ksi_postgres.protect('conversation');

CREATE TABLE turn (
    tenant text NOT NULL,
    conversation text NOT NULL,
    number bigint NOT NULL,
    run text NOT NULL,
    request_id text NOT NULL,
    status text NOT NULL DEFAULT 'waiting',
    agent text,
    model text,
    digest text NOT NULL, -- of what was asked, to know the same request again
    options text NOT NULL, -- JSON of what was asked, without its messages
    context text NOT NULL, -- JSON of the ksi_daemon.protocol.Context that it runs in
    has_output boolean NOT NULL DEFAULT false, -- whether its text is to be read as JSON
    made_conversation boolean NOT NULL DEFAULT false,
    parent text, -- the run that asked for it
    served text, -- the model that answered
    depth integer NOT NULL DEFAULT 0, -- how many turns wait for it, one for another
    first_message bigint, -- none until it begins
    opened integer NOT NULL DEFAULT 0, -- the step that was begun last
    attempt integer NOT NULL DEFAULT 1, -- how often its stream was begun anew
    units bigint NOT NULL DEFAULT 0, -- how long its stream is, up to the last message
    marks text[] NOT NULL DEFAULT '{}', -- digests of its tool calls and texts
    stopping text, -- why it is to be cancelled
    waits_for text,
    waits_call text, -- the tool call that a person has to do with
    error text, -- JSON of ksi_daemon.protocol.wire.ErrorBody
    steps integer NOT NULL DEFAULT 0,
    tool_calls integer NOT NULL DEFAULT 0,
    usage text, -- JSON of ksi_models.events.Usage
    cost_usd numeric(18, 9),
    has_unknown_cost boolean NOT NULL DEFAULT false,
    paused_at timestamptz,
    paused_s double precision NOT NULL DEFAULT 0,
    accepted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    ended_at timestamptz,
    PRIMARY KEY (tenant, conversation, number),
    FOREIGN KEY (tenant, conversation) REFERENCES conversation ON DELETE CASCADE,
    UNIQUE (run),
    UNIQUE (request_id, tenant),
    CHECK (status IN ('waiting', 'running', 'paused', 'succeeded', 'failed', 'cancelled'))
);
CREATE INDEX turn_open ON turn (tenant, conversation, number)
    WHERE status IN ('waiting', 'running', 'paused');
CREATE INDEX turn_accepted ON turn (tenant, accepted_at DESC, run);
SELECT ksi_postgres.protect('turn');

CREATE TABLE message (
    tenant text NOT NULL,
    conversation text NOT NULL,
    number bigint NOT NULL,
    turn bigint NOT NULL,
    step integer, -- which model call of the turn it came of, or follows; none: what a user said
    place integer NOT NULL DEFAULT 0, -- 0: the model's; n: what came of its calls from the nth on
    role text NOT NULL,
    parts text NOT NULL, -- JSON of tuple[ksi_models.events.Part, ...]
    body text NOT NULL DEFAULT '', -- its text, to be searched
    tokens integer NOT NULL,
    run text,
    model text,
    usage text, -- JSON of ksi_models.events.Usage
    cost_usd numeric(18, 9),
    units bigint NOT NULL DEFAULT 0, -- how long it is in its turn's stream
    attempt integer NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, conversation, number),
    FOREIGN KEY (tenant, conversation) REFERENCES conversation ON DELETE CASCADE,
    CHECK (role IN ('system', 'user', 'assistant', 'tool'))
);
CREATE UNIQUE INDEX message_step ON message (run, step, place) WHERE step IS NOT NULL;
CREATE INDEX message_words ON message USING gin (to_tsvector('simple', body));
SELECT ksi_postgres.protect('message');

-- What was said and has no number yet: it becomes a message when its turn begins, or with the next
-- step of the turn at work. One that bears a request's id is kept, without its text, to be known.
CREATE TABLE injection (
    tenant text NOT NULL,
    conversation text NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    turn bigint NOT NULL,
    request_id text,
    role text NOT NULL DEFAULT 'user',
    parts text NOT NULL,
    body text NOT NULL,
    tokens integer NOT NULL,
    run text NOT NULL,
    message bigint, -- the number that it got
    PRIMARY KEY (tenant, conversation, id),
    FOREIGN KEY (tenant, conversation) REFERENCES conversation ON DELETE CASCADE,
    UNIQUE (tenant, request_id)
);
CREATE INDEX injection_waiting ON injection (tenant, conversation, turn, id) WHERE message IS NULL;
SELECT ksi_postgres.protect('injection');

-- The sum of what is left out of a model's window: the messages up to a number, in fewer words.
CREATE TABLE summary (
    tenant text NOT NULL,
    conversation text NOT NULL,
    up_to bigint NOT NULL,
    body text NOT NULL,
    tokens integer NOT NULL,
    model text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, conversation, up_to),
    FOREIGN KEY (tenant, conversation) REFERENCES conversation ON DELETE CASCADE
);
SELECT ksi_postgres.protect('summary');

CREATE TABLE lock (
    tenant text NOT NULL,
    conversation text NOT NULL,
    id text NOT NULL,
    owner text NOT NULL,
    locked_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (tenant, conversation)
);
SELECT ksi_postgres.protect('lock');

SELECT ksi_postgres.publish(
    'conversation', 'conversations',
    ARRAY['id', 'title', 'model', 'agent', 'owner', 'messages', 'last_turn', 'forked_from',
          'created_at', 'updated_at', 'archived_at'],
    'conversations, without their messages');
SELECT ksi_postgres.publish(
    'message', 'messages',
    ARRAY['conversation', 'number', 'turn', 'role', 'body', 'tokens', 'model', 'created_at'],
    'what was said in conversations, as text');
SELECT ksi_postgres.publish(
    'turn', 'turns',
    ARRAY['conversation', 'number', 'run', 'status', 'agent', 'model', 'steps', 'tool_calls',
          'cost_usd', 'accepted_at', 'started_at', 'ended_at'],
    'turns of conversations, and how they ended');

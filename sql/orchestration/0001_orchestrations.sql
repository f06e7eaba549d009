-- Orchestrations: what was agreed, the turns that are to be had, and what was said.
--
-- Whatever changes an orchestration holds the lock of its row, so that what was said has numbers
-- without gaps, and nothing is said in one that has ended. A turn is written down before it is
-- begun: who takes the work over has the same ones, under the same request ids.

SET LOCAL search_path = ksi_orchestration, public, pg_temp;

CREATE TABLE orchestration (
    tenant text NOT NULL,
    id text NOT NULL,
    owner text, -- the user it belongs to; none: the daemon's owner
    digest text NOT NULL, -- of what was asked, to know the same request again
    pattern text NOT NULL,
    topic text NOT NULL,
    score text NOT NULL, -- JSON of ksi_orchestration.play.Score
    limits text NOT NULL, -- JSON of ksi_agents.events.RunLimits
    context text NOT NULL, -- JSON of the ksi_daemon.protocol.Context in which it was started
    run text NOT NULL, -- of its workflow
    is_begun boolean NOT NULL DEFAULT false, -- whether the workflow knows of it
    status text NOT NULL DEFAULT 'running',
    stage text NOT NULL DEFAULT '',
    round integer NOT NULL DEFAULT 0,
    turns integer NOT NULL DEFAULT 0,
    tokens bigint NOT NULL DEFAULT 0,
    cost_usd double precision NOT NULL DEFAULT 0,
    is_cost_known boolean NOT NULL DEFAULT true,
    reason text NOT NULL DEFAULT '',
    result text,
    error text, -- JSON of ksi_daemon.protocol.wire.ErrorBody
    last_number integer NOT NULL DEFAULT 0, -- of what was said
    worked_s double precision NOT NULL DEFAULT 0, -- up to the last pause
    works_since timestamptz DEFAULT clock_timestamp(), -- none while it is paused, or has ended
    stage_began_s double precision NOT NULL DEFAULT 0,
    seen text[] NOT NULL DEFAULT '{}', -- names of events since the stage began
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    looked_at timestamptz NOT NULL DEFAULT clock_timestamp(), -- when a sweep last looked after it
    PRIMARY KEY (tenant, id)
);
CREATE INDEX orchestration_newest ON orchestration (tenant, created_at DESC, id);
CREATE INDEX orchestration_going ON orchestration (looked_at) WHERE ended_at IS NULL;
CREATE INDEX orchestration_living ON orchestration (tenant) WHERE ended_at IS NULL;
CREATE INDEX orchestration_ended ON orchestration (ended_at) WHERE ended_at IS NOT NULL;
CREATE UNIQUE INDEX orchestration_of_run ON orchestration (run);
SELECT ksi_postgres.protect('orchestration');

CREATE TABLE move (
    tenant text NOT NULL,
    orchestration text NOT NULL,
    key text COLLATE "C" NOT NULL,
    place integer NOT NULL, -- among those that are had together
    stage text NOT NULL,
    round integer NOT NULL,
    member text NOT NULL,
    agent text NOT NULL,
    item text,
    asked text, -- JSON of ksi_orchestration.store.Asked; none once it is finished
    run text, -- of the turn, once that is known
    is_finished boolean NOT NULL DEFAULT false,
    began_at timestamptz,
    PRIMARY KEY (tenant, orchestration, key),
    FOREIGN KEY (tenant, orchestration) REFERENCES orchestration ON DELETE CASCADE
);
CREATE INDEX move_open ON move (tenant, orchestration, place) WHERE NOT is_finished;
COMMENT ON TABLE move IS 'the turns of orchestrations, written down before they are begun';
SELECT ksi_postgres.protect('move');

CREATE TABLE utterance (
    tenant text NOT NULL,
    orchestration text NOT NULL,
    number integer NOT NULL,
    key text COLLATE "C", -- of the move that it came of
    message_id text, -- of a person's message
    stage text NOT NULL,
    round integer NOT NULL,
    member text NOT NULL,
    agent text,
    hearers text[] NOT NULL,
    text text NOT NULL,
    item text,
    run text,
    model text,
    tokens bigint NOT NULL DEFAULT 0,
    cost_usd double precision,
    error text, -- JSON of ksi_daemon.protocol.wire.ErrorBody
    after integer NOT NULL DEFAULT 0, -- what had been said when it was asked for
    said_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, orchestration, number),
    FOREIGN KEY (tenant, orchestration) REFERENCES orchestration ON DELETE CASCADE
);
CREATE UNIQUE INDEX utterance_of_move ON utterance (tenant, orchestration, key)
    WHERE key IS NOT NULL;
CREATE UNIQUE INDEX utterance_of_message ON utterance (tenant, orchestration, message_id)
    WHERE message_id IS NOT NULL;
SELECT ksi_postgres.protect('utterance');

-- Those that go on and were not looked after for a while, each for one sweep alone.
CREATE FUNCTION due(after interval, most integer)
RETURNS TABLE (tenant text, id text, run text, is_begun boolean, context text)
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ksi_orchestration, pg_catalog, pg_temp AS $$
    UPDATE orchestration o SET looked_at = clock_timestamp()
      FROM (SELECT d.tenant, d.id FROM orchestration d
             WHERE d.ended_at IS NULL AND d.looked_at < clock_timestamp() - after
             ORDER BY d.looked_at LIMIT most FOR UPDATE SKIP LOCKED) d
     WHERE (o.tenant, o.id) = (d.tenant, d.id)
    RETURNING o.tenant, o.id, o.run, o.is_begun, o.context
$$;
COMMENT ON FUNCTION due IS 'takes orchestrations that somebody is to look after';

CREATE FUNCTION forget_ended(after interval, most integer) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = ksi_orchestration, pg_catalog, pg_temp AS $$
    WITH gone AS (
        DELETE FROM orchestration o
         WHERE (o.tenant, o.id) IN (
            SELECT d.tenant, d.id FROM orchestration d
             WHERE d.ended_at < clock_timestamp() - after LIMIT most)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
COMMENT ON FUNCTION forget_ended IS 'deletes orchestrations that ended long ago; says how many';

SELECT ksi_postgres.publish(
    'orchestration', 'orchestrations',
    ARRAY['id', 'pattern', 'topic', 'status', 'stage', 'round', 'turns', 'tokens', 'cost_usd',
          'reason', 'result', 'created_at', 'ended_at'],
    'what several agents have worked on together');
SELECT ksi_postgres.publish(
    'utterance', 'utterances',
    ARRAY['orchestration', 'number', 'stage', 'round', 'member', 'agent', 'text', 'item', 'model',
          'tokens', 'cost_usd', 'said_at'],
    'what was said in orchestrations');

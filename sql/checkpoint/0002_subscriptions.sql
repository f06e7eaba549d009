-- Who reads the journal under a name, and how far that has come: a cursor, moved on by what the
-- reader acknowledges. The events themselves are the journal's, and no copy of them is made.

CREATE TABLE subscription (
    tenant text NOT NULL,
    name text NOT NULL,
    pattern text NOT NULL,
    on_behalf_of text,
    agent text,
    conversation text,
    run text,
    position bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    acknowledged_at timestamptz,
    PRIMARY KEY (tenant, name)
);
SELECT ksi_postgres.protect('subscription');

CREATE FUNCTION find_subscription(of_tenant text, named text) RETURNS SETOF subscription
LANGUAGE sql STABLE SECURITY DEFINER ROWS 1
SET search_path = ksi_checkpoint, pg_catalog, pg_temp AS $$
    SELECT * FROM subscription s WHERE (s.tenant, s.name) = (of_tenant, named)
$$;
COMMENT ON FUNCTION find_subscription IS 'a tenant''s subscription of that name';

-- One that is there already is left as it is: whoever comes again goes on where it was.
CREATE FUNCTION create_subscription(
    of_tenant text, named text, of_pattern text, of_user text, of_agent text,
    of_conversation text, of_run text, at_position bigint, at_most integer
) RETURNS SETOF subscription
LANGUAGE plpgsql SECURITY DEFINER ROWS 1
SET search_path = ksi_checkpoint, pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM find_subscription(of_tenant, named)) THEN
        -- Two that count at once would both find room for one more.
        PERFORM pg_advisory_xact_lock(hashtextextended('ksi_checkpoint ' || of_tenant, 0));
        IF (SELECT count(*) FROM subscription s WHERE s.tenant = of_tenant) >= at_most THEN
            RETURN;
        END IF;
        INSERT INTO subscription (tenant, name, pattern, on_behalf_of, agent, conversation, run,
                                  position)
        VALUES (of_tenant, named, of_pattern, of_user, of_agent, of_conversation, of_run,
                at_position)
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN QUERY SELECT * FROM find_subscription(of_tenant, named);
END $$;
COMMENT ON FUNCTION create_subscription IS 'makes a subscription or finds it; none: too many';

CREATE FUNCTION list_subscriptions(of_tenant text) RETURNS SETOF subscription
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ksi_checkpoint, pg_catalog, pg_temp AS $$
    SELECT * FROM subscription s WHERE s.tenant = of_tenant ORDER BY s.name
$$;
COMMENT ON FUNCTION list_subscriptions IS 'a tenant''s subscriptions';

-- The cursor never goes back: an acknowledgement that comes late or twice changes nothing.
CREATE FUNCTION move_subscription(
    of_tenant text, named text, to_position bigint, is_acknowledged boolean
) RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_checkpoint, pg_catalog, pg_temp AS $$
    UPDATE subscription s
       SET position = greatest(s.position, to_position),
           acknowledged_at = CASE WHEN is_acknowledged THEN now() ELSE s.acknowledged_at END
     WHERE (s.tenant, s.name) = (of_tenant, named)
    RETURNING s.position
$$;
COMMENT ON FUNCTION move_subscription IS 'moves a cursor on; where does it stand now?';

CREATE FUNCTION delete_subscription(of_tenant text, named text) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_checkpoint, pg_catalog, pg_temp AS $$
    WITH gone AS (
        DELETE FROM subscription s WHERE (s.tenant, s.name) = (of_tenant, named) RETURNING 1
    )
    SELECT EXISTS (SELECT FROM gone)
$$;
COMMENT ON FUNCTION delete_subscription IS 'ends a subscription; was there one?';

SELECT ksi_postgres.publish(
    'subscription', 'subscriptions',
    ARRAY['name', 'pattern', 'on_behalf_of', 'agent', 'conversation', 'run', 'position',
          'created_at', 'acknowledged_at'],
    'durable subscriptions: what each wants, and up to where it has acknowledged');

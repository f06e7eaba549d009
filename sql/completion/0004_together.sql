-- What ends together with turns and conversations in the ledger of tools: in one transaction, so that
-- nothing is ever half done.

SET LOCAL search_path = ksi_completion, public, pg_temp;

-- Ends a turn, and begins the next of the conversation. What was said to it stays; what it has asked
-- a person is dropped with it.
CREATE OR REPLACE FUNCTION end_turn(
    of_tenant text, of_run text, of_status text, of_error text,
    OUT next_run text, OUT next_context text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
DECLARE
    ended turn;
    next_open bigint;
BEGIN
    UPDATE turn t
       SET status = of_status, error = of_error, ended_at = clock_timestamp(), waits_for = NULL,
           waits_call = NULL, paused_at = NULL, marks = '{}'
     WHERE t.run = of_run AND t.tenant IS NOT DISTINCT FROM of_tenant
    RETURNING * INTO ended;
    IF of_status <> 'succeeded' THEN
        PERFORM ksi_tools.drop_questions(of_tenant, of_run);
    END IF;
    SELECT min(t.number) INTO next_open FROM turn t
     WHERE (t.tenant, t.conversation) = (of_tenant, ended.conversation)
       AND t.status IN ('waiting', 'running', 'paused');
    PERFORM take_said(of_tenant, ended.conversation, coalesce(next_open - 1, 9223372036854775807));
    UPDATE conversation c SET updated_at = clock_timestamp()
     WHERE (c.tenant, c.id) = (of_tenant, ended.conversation);
    SELECT n.next_run, n.next_context INTO next_run, next_context
      FROM claim_next(of_tenant, ended.conversation) n;
END $$;

-- A call that was on its way as its turn was cancelled may have asked after the turn's end.
CREATE FUNCTION drop_questions() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
    SELECT ksi_tools.drop_questions(t.tenant, t.run)
      FROM ksi_tools.call c JOIN turn t ON (t.tenant, t.run) = (c.tenant, c.run)
     WHERE c.status = 'waiting' AND t.status IN ('failed', 'cancelled')
$$;
COMMENT ON FUNCTION drop_questions IS 'drops what turns that have ended had asked, whosever';

-- What could be called in it goes with it: who makes one of that name next gets nothing of it.
CREATE OR REPLACE FUNCTION delete_conversation(
    of_tenant text, of_user text, of_agent text, in_conversation text, of_conversation text,
    OUT verdict text, OUT gone bigint
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ksi_completion, pg_catalog, pg_temp AS $$
BEGIN
    SELECT c.messages INTO gone FROM conversation c
     WHERE (c.tenant, c.id) = (of_tenant, of_conversation)
       AND is_visible(c.id, c.owner, c.agent, of_user, of_agent, in_conversation)
       FOR UPDATE;
    IF NOT FOUND THEN
        verdict := 'not_found';
    ELSIF EXISTS (SELECT FROM turn t
                   WHERE (t.tenant, t.conversation) = (of_tenant, of_conversation)
                     AND t.status IN ('waiting', 'running', 'paused')) THEN
        verdict := 'at_work';
    ELSIF EXISTS (SELECT FROM lock l
                   WHERE (l.tenant, l.conversation) = (of_tenant, of_conversation)
                     AND l.expires_at > clock_timestamp()) THEN
        verdict := 'locked';
    ELSE
        verdict := 'ok';
        DELETE FROM lock l WHERE (l.tenant, l.conversation) = (of_tenant, of_conversation);
        DELETE FROM conversation c WHERE (c.tenant, c.id) = (of_tenant, of_conversation);
        PERFORM ksi_tools.forget_permission(of_tenant, 'conversation:' || of_conversation);
    END IF;
END $$;

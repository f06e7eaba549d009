-- Questions to a person that nobody waits for any more.

SET LOCAL search_path = ksi_tools, public, pg_temp;

CREATE FUNCTION drop_questions(of_tenant text, of_run text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ksi_tools, pg_catalog, pg_temp AS $$
    UPDATE call c
       SET status = 'dropped', content = 'The turn ended before anybody had answered.',
           why = 'its run ended before anybody had answered', ended_at = clock_timestamp()
     WHERE (c.tenant, c.run, c.status) = (of_tenant, of_run, 'waiting')
$$;
COMMENT ON FUNCTION drop_questions IS 'drops what a run has asked a person, since the run has ended';

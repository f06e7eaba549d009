-- name: spawn
-- Is there a new agent?
SELECT f.verdict, (f.a).* FROM ksi_agents.spawn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
    $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24) f;

-- name: begin_start
-- Is the agent to be started still?
SELECT * FROM ksi_agents.begin_start($1, $2, $3);

-- name: end_start
-- How does the agent go on, and which message is it given?
SELECT (f.a).*, (f.m).number AS mail_number, (f.m).message_id, (f.m).prompt, (f.m).context,
       (f.m).sender
  FROM ksi_agents.end_start($1, $2, $3, $4, $5, $6) f;

-- name: post
-- Is the message kept, and is the agent given it now?
SELECT f.verdict, (f.a).*, (f.m).number AS mail_number, (f.m).message_id, (f.m).prompt,
       (f.m).context, (f.m).sender, (f.m).status AS mail_status, (f.m).run AS mail_run,
       (f.m).error
  FROM ksi_agents.post($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) f;

-- name: end_mail
-- Is the message ended, who waits for it elsewhere, and which one is given next?
SELECT f.verdict, f.of_asker, (f.a).*, (f.m).number AS mail_number, (f.m).message_id, (f.m).prompt,
       (f.m).context, (f.m).sender
  FROM ksi_agents.end_mail($1, $2, $3, $4, $5, $6, $7, $8) f;

-- name: restart
-- How is the agent, now that it is to start anew?
SELECT * FROM ksi_agents.restart($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: chosen
-- Which agents are meant?
SELECT * FROM ksi_agents.chosen($1, $2, $3, $4, $5, $6, $7, $8);

-- name: pause
-- How are the agents that take no more messages?
SELECT * FROM ksi_agents.pause($1, $2);

-- name: resume
-- How is the agent that goes on, and which message is it given?
SELECT (f.a).*, (f.m).number AS mail_number, (f.m).message_id, (f.m).prompt, (f.m).context,
       (f.m).sender
  FROM ksi_agents.resume($1, $2) f;

-- name: terminate
-- How are the agents that are ended?
SELECT * FROM ksi_agents.terminate($1, $2, $3);

-- name: due
-- Which agents is somebody to look after?
SELECT (f.a).*, (f.m).number AS mail_number, (f.m).message_id, (f.m).prompt, (f.m).context,
       (f.m).sender
  FROM ksi_agents.due($1, $2) f;

-- name: awaiting_events
-- Which agents does something wake?
SELECT * FROM ksi_agents.awaiting_events();

-- name: note_runs
-- Which runs are these messages' turns?
SELECT ksi_agents.note_runs($1, $2, $3, $4);

-- name: find
-- Which agent has that name?
SELECT * FROM ksi_agents.find_agent($1, $2, $3);

-- name: blueprint
-- What do agents run by?
SELECT ksi_agents.find_blueprint($1, $2);

-- name: list
-- Which agents are there?
SELECT * FROM ksi_agents.list_agents($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: list_mail
-- What is in a mailbox?
SELECT * FROM ksi_agents.list_mail($1, $2, $3);

-- name: find_mail
-- Which message is that?
SELECT * FROM ksi_agents.find_mail($1, $2, $3);

-- name: list_entries
-- What happened to an agent?
SELECT * FROM ksi_agents.list_entries($1, $2, $3, $4);

-- name: subscribe
-- Which channels is the agent subscribed to now?
SELECT ksi_agents.subscribe($1, $2, $3, $4);

-- name: channels
-- Which channels is the agent subscribed to?
SELECT ksi_agents.channels_of($1, $2);

-- name: publish
-- Who gets what is said on a channel, and who is given it now?
SELECT f.verdict, f.name AS to_name, (f.a).*, (f.m).number AS mail_number, (f.m).message_id,
       (f.m).prompt, (f.m).context, (f.m).sender
  FROM ksi_agents.publish($1, $2, $3, $4, $5, $6, $7, $8) f;

-- name: forget_blueprints
-- Drops what nobody runs by.
SELECT ksi_agents.forget_blueprints($1);

-- name: forget_ended
-- Drops agents that have ended long ago.
SELECT ksi_agents.forget_ended($1, $2);

-- name: end_wait
-- Notes that a message's sender waits no more.
SELECT ksi_agents.end_wait($1, $2, $3);

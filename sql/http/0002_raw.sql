-- What came with an event from outside, as it came: apart from the turn that it began.

SET LOCAL search_path = ksi_http, public, pg_temp;

CREATE TABLE raw (
    tenant text NOT NULL,
    run text COLLATE "C" NOT NULL,
    raw text NOT NULL, -- JSON
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, run)
);
CREATE INDEX raw_age ON raw (tenant, received_at);
SELECT ksi_postgres.protect('raw');

-- What is remembered: every thing in versions, each with its source, its place in time and its text.
--
-- All tables that a person can name (resources, entities, moments, facts …) are kinds of one table,
-- so that one search, one history and one way to forget serve them all. An item's id is made of its
-- kind, its key and its owner; nothing is overwritten: a newer version supersedes the one before,
-- whose validity ends there. What is forgotten is deleted in all versions, and leaves a tombstone
-- without content.

SET LOCAL search_path = ksi_memory, public, pg_temp;

-- Words are stemmed as English ones, after accents are taken away; those of other languages are
-- found all the same, as they are written. What is plain ASCII has no accents to be looked for.
CREATE TEXT SEARCH CONFIGURATION words (COPY = english);
ALTER TEXT SEARCH CONFIGURATION words
    ALTER MAPPING FOR hword, hword_part, word WITH unaccent, english_stem;

-- A key or a name as it is compared: without case, accents and outer blanks. It is called for each
-- row that is written, so it names all it needs in full: a search_path of its own takes longer than
-- what it does.
CREATE FUNCTION folded(given text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE STRICT AS $$
BEGIN
    RETURN pg_catalog.btrim(pg_catalog.lower(
        public.unaccent('public.unaccent'::pg_catalog.regdictionary, given)));
END $$;

CREATE TABLE item (
    tenant text NOT NULL,
    id uuid NOT NULL,
    version integer NOT NULL,
    kind text NOT NULL, -- the table that a person names: 'resources', 'moments' …
    owner text NOT NULL DEFAULT '', -- the user it belongs to; '': everybody in the tenant
    key text NOT NULL, -- as it was given
    name text NOT NULL, -- the key, folded
    category text,
    title text NOT NULL DEFAULT '',
    body text NOT NULL DEFAULT '', -- what is searched, with the title
    attributes jsonb NOT NULL DEFAULT '{}',
    persons text[] NOT NULL DEFAULT '{}', -- folded names: who says it, or whom it is about
    session text, -- what it is a part of: a document's key, a conversation's id
    place integer, -- where in that, from 0 on
    starts_at timestamptz, -- when it happened
    ends_at timestamptz,
    days datemultirange NOT NULL DEFAULT '{}', -- the days that its text speaks of
    hash bytea NOT NULL, -- of all that was given, to know the same again
    text_hash bytea NOT NULL, -- of what is embedded
    words integer NOT NULL DEFAULT 0,
    -- Its own, with the label A; its neighbours' are joined to them when it is searched.
    lexemes tsvector NOT NULL DEFAULT '',
    origin text NOT NULL DEFAULT 'given', -- who had it remembered
    is_pinned boolean NOT NULL DEFAULT false, -- neither decays nor is merged or tidied away
    valid_from timestamptz NOT NULL DEFAULT now(),
    valid_to timestamptz, -- none: it holds
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, id, version),
    CHECK (origin IN ('given', 'said', 'derived')), -- 'derived': by rules, by a model, by dreaming
    CHECK (valid_to IS NULL OR valid_to >= valid_from),
    CHECK (ends_at IS NULL OR ends_at >= starts_at)
);
CREATE UNIQUE INDEX item_current ON item (tenant, id) WHERE valid_to IS NULL;
CREATE INDEX item_name ON item (tenant, name, kind, owner);
CREATE INDEX item_session ON item (tenant, session, kind, place) WHERE session IS NOT NULL;
CREATE INDEX item_kind ON item (tenant, kind, name, id) WHERE valid_to IS NULL;
SELECT ksi_postgres.protect('item');

-- Where a version comes from: a message (or a whole conversation), another item's version, a run;
-- or, where none of these is set, whoever `told` names.
CREATE TABLE source (
    tenant text NOT NULL,
    item uuid NOT NULL,
    version integer NOT NULL,
    number integer NOT NULL,
    conversation text,
    message bigint,
    of_item uuid,
    of_version integer,
    run text,
    told text NOT NULL DEFAULT '',
    PRIMARY KEY (tenant, item, version, number),
    FOREIGN KEY (tenant, item, version) REFERENCES item ON DELETE CASCADE,
    FOREIGN KEY (tenant, conversation, message) REFERENCES ksi_completion.message ON DELETE CASCADE,
    FOREIGN KEY (tenant, of_item, of_version) REFERENCES item ON DELETE CASCADE,
    CHECK (message IS NULL OR conversation IS NOT NULL),
    CHECK ((of_item IS NULL) = (of_version IS NULL))
);
CREATE INDEX source_message ON source (tenant, conversation, message) WHERE message IS NOT NULL;
CREATE INDEX source_item ON source (tenant, of_item, of_version) WHERE of_item IS NOT NULL;
SELECT ksi_postgres.protect('source');

-- What a version says of how things hang together; both ends are keys, folded.
CREATE TABLE edge (
    tenant text NOT NULL,
    item uuid NOT NULL,
    version integer NOT NULL,
    number integer NOT NULL,
    from_name text NOT NULL,
    relation text NOT NULL,
    to_name text NOT NULL,
    weight real NOT NULL DEFAULT 1,
    PRIMARY KEY (tenant, item, version, number),
    FOREIGN KEY (tenant, item, version) REFERENCES item ON DELETE CASCADE
);
CREATE INDEX edge_out ON edge (tenant, from_name, relation);
CREATE INDEX edge_in ON edge (tenant, to_name, relation);
SELECT ksi_postgres.protect('edge');

-- What was forgotten, so that no machine remembers it again: no content, only what to know it by.
CREATE TABLE tombstone (
    tenant text NOT NULL,
    id uuid NOT NULL,
    kind text NOT NULL,
    text_hash bytea NOT NULL,
    forgotten_at timestamptz NOT NULL DEFAULT now(),
    reason text NOT NULL DEFAULT '',
    PRIMARY KEY (tenant, id, text_hash)
);
CREATE INDEX tombstone_text ON tombstone (tenant, text_hash);
SELECT ksi_postgres.protect('tombstone');

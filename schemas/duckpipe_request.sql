-- What others ask of a pipeline's running `sync`: `validate` to let the lake show one position of the source exactly, `tables add` and
-- `remove` to read its configuration again. At most one
-- row per pipeline. It is void once changed_at is longer ago than patience_ms. A catalog in a DuckDB file does not use it.
CREATE TABLE duckpipe_request (
    pipeline VARCHAR PRIMARY KEY,
    -- A UUID.
    id VARCHAR NOT NULL,
    -- hold -> holding -> flush -> reached, or stand -> standing in the place of the last two; or failed from anywhere.
    -- reload -> reloaded is the configuration's.
    -- validate writes hold, flush and stand, sync the others. A row that is standing is renewed by validate.
    state VARCHAR NOT NULL,
    -- The position, from flush on.
    lsn VARCHAR,
    -- The lake's snapshot that shows it, once reached.
    snapshot_id BIGINT,
    -- Why it failed.
    message VARCHAR,
    patience_ms BIGINT NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL
);

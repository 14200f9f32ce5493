-- One row per pipeline. Every write of a pipeline updates its row WHERE epoch = its own, and must hit it.
CREATE TABLE duckpipe_pipeline (
    name VARCHAR PRIMARY KEY,
    -- The source cluster, as IDENTIFY_SYSTEM names it, and the timeline that lsn lies on.
    system_id VARCHAR NOT NULL,
    timeline BIGINT NOT NULL,
    slot VARCHAR NOT NULL,
    publication VARCHAR NOT NULL,
    -- Whether duckpipe made the publication, and so may drop it.
    owns_publication BOOLEAN NOT NULL,
    -- creating, snapshot or streaming.
    state VARCHAR NOT NULL,
    -- Raised by each process that takes the pipeline over.
    epoch BIGINT NOT NULL,
    -- The applied position, an end position such as 16/B374D848. Its streaming tables show exactly this position.
    lsn VARCHAR,
    updated_at TIMESTAMPTZ NOT NULL
);

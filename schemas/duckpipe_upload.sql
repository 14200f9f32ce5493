-- Files whose upload was begun and that no commit has registered yet. What a dead epoch leaves here is removed from the store.
CREATE TABLE duckpipe_upload (
    -- Relative to the data path.
    path VARCHAR PRIMARY KEY,
    pipeline VARCHAR NOT NULL,
    epoch BIGINT NOT NULL,
    started_at TIMESTAMPTZ NOT NULL
);

-- Files whose upload was begun and that no commit has registered yet. What a dead epoch leaves here is removed from the store.
CREATE TABLE duckpipe_upload (
    -- Relative to the data path.
    path VARCHAR PRIMARY KEY,
    -- Who uploads: a pipeline, or a run of maintenance as <pipeline>:compact:<uuid>, which no pipeline's name can be.
    pipeline VARCHAR NOT NULL,
    epoch BIGINT NOT NULL,
    -- Of maintenance, which has no epoch: when its run last showed that it lives.
    started_at TIMESTAMPTZ NOT NULL
);

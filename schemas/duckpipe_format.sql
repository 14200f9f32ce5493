-- The version of duckpipe's own tables in a catalog, and the catalog's identity. One row.
-- Its lock is the lake-wide commit lock of a Postgres catalog.
CREATE TABLE duckpipe_format (
    version BIGINT NOT NULL,
    -- A UUID. The data path's marker repeats it, so that two catalogs can't share a data path.
    catalog_id VARCHAR NOT NULL,
    created_at TIMESTAMPTZ NOT NULL
);

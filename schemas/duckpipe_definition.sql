-- How the source defines a table, as of the position that the lake shows: what the WAL from there on is held against.
CREATE TABLE duckpipe_definition (
    pipeline VARCHAR NOT NULL,
    -- DuckLake's table_id.
    table_id BIGINT NOT NULL,
    -- JSON: its oid, name, columns (attnum, name, type, what older rows show), key, replica identity and relfilenode.
    definition VARCHAR NOT NULL,
    PRIMARY KEY (pipeline, table_id)
);

-- The files of a range of a table that a copy has read, and not yet registered: a copy that is begun again goes on with them.
-- A file is recorded here or in duckpipe_upload, never in both.
CREATE TABLE duckpipe_part (
    -- The file's path below the data path.
    path VARCHAR PRIMARY KEY,
    pipeline VARCHAR NOT NULL,
    -- DuckLake's table_id.
    table_id BIGINT NOT NULL,
    -- pg_class.oid and relfilenode of the table, or of its partition, in which the rows lie.
    relation BIGINT NOT NULL,
    file_node BIGINT NOT NULL,
    -- The pages that were read: from the first one up to but without the end, which is 4294967295 where the range has none.
    first_page BIGINT NOT NULL,
    end_page BIGINT NOT NULL,
    -- The xmin of the snapshot at which they were read: transactions before it had ended.
    snapshot_xmin BIGINT NOT NULL,
    -- JSON: of which source, and of which columns, key and filter.
    definition VARCHAR NOT NULL,
    -- The file's place among those of its range: they hold the rows in the order in which they lie.
    place BIGINT NOT NULL,
    -- Values set to NULL in the range because the lake's type can't hold them.
    nulled BIGINT NOT NULL,
    -- JSON: its rows, bytes and statistics.
    file VARCHAR NOT NULL
);

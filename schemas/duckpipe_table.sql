-- One row per table that a pipeline copies.
CREATE TABLE duckpipe_table (
    pipeline VARCHAR NOT NULL,
    source_oid BIGINT NOT NULL,
    source_schema VARCHAR NOT NULL,
    source_table VARCHAR NOT NULL,
    target_schema VARCHAR NOT NULL,
    target_table VARCHAR NOT NULL,
    -- DuckLake's table_id. NULL while the lake's table is being made.
    table_id BIGINT,
    -- Counts how often the lake's table was made anew.
    generation BIGINT NOT NULL,
    -- pending, snapshot, catchup, streaming, errored, dropped or paused.
    state VARCHAR NOT NULL,
    -- The table's own position where its state is not streaming; a streaming table is at its pipeline's.
    lsn VARCHAR,
    -- The slot that brings the table level with the others, where that is not its pipeline's. Written before the slot is made.
    slot VARCHAR,
    -- What is to be done with the table: resync (a fresh copy), pause, remove or drop. NULL: nothing. Whoever writes it needs no epoch.
    wanted VARCHAR,
    -- JSON: [{"attnum", "key", "column_id", "element"}].
    columns VARCHAR NOT NULL,
    rows_copied BIGINT NOT NULL,
    rows_applied BIGINT NOT NULL,
    -- Values set to NULL because the lake's type can't hold them.
    values_nulled BIGINT NOT NULL,
    last_commit_at TIMESTAMPTZ,
    -- Why it is errored, or waits; or is paused, where nobody asked for that.
    error VARCHAR,
    -- What the source's table was called when the configuration selected it. NULL: as it is called now.
    selected_schema VARCHAR,
    selected_table VARCHAR,
    -- The view in target_schema that shows the table's rows among those of others. NULL: there is none.
    fan_in VARCHAR,
    PRIMARY KEY (pipeline, target_schema, target_table)
);

-- DuckLake makes only the primary keys of its tables. On Postgres, reading one table's files would scan those of all tables.
CREATE INDEX IF NOT EXISTS duckpipe_data_file_by_table ON ducklake_data_file (table_id);
CREATE INDEX IF NOT EXISTS duckpipe_delete_file_by_data_file ON ducklake_delete_file (data_file_id);
CREATE INDEX IF NOT EXISTS duckpipe_file_column_stats_by_file ON ducklake_file_column_stats (data_file_id);
CREATE INDEX IF NOT EXISTS duckpipe_file_column_stats_by_column ON ducklake_file_column_stats (table_id, column_id);

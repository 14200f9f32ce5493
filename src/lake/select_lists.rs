//! What a SELECT on the lake may be made of, and the few things among it that it may not. [`select_guard`](super::select_guard) reads these.

/// Table functions that only read the lake or make rows up.
pub(super) const TABLE_FUNCTIONS: &[&str] = &[
    "generate_series",
    "histogram",
    "histogram_values",
    "json_each",
    "json_tree",
    "pg_timezone_names",
    "pragma_table_info",
    "pragma_version",
    "range",
    "repeat",
    "repeat_row",
    "summary",
    "unnest",
    // What a lake says of itself, as functions of the lake and as DuckDB's own.
    "snapshots",
    "current_snapshot",
    "last_committed_snapshot",
    "table_info",
    "table_changes",
    "table_insertions",
    "table_deletions",
    "ducklake_snapshots",
    "ducklake_current_snapshot",
    "ducklake_last_committed_snapshot",
    "ducklake_table_info",
    "ducklake_table_changes",
    "ducklake_table_insertions",
    "ducklake_table_deletions",
    "ducklake_list_files",
    "duckdb_columns",
    "duckdb_schemas",
    "duckdb_tables",
    "duckdb_types",
    "duckdb_views",
];

/// Those among them that read deleted rows, each with the snapshot that deleted it.
pub(super) const DELETED_ROWS: &[&str] =
    &["table_changes", "table_deletions", "ducklake_table_changes", "ducklake_table_deletions"];

/// Built-in scalar functions that have effects beyond their result, run SQL given as text, or stall.
pub(super) const SCALAR_DENIED: &[&str] =
    &["currval", "json_execute_serialized_sql", "nextval", "pg_sleep", "query", "query_table", "sleep_ms", "write_log"];

/// System views that may be read by their bare name. `duckdb_databases` is not among them: it shows connection strings.
pub(super) const SYSTEM_VIEWS: &[&str] = &[
    "duckdb_columns",
    "duckdb_constraints",
    "duckdb_schemas",
    "duckdb_tables",
    "duckdb_types",
    "duckdb_views",
    "sqlite_master",
];

/// Kinds of nodes of a SELECT: query nodes, table references, result modifiers and what hangs on them.
pub(super) const NODES: &[&str] = &[
    "SELECT_NODE",
    "SET_OPERATION_NODE",
    "RECURSIVE_CTE_NODE",
    "CTE_NODE",
    "BASE_TABLE",
    "SUBQUERY",
    "JOIN",
    "TABLE_FUNCTION",
    "EXPRESSION_LIST",
    "EMPTY",
    "PIVOT",
    "SHOW_REF",
    "ORDER_MODIFIER",
    "LIMIT_MODIFIER",
    "LIMIT_PERCENT_MODIFIER",
    "DISTINCT_MODIFIER",
    "ORDER_DEFAULT",
    "ASCENDING",
    "DESCENDING",
];

/// Kinds of expressions.
pub(super) const EXPRESSIONS: &[&str] = &[
    "BETWEEN",
    "CASE",
    "CAST",
    "COLLATE",
    "COLUMN_REF",
    "COMPARISON",
    "CONJUNCTION",
    "CONSTANT",
    "FUNCTION",
    "LAMBDA",
    "LAMBDA_REF",
    "OPERATOR",
    "POSITIONAL_REFERENCE",
    "STAR",
    "SUBQUERY",
    "TYPE",
    "WINDOW",
];

/// Endings that DuckDB's replacement scans read as files where no table has the name.
pub(super) const FILE_ENDINGS: &[&str] = &[
    "arrow", "arrows", "avro", "blob", "csv", "db", "ddb", "duckdb", "ducklake", "geojson", "gz", "ipc", "json",
    "jsonl", "ndjson", "parquet", "shp", "sqlite", "tsv", "txt", "xlsx", "zst",
];

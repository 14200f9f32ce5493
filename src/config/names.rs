//! Names as the configuration writes them.

use crate::source::pattern::TablePattern;
use crate::source::table::TableName;

/// Reads a lake table's `schema.table`. The error says what is wrong with the text.
pub(super) fn parse_target(text: &str) -> Result<TableName, String> {
    let target = TablePattern::parse(text)?.exact().ok_or_else(|| format!("{text:?} must name one table"))?;
    let schema = target.schema.to_ascii_lowercase();
    if ["pg_catalog", "information_schema"].contains(&schema.as_str()) {
        return Err(format!("{text:?} lies in a schema that DuckDB keeps for itself"));
    }
    let table = target.table.to_ascii_lowercase();
    if table.starts_with("ducklake_") || table.starts_with("duckpipe_") {
        return Err(format!("{text:?} begins with a prefix that the lake's own tables use"));
    }
    Ok(target)
}

/// Whether a text may be a pipeline's name: `[a-z0-9_]{1,50}`.
pub(super) fn is_pipeline_name(text: &str) -> bool {
    (1..=50).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Whether a text may be a slot's name in Postgres: `[a-z0-9_]{1,63}`.
pub(super) fn is_slot_name(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

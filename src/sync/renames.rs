//! What a table of the lake is called once its source's table has another name.

use crate::config::{Config, OnRename, selection_of};
use crate::error::Result;
use crate::lake::Lake;
use crate::source::table::TableName;

/// A table of a pipeline by its names.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// What the source's table was called when the configuration selected it.
    pub selected: &'a TableName,
    /// What it was called last.
    pub source: &'a TableName,
    /// The lake's table.
    pub target: &'a TableName,
}

/// The name of the lake's table once the source's is called `now`; `None`: it is called as before. It follows where it may: within its
/// schema, for its files lie below that, and where no other table has the name.
///
/// # Errors
/// Kind `Transient` where the catalog fails.
pub async fn followed(config: &Config, lake: &Lake, table: Named<'_>, now: &TableName) -> Result<Option<TableName>> {
    let Named { selected, source, target } = table;
    let fixed = selection_of(&config.tables(), selected).is_some_and(|selected| selected.has_target);
    let is_after = |name: &TableName| target.table == name.table;
    let follows = config.sync.on_rename == OnRename::Follow && !fixed && (is_after(source) || is_after(selected));
    if !follows || target.table == now.table {
        return Ok(None);
    }
    let wanted = TableName { schema: target.schema.clone(), table: now.table.clone() };
    if !lake.is_free(&wanted).await? {
        tracing::warn!(table = %now, %target, "the lake's table keeps its name: another one is called {wanted}");
        return Ok(None);
    }
    Ok(Some(wanted))
}

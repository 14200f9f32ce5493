//! What a table of the lake is called once its source's table has another name.

use crate::config::{Config, OnRename, selection_of_any};
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

/// What the lake's table would be called once the source's is called `now`; `None`: as before.
pub fn wanted(config: &Config, table: Named<'_>, now: &TableName) -> Option<TableName> {
    let Named { selected, source, target } = table;
    let fixed = selection_of_any(&config.tables(), [selected, source, now]).is_some_and(|selected| selected.has_target);
    if config.sync.on_rename != OnRename::Follow || fixed {
        return None;
    }
    (now != target).then(|| now.clone())
}

/// The name of the lake's table once the source's is called `now`; `None`: it is called as before. It follows where no other table has the
/// name, into another schema too, which is made where there is none.
///
/// # Errors
/// Kind `Transient` where the catalog fails.
pub async fn followed(config: &Config, lake: &Lake, table: Named<'_>, now: &TableName) -> Result<Option<TableName>> {
    let Some(wanted) = wanted(config, table, now) else { return Ok(None) };
    let target = table.target;
    if !lake.is_free(&wanted).await? {
        tracing::warn!(table = %now, %target, "the lake's table keeps its name: another one is called {wanted}");
        return Ok(None);
    }
    if wanted.schema != target.schema {
        lake.create_schema(&wanted.schema).await?;
    }
    Ok(Some(wanted))
}

//! Whether the lake's tables have the columns of the source's already: what no row tells of is followed when the stream is caught up.

use std::collections::HashMap;

use crate::config::Config;
use crate::error::{ErrorKind, Result};
use crate::lake::{Lake, TableRow};
use crate::source::publication;
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::source::table::SourceTable;
use crate::sync::definition::{is_same, other_values};
use crate::sync::prepare;

/// Whether the source has changed the table since the lake followed it last. `definitions` are those that the lake has followed.
pub(super) fn is_changed(definitions: &HashMap<i64, SourceTable>, row: &TableRow, source: &SourceTable) -> bool {
    let followed = row.table_id.and_then(|table_id| definitions.get(&table_id));
    followed.is_some_and(|followed| !is_same(followed, source))
}

/// As [`is_changed`], or in a way that leaves its columns as they are and not its rows.
pub(super) fn has_other_rows(definitions: &HashMap<i64, SourceTable>, row: &TableRow, source: &SourceTable) -> bool {
    let followed = row.table_id.and_then(|table_id| definitions.get(&table_id));
    followed.is_some_and(|followed| !is_same(followed, source) || other_values(followed, source).is_some())
}

/// Whether the source has changed one of the pipeline's tables since the lake followed it last.
///
/// # Errors
/// Kind `Transient` where source or catalog do not answer.
pub async fn columns_changed(config: &Config, lake: &Lake) -> Result<bool> {
    let session = Session::connect(&SourceSettings::parse(&config.source.url)?).await?;
    let published = publication::find(&session, &config.source.publication).await?;
    let publication = published.as_ref().map(|published| published.name.as_str());
    let definitions = lake.definitions(&config.name).await?;
    for row in lake.tables(&config.name).await?.iter().filter(|row| row.follows()) {
        match prepare::choose_known(&session, config, row, publication).await {
            Ok(chosen) if is_changed(&definitions, row, &chosen.source) => return Ok(true),
            Ok(_) => {}
            // It is gone, or can't be followed any more: the comparison says so.
            Err(error) if error.kind() == ErrorKind::Table => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

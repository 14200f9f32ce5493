//! A table that the lake knows takes its place in the stream again, where source and configuration agree on which one it is.

use std::sync::Arc;

use super::{Runner, Table};
use crate::config::{Mode, SelectedTable, selection_of_any};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::TableRow;
use crate::source::table::{SourceTable, TableName};
use crate::sync::definition::{is_same, layout_of, other_values, unclear};
use crate::sync::flush::SyncTable;
use crate::sync::prepare::{self, Chosen, ChosenTable};

impl Runner<'_> {
    /// A table that was renamed is what the configuration says of its former name, whatever that says of the present one; one that is not among
    /// those which were chosen may have a namesake there. `None`: it is among them.
    pub(super) async fn chosen_by_former_name(
        &self,
        known: &TableRow,
        chosen: &Chosen,
    ) -> Result<Option<Vec<ChosenTable>>> {
        let Some(selected) = selection_of_any(&self.config.tables(), known.names()) else { return Ok(None) };
        let mut by_oid = chosen.tables.iter().filter(|table| table.source.oid == known.source_oid);
        if by_oid.next().is_some_and(|table| table.source.name == selected.source) {
            return Ok(None);
        }
        let sent = Some(self.config.source.publication.as_str());
        match prepare::choose_known(&self.session, self.config, known, sent).await {
            Ok(chosen) => Ok(Some(vec![chosen])),
            Err(error) if matches!(error.kind(), ErrorKind::Transient | ErrorKind::Fenced) => Err(error),
            // What is wrong with it now is judged by what is known of it.
            Err(_) => Ok(Some(Vec::new())),
        }
    }

    /// The table as the lake knows it, where source and configuration agree on which one it is. How its columns changed since then
    /// is told by the WAL.
    pub(super) async fn rejoin(
        &self,
        known: &TableRow,
        recorded: Option<&SourceTable>,
        chosen: &[ChosenTable],
    ) -> Result<Table> {
        let remedy = "copy everything anew: `duckpipe sync --resnapshot`";
        let there = chosen.iter().find(|table| table.source.oid == known.source_oid);
        let names = known.names().into_iter().chain(there.map(|table| &table.source.name));
        let Some(selected) = selection_of_any(&self.config.tables(), names) else { return Err(left_out(known)) };
        check_mode(known, selected.mode)?;
        if let Some(table) = there.filter(|table| table.filter != table.source.filter) {
            let what = format!("[[tables]] wants other rows of {} than the publication sends", table.source.name);
            return Err(Error::new(ErrorKind::Table, what).remedy(remedy).mended_by_resync());
        }
        if let Some(target) = other_target(known, &selected) {
            return Err(Error::new(
                ErrorKind::Table,
                format!("{} is the lake's {}, but has the target {target} now", known.source, known.target),
            )
            .remedy(remedy));
        }
        let (source, layout) = match (there, recorded) {
            (Some(table), None) => (table.source.clone(), table.layout.clone()),
            (Some(table), Some(recorded)) if is_same(recorded, &table.source) => {
                if let Some(why) = other_values(recorded, &table.source) {
                    return Err(unclear(recorded, why));
                }
                // How its partitions changed since is judged by the stream.
                let partitions = recorded.partitions.clone();
                // The WAL may still tell of columns that came and went.
                let last_attnum = recorded.last_attnum;
                let source = SourceTable { partitions, last_attnum, ..table.source.clone() };
                (source, table.layout.clone())
            }
            // Changed since, or gone: the WAL may still tell of it as it was.
            (_, Some(recorded)) => {
                let source = recorded.clone();
                // What the configuration says does not fit the table as it was: that is this table's trouble, not the others'.
                let unfit = |error: Error| Error::new(ErrorKind::Table, error.to_string()).remedy(remedy);
                let layout = layout_of(&selected, &source).map_err(unfit)?;
                (source, layout)
            }
            (None, None) => return Err(left_out(known)),
        };
        // Another name is followed by the stream.
        let source = SourceTable { name: known.source.clone(), ..source };
        let lake = self.lake.fitting_table(known, &layout).await?;
        let layout = Arc::new(layout);
        let progress = self.progress.table(&known.source, &known.target);
        let (selected, partitioned) = (selected.source, source.partitions.is_some());
        Ok((Arc::new(SyncTable { oid: known.source_oid, selected, partitioned, layout, lake, progress }), source))
    }
}

/// The lake's table that the configuration wants for a source's table, where that is another one. A table that was renamed may be called as
/// before, or as now.
pub(super) fn other_target(row: &TableRow, selected: &SelectedTable) -> Option<TableName> {
    let is_called = |name: &TableName| row.target == *name || row.target.table == name.table;
    let fits = match selected.has_target {
        // What comes after the view's name is what the source's table was called.
        true => match &selected.view {
            Some(view) => row.target.schema == view.schema && row.target.table.starts_with(&format!("{}@", view.table)),
            None => row.target == selected.target,
        },
        false => row.selected.is_some() || is_called(&selected.target) || is_called(&row.source),
    };
    (!fits).then(|| selected.target.clone())
}

/// What a table holds can't be changed.
pub(super) fn check_mode(row: &TableRow, mode: Mode) -> Result<()> {
    let is = Mode::of(row.columns.iter().map(|column| column.attnum));
    if is == mode || row.columns.is_empty() {
        return Ok(());
    }
    let what = format!(
        "the lake's {} was made with mode = \"{}\", and [[tables]] says \"{}\"",
        row.target,
        is.name(),
        mode.name()
    );
    Err(Error::new(ErrorKind::Table, what).remedy(format!(
        "put the former mode back; or let go of the table, `duckpipe tables remove {}`, and add it with another target",
        row.source
    )))
}

pub(super) fn left_out(row: &TableRow) -> Error {
    Error::new(ErrorKind::Table, format!("{} is no longer in the source, or no longer in [[tables]]", row.source))
        .remedy("to follow it again, name it in [[tables]] and copy it anew: `duckpipe tables resync`")
}

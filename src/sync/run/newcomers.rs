//! Tables of the source that match the configuration and that the lake does not know: they are taken in while the others stream.

use std::collections::HashSet;

use super::Runner;
use crate::config::{TablePattern, selection_of};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{TableRow, TableState};
use crate::source::publication::Publication;
use crate::source::session::Session;
use crate::source::table::{SourceTable, TableName};
use crate::source::{catalog, publication, row_filter};
use crate::sync::failpoint::failpoint;
use crate::sync::pipeline::Pipeline;
use crate::sync::prepare::{self, ChosenTable};
use crate::sync::stream::explain;

/// What is kept from one look for new tables to the next.
#[derive(Default)]
pub(super) struct Newcomers {
    session: Option<Session>,
    /// The tables whose trouble was told, so that it is told once.
    told: HashSet<TableName>,
}

impl Newcomers {
    fn warn(&mut self, table: &TableName, error: &Error) {
        if self.told.insert(table.clone()) {
            tracing::warn!(%table, %error, fix = error.remedy_text(), "the table is not followed");
        }
    }
}

impl Runner<'_> {
    /// Looks for tables that are not known yet. They are `pending` from then on, and copied next.
    ///
    /// # Errors
    /// Kind `Transient`, when source or catalog do not answer. What is wrong with one table is told, and no error.
    pub(super) async fn take_in(&self, pipeline: &Pipeline, newcomers: &mut Newcomers) -> Result<()> {
        // A session that breaks is not put back.
        let session = match newcomers.session.take() {
            Some(session) => session,
            None => Session::connect(&self.settings).await?,
        };
        let patterns: Vec<TablePattern> = self.config.tables().iter().map(|table| table.source.clone()).collect();
        let found = catalog::list_tables(&session, &patterns).await?;
        self.learn_names(&session, pipeline).await?;
        let rows = self.lake.tables(&self.config.name).await?;
        // What waited and never came, or was being made when somebody died, and is gone now.
        for row in rows.iter().filter(|row| !row.was_made() && !found.contains(&row.source)) {
            self.lake.discard_half_made(&pipeline.fence, &row.target).await?;
            self.progress.forget(&row.source);
        }
        for name in &found {
            // One that is half made is made to its end.
            let known = rows.iter().filter(|row| row.source == *name && row.was_made());
            // Of two of one name, one was dropped and the other was renamed.
            let known = known.min_by_key(|row| row.state == TableState::Dropped);
            let taken = match known {
                None => self.take_in_one(&session, pipeline, name, &rows).await,
                Some(row) if row.state == TableState::Dropped => self.take_in_anew(&session, row, &rows).await,
                Some(_) => continue,
            };
            match taken {
                Err(error) if matches!(error.kind(), ErrorKind::Transient | ErrorKind::Fenced) => return Err(error),
                Err(error) => newcomers.warn(name, &error),
                Ok(()) => {}
            }
        }
        newcomers.session = Some(session);
        Ok(())
    }

    /// What tables are called that the stream does not bring on, and that it can't tell other names of. They may be named by these, and another
    /// table may have the name that they had.
    async fn learn_names(&self, session: &Session, pipeline: &Pipeline) -> Result<()> {
        let rows = self.lake.tables(&self.config.name).await?;
        let stands = |row: &&TableRow| !row.follows() && row.slot.is_none() && row.state != TableState::Dropped;
        let standing: Vec<(&TableRow, i64)> =
            rows.iter().filter(stands).filter_map(|row| Some((row, row.table_id?))).collect();
        if standing.is_empty() {
            return Ok(());
        }
        let oids: Vec<u32> = standing.iter().map(|(row, _)| row.source_oid).collect();
        let names = catalog::names_of(session, &oids).await?;
        // They may have each other's names.
        let shown: Vec<_> =
            standing.iter().map(|(row, _)| self.progress.of_its_own(&row.source, &row.target)).collect();
        for ((row, table_id), shown) in standing.into_iter().zip(shown) {
            let Some(name) = names.get(&row.source_oid).filter(|name| **name != row.source) else { continue };
            self.lake.rename_source(&pipeline.fence, table_id, name).await?;
            if let Some(shown) = shown {
                self.progress.rename(&shown, name, &row.target);
            }
            tracing::info!(table = %row.source, now = %name, "the source's table has another name; it stands still");
        }
        Ok(())
    }

    async fn take_in_one(
        &self,
        session: &Session,
        pipeline: &Pipeline,
        name: &TableName,
        rows: &[TableRow],
    ) -> Result<()> {
        if selection_of(&self.config.tables(), name).is_none() {
            return Ok(());
        }
        let published = self.published(session).await?;
        let chosen = prepare::choose_table(session, self.config, name, Some(&published.name)).await?;
        let source = &chosen.source;
        if rows.iter().any(|row| row.source_oid == source.oid && row.was_made()) {
            // It has another name than it had: the stream sees to that.
            return Ok(());
        }
        prepare::refuse_partition(session, source, rows).await?;
        let new = chosen.new_table(false);
        self.lake.check_target(&self.config.name, &new).await?;
        let published = self.publish(session, &published, &chosen).await;
        let (progress, estimate) = (self.progress.table(name, &new.target), chosen.source.estimated_rows);
        match published {
            Err(error) if error.kind() == ErrorKind::Precondition => {
                let why = explain(&error);
                if !rows.iter().any(|row| row.source == *name && row.error.as_ref() == Some(&why)) {
                    self.lake.claim_table(&pipeline.fence, &new, &why).await?;
                }
                progress.wait(why);
                return Err(error);
            }
            published => published?,
        };
        failpoint("newcomer_published");
        tracing::info!(table = %name, "a new table: it is copied, beside the stream");
        self.lake.create_table(&pipeline.fence, &new).await?;
        failpoint("newcomer_made");
        self.lake.refresh_views(&pipeline.fence).await?;
        progress.set_state(TableState::Pending);
        progress.set_rows_total_estimate(estimate);
        Ok(())
    }

    /// The source has a table again whose namesake was dropped.
    async fn take_in_anew(&self, session: &Session, row: &TableRow, rows: &[TableRow]) -> Result<()> {
        let Some(oid) = catalog::oid_of(session, &row.source).await? else { return Ok(()) };
        if row.is_anothers(rows, oid) {
            // That one has another name than it had: the stream sees to it.
            return Ok(());
        }
        tracing::info!(table = %row.source, "the source has a table of this name again");
        self.want_copy(row).await
    }

    pub(super) async fn published(&self, session: &Session) -> Result<Publication> {
        let name = &self.config.source.publication;
        publication::find(session, name).await?.ok_or_else(|| {
            Error::new(ErrorKind::Precondition, format!("the publication {name} is gone"))
                .remedy("make it again, as `duckpipe check` says")
        })
    }

    /// Has the publication send the table, where it is ours to say. Returns the table with which of its rows that sends, and why.
    pub(super) async fn publish(
        &self,
        session: &Session,
        published: &Publication,
        table: &ChosenTable,
    ) -> Result<SourceTable> {
        let filter = self.send(session, published, table).await?;
        let published = publication::membership(session, &published.name, table.source.oid).await?;
        Ok(SourceTable { filter, published, ..table.source.clone() })
    }

    /// Has the publication send it. Returns which of its rows that sends: `None`, all.
    async fn send(&self, session: &Session, published: &Publication, table: &ChosenTable) -> Result<Option<String>> {
        let name = &table.source.name;
        prepare::check_generated(session, &published.name, std::slice::from_ref(name)).await?;
        let in_parts = table.source.partitions.is_some() && !published.via_root;
        let other_rows = table.filter != table.source.filter;
        if !in_parts && !other_rows && published.tables.contains(name) {
            return Ok(table.filter.clone());
        }
        let row = self.lake.pipeline(&self.config.name).await?;
        if row.is_some_and(|row| row.owns_publication) {
            if in_parts {
                publication::send_via_root(session, &published.name).await?;
            }
            let published = self.published(session).await?;
            match published.tables.contains(name) {
                true if other_rows => publication::change_table(session, &published.name, &table.sent()).await?,
                true => {}
                false => publication::add_table(session, &published.name, &table.sent()).await?,
            }
            return row_filter::published(session, &published.name, table.source.oid).await;
        }
        prepare::check_via_root(published, std::iter::once(&table.source))?;
        if published.tables.contains(name) {
            prepare::check_filter(published, table)?;
            return Ok(table.filter.clone());
        }
        let statement = publication::add_sql(&published.name, &table.sent());
        let sent = publication::membership(session, &published.name, table.source.oid).await?;
        let as_root = sent.is_some_and(|sent| publication::is_as_root(&sent));
        Err(prepare::lacks(&published.name, &name.to_string(), as_root, &statement))
    }
}

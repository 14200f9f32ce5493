//! Source and lake at one position.

use std::sync::Arc;
use std::time::Duration;

use duckpipe_storage::Store;
use hashbrown::HashSet;

use super::columns;
use super::details::{self, Details};
use super::finding::{Finding, FindingKind, Report, TableReport};
use super::lake_rows::{self, FileAt};
use super::position::{SyncPoint, pin};
use super::progress::ValidateProgress;
use super::repair::{self, ChosenRows};
use super::row_hash::RowHasher;
use super::source_rows::{self, SourceReads, SourceRows};
use super::sums::{Hashing, Sums};
use crate::batch::change::ChangeBatch;
use crate::batch::layout::Mode;
use crate::config::Config;
use crate::error::{Because, Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::lake::{Lake, TableRow, TableState};
use crate::lsn::Lsn;
use crate::source::publication;
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::source::snapshot::SnapshotHolder;
use crate::sync::prepare::{self, ChosenTable};
use crate::sync::repair::Repair;

/// Keys of a sample that fit the memory.
const MOST_SAMPLED: usize = 8_000_000;

/// How to compare.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// Only this table.
    pub table: Option<String>,
    /// Percent of the source's pages to read; `None`: all.
    pub sample: Option<f64>,
    /// Rows that differ and are shown, per table.
    pub max_diffs: usize,
    /// Connections that read the source.
    pub source_connections: usize,
    /// The longest that one range of the source may be read.
    pub statement_timeout: Duration,
    /// The longest that the position is waited for.
    pub timeout: Duration,
    /// Put the source's rows in the place of those that differ.
    pub repair: bool,
}

/// Buckets whose rows are replaced at once: their rows are in memory.
const BUCKETS_AT_ONCE: usize = 1024;
/// Commits that replace rows of one table, before it is rather copied anew.
const MOST_REPAIRS: usize = 64;

/// Compares the pipeline's tables in source and lake at one position.
///
/// # Errors
/// Kind `Transient` where the position is not reached in time: the message names the transaction that the slot waits for.
pub async fn compare(
    config: &Config,
    options: &CompareOptions,
    point: &dyn SyncPoint,
    progress: &Arc<ValidateProgress>,
) -> Result<Report> {
    let settings = SourceSettings::parse(&config.source.url)?;
    let session = Session::connect(&settings).await?;
    prepare::check_server(&session).await?;
    let store = Store::open(&config.lake.data_path, config.s3_settings().as_ref())
        .await
        .because(ErrorKind::Precondition, || format!("{} can't be used as data_path", config.lake.data_path))?;

    progress.begin("waiting for a position that both sides show", 0);
    let (slot, lsn, holder) = pin(&settings, &session, options.timeout, point).await?;
    let (lake, snapshot) = point.reach(lsn, options.timeout, options.repair).await?;
    failpoint("validate_reached");
    // Its snapshot lives on in the holder; the source need keep no WAL for it.
    drop(slot);
    let mut comparison = Comparison { config, options, store, progress, lsn, snapshot, lake };
    let compared = async {
        holder.check().await?;
        let reads = SourceReads {
            settings,
            snapshot: holder.snapshot().to_owned(),
            connections: options.source_connections,
            statement_timeout: options.statement_timeout,
            on_unrepresentable: config.sync.on_unrepresentable,
        };
        let mut report = Report { pipeline: config.name.clone(), lsn: Some(lsn), ..Report::default() };
        comparison.tables((&session, &holder), &reads, point, &mut report).await?;
        holder.check().await?;
        report.snapshot = comparison.snapshot;
        Ok(report)
    };
    let report = compared.await;
    if options.repair {
        point.release().await;
    }
    holder.release().await;
    comparison.lake.shutdown().await;
    report
}

struct Comparison<'a> {
    config: &'a Config,
    options: &'a CompareOptions,
    store: Store,
    progress: &'a Arc<ValidateProgress>,
    lsn: Lsn,
    snapshot: i64,
    lake: Lake,
}

/// What the buckets of one table came to.
struct Differing {
    hashing: Hashing,
    buckets: Vec<usize>,
}

impl Comparison<'_> {
    async fn tables(
        &mut self,
        (session, holder): (&Session, &SnapshotHolder),
        reads: &SourceReads,
        point: &dyn SyncPoint,
        report: &mut Report,
    ) -> Result<()> {
        let published = publication::find(session, &self.config.source.publication).await?;
        let publication = published.as_ref().map(|published| published.name.as_str());
        let rows = super::wanted_tables(&self.lake, &self.config.name, self.options.table.as_deref()).await?;
        failpoint("validate_rows");
        for row in rows {
            let stands = matches!(row.state, TableState::Dropped | TableState::Paused);
            let mut table = TableReport {
                source: row.source.to_string(),
                target: row.target.to_string(),
                errored: !row.follows() && !stands,
                ..TableReport::default()
            };
            if row.state == TableState::Dropped {
                table.left_out = Some("not compared: the source has dropped it".into());
            } else if !row.follows() {
                let why = row.error.as_deref().unwrap_or(row.state.name());
                table.left_out = Some(format!("not compared, it does not follow the pipeline: {why}"));
            } else if let Some(mut chosen) = self.choose(session, &row, publication).await? {
                holder.settle(&mut chosen.source).await?;
                if chosen.layout.mode == Mode::History {
                    table.left_out =
                        Some("not compared: it holds changes, not rows; --files looks at its files".into());
                    report.tables.push(table);
                    continue;
                }
                match self.table_and_repair(&row, &chosen, reads, point, (&mut table, report)).await {
                    // Its rows at the position can't be read any more, because it was truncated since.
                    Err(error) if error.kind() == ErrorKind::Table => {
                        table.left_out = Some(format!("not compared: {error}"));
                        table.errored = true;
                    }
                    other => other?,
                }
            } else {
                table.left_out = Some("not compared: it is no longer in the source, or in [[tables]]".into());
                table.errored = true;
            }
            report.tables.push(table);
        }
        Ok(())
    }

    /// The table as source and configuration have it; `None` where it is gone from one of them.
    async fn choose(
        &self,
        session: &Session,
        row: &TableRow,
        publication: Option<&str>,
    ) -> Result<Option<ChosenTable>> {
        match prepare::choose_known(session, self.config, row, publication).await {
            Ok(chosen) => Ok(Some(chosen).filter(|chosen| chosen.source.oid == row.source_oid)),
            Err(error) if error.kind() == ErrorKind::Table => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Compares a table; where that is asked for, replaces what differs, and compares again.
    async fn table_and_repair(
        &mut self,
        row: &TableRow,
        chosen: &ChosenTable,
        reads: &SourceReads,
        point: &dyn SyncPoint,
        (table, report): (&mut TableReport, &mut Report),
    ) -> Result<()> {
        let mut findings = Vec::new();
        let mut differing = self.table(row, chosen, reads, table, &mut findings).await?;
        let mut repaired = 0;
        for _ in 0..MOST_REPAIRS {
            // Without a key there is nothing to replace a row by; and of a deleted row nothing is known but from the WAL.
            let may_repair = self.options.repair && !chosen.layout.keyless && chosen.layout.mode == Mode::Mirror;
            let Some(found) = differing.take().filter(|_| may_repair) else { break };
            let (keys, changes) = self.changes(row, chosen, reads, &found).await?;
            let (lake, snapshot) = point.repair(Repair { source_oid: row.source_oid, lsn: self.lsn, changes }).await?;
            std::mem::replace(&mut self.lake, lake).shutdown().await;
            self.snapshot = snapshot;
            repaired += keys;
            report.repaired.append(&mut findings);
            table.repaired_keys = Some(repaired);
            tracing::info!(table = %row.target, keys, snapshot, "repaired");
            differing = self.table(row, chosen, reads, table, &mut findings).await?;
        }
        report.findings.append(&mut findings);
        Ok(())
    }

    /// What makes the lake's rows of the first buckets that differ those of the source, and how many keys differ in them.
    async fn changes(
        &self,
        row: &TableRow,
        chosen: &ChosenTable,
        reads: &SourceReads,
        Differing { hashing, buckets }: &Differing,
    ) -> Result<(u64, Vec<ChangeBatch>)> {
        let name = row.target.to_string();
        let lake_table = self.lake.fitting_table(row, &chosen.layout).await?;
        let registered = self.lake.registered(&[lake_table.table_id], false).await?;
        let (files, _) = lake_rows::files_at(&registered, lake_table.table_id, &name, self.snapshot);
        let schema = lake_table.schema(&chosen.layout)?;
        let source = SourceRows::new(&chosen.source, &chosen.layout, None);
        let first: Arc<HashSet<usize>> = Arc::new(buckets.iter().copied().take(BUCKETS_AT_ONCE).collect());
        let rows = chosen.source.estimated_rows.max(0) as u64 * 2;
        self.progress.begin(format!("{name}: the rows to repair"), rows);
        let make = || ChosenRows::new(hashing, &first, self.progress);
        let (of_source, of_lake) = tokio::try_join!(
            source_rows::scan(reads, &source, make),
            lake_rows::scan(&self.store, &files, &schema, (&name, self.snapshot), make)
        )?;
        if let Some(broken) = of_lake.broken.first() {
            return Err(Error::new(ErrorKind::Table, broken.to_string()));
        }
        repair::changes(of_source, of_lake.sinks, &chosen.layout)
    }

    /// Whether the table left the stream after the lake showed our position, or a fresh copy came after that: the catalog, which is shared,
    /// tells of now.
    async fn is_copied(&self, row: &TableRow) -> Result<bool> {
        let behind = self.lake.behind_since(&self.config.name, self.snapshot).await?;
        Ok(behind.contains(&row.source.to_string()))
    }

    /// Whether the source has changed the table in a way that the lake does not show yet, be it that no message tells of it: another label of
    /// an enum, other rows that are sent.
    async fn is_altered(&self, row: &TableRow) -> Result<bool> {
        let session = Session::connect(&SourceSettings::parse(&self.config.source.url)?).await?;
        let Some(now) = self.choose(&session, row, Some(&self.config.source.publication)).await? else {
            return Ok(true);
        };
        let definitions = self.lake.definitions(&self.config.name).await?;
        Ok(self.is_copied(row).await? || columns::has_other_rows(&definitions, row, &now.source))
    }

    /// Compares a table; `None` where all that can be compared is equal.
    async fn table(
        &self,
        row: &TableRow,
        chosen: &ChosenTable,
        reads: &SourceReads,
        report: &mut TableReport,
        findings: &mut Vec<Finding>,
    ) -> Result<Option<Differing>> {
        let name = row.target.to_string();
        let lake_table = match self.lake.fitting_table(row, &chosen.layout).await {
            Ok(table) => table,
            Err(error) if error.kind() == ErrorKind::Table => {
                if self.is_copied(row).await? {
                    leave_out(report, COPIED);
                    return Ok(None);
                }
                let definitions = self.lake.definitions(&self.config.name).await?;
                let followed = self.lake.tables(&self.config.name).await?;
                let followed = followed.iter().any(|now| now.table_id == row.table_id && now.columns != row.columns);
                if followed || columns::is_changed(&definitions, row, &chosen.source) {
                    leave_out(report, ALTERED);
                } else {
                    findings.push(Finding::new(FindingKind::TableMissing, &name, error.to_string()));
                }
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let registered = self.lake.registered(&[lake_table.table_id], false).await?;
        if self.is_copied(row).await? {
            leave_out(report, COPIED);
            return Ok(None);
        }
        let (files, mut found) = lake_rows::files_at(&registered, lake_table.table_id, &name, self.snapshot);
        findings.append(&mut found);
        report.files = Some(files.iter().map(|at| 1 + u64::from(at.delete.is_some())).sum());
        let mut schema = lake_table.schema(&chosen.layout)?;
        if chosen.layout.mode == Mode::SoftDelete {
            schema = lake_rows::without_deleted(&schema);
        }
        let in_lake: i64 = files.iter().map(|at| at.file.rows).sum();
        let expected = chosen.source.estimated_rows.max(in_lake).max(0) as u64;
        // Of equal rows a sample would count some in the source, and the lake all.
        let sample = self.options.sample.filter(|_| !chosen.layout.keyless);
        let sampled = sample.map_or(1.0, |percent| percent / 100.0);
        self.progress.begin(&name, (expected as f64 * sampled) as u64 + in_lake.max(0) as u64);
        let source = SourceRows::new(&chosen.source, &chosen.layout, sample);
        let mut hashing = Hashing {
            hasher: RowHasher::new(),
            key: Arc::new(chosen.layout.key.clone()),
            all: Arc::new((0..chosen.layout.columns.len()).collect()),
            buckets: usize::try_from(expected / 64).unwrap_or(usize::MAX).clamp(1 << 14, 1 << 20).next_power_of_two(),
            only: None,
        };
        let sides =
            Sides { comparison: self, reads, source: &source, sample, files: &files, schema: &schema, name: &name };
        let Some((in_source, in_lake)) = sides.sums(&mut hashing, findings).await? else { return Ok(None) };
        (report.source_rows, report.lake_rows) = (Some(in_source.rows()), Some(in_lake.rows()));
        if sample.is_some() {
            report.left_out = Some("a sample: rows that only the lake has are not looked for".into());
        }
        let buckets = in_source.differing(&in_lake);
        if buckets.is_empty() {
            return Ok(None);
        }
        if self.is_altered(row).await? {
            leave_out(report, ALTERED);
            return Ok(None);
        }
        if chosen.layout.keyless {
            let detail = format!(
                "the source has {} rows, the lake {}; {} of {} buckets of equal rows differ, and without a key no row can be told",
                in_source.rows(),
                in_lake.rows(),
                buckets.len(),
                hashing.buckets
            );
            findings.push(Finding::new(FindingKind::SumsDiffer, &name, detail));
        } else {
            sides.details(&hashing, &buckets, (in_source.rows(), in_lake.rows()), findings).await?;
        }
        Ok(Some(Differing { hashing, buckets }))
    }
}

const ALTERED: &str =
    "not compared: the source has changed its columns, which a running sync follows within seconds; try again";
const COPIED: &str = "not compared: it was copied afresh meanwhile; try again";

fn leave_out(report: &mut TableReport, why: &str) {
    report.left_out = Some(why.into());
    report.errored = true;
}

/// One table on both sides.
struct Sides<'a> {
    comparison: &'a Comparison<'a>,
    reads: &'a SourceReads,
    source: &'a SourceRows,
    /// Of the source's rows, in percent; `None`: all.
    sample: Option<f64>,
    files: &'a [FileAt],
    schema: &'a arrow::datatypes::SchemaRef,
    name: &'a str,
}

impl Sides<'_> {
    /// The sums of source and lake; `None` where files of the lake can't be read, which are among the findings then.
    async fn sums(&self, hashing: &mut Hashing, findings: &mut Vec<Finding>) -> Result<Option<(Sums, Sums)>> {
        let Comparison { store, progress, snapshot, .. } = self.comparison;
        let place = (self.name, *snapshot);
        let (of_source, of_lake) = match self.sample {
            None => {
                let hashing = &*hashing;
                let make = || Sums::new(hashing, progress);
                tokio::try_join!(
                    source_rows::scan(self.reads, self.source, make),
                    lake_rows::scan(store, self.files, self.schema, place, make)
                )?
            }
            Some(_) => {
                let plain = hashing.clone();
                let of_source =
                    source_rows::scan(self.reads, self.source, || Sums::with_keys(&plain, progress)).await?;
                let mut total = Sums::total(of_source).unwrap_or_else(|| Sums::with_keys(&plain, progress));
                let keys: HashSet<u128> = total.take_keys();
                if keys.len() > MOST_SAMPLED {
                    return Err(Error::new(
                        ErrorKind::Config,
                        format!("the sample of {} has {} rows, more than fit the memory", self.name, keys.len()),
                    )
                    .remedy("take a smaller --sample, or compare everything, which needs no more memory"));
                }
                hashing.only = Some(Arc::new(keys));
                let hashing = &*hashing;
                let make = || Sums::new(hashing, progress);
                (vec![total], lake_rows::scan(store, self.files, self.schema, place, make).await?)
            }
        };
        if !of_lake.broken.is_empty() {
            findings.extend(of_lake.broken);
            return Ok(None);
        }
        let total = |sums| Sums::total(sums).unwrap_or_else(|| Sums::new(hashing, progress));
        Ok(Some((total(of_source), total(of_lake.sinks))))
    }

    /// Reads both sides again for the rows of the first buckets that differ: each has one row to show at least.
    async fn details(
        &self,
        hashing: &Hashing,
        differing: &[usize],
        (source_rows, lake_rows): (u64, u64),
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let Comparison { store, progress, snapshot, options, .. } = self.comparison;
        let most = options.max_diffs;
        let chosen: Arc<HashSet<usize>> = Arc::new(differing.iter().copied().take(most).collect());
        let sums = format!(
            "{} of {} buckets of keys differ; {source_rows} rows in the source, {lake_rows} in the lake",
            differing.len(),
            hashing.buckets
        );
        findings.push(Finding::new(FindingKind::SumsDiffer, self.name, sums));
        if most == 0 {
            return Ok(());
        }
        progress.begin(format!("{}: the rows that differ", self.name), source_rows + lake_rows);
        let make = || Details::new(hashing, &chosen, progress);
        let (of_source, of_lake) = tokio::try_join!(
            source_rows::scan(self.reads, self.source, make),
            lake_rows::scan(store, self.files, self.schema, (self.name, *snapshot), make)
        )?;
        findings.extend(of_lake.broken);
        let layout = &self.source.layout;
        findings.extend(details::compare(of_source, of_lake.sinks, (self.name, layout), most));
        Ok(())
    }
}

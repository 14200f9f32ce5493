//! Source and lake at one position.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use duckpipe_storage::Store;
use hashbrown::HashSet;
use uuid::Uuid;

use super::details::{self, Details};
use super::finding::{Finding, FindingKind, Report, TableReport};
use super::lake_rows::{self, FileAt};
use super::progress::ValidateProgress;
use super::row_hash::RowHasher;
use super::source_rows::{self, SourceReads, SourceRows};
use super::sums::{Hashing, Sums};
use crate::config::Config;
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::{Lake, TableRow, TableState};
use crate::lsn::Lsn;
use crate::source::replication::ReplicationConnection;
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::source::snapshot::SnapshotHolder;
use crate::source::{publication, slot};
use crate::sync::prepare::{self, ChosenTable};

/// The longest that a stream is kept from reading while the slot is made.
const HOLD: Duration = Duration::from_secs(15);
/// A transaction that is older than this is waited for before the stream is held, not while it is.
const OLD: Duration = Duration::from_millis(500);
/// Keys of a sample that fit the memory.
const MOST_SAMPLED: usize = 8_000_000;

/// Has the lake show a source position exactly, through whatever writes to it.
#[async_trait]
pub trait SyncPoint: Send + Sync {
    /// Keeps the lake from passing any position that the source reaches from now on, for `patience` at most.
    async fn hold(&self, patience: Duration) -> Result<()>;
    /// Waits until the lake shows exactly `lsn`. Returns the lake, open for reading, and the snapshot that shows it.
    async fn reach(&self, lsn: Lsn, patience: Duration) -> Result<(Lake, i64)>;
    /// Ends the hold where nothing is to be reached any more.
    async fn release(&self);
}

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
}

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
    let (slot, lsn, holder) = pin(&settings, &session, options, point).await?;
    let (lake, snapshot) = point.reach(lsn, options.timeout).await?;
    // Its snapshot lives on in the holder; the source need keep no WAL for it.
    drop(slot);
    let compared = async {
        holder.check().await?;
        let comparison = Comparison { config, options, store, progress, snapshot, lake: &lake };
        let reads = SourceReads {
            settings,
            snapshot: holder.snapshot().to_owned(),
            connections: options.source_connections,
            statement_timeout: options.statement_timeout,
            on_unrepresentable: config.sync.on_unrepresentable,
        };
        let mut report = Report { pipeline: config.name.clone(), snapshot, lsn: Some(lsn), ..Report::default() };
        comparison.tables(&session, &reads, &mut report).await?;
        holder.check().await?;
        Ok(report)
    };
    let report = compared.await;
    holder.release().await;
    lake.shutdown().await;
    report
}

/// A snapshot of the source whose position is known, and which the lake has not passed.
async fn pin(
    settings: &SourceSettings,
    session: &Session,
    options: &CompareOptions,
    point: &dyn SyncPoint,
) -> Result<(ReplicationConnection, Lsn, SnapshotHolder)> {
    let mut replication = ReplicationConnection::connect(settings).await?;
    wait_for_old_transactions(session, options.timeout).await?;
    point.hold(HOLD).await?;
    let made = async {
        // Names of slots are shared by the whole cluster.
        let name = format!("duckpipe_validate_{}", &Uuid::new_v4().simple().to_string()[..16]);
        // A little earlier than the stream would go on by itself.
        let patience = HOLD - Duration::from_secs(1);
        let Ok(created) = tokio::time::timeout(patience, replication.create_temporary_slot(&name)).await else {
            return Err(held_back(session, patience).await);
        };
        let created = created?;
        let holder = SnapshotHolder::import(settings, &created.snapshot).await?;
        Ok((created.consistent_point, holder))
    };
    match made.await {
        Ok((lsn, holder)) => Ok((replication, lsn, holder)),
        Err(error) => {
            point.release().await;
            Err(error)
        }
    }
}

/// A slot waits for all transactions that are open. The stream is not held meanwhile.
async fn wait_for_old_transactions(session: &Session, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    while slot::oldest_writer(session).await?.is_some_and(|oldest| oldest.age > OLD) {
        if begun.elapsed() > patience {
            return Err(held_back(session, patience).await);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn held_back(session: &Session, waited: Duration) -> Error {
    let by = match slot::oldest_writer(session).await {
        Ok(Some(oldest)) => format!("{}, open for {} s", oldest.description, oldest.age.as_secs()),
        Ok(None) => "no transaction that is still open".to_owned(),
        Err(error) => return error,
    };
    Error::new(
        ErrorKind::Transient,
        format!("the source gave no consistent point within {} s; it is held back by {by}", waited.as_secs()),
    )
    .remedy("end that transaction, or wait for its end, longer with --timeout")
}

struct Comparison<'a> {
    config: &'a Config,
    options: &'a CompareOptions,
    store: Store,
    progress: &'a Arc<ValidateProgress>,
    snapshot: i64,
    lake: &'a Lake,
}

impl Comparison<'_> {
    async fn tables(&self, session: &Session, reads: &SourceReads, report: &mut Report) -> Result<()> {
        let published = publication::find(session, &self.config.source.publication).await?;
        let chosen = prepare::choose_tables(session, self.config, published.as_ref().map(|p| p.name.as_str())).await?;
        let rows = super::wanted_tables(self.lake, &self.config.name, self.options.table.as_deref()).await?;
        for row in rows {
            let mut table = TableReport {
                source: row.source.to_string(),
                target: row.target.to_string(),
                errored: row.state == TableState::Errored,
                ..TableReport::default()
            };
            if table.errored {
                let error = row.error.as_deref().unwrap_or("errored");
                table.left_out = Some(format!("not compared, it stands still: {error}"));
            } else if let Some(chosen) = chosen.iter().find(|chosen| chosen.source.oid == row.source_oid) {
                match self.table(&row, chosen, reads, &mut table, &mut report.findings).await {
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

    async fn table(
        &self,
        row: &TableRow,
        chosen: &ChosenTable,
        reads: &SourceReads,
        report: &mut TableReport,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let name = row.target.to_string();
        let lake_table = match self.lake.fitting_table(row, &chosen.layout).await {
            Ok(table) => table,
            Err(error) if error.kind() == ErrorKind::Table => {
                findings.push(Finding::new(FindingKind::TableMissing, &name, error.to_string()));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let registered = self.lake.registered(&[lake_table.table_id], false).await?;
        let (files, mut found) = lake_rows::files_at(&registered, lake_table.table_id, &name, self.snapshot);
        findings.append(&mut found);
        report.files = Some(files.iter().map(|at| 1 + u64::from(at.delete.is_some())).sum());
        let schema = lake_table.schema(&chosen.layout)?;
        let in_lake: i64 = files.iter().map(|at| at.file.rows).sum();
        let expected = chosen.source.estimated_rows.max(in_lake).max(0) as u64;
        let sampled = self.options.sample.map_or(1.0, |percent| percent / 100.0);
        self.progress.begin(&name, (expected as f64 * sampled) as u64 + in_lake.max(0) as u64);
        let source = SourceRows::new(&chosen.source, &chosen.layout, self.options.sample);
        let mut hashing = Hashing {
            hasher: RowHasher::new(),
            key: Arc::new(chosen.layout.key.clone()),
            all: Arc::new((0..chosen.layout.columns.len()).collect()),
            buckets: usize::try_from(expected / 64).unwrap_or(usize::MAX).clamp(1 << 14, 1 << 20).next_power_of_two(),
            only: None,
        };
        let sides = Sides { comparison: self, reads, source: &source, files: &files, schema: &schema, name: &name };
        let Some((in_source, in_lake)) = sides.sums(&mut hashing, findings).await? else { return Ok(()) };
        (report.source_rows, report.lake_rows) = (Some(in_source.rows()), Some(in_lake.rows()));
        if self.options.sample.is_some() {
            report.left_out = Some("a sample: rows that only the lake has are not looked for".into());
        }
        let differing = in_source.differing(&in_lake);
        if !differing.is_empty() {
            sides.details(&hashing, &differing, (in_source.rows(), in_lake.rows()), findings).await?;
        }
        Ok(())
    }
}

/// One table on both sides.
struct Sides<'a> {
    comparison: &'a Comparison<'a>,
    reads: &'a SourceReads,
    source: &'a SourceRows,
    files: &'a [FileAt],
    schema: &'a arrow::datatypes::SchemaRef,
    name: &'a str,
}

impl Sides<'_> {
    /// The sums of source and lake; `None` where files of the lake can't be read, which are among the findings then.
    async fn sums(&self, hashing: &mut Hashing, findings: &mut Vec<Finding>) -> Result<Option<(Sums, Sums)>> {
        let Comparison { store, progress, snapshot, options, .. } = self.comparison;
        let place = (self.name, *snapshot);
        let (of_source, of_lake) = match options.sample {
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

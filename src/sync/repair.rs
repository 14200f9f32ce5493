//! Rows of the lake that are not what the source has at the position that the lake shows: replaced by a flush of their own.
//!
//! The lake stands at that position meanwhile, so that no change of the source can come in between; the commit is refused where it
//! did not. It is made with the right of the `sync` that holds the pipeline, and takes nothing from it.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, UInt8Type};
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;
use duckpipe_storage::Store;
use hashbrown::HashMap;

use super::boundary::moved_on;
use super::change_log::ChangeLog;
use super::flush::{Flush, RowsOfAKey, SyncTable, flush};
use super::pipeline::{Budget, Pipeline};
use super::prepare;
use super::progress::Progress;
use super::run::spill_directory;
use crate::batch::change::ChangeBatch;
use crate::config::Config;
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::{Fence, Lake, PipelineState};
use crate::lsn::Lsn;
use crate::source::publication;
use crate::source::session::Session;
use crate::source::settings::SourceSettings;

/// What is to be replaced in one table.
#[derive(Clone, Debug)]
pub struct Repair {
    /// The table, by its oid in the source.
    pub source_oid: u32,
    /// The position that the lake shows, and that the rows are of.
    pub lsn: Lsn,
    /// A DELETE for each key that the lake has, and an INSERT for each row that the source has.
    pub changes: Vec<ChangeBatch>,
}

/// Commits the rows. Returns a snapshot of the lake that shows them.
///
/// # Errors
/// Kind `Transient`, where the lake does not show the position any more; kind `Table`, where the table does not fit. Nothing was
/// changed then.
pub async fn repair(config: &Config, lake: &Lake, store: &Store, repair: Repair) -> Result<i64> {
    let row = lake.pipeline(&config.name).await?.filter(|row| row.state == PipelineState::Streaming);
    let Some(row) = row.filter(|row| row.lsn == Some(repair.lsn)) else { return Err(moved_on(repair.lsn)) };
    let session = Session::connect(&SourceSettings::parse(&config.source.url)?).await?;
    let published = publication::find(&session, &config.source.publication).await?;
    let tables = lake.tables(&config.name).await?;
    let known = tables.iter().find(|known| known.source_oid == repair.source_oid && known.follows());
    let Some(known) = known else {
        return Err(Error::new(ErrorKind::Table, "the table to repair does not stream any more"));
    };
    let published = published.as_ref().map(|published| published.name.as_str());
    let chosen = prepare::choose_known(&session, config, known, published).await?;
    let progress = Progress::new();
    let table = SyncTable {
        oid: known.source_oid,
        selected: chosen.selected,
        partitioned: chosen.source.partitions.is_some(),
        lake: lake.fitting_table(known, &chosen.layout).await?,
        progress: progress.table(&known.source, &known.target),
        layout: Arc::new(chosen.layout),
    };
    let pipeline = Pipeline {
        lake: lake.clone(),
        store: store.clone(),
        fence: Fence { pipeline: row.name, epoch: row.epoch },
        budget: Budget::new(config.sync.memory_limit, config.sync.flush_bytes),
        spill_directory: spill_directory(),
        progress,
        slot: None,
        resyncs: false,
    };
    let mut log = ChangeLog::new(table.layout.key.clone());
    for changes in repair.changes {
        log.push(changes);
    }
    let replacement = Flush {
        follows: repair.lsn,
        lsn: repair.lsn,
        commit_ts: None,
        logs: vec![(Arc::new(table), log)],
        alterations: HashMap::new(),
        definitions: HashMap::new(),
        state: known.state,
        rows_of_a_key: RowsOfAKey::Any,
    };
    match flush(&pipeline, &replacement).await {
        Ok(()) => lake.latest_snapshot().await,
        Err(failure) => Err(failure.error),
    }
}

/// Writes the changes to a file, for the process that holds the catalog.
///
/// # Errors
/// Kind `Transient`, where it can't be written.
pub fn write_changes(path: &Path, changes: &[ChangeBatch]) -> Result<()> {
    let failed = || format!("the rows to repair can't be written to {}", path.display());
    let Some(first) = changes.first() else { return Err(Error::new(ErrorKind::Internal, failed())) };
    let file = File::create_new(path).because(ErrorKind::Transient, failed)?;
    let schema = Arc::new(with_op(&first.rows.schema()));
    let mut writer = FileWriter::try_new(file, &schema).because(ErrorKind::Transient, failed)?;
    for batch in changes {
        let mut columns = batch.rows.columns().to_vec();
        columns.push(Arc::new(batch.ops.clone()));
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).because(ErrorKind::Internal, failed)?;
        writer.write(&batch).because(ErrorKind::Transient, failed)?;
    }
    writer.finish().because(ErrorKind::Transient, failed)
}

/// Reads what [`write_changes`] wrote.
///
/// # Errors
/// Kind `Transient`, where it can't be read.
pub fn read_changes(path: &Path) -> Result<Vec<ChangeBatch>> {
    let failed = || format!("the rows to repair can't be read from {}", path.display());
    let file = File::open(path).because(ErrorKind::Transient, failed)?;
    let reader = FileReader::try_new(file, None).because(ErrorKind::Transient, failed)?;
    reader
        .map(|batch| {
            let batch = batch.because(ErrorKind::Transient, failed)?;
            let columns = batch.num_columns().saturating_sub(1);
            let ops = batch.column(columns).as_primitive_opt::<UInt8Type>().cloned();
            let ops = ops.ok_or_else(|| Error::new(ErrorKind::Internal, failed()))?;
            let rows = batch.project(&(0..columns).collect::<Vec<_>>()).because(ErrorKind::Internal, failed)?;
            Ok(ChangeBatch { ops, rows, unchanged: None })
        })
        .collect()
}

fn with_op(schema: &Schema) -> Schema {
    let op = Arc::new(Field::new("op", DataType::UInt8, false));
    Schema::new(schema.fields().iter().cloned().chain([op]).collect::<Vec<_>>())
}

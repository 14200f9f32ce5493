//! A flush under way beside the stream, tried again where that helps, and without a table that can't go on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::sync::flush::{Flush, SyncTable, flush};
use crate::sync::pipeline::Pipeline;

/// What a finished flush tells.
pub(super) struct Flushed {
    pub(super) lsn: Lsn,
    /// The tables that were left out.
    pub(super) failed: Vec<u32>,
}

/// An error with its remedy, as `status` shows it.
pub fn explain(error: &Error) -> String {
    match error.remedy_text() {
        Some(remedy) => format!("{error}; {remedy}"),
        None => error.to_string(),
    }
}

pub(super) async fn record_failure(pipeline: &Pipeline, table: &SyncTable, error: &Error) -> Result<()> {
    tracing::error!(table = %table.layout.table, %error, fix = error.remedy_text(), "the table stops; the others go on");
    let text = explain(error);
    let resync = pipeline.resyncs && error.is_mended_by_resync();
    pipeline.lake.fail_table(&pipeline.fence, table.lake.table_id, &text, resync).await?;
    table.progress.fail(text);
    Ok(())
}

/// Flushes, again after a passing failure, and without a table that can't go on.
async fn until_done(pipeline: &Pipeline, mut what: Flush, attempts: Option<u32>) -> Result<Flushed> {
    let mut failed = Vec::new();
    let mut suspected = HashSet::new();
    let mut tries: u32 = 0;
    loop {
        let failure = match flush(pipeline, &what).await {
            Ok(()) => return Ok(Flushed { lsn: what.lsn, failed }),
            Err(failure) => failure,
        };
        if let Some(table) = failure.table {
            // A file may have been merged, and removed, while its rows were looked for: what the lake has after that decides.
            if suspected.insert(table.oid) {
                tracing::debug!(table = %table.layout.table, error = %failure.error, "looking again before the table stops");
                continue;
            }
            record_failure(pipeline, &table, &failure.error).await?;
            failed.push(table.oid);
            what.logs.retain(|(other, _)| other.oid != table.oid);
            continue;
        }
        if failure.error.kind() != ErrorKind::Transient {
            return Err(failure.error);
        }
        // The connection may have broken after the catalog committed: before another try the catalog is asked, until it answers.
        let mut error = failure.error;
        loop {
            tries += 1;
            if attempts.is_some_and(|most| tries >= most) {
                return Err(error);
            }
            let pause = Duration::from_millis(250 * 2u64.pow(tries.min(7)));
            tracing::warn!(%error, ?pause, "the flush failed; trying again");
            tokio::time::sleep(pause).await;
            match fate(pipeline, &what).await {
                Ok(Fate::Committed) => return Ok(Flushed { lsn: what.lsn, failed }),
                Ok(Fate::Open) => break,
                Ok(Fate::Overtaken) => return Err(error),
                Err(silent) if silent.kind() == ErrorKind::Transient => error = silent,
                Err(other) => return Err(other),
            }
        }
    }
}

/// What became of a flush whose commit was not answered.
enum Fate {
    Committed,
    /// Nothing of it is in the lake.
    Open,
    /// A flush of a stream that was given up got in before: this stream must begin again after it.
    Overtaken,
}

async fn fate(pipeline: &Pipeline, what: &Flush) -> Result<Fate> {
    let lsn = pipeline.lake.position(&pipeline.fence.pipeline, pipeline.slot.as_deref()).await?;
    let Some(lsn) = lsn else { return Ok(Fate::Open) };
    if lsn != what.follows {
        return Ok(if lsn >= what.lsn { Fate::Committed } else { Fate::Overtaken });
    }
    // Columns alone have no position of their own.
    let is_in = lsn >= what.lsn && are_altered(pipeline, what).await?;
    Ok(if is_in { Fate::Committed } else { Fate::Open })
}

/// Whether the lake has the columns and the names that the flush gives its tables.
async fn are_altered(pipeline: &Pipeline, what: &Flush) -> Result<bool> {
    for (table, _) in &what.logs {
        if let Some(alteration) = what.alterations.get(&table.oid)
            && !pipeline.lake.is_altered(&pipeline.fence.pipeline, table.lake.table_id, alteration).await?
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A flush under way, which ends with the stream that it belongs to.
pub(super) struct Flight(pub(super) JoinHandle<Result<Flushed>>);

impl Flight {
    /// Begins a flush; `attempts`: how often it is tried when store or catalog fail, `None`: for ever.
    pub(super) fn begin(pipeline: Arc<Pipeline>, flush: Flush, attempts: Option<u32>) -> Flight {
        Flight(tokio::spawn(async move { until_done(&pipeline, flush, attempts).await }))
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) async fn next_flush(
    flush: &mut Option<Flight>,
) -> std::result::Result<Result<Flushed>, tokio::task::JoinError> {
    match flush {
        Some(flush) => (&mut flush.0).await,
        None => std::future::pending().await,
    }
}

pub(super) fn joined<T>(result: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    result.unwrap_or_else(|error| Err(Error::new(ErrorKind::Internal, "the flush task died").caused_by(error)))
}

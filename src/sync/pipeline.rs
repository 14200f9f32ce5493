//! What all parts of a running pipeline share.

use std::path::PathBuf;
use std::sync::Arc;

use duckpipe_storage::{BoxError, DataFileOptions, Store, UploadLog};

use crate::lake::{Fence, Lake};

use super::progress::Progress;

/// One pipeline at work: its lake, its bucket, its right to write and its memory.
pub struct Pipeline {
    /// The catalog.
    pub lake: Lake,
    /// The bucket or folder.
    pub store: Store,
    /// The right to write as this pipeline; a later process takes it away.
    pub fence: Fence,
    /// How the memory limit is shared out.
    pub budget: Budget,
    /// Where a transaction that exceeds the memory goes.
    pub spill_directory: PathBuf,
    /// What people see.
    pub progress: Arc<Progress>,
    /// The slot of a copy beside the stream, whose tables have a position of their own; `None`: the pipeline's.
    pub slot: Option<String>,
    /// A table that only a fresh copy mends gets one by itself.
    pub resyncs: bool,
}

/// How `memory_limit` is shared out, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Changes of the WAL in memory, while an equal amount may be on its way into files.
    pub buffer: usize,
    /// Keys and values while a flush resolves them.
    pub resolve: usize,
    /// Open row groups of all files that are written at once.
    pub row_groups: usize,
    /// What a snapshot worker decodes before it hands a batch on.
    pub copy_batch: usize,
    /// DuckDB's own limit.
    pub duckdb: u64,
}

/// Data files are closed at this size.
const TARGET_FILE_BYTES: u64 = 128 << 20;
/// Rows of a row group, as DuckDB writes them.
const ROW_GROUP_ROWS: usize = 122_880;

impl Budget {
    /// Shares out a limit of `memory_limit` bytes.
    pub fn new(memory_limit: u64, flush_bytes: u64) -> Self {
        let limit = usize::try_from(memory_limit).unwrap_or(usize::MAX);
        Budget {
            buffer: (limit / 5).min(usize::try_from(flush_bytes).unwrap_or(usize::MAX)),
            resolve: limit / 5,
            row_groups: limit / 5,
            copy_batch: (limit / 64).clamp(256 << 10, 8 << 20),
            duckdb: (memory_limit / 5).max(48 << 20),
        }
    }

    /// How one of `at_once` writers cuts its files.
    pub fn data_files(&self, at_once: usize) -> DataFileOptions {
        DataFileOptions {
            target_bytes: TARGET_FILE_BYTES,
            row_group_rows: ROW_GROUP_ROWS,
            row_group_bytes: self.row_groups / at_once.max(1),
            ..DataFileOptions::default()
        }
    }
}

impl Pipeline {
    /// Records each upload in the catalog before it starts.
    pub fn upload_log(&self) -> Arc<dyn UploadLog> {
        Arc::new(CatalogUploadLog { lake: self.lake.clone(), fence: self.fence.clone() })
    }
}

struct CatalogUploadLog {
    lake: Lake,
    fence: Fence,
}

#[async_trait::async_trait]
impl UploadLog for CatalogUploadLog {
    async fn starting(&self, paths: &[String]) -> Result<(), BoxError> {
        Ok(self.lake.uploads_starting(&self.fence, paths).await?)
    }
}

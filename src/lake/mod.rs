//! Data files, deleted positions and the applied LSN to one DuckLake snapshot.
//!
//! In come [`Commit`]s: files that already lie in the store, and the position up to which they bring the lake. Out goes one
//! transaction on the catalog's database that makes all of it visible at once, or nothing. This module never reads or writes
//! a data file; it writes DuckLake's metadata tables directly (format 1.0), because a native DELETE scans the table that it
//! deletes from. Tables are created natively.
//!
//! DuckDB is blocking and its connection is not shared: one thread owns it, and [`Lake`] is a handle that sends work to it.
//!
//! What must hold in every commit, each learnt from a wrong answer that its absence gave:
//!
//! * `ducklake_snapshot` is written with a larger `next_file_id`, even where only deletes are added; readers cache statistics
//!   by it.
//! * A data file has at most one live delete file. A second delete on the same file comes as a file with all its deletes.
//! * `delete_count` and `record_count` are exact: `count(*)` is answered from them.
//! * A column's bounds in `ducklake_table_column_stats` hold all its values. Where a bound is unknown, the column's row is
//!   removed: a row with NULL bounds means "only NULLs so far", and DuckLake's own next INSERT would put its own bounds there.
//! * Every INSERT names its columns.

mod alter;
mod attach;
mod commit;
mod compaction;
mod copies;
mod create;
mod definitions;
mod facts;
mod fan_in;
mod files;
mod format;
mod key_index;
pub mod lookup;
#[cfg(test)]
mod lookup_test;
mod maintenance;
mod marker;
mod parts;
mod pipeline;
pub mod query;
mod query_output;
mod redaction;
mod refit;
mod registered;
mod replace;
mod requests;
mod retention;
mod script;
pub mod select_guard;
mod select_lists;
mod session;
mod settings;
mod stamp;
mod statistics;
#[cfg(test)]
mod stats_text_test;
mod storage_error;
pub mod store;
mod table;
mod table_row;
mod uploads;

#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use duckpipe_storage::{S3Credentials, S3Settings};
use tokio::sync::{mpsc, oneshot};

pub use alter::{Alteration, ColumnChange, Renamed};
pub use commit::{Commit, Committed, DeleteCommit, TableCommit};
pub use compaction::{CompactionSchema, CompactionTable, CompactionView, SourceFile};
pub(crate) use compaction::{ROW_ID, SNAPSHOT_ID};
pub use copies::CopiedTable;
pub use create::NewTable;
pub use files::{LiveDelete, LiveFile, LiveFiles};
pub use maintenance::{HEARTBEAT, Maintenance, MaintenanceLog};
pub use marker::{LakeStore, MARKER};
pub use parts::Part;
pub use pipeline::{Fence, NewPipeline, PipelineChange, PipelineRow, PipelineState};
pub use registered::{
    CatalogFieldColumn, FileStatistics, Registered, RegisteredDelete, RegisteredFile, TableColumnStatistics,
    TableStatistics, UploadRow,
};
pub use replace::{Replaced, Replacement, RewrittenDelete, RewrittenFile};
pub use requests::{RequestRow, RequestState};
pub use retention::Scheduled;
pub use settings::{CatalogLocation, LakeSettings};
pub use table::{FieldId, LakeColumn, LakeTable};
pub use table_row::{TableRow, TableState, Wanted};

use session::Session;

use crate::error::{Error, ErrorKind, Result};

/// A handle to the thread that owns the lake's DuckDB connection. Clones share the thread.
///
/// Work runs in the order in which it was asked for. Work that was begun is carried to its end, also where the future that
/// waits for it is dropped.
#[derive(Clone, Debug)]
pub struct Lake {
    requests: mpsc::UnboundedSender<Request>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    catalog_id: String,
    data_path: String,
    s3: Option<S3Settings>,
    thread: Thread,
}

/// The lake's thread, waited for when its last handle goes: DuckDB must be gone before the process runs its exit handlers.
#[derive(Debug)]
struct Thread(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    handle: JoinHandle<()>,
    /// Never receives: its sender goes with the thread's work.
    ended: std::sync::mpsc::Receiver<()>,
}

/// A thread that hangs in a catalog that does not answer is left behind after this.
const THREAD_PATIENCE: Duration = Duration::from_secs(5);

impl Thread {
    fn join(&self) {
        let running = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(running) = running.filter(|running| running.handle.thread().id() != std::thread::current().id())
        else {
            return;
        };
        if running.ended.recv_timeout(THREAD_PATIENCE) == Err(RecvTimeoutError::Disconnected) {
            // A panic of the thread has reached whoever waited for its answer.
            let _ = running.handle.join();
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.join();
    }
}

enum Request {
    Work(Box<dyn FnOnce(&mut Session) + Send>),
    Stop(oneshot::Sender<()>),
}

/// A connection of its own with the lake attached as `lake`, for a query that runs beside everything else. `credentials` are
/// the bucket's, where the settings leave them to the AWS chain.
///
/// # Errors
/// As [`Lake::open`].
pub async fn open_connection(
    settings: &LakeSettings,
    credentials: Option<S3Credentials>,
) -> Result<duckdb::Connection> {
    let settings = settings.clone();
    let open = move || {
        let mut session = attach::open(&settings, |_| Ok(()))?.session;
        if let (Some(s3), Some(fresh)) = (&settings.s3, &credentials) {
            attach::set_s3_secret(&mut session, &settings.data_path, s3, Some(fresh))?;
        }
        Ok(session.connection)
    };
    tokio::task::spawn_blocking(open)
        .await
        .map_err(|error| Error::new(ErrorKind::Internal, "opening the lake died").caused_by(error))?
}

impl Lake {
    /// Connects and attaches the lake, making the catalog where it is new.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a wrong address, [`ErrorKind::Precondition`] for a catalog that is missing (read-only), held
    /// by another process, of another data path or of an unknown version, [`ErrorKind::Transient`] where it can't be reached.
    pub async fn open(settings: &LakeSettings) -> Result<Lake> {
        Lake::start(settings, |_| Ok(())).await
    }

    async fn start(
        settings: &LakeSettings,
        inspect: impl Fn(&attach::Found) -> Result<()> + Send + 'static,
    ) -> Result<Lake> {
        let (requests, mut queue) = mpsc::unbounded_channel();
        let (started, opened) = oneshot::channel();
        let (working, ended) = std::sync::mpsc::channel();
        let for_thread = settings.clone();
        let handle = std::thread::Builder::new()
            .name("lake".into())
            .stack_size(8 << 20)
            .spawn(move || {
                let _working = working;
                let mut session = match attach::open(&for_thread, inspect) {
                    Ok(attached) => {
                        if started.send(Ok(attached.catalog_id)).is_err() {
                            return;
                        }
                        attached.session
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                while let Some(request) = queue.blocking_recv() {
                    match request {
                        Request::Work(work) => work(&mut session),
                        Request::Stop(stopped) => {
                            // Closing writes the file's checkpoint and gives up its lock: before the answer.
                            drop(session);
                            let _ = stopped.send(());
                            return;
                        }
                    }
                }
            })
            .map_err(|error| Error::new(ErrorKind::Internal, format!("can't start the lake's thread: {error}")))?;
        let thread = Thread(Mutex::new(Some(Running { handle, ended })));
        let catalog_id = opened.await.map_err(|_| stopped())??;
        let shared = Shared { catalog_id, data_path: settings.data_path.clone(), s3: settings.s3.clone(), thread };
        Ok(Lake { requests, shared: Arc::new(shared) })
    }

    /// Runs `work` on the lake's thread.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Session) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Work(Box::new(move |session| {
            let _ = answer.send(work(session));
        }));
        self.requests.send(request).map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    /// The id that duckpipe gave this catalog when it first wrote to it: a UUID.
    pub fn catalog_id(&self) -> &str {
        &self.shared.catalog_id
    }

    /// The data path as it was configured: an absolute folder or `s3://bucket/prefix`.
    pub fn data_path(&self) -> &str {
        &self.shared.data_path
    }

    /// Gives DuckDB fresh S3 credentials in place of those that are about to expire.
    pub async fn refresh_s3(&self, credentials: &S3Credentials) -> Result<()> {
        let settings = self.shared.s3.clone().unwrap_or_default();
        let data_path = self.shared.data_path.clone();
        let credentials = credentials.clone();
        self.run(move |session| attach::set_s3_secret(session, &data_path, &settings, Some(&credentials))).await
    }

    /// A consistent copy of a DuckDB-file catalog as the new file `to`, which must not exist. It can be attached as a lake.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for a Postgres catalog, which can be read while this one is open.
    pub async fn copy_catalog(&self, to: &Path) -> Result<()> {
        let to: PathBuf = to.to_owned();
        self.run(move |session| attach::copy_catalog(session, &to)).await
    }

    /// The newest snapshot's id.
    pub async fn latest_snapshot(&self) -> Result<i64> {
        self.run(|session| Ok(files::latest_snapshot(session)?.id)).await
    }

    /// Closes the connection, and the thread with it: a DuckDB file is checkpointed and free again when this returns. Other
    /// clones of this handle get errors from then on.
    pub async fn shutdown(self) {
        let (stopped, waiting) = oneshot::channel();
        if self.requests.send(Request::Stop(stopped)).is_ok() {
            let _ = waiting.await;
        }
        self.shared.thread.join();
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Internal, "the lake's thread has ended")
}

//! The side of `status`, `query`, `compact` and `validate`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tempfile::TempPath;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::protocol::{Answer, LONGEST_LINE, Request};
use super::socket::{connect, socket_path};
use crate::cli::status::StatusReport;
use crate::compact;
use crate::error::{Because, Error, ErrorKind, Result};
use crate::lake::Wanted;
use crate::lsn::Lsn;
use crate::sync::repair::{Repair, write_changes};

/// How long an answer may take: a status waits for nothing, a copy for the flush that is under way.
const PATIENCE: Duration = Duration::from_secs(60);

/// The status report of the sync that holds a catalog file; `None` where no sync is running there.
pub async fn status(catalog: &Path) -> Result<Option<StatusReport>> {
    ask(catalog, Request::Status, Some(PATIENCE)).await
}

/// Lets the sync that holds a catalog file compact, however long that takes; `None` where no sync is running there.
pub async fn compact(catalog: &Path, request: &compact::Request) -> Result<Option<compact::Report>> {
    ask(catalog, Request::Compact(request.clone()), None).await
}

/// A consistent copy of the catalog file that a running sync holds, removed when dropped; `None` where no sync is running there.
pub async fn copy_catalog(catalog: &Path) -> Result<Option<TempPath>> {
    let path: Option<PathBuf> = ask(catalog, Request::CopyCatalog, Some(PATIENCE)).await?;
    path.map(|path| TempPath::try_from_path(path).because(ErrorKind::Internal, || "the sync named no path".into()))
        .transpose()
}

/// Keeps the stream of the running sync from reading on; `None` where no sync is running there.
pub async fn hold(catalog: &Path, patience: Duration) -> Result<Option<()>> {
    let request = Request::Hold { patience: millis(patience) };
    ask(catalog, request, Some(patience + PATIENCE)).await
}

/// Has the running sync end a flush at a position; the lake's snapshot that shows it. `None` where no sync is running there.
/// With `stands` nothing is flushed afterwards, for a while.
pub async fn flush_at(catalog: &Path, lsn: Lsn, patience: Duration, stands: bool) -> Result<Option<i64>> {
    let request = Request::FlushAt { lsn, patience: millis(patience), stands };
    ask(catalog, request, Some(patience + PATIENCE)).await
}

/// Keeps the stream of the running sync standing at a position; `None` where no sync is running there.
pub async fn stand(catalog: &Path, lsn: Lsn) -> Result<Option<()>> {
    ask(catalog, Request::Stand { lsn }, Some(PATIENCE)).await
}

/// Lets the sync that holds a catalog file replace rows; a snapshot of the lake that shows it. `None` where no sync is running there.
pub async fn repair(catalog: &Path, repair: &Repair) -> Result<Option<i64>> {
    // Named as a copy of the catalog, so that it goes as such, should this process die before it is removed.
    let mut name = catalog.file_name().unwrap_or_default().to_owned();
    name.push(format!(".copy-repair-{}", uuid::Uuid::new_v4().simple()));
    let path = catalog.with_file_name(name);
    let written = write_changes(&path, &repair.changes);
    // Removed whatever comes.
    let file = TempPath::try_from_path(&path).because(ErrorKind::Internal, || "the file has no path".into())?;
    written?;
    let request = Request::Repair { source_oid: repair.source_oid, lsn: repair.lsn, path: file.to_path_buf() };
    ask(catalog, request, None).await
}

/// Tells the sync that holds a catalog file what is wanted of tables, with no names of those that are errored; which ones. `paused`: they
/// must stand still. `None` where no sync is running there.
pub async fn want(catalog: &Path, names: &[String], paused: bool, wanted: Wanted) -> Result<Option<Vec<String>>> {
    ask(catalog, Request::Want { tables: names.to_vec(), paused, wanted }, Some(PATIENCE)).await
}

/// Has the sync that holds a catalog file read its configuration again. `None` where no sync is running there.
pub async fn reload(catalog: &Path) -> Result<Option<()>> {
    ask(catalog, Request::Reload, Some(PATIENCE)).await
}

/// Ends a hold.
pub async fn release(catalog: &Path) -> Result<Option<()>> {
    ask(catalog, Request::Release, Some(PATIENCE)).await
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Without `patience` it waits until the sync answers or ends.
async fn ask<T: DeserializeOwned>(catalog: &Path, request: Request, patience: Option<Duration>) -> Result<Option<T>> {
    let path = socket_path(catalog);
    let stream = match connect(&path).await {
        Ok(stream) => stream,
        // No socket, or one that a dead process left.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Error::new(ErrorKind::Precondition, "the running sync belongs to another user")
                .context(format!("the control socket {}", path.display()))
                .remedy("run this command as the user that runs sync"));
        }
        Err(error) => {
            return Err(error)
                .because(ErrorKind::Transient, || format!("the control socket {} can't be reached", path.display()));
        }
    };
    let asked = exchange(stream, request);
    let line = match patience {
        None => asked.await,
        Some(patience) => tokio::time::timeout(patience, asked).await.map_err(|_| {
            let seconds = patience.as_secs();
            Error::new(ErrorKind::Transient, format!("the running sync did not answer within {seconds} s"))
        })?,
    };
    let line = line.because(ErrorKind::Transient, || "the running sync did not answer".into())?;
    let answer: Answer<T> = serde_json::from_str(&line).because(ErrorKind::Internal, || {
        "the running sync's answer can't be read; is it another version of duckpipe?".into()
    })?;
    answer.into_result().map(Some)
}

async fn exchange(mut stream: tokio::net::UnixStream, request: Request) -> io::Result<String> {
    let mut text = serde_json::to_string(&request)?;
    text.push('\n');
    stream.write_all(text.as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_LINE)).read_line(&mut line).await?;
    if line.ends_with('\n') { Ok(line) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

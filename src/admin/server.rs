//! The side of the running sync.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use super::protocol::{Answer, LONGEST_LINE, Request};
use super::socket::ControlSocket;
use crate::cli::status::StatusReport;
use crate::compact;
use crate::error::{Because, ErrorKind, Result};
use crate::lake::Wanted;
use crate::sync::boundary::Boundary;
use crate::sync::repair::{Repair, read_changes};

/// Clients at the same time; more wait.
const CLIENTS: usize = 16;
/// How long a client may take to send a line, or to read its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait where no connection can be taken, as when the process has no file descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// What the running sync answers.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// The pipeline's state.
    async fn status(&self) -> Result<StatusReport>;
    /// Makes a consistent copy of the catalog file and says where; the client removes it.
    async fn copy_catalog(&self) -> Result<PathBuf>;
    /// A pass of compaction.
    async fn compact(&self, request: &compact::Request) -> Result<compact::Report>;
    /// Replaces rows of a table; a snapshot of the lake that shows it.
    async fn repair(&self, repair: Repair) -> Result<i64>;
    /// Sees to it that something is done with tables, with no names with those that are errored; their names in the source.
    async fn want(&self, names: &[String], paused: bool, wanted: Wanted) -> Result<Vec<String>>;
    /// Reads the configuration again.
    async fn reload(&self) -> Result<()>;
    /// How others have a flush end at a position.
    fn boundary(&self) -> &Boundary;
}

/// Answers clients until it is dropped. A client's mistakes and hang-ups end that client only.
pub async fn serve(socket: ControlSocket, handler: impl Handler) {
    let handler = Arc::new(handler);
    let places = Arc::new(Semaphore::new(CLIENTS));
    let mut clients = tokio::task::JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match socket.listener.accept().await {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                clients.spawn(async move {
                    if let Err(error) = answer(stream, &*handler).await {
                        tracing::debug!(%error, "a control client went away");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket takes no connection");
                tokio::time::sleep(BREATH).await;
            }
        }
        while clients.try_join_next().is_some() {}
    }
}

async fn answer(mut stream: UnixStream, handler: &impl Handler) -> Result<()> {
    let (reading, mut writing) = stream.split();
    let mut lines = BufReader::new(reading.take(LONGEST_LINE));
    loop {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, lines.read_line(&mut line)).await;
        let read = read.because(ErrorKind::Transient, || "a control client sends nothing".into())?;
        if read.because(ErrorKind::Transient, || "a control client can't be read".into())? == 0 {
            return Ok(());
        }
        let mut made = None;
        let mut text = match serde_json::from_str::<Request>(&line) {
            Ok(Request::Status) => json(&Answer::from(handler.status().await))?,
            Ok(Request::CopyCatalog) => {
                let copied = handler.copy_catalog().await;
                made = copied.as_ref().ok().cloned();
                json(&Answer::from(copied))?
            }
            Ok(Request::Compact(request)) => json(&Answer::from(handler.compact(&request).await))?,
            Ok(Request::Hold { patience }) => {
                json(&Answer::from(handler.boundary().hold(Duration::from_millis(patience)).await))?
            }
            Ok(Request::FlushAt { lsn, patience, stands }) => {
                let patience = Duration::from_millis(patience);
                json(&Answer::from(handler.boundary().flush_at(lsn, patience, stands).await))?
            }
            Ok(Request::Stand { lsn }) => json(&Answer::from(handler.boundary().stand(lsn)))?,
            Ok(Request::Repair { source_oid, lsn, path }) => {
                let repaired = match read_changes(&path) {
                    Ok(changes) => handler.repair(Repair { source_oid, lsn, changes }).await,
                    Err(error) => Err(error),
                };
                json(&Answer::from(repaired))?
            }
            Ok(Request::Want { tables, paused, wanted }) => {
                json(&Answer::from(handler.want(&tables, paused, wanted).await))?
            }
            Ok(Request::Reload) => json(&Answer::from(handler.reload().await))?,
            Ok(Request::Release) => {
                handler.boundary().release();
                json(&Answer::Ok(()))?
            }
            Err(error) => json(&Answer::<()>::Error { message: format!("no request: {error}"), remedy: None })?,
        };
        text.push('\n');
        if let Err(error) = send(&mut writing, &text).await {
            // A client that is gone removes nothing.
            if let Some(path) = made {
                let _ = std::fs::remove_file(path);
            }
            return Err(error);
        }
    }
}

async fn send(writing: &mut tokio::net::unix::WriteHalf<'_>, text: &str) -> Result<()> {
    let written = tokio::time::timeout(PATIENCE, writing.write_all(text.as_bytes())).await;
    let written = written.because(ErrorKind::Transient, || "a control client reads nothing".into())?;
    written.because(ErrorKind::Transient, || "a control client can't be written to".into())
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).because(ErrorKind::Internal, || "the answer has no JSON form".into())
}

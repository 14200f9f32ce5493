//! Both sides over a real socket.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::batch::change::ChangeBatch;
use crate::cli::status::StatusReport;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Wanted;
use crate::lsn::Lsn;
use crate::sync::boundary::Boundary;
use crate::sync::repair::Repair;

#[derive(Default)]
struct Fixed {
    copy: Option<PathBuf>,
    boundary: Boundary,
}

#[async_trait]
impl Handler for Fixed {
    async fn status(&self) -> Result<StatusReport> {
        let positions = (Some(Lsn(1)), Some(Lsn(2)));
        Ok(StatusReport::new("shop", "duckpipe_shop", positions, (None, chrono::Utc::now()), vec![]))
    }

    async fn copy_catalog(&self) -> Result<PathBuf> {
        let path = self.copy.clone().ok_or_else(|| Error::new(ErrorKind::Transient, "no room").remedy("make room"))?;
        std::fs::write(&path, "copy").unwrap();
        Ok(path)
    }

    async fn compact(&self, request: &crate::compact::Request) -> Result<crate::compact::Report> {
        Ok(crate::compact::Report { dry_run: request.dry_run, snapshots_expired: 7, ..Default::default() })
    }

    async fn repair(&self, repair: Repair) -> Result<i64> {
        assert_eq!((repair.source_oid, repair.lsn), (7, Lsn(9)));
        Ok(repair.changes.iter().map(|batch| batch.ops.len() as i64).sum())
    }

    async fn want(&self, names: &[String], paused: bool, wanted: Wanted) -> Result<Vec<String>> {
        Ok(names.iter().map(|name| format!("{name}: {wanted} {paused}")).collect())
    }

    async fn reload(&self) -> Result<()> {
        Err(Error::new(ErrorKind::Config, "line 3 is wrong").remedy("correct it"))
    }

    fn boundary(&self) -> &Boundary {
        &self.boundary
    }
}

/// A catalog file's path whose length no socket address could hold.
fn long_path(folder: &Path) -> PathBuf {
    let mut path = folder.to_owned();
    for _ in 0..4 {
        path.push("a".repeat(100));
    }
    std::fs::create_dir_all(&path).unwrap();
    path.join("catalog.ducklake")
}

#[tokio::test]
async fn answers_over_paths_of_any_length() {
    let folder = tempfile::tempdir().unwrap();
    for catalog in [folder.path().join("c.ducklake"), long_path(folder.path()), folder.path().join("c".repeat(240))] {
        let copy = catalog.with_file_name("copy");
        let socket = ControlSocket::bind(&catalog).await.unwrap();
        let mode = std::fs::metadata(socket_path(&catalog)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let server = tokio::spawn(serve(socket, Fixed { copy: Some(copy.clone()), ..Fixed::default() }));

        let report = status(&catalog).await.unwrap().unwrap();
        assert_eq!((report.pipeline.as_str(), report.lag_bytes), ("shop", Some(1)));
        let copied = copy_catalog(&catalog).await.unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(&copied).unwrap(), "copy");
        drop(copied);
        assert!(!copy.exists(), "the copy must go with its guard");

        server.abort();
        let _ = server.await;
        assert!(!socket_path(&catalog).exists());
        assert!(status(&catalog).await.unwrap().is_none());
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("c.ducklake");
    // A listener that is closed leaves its name behind.
    drop(std::os::unix::net::UnixListener::bind(socket_path(&catalog)).unwrap());
    assert!(status(&catalog).await.unwrap().is_none());
    let socket = ControlSocket::bind(&catalog).await.unwrap();
    let server = tokio::spawn(serve(socket, Fixed::default()));
    let error = ControlSocket::bind(&catalog).await.unwrap_err();
    assert!(error.to_string().contains("another sync is running"), "{error}");
    assert!(status(&catalog).await.unwrap().is_some(), "the live socket must stay");
    server.abort();
    let _ = server.await;

    std::fs::write(socket_path(&catalog), "precious").unwrap();
    assert!(ControlSocket::bind(&catalog).await.is_err());
    assert_eq!(std::fs::read_to_string(socket_path(&catalog)).unwrap(), "precious");
}

#[tokio::test]
async fn errors_and_bad_clients_end_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("c.ducklake");
    let server = tokio::spawn(serve(ControlSocket::bind(&catalog).await.unwrap(), Fixed::default()));

    let error = copy_catalog(&catalog).await.unwrap_err();
    assert!(error.to_string().contains("no room"), "{error}");
    assert_eq!(error.remedy_text(), Some("make room"));

    let mut client = super::socket::connect(&socket_path(&catalog)).await.unwrap();
    client.write_all(b"{\"op\":\"shutdown\"}\nnonsense\n{\"op\":\"status\"}\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut answers = String::new();
    client.read_to_string(&mut answers).await.unwrap();
    let lines: Vec<&str> = answers.lines().collect();
    assert_eq!(lines.len(), 3, "{answers}");
    assert!(
        lines[0].contains("\"error\"") && lines[1].contains("\"error\"") && lines[2].contains("\"pipeline\":\"shop\"")
    );

    // Clients that hang about do not keep others out.
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(super::socket::connect(&socket_path(&catalog)).await.unwrap());
    }
    assert!(status(&catalog).await.unwrap().is_some());
    drop(idle);
    server.abort();
}

#[tokio::test]
async fn a_pass_of_compaction_is_asked_for_with_its_options() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("c.ducklake");
    let request = crate::compact::Request { table: Some("public.t".into()), dry_run: true };
    assert_eq!(compact(&catalog, &request).await.unwrap(), None, "nobody is there");
    let server = tokio::spawn(serve(ControlSocket::bind(&catalog).await.unwrap(), Fixed::default()));
    let report = compact(&catalog, &request).await.unwrap().unwrap();
    assert!(report.dry_run && report.snapshots_expired == 7);
    server.abort();
}

#[tokio::test]
async fn a_hold_without_a_stream_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("c.ducklake");
    let short = std::time::Duration::from_millis(50);
    assert!(hold(&catalog, short).await.unwrap().is_none(), "no sync is running");
    let server = tokio::spawn(serve(ControlSocket::bind(&catalog).await.unwrap(), Fixed::default()));
    let error = hold(&catalog, short).await.unwrap_err();
    assert!(error.to_string().contains("not under way"), "{error}");
    let error = flush_at(&catalog, Lsn(7), short, false).await.unwrap_err();
    assert!(error.to_string().contains("did not reach 0/7"), "{error}");
    release(&catalog).await.unwrap().unwrap();
    assert!(stand(&catalog, Lsn(7)).await.unwrap_err().to_string().contains("went on from 0/7"));
    server.abort();
}

#[tokio::test]
async fn something_is_wanted_of_tables() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("c.ducklake");
    let names = ["public.t".to_owned()];
    assert_eq!(want(&catalog, &names, false, Wanted::Pause).await.unwrap(), None, "nobody is there");
    assert_eq!(reload(&catalog).await.unwrap(), None, "nobody is there");
    let server = tokio::spawn(serve(ControlSocket::bind(&catalog).await.unwrap(), Fixed::default()));
    let asked = want(&catalog, &names, true, Wanted::Resync).await.unwrap().unwrap();
    assert_eq!(asked, ["public.t: resync true"]);
    assert!(reload(&catalog).await.unwrap_err().to_string().contains("line 3 is wrong"));
    server.abort();
}

#[tokio::test]
async fn rows_to_repair_go_over_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("c.ducklake");
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let rows = RecordBatch::try_from_iter([("id", ids)]).unwrap();
    let batch = ChangeBatch { ops: vec![2u8, 0, 0].into(), rows, unchanged: None };
    let asked = Repair { source_oid: 7, lsn: Lsn(9), changes: vec![batch.clone(), batch] };
    assert_eq!(repair(&catalog, &asked).await.unwrap(), None, "nobody is there");
    let server = tokio::spawn(serve(ControlSocket::bind(&catalog).await.unwrap(), Fixed::default()));
    assert_eq!(repair(&catalog, &asked).await.unwrap(), Some(6));
    let left = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!left.into_iter().any(|name| name.to_string_lossy().contains("repair")), "no file is left behind");
    server.abort();
}

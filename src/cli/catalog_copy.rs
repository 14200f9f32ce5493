//! A copy of a DuckDB-file catalog, for commands that only read. They never open the file itself: DuckDB locks it for one
//! process, and a query that holds it would keep a sync from starting.

use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::{TempDir, TempPath};

use crate::admin;
use crate::error::{Because, Error, ErrorKind, Result};

/// How often a file that changes under the copy is copied again.
const ATTEMPTS: u32 = 20;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);

/// No query reads a copy for longer.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// The copy's name in its own folder.
const NAME: &str = "catalog.ducklake";

/// The copy; it is removed when dropped.
#[derive(Debug)]
pub(super) enum CatalogCopy {
    /// Made by the running sync.
    Given(TempPath),
    /// Made here, of a file that nobody changed meanwhile.
    Made(TempDir),
}

impl CatalogCopy {
    /// Where it is.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            CatalogCopy::Given(path) => path.to_path_buf(),
            CatalogCopy::Made(folder) => folder.path().join(NAME),
        }
    }

    /// Asks the sync that runs on this catalog for a copy, or copies the file where none runs. A catalog that does not exist is an
    /// error of kind [`ErrorKind::Precondition`].
    pub(super) async fn of(catalog: &Path) -> Result<CatalogCopy> {
        for _ in 0..ATTEMPTS {
            if let Some(copy) = admin::copy_catalog(catalog).await? {
                return Ok(CatalogCopy::Given(copy));
            }
            let attempt = {
                let catalog = catalog.to_owned();
                tokio::task::spawn_blocking(move || copy(&catalog)).await
            };
            match attempt.because(ErrorKind::Internal, || "the copying thread died".into())? {
                Ok(Some(copy)) => return Ok(copy),
                // A sync that is starting or ending writes to it: ask again, it may answer by now.
                Ok(None) => tokio::time::sleep(BETWEEN_ATTEMPTS).await,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(Error::new(
                        ErrorKind::Precondition,
                        format!("there is no lake yet: {} does not exist", catalog.display()),
                    )
                    .remedy("run duckpipe sync first"));
                }
                Err(error) => {
                    return Err(error).because(ErrorKind::Precondition, || {
                        format!("the catalog {} can't be read", catalog.display())
                    });
                }
            }
        }
        Err(Error::new(
            ErrorKind::Transient,
            format!("the catalog {} keeps changing, but no sync answers beside it", catalog.display()),
        )
        .remedy("another program writes to it, or sync is only starting: try again"))
    }
}

/// Where the sync that runs on this catalog makes its next copy: beside it, for the folder's rights are right there.
pub(super) fn new_copy(catalog: &Path) -> PathBuf {
    let mut name = prefix(catalog);
    name.push(uuid::Uuid::new_v4().simple().to_string());
    catalog.with_file_name(name)
}

/// Removes copies of clients that were killed before they could.
pub(super) fn remove_abandoned(catalog: &Path) -> io::Result<()> {
    let prefix = prefix(catalog);
    for entry in std::fs::read_dir(catalog.parent().unwrap_or(Path::new("/")))? {
        let entry = entry?;
        let ours = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        if ours && entry.metadata()?.modified()?.elapsed().is_ok_and(|age| age > ABANDONED) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn prefix(catalog: &Path) -> OsString {
    let mut prefix = catalog.file_name().unwrap_or_default().to_owned();
    prefix.push(".copy-");
    prefix
}

/// Copies the file and the log beside it, which a process that died leaves. `None` where either changed meanwhile.
fn copy(catalog: &Path) -> io::Result<Option<CatalogCopy>> {
    let mut log = catalog.as_os_str().to_owned();
    log.push(".wal");
    let log = PathBuf::from(log);
    let folder = tempfile::Builder::new().prefix("duckpipe-").tempdir()?;
    let path = folder.path().join(NAME);
    let before = (stamp(catalog)?, stamp(&log)?);
    if before.0.is_none() {
        return Err(io::ErrorKind::NotFound.into());
    }
    std::fs::copy(catalog, &path)?;
    if before.1.is_some() {
        match std::fs::copy(&log, folder.path().join(format!("{NAME}.wal"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            copied => copied?,
        };
    }
    let unchanged = before == (stamp(catalog)?, stamp(&log)?);
    Ok(unchanged.then_some(CatalogCopy::Made(folder)))
}

/// What changes with every write: size and time.
fn stamp(path: &Path) -> io::Result<Option<(u64, SystemTime)>> {
    let of = |found: Metadata| Ok((found.len(), found.modified()?));
    match std::fs::metadata(path) {
        Ok(found) => of(found).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn copies_the_file_and_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("c.ducklake");
        let error = CatalogCopy::of(&catalog).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition);
        std::fs::write(&catalog, "data").unwrap();
        std::fs::write(folder.path().join("c.ducklake.wal"), "log").unwrap();
        let copy = CatalogCopy::of(&catalog).await.unwrap();
        let path = copy.path();
        assert_ne!(path, catalog);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
        assert_eq!(std::fs::read_to_string(path.with_extension("ducklake.wal")).unwrap(), "log");
        drop(copy);
        assert!(!path.exists());
    }

    #[test]
    fn copies_of_killed_clients_go_after_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = folder.path().join("c.ducklake");
        let (old, young) = (new_copy(&catalog), new_copy(&catalog));
        for path in [&catalog, &old, &young] {
            std::fs::write(path, "data").unwrap();
        }
        let yesterday = SystemTime::now() - ABANDONED - Duration::from_secs(60);
        for path in [&catalog, &old] {
            std::fs::File::options().append(true).open(path).unwrap().set_modified(yesterday).unwrap();
        }
        remove_abandoned(&catalog).unwrap();
        assert_eq!([&catalog, &old, &young].map(|path| path.exists()), [true, false, true]);
    }
}

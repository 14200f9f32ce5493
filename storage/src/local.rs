//! Local files that are whole and durable once they bear their name.
//!
//! `object_store` renames a finished file into place, but syncs neither the file nor its folder, so a power cut could leave the
//! catalog with a file that is empty. Hence writing is our own; reading is not.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Result, StorageError};

/// What a file is called until it is whole.
pub(crate) const PARTIAL_SUFFIX: &str = ".partial";

/// After so many bytes they are made durable, so that the last ones are not waited for with all the others.
const SYNC_BYTES: usize = 16 * 1024 * 1024;

/// A file on its way. Dropped before [`LocalFile::finish`], it is removed.
#[derive(Debug)]
pub(crate) struct LocalFile {
    file: Option<File>,
    /// Bytes that were written since they were made durable.
    volatile: usize,
    partial: PathBuf,
    path: PathBuf,
}

impl LocalFile {
    /// Begins a file, with its folders where they are missing. The file must not exist.
    pub(crate) fn create(path: PathBuf) -> Result<LocalFile> {
        if path.exists() {
            return Err(StorageError::file("create", &path)(io::ErrorKind::AlreadyExists.into()));
        }
        LocalFile::replace(path)
    }

    /// As [`LocalFile::create`], but a file of that name is replaced in one step at the end.
    pub(crate) fn replace(path: PathBuf) -> Result<LocalFile> {
        if let Some(folder) = path.parent() {
            create_folders(folder)?;
        }
        let partial = partial_name(&path);
        let file = File::create(&partial).map_err(StorageError::file("create", &partial))?;
        Ok(LocalFile { file: Some(file), volatile: 0, partial, path })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(|| StorageError::invalid(shown(&self.path), "the file is closed"))?;
        file.write_all(bytes).map_err(StorageError::file("write", &self.partial))?;
        self.volatile += bytes.len();
        if self.volatile >= SYNC_BYTES {
            self.volatile = 0;
            file.sync_data().map_err(StorageError::file("sync", &self.partial))?;
        }
        Ok(())
    }

    /// Makes the file durable under its name.
    pub(crate) fn finish(mut self) -> Result<()> {
        let file = self.file.take().ok_or_else(|| StorageError::invalid(shown(&self.path), "the file is closed"))?;
        let renamed = file
            .sync_all()
            .map_err(StorageError::file("sync", &self.partial))
            .and_then(|()| fs::rename(&self.partial, &self.path).map_err(StorageError::file("rename", &self.partial)));
        if renamed.is_err() {
            // Best effort: the upload log knows the name if this fails too.
            let _ = fs::remove_file(&self.partial);
        }
        renamed?;
        sync_folder(self.path.parent())
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Best effort: the upload log knows the name if this fails.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Removes a file, and what an interrupted write may have left of it. A file that is not there is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    for name in [path, &partial_name(path)] {
        match fs::remove_file(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StorageError::file("delete", name)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The folders on the way to `folder` that do not exist, innermost first.
pub(crate) fn missing_folders(folder: &Path) -> Vec<PathBuf> {
    folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).map(Path::to_path_buf).collect()
}

fn create_folders(folder: &Path) -> Result<()> {
    let missing = missing_folders(folder);
    if missing.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(StorageError::file("create", folder))?;
    // Each new folder is an entry of its parent.
    missing.iter().try_for_each(|created| sync_folder(created.parent()))
}

fn sync_folder(folder: Option<&Path>) -> Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    File::open(folder).and_then(|f| f.sync_all()).map_err(StorageError::file("sync", folder))
}

fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(PARTIAL_SUFFIX);
    PathBuf::from(name)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/c.parquet");
        let mut file = LocalFile::create(path.clone()).unwrap();
        file.write(b"half").unwrap();
        assert!(!path.exists());
        file.write(b"whole").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"halfwhole");
        assert!(LocalFile::create(path.clone()).is_err(), "never overwritten");
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_dropped_file_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.parquet");
        let mut file = LocalFile::create(path.clone()).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.parquet");
        let mut file = LocalFile::create(path.clone()).unwrap();
        file.write(b"half").unwrap();
        std::mem::forget(file);
        assert!(!path.exists());
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

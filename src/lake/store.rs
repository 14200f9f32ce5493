//! The store of the data files as the lake uses it.

use bytes::Bytes;
use duckpipe_storage::{StorageError, Store};

use super::marker::LakeStore;
use crate::error::{Error, ErrorKind, Result};

/// Says what was being done when the store failed; see [`From<StorageError>`](Error) for what the caller can do.
pub fn store_error(what: &str) -> impl FnOnce(StorageError) -> Error + use<> {
    let what = what.to_owned();
    move |error| Error::from(error).context(what)
}

/// The error of reading a file of the lake, for those to whom one that can't be read is as one that is gone: the trouble of its table,
/// and of no other.
pub fn of_its_table(error: impl Into<Error>) -> Error {
    let error = error.into();
    match error.kind() {
        ErrorKind::Internal => error.of_kind(ErrorKind::Table).remedy("take a fresh copy: `duckpipe tables resync`"),
        _ => error,
    }
}

impl LakeStore for Store {
    async fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match Store::get(self, path).await {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(store_error(&format!("{} can't be read", self.url(path)))(error)),
        }
    }

    async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let put = Store::put(self, path, Bytes::from(bytes)).await;
        put.map_err(store_error(&format!("{} can't be written", self.url(path))))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let deleted = Store::delete(self, path).await;
        deleted.map_err(store_error(&format!("{} can't be deleted", self.url(path))))
    }
}

//! Errors of the store as errors of the program.

use duckpipe_storage::StorageError;

use crate::error::{Error, ErrorKind};

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Error {
        let kind = if error.is_settings() {
            ErrorKind::Precondition
        } else if error.is_transient() {
            ErrorKind::Transient
        } else if error.is_not_found() {
            // A file that the catalog lists is gone: its table can't be told from it any more.
            ErrorKind::Table
        } else {
            ErrorKind::Internal
        };
        // Its text includes its cause.
        Error::new(kind, error.to_string())
    }
}

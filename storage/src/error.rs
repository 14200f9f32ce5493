//! The crate's one error.

use std::io;
use std::path::Path;

use parquet::errors::ParquetError;

/// An error of a caller's own.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// A result whose error is [`StorageError`].
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// What went wrong and where. The text of each variant includes its cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The settings can't work: a bad address, a missing key.
    #[error("{0}")]
    Settings(String),
    /// No credentials could be found or refreshed.
    #[error("no S3 credentials: {0}")]
    Credentials(String),
    /// The object store refused or failed, after its retries.
    #[error("could not {operation} {url}: {cause}")]
    Store {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The object.
        url: String,
        /// The store's answer.
        cause: object_store::Error,
    },
    /// The file system refused or failed.
    #[error("could not {operation} {path}: {cause}")]
    File {
        /// What was tried, as a verb.
        operation: &'static str,
        /// The file or folder.
        path: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// A Parquet file could not be written or read.
    #[error("{url}: {cause}")]
    Parquet {
        /// The file.
        url: String,
        /// The Parquet library's answer.
        cause: ParquetError,
    },
    /// A file, a batch or a request does not have the form that it must have.
    #[error("{place}: {reason}")]
    Invalid {
        /// The file or the column.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The upload log refused a new file, which was therefore not begun.
    #[error("the upload of {path} could not be recorded: {cause}")]
    UploadLog {
        /// The first of the new files.
        path: String,
        /// The log's own error.
        cause: BoxError,
    },
}

impl StorageError {
    /// The file is not there.
    pub fn is_not_found(&self) -> bool {
        match self {
            StorageError::Store { cause, operation, .. } => {
                matches!(cause, object_store::Error::NotFound { .. }) && !is_write(operation)
            }
            StorageError::File { cause, .. } => cause.kind() == io::ErrorKind::NotFound,
            StorageError::Parquet { cause: ParquetError::External(cause), .. } => {
                let from_store = cause.downcast_ref::<object_store::Error>();
                from_store.is_some_and(|cause| matches!(cause, object_store::Error::NotFound { .. }))
                    || cause.downcast_ref::<StorageError>().is_some_and(StorageError::is_not_found)
            }
            _ => false,
        }
    }

    /// Only a person can help: settings, credentials or permissions are wrong, or there is no such bucket.
    pub fn is_settings(&self) -> bool {
        match self {
            StorageError::Settings(_) | StorageError::Credentials(_) => true,
            // Only a bucket can be missing when something is written.
            StorageError::Store { cause: object_store::Error::NotFound { .. }, operation, .. } => is_write(operation),
            StorageError::Store { cause, .. } => matches!(
                cause,
                object_store::Error::PermissionDenied { .. }
                    | object_store::Error::Unauthenticated { .. }
                    | object_store::Error::UnknownConfigurationKey { .. }
            ),
            StorageError::File { cause, .. } => cause.kind() == io::ErrorKind::PermissionDenied,
            _ => false,
        }
    }

    /// It may pass when tried again later.
    pub fn is_transient(&self) -> bool {
        match self {
            StorageError::Store { .. } | StorageError::File { .. } => !self.is_settings() && !self.is_not_found(),
            StorageError::Parquet { cause, .. } => matches!(cause, ParquetError::External(_)) && !self.is_not_found(),
            _ => false,
        }
    }

    pub(crate) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
        move |cause| StorageError::File { operation, path: path.display().to_string(), cause }
    }

    pub(crate) fn invalid(place: impl Into<String>, reason: impl Into<String>) -> StorageError {
        StorageError::Invalid { place: place.into(), reason: reason.into() }
    }
}

fn is_write(operation: &str) -> bool {
    !matches!(operation, "read" | "look at")
}

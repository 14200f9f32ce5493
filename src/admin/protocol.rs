//! What goes over the socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::compact;
use crate::error::{Error, ErrorKind};
use crate::lake::Wanted;
use crate::lsn::Lsn;

/// The longest line that either side reads, in bytes: a report of some ten thousand tables.
pub(super) const LONGEST_LINE: u64 = 16 << 20;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(super) enum Request {
    /// The pipeline's state.
    Status,
    /// A consistent copy of the catalog file; the client removes it.
    CopyCatalog,
    /// A pass of compaction.
    Compact(compact::Request),
    /// The stream shall read no further for so long.
    Hold {
        /// Milliseconds.
        patience: u64,
    },
    /// The stream shall end a flush at this position; answered with the lake's snapshot that shows it.
    FlushAt {
        /// The position.
        lsn: Lsn,
        /// Milliseconds that the client waits.
        patience: u64,
        /// Nothing is flushed afterwards, for a while.
        stands: bool,
    },
    /// The stream shall go on standing at this position.
    Stand {
        /// The position.
        lsn: Lsn,
    },
    /// Rows of a table shall be replaced; answered with a snapshot of the lake that shows it.
    Repair {
        /// The table, by its oid in the source.
        source_oid: u32,
        /// The position at which the stream stands.
        lsn: Lsn,
        /// Where the changes are. The client removes the file.
        path: PathBuf,
    },
    /// Something is wanted of tables; with no names of those that are errored. Answered with the tables' names.
    Want {
        /// As the source or the lake names them.
        tables: Vec<String>,
        /// They must stand still.
        paused: bool,
        /// What.
        wanted: Wanted,
    },
    /// The configuration shall be read again.
    Reload,
    /// The stream shall go on as ever.
    Release,
}

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer<T> {
    /// What was asked for.
    Ok(T),
    /// Why it can't be given.
    Error {
        /// What happened.
        message: String,
        /// What to do.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remedy: Option<String>,
    },
}

impl<T> From<Result<T, Error>> for Answer<T> {
    fn from(result: Result<T, Error>) -> Self {
        match result {
            Ok(value) => Answer::Ok(value),
            Err(error) => Answer::Error { message: error.to_string(), remedy: error.remedy_text().map(str::to_owned) },
        }
    }
}

impl<T> Answer<T> {
    pub(super) fn into_result(self) -> Result<T, Error> {
        match self {
            Answer::Ok(value) => Ok(value),
            Answer::Error { message, remedy } => {
                let error = Error::new(ErrorKind::Transient, message).context("the running sync");
                Err(match remedy {
                    Some(remedy) => error.remedy(remedy),
                    None => error,
                })
            }
        }
    }
}

//! Step 6: is the lake what it is said to be?
//!
//! Two questions, each answered without trusting what the other steps keep in memory:
//!
//! * [`check_files`]: are the lake's files what the catalog says of them? Every registered file of every version is read.
//! * [`compare`]: is the lake equal to its source? At one position: a temporary slot exports a snapshot whose position is known, the
//!   lake is brought to show exactly that position ([`SyncPoint`]), and both sides are read, hashed and added up by the key's bucket.
//!   Where sums differ, the rows and columns that do are named.
//!
//! In: the configuration, the catalog, the store, the source. Out: a [`Report`] with its [`Finding`]s. What can't be *read* because
//! a file is broken is a finding; what can't be *reached* is an error. Nothing here writes to the lake, but where a comparison is to
//! repair what it finds: then the source's rows are handed to [`SyncPoint::repair`].

mod bounds;
mod columns;
mod compare;
mod details;
mod file;
mod files;
mod finding;
mod keys;
mod lake_rows;
mod position;
mod progress;
mod repair;
mod row_hash;
mod source_rows;
mod sums;

pub use columns::columns_changed;
pub use compare::{CompareOptions, compare};
pub use files::{check_files, forget_removed, stored_files};
pub use finding::{Finding, FindingKind, Report, TableReport};
pub use position::SyncPoint;
pub use progress::{ValidateProgress, ValidateStep};

use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Lake, TableRow};

/// The pipeline's tables that were asked for: all, or those of this name in source or lake.
async fn wanted_tables(lake: &Lake, pipeline: &str, table: Option<&str>) -> Result<Vec<TableRow>> {
    let mut rows = lake.tables(pipeline).await?;
    if rows.is_empty() && lake.pipeline(pipeline).await?.is_none() {
        return Err(Error::new(ErrorKind::Precondition, format!("the lake knows no pipeline {pipeline}"))
            .remedy("run `duckpipe sync` first, or check `name`"));
    }
    if let Some(table) = table {
        rows.retain(|row| row.source.to_string() == table || row.target.to_string() == table);
        if rows.is_empty() {
            return Err(Error::new(ErrorKind::Config, format!("the pipeline {pipeline} has no table {table}"))
                .remedy("say it as schema.table; `duckpipe status` lists them"));
        }
    }
    Ok(rows)
}

/// Whether an error says that a file is broken, and not that it can't be reached.
fn is_broken_file(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Table | ErrorKind::Internal)
}

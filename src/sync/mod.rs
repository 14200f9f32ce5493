//! Step 3: from batches to commits.
//!
//! In: COPY streams and WAL messages. Out: the net change of every table at a source commit boundary, written as files and
//! handed to the lake in one commit. Here is decided when to flush, and what happens to a table that can't go on.
//!
//! Start with [`run`]; then [`stream`] and [`flush`].

pub mod appended;
pub mod boundary;
mod change_log;
pub mod definition;
pub use crate::failpoint;
pub mod fill;
pub mod flush;
pub mod history;
pub mod net_change;
mod net_rows;
pub mod pipeline;
pub mod prepare;
pub mod progress;
mod renames;
pub mod repair;
mod run;
pub mod snapshot;
pub mod stream;

pub(crate) use run::spill_directory;
pub use run::{Outcome, RunOptions, run};

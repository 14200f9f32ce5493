//! The committer against real catalogs, with stock DuckDB as the judge.

mod bounds;
mod failures;
mod fuzz;
pub(crate) mod lab;
mod model;
mod promises;

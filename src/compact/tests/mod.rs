//! Compaction on real lakes of both kinds, with stock DuckDB as the judge.

mod fuzz;
mod judge;
mod promises;
mod table;

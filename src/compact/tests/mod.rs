//! Compaction on real lakes of both kinds, with stock DuckDB as the judge.

mod fuzz;
mod promises;
mod table;

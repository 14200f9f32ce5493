//! The committer against real catalogs, with stock DuckDB as the judge.

/// Makes a test of each catalog kind from an async function of a kind.
macro_rules! on_both_catalogs {
    ($($test:ident),* $(,)?) => {
        mod in_a_file {
            $(#[tokio::test] async fn $test() { super::$test(super::Kind::File).await })*
        }
        mod in_postgres {
            $(#[tokio::test] async fn $test() { super::$test(super::Kind::Postgres).await })*
        }
    };
}
pub(crate) use on_both_catalogs;

mod alter;
mod bounds;
mod copies;
mod failures;
mod format;
mod fuzz;
pub(crate) mod lab;
mod model;
mod promises;

//! `tables`: what a pipeline's tables are, and what is to be done with some of them.

use duckpipe_storage::Store;

use super::arguments::TableNames;
use super::engine::CATALOG_MEMORY;
use crate::admin;
use crate::config::{CatalogLocation, Config};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Lake, TableRow, TableState};

/// Asks for fresh copies: through the running sync where it holds the catalog, else in the catalog itself. Returns the tables, as the
/// source names them.
pub(super) async fn resync(config: &Config, names: &TableNames) -> Result<Vec<String>> {
    if let CatalogLocation::File(catalog) = &config.lake.catalog {
        if let Some(asked) = admin::resync(catalog, &names.wanted()).await? {
            return Ok(asked);
        }
        if !catalog.exists() {
            return Err(Error::new(ErrorKind::Missing, format!("there is no lake yet: {}", catalog.display()))
                .remedy("run `duckpipe sync` first"));
        }
    }
    let store = Store::open(&config.lake.data_path, config.s3_settings().as_ref()).await?;
    let lake = Lake::open_with_store(&config.lake_settings(CATALOG_MEMORY, false), &store).await?;
    let asked = ask_for_resync(&lake, &config.name, &names.wanted()).await;
    lake.shutdown().await;
    asked
}

/// Writes into the catalog which tables are to be copied afresh: those of these names, or with none those that are errored.
pub(super) async fn ask_for_resync(lake: &Lake, pipeline: &str, names: &[String]) -> Result<Vec<String>> {
    let rows = lake.tables(pipeline).await?;
    let chosen: Vec<&TableRow> = match names {
        [] => rows.iter().filter(|row| row.state == TableState::Errored).collect(),
        names => names.iter().map(|name| find(&rows, pipeline, name)).collect::<Result<_>>()?,
    };
    let sources: Vec<_> = chosen.iter().map(|row| row.source.clone()).collect();
    lake.ask_for_resync(pipeline, &sources).await?;
    Ok(sources.iter().map(ToString::to_string).collect())
}

fn find<'a>(rows: &'a [TableRow], pipeline: &str, name: &str) -> Result<&'a TableRow> {
    let found = rows.iter().find(|row| row.source.to_string() == name || row.target.to_string() == name);
    found.ok_or_else(|| {
        let known: Vec<String> = rows.iter().map(|row| row.source.to_string()).collect();
        Error::new(ErrorKind::Config, format!("the pipeline {pipeline} has no table {name}"))
            .remedy(format!("its tables are {}", known.join(", ")))
    })
}

//! `tables`: what a pipeline's tables are, and what is to be done with some of them.

use std::time::Duration;

use duckpipe_storage::Store;

use super::arguments::{AddTable, RemoveTable};
use super::engine::{CATALOG_MEMORY, must_exist, there_or_here};
use super::sync_point;
use crate::admin;
use crate::config::{CatalogLocation, CliOverrides, Config, TablePattern, edit, select};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Lake, TableRow, TableState, Wanted};
use crate::source::catalog;
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::source::table::TableName;

/// How long a running sync may take to read its configuration again.
const RELOAD_PATIENCE: Duration = Duration::from_secs(10);

/// Which tables something is wanted of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Those that are named.
    Named,
    /// Those that are errored.
    Errored,
    /// Those that are named, which must stand still.
    Paused,
}

/// Says what is wanted of tables: through the running sync where it holds the catalog, else in the catalog itself. Returns the tables, as
/// the source names them.
pub(super) async fn want(config: &Config, names: &[String], which: Which, wanted: Wanted) -> Result<Vec<String>> {
    let CatalogLocation::File(catalog) = &config.lake.catalog else {
        return want_here(config, names, which, wanted).await;
    };
    let here = async || {
        must_exist(catalog)?;
        want_here(config, names, which, wanted).await
    };
    there_or_here(async || admin::want(catalog, names, which == Which::Paused, wanted).await, here).await
}

async fn want_here(config: &Config, names: &[String], which: Which, wanted: Wanted) -> Result<Vec<String>> {
    let store = Store::open(&config.lake.data_path, config.s3_settings().as_ref()).await?;
    let lake = Lake::open_with_store(&config.lake_settings(CATALOG_MEMORY, false), &store).await?;
    let asked = want_in(&lake, &config.name, names, which, wanted).await;
    lake.shutdown().await;
    asked
}

/// Writes into the catalog what is wanted of tables.
pub(super) async fn want_in(
    lake: &Lake,
    pipeline: &str,
    names: &[String],
    which: Which,
    wanted: Wanted,
) -> Result<Vec<String>> {
    let rows = lake.tables(pipeline).await?;
    let chosen: Vec<&TableRow> = match which {
        Which::Errored => rows.iter().filter(|row| row.state == TableState::Errored).collect(),
        Which::Named | Which::Paused => names.iter().map(|name| find(&rows, pipeline, name)).collect::<Result<_>>()?,
    };
    for row in &chosen {
        let stands = row.state == TableState::Paused || row.wanted == Some(Wanted::Pause);
        let refused = match wanted {
            Wanted::Pause if row.state == TableState::Dropped => "its source is gone: it stands still anyway",
            Wanted::Resync if which == Which::Paused && !stands => {
                "it does not stand still: there is nothing to resume"
            }
            _ => continue,
        };
        return Err(Error::new(ErrorKind::Config, format!("{} is {}; {refused}", row.source, row.state)));
    }
    let sources: Vec<_> = chosen.iter().map(|row| row.source.clone()).collect();
    lake.want(pipeline, &sources, wanted).await?;
    Ok(sources.iter().map(ToString::to_string).collect())
}

fn find<'a>(rows: &'a [TableRow], pipeline: &str, name: &str) -> Result<&'a TableRow> {
    let called = |of: fn(&TableRow) -> &TableName| rows.iter().find(|row| of(row).to_string() == name);
    // Last by what a table was called that was renamed: its entry may have that still.
    let found = called(|row| &row.source).or_else(|| called(|row| &row.target)).or_else(|| called(TableRow::named));
    found.ok_or_else(|| {
        let known: Vec<String> = rows.iter().map(|row| row.source.to_string()).collect();
        Error::new(ErrorKind::Config, format!("the pipeline {pipeline} has no table {name}"))
            .remedy(format!("its tables are {}", known.join(", ")))
    })
}

/// Adds a table to the configuration's file, and has the running sync follow it. Says whether one is running.
pub(super) async fn add(config: &Config, overrides: &CliOverrides, add: &AddTable) -> Result<bool> {
    let pattern = TablePattern::parse(&add.table)
        .map_err(|message| Error::new(ErrorKind::Config, format!("{}: {message}", add.table)))?;
    if let Some(table) = pattern.exact() {
        if let Some(entry) = config.tables().iter().find(|entry| entry.source.matches(&table)) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("{table} is followed already, by the entry {}", entry.source),
            ));
        }
        let session = Session::connect(&SourceSettings::parse(&config.source.url)?).await?;
        let found = catalog::list_tables(&session, &[pattern.clone(), TablePattern::all()]).await?;
        let entry = crate::config::TableConfig::of(pattern);
        select(std::slice::from_ref(&entry), &found)?;
    }
    let mut settings = Vec::new();
    if let Some(target) = &add.target {
        settings.push(format!("target = {}", edit::toml_text(target)));
    }
    if add.fan_in {
        settings.push("fan_in = true".to_owned());
    }
    if let Some(mode) = &add.mode {
        settings.push(format!("mode = {}", edit::toml_text(mode)));
    }
    if !add.exclude_columns.is_empty() {
        let columns: Vec<String> = add.exclude_columns.iter().map(|column| edit::toml_text(column)).collect();
        settings.push(format!("exclude_columns = [{}]", columns.join(", ")));
    }
    let text = edit::file_text(config)?;
    change_file(config, overrides, &text, &edit::with_entry(&text, &add.table, &settings))?;
    reload(config).await
}

/// Takes a table out of the configuration's file, and has the running sync let it go. Says whether one is running.
pub(super) async fn remove(config: &Config, overrides: &CliOverrides, remove: &RemoveTable) -> Result<bool> {
    let name = table_name(&remove.table)?;
    let entry = edit::entry_of(config, &name)?;
    let text = edit::file_text(config)?;
    let without = edit::without_entry(&text, entry).ok_or_else(|| {
        Error::new(ErrorKind::Config, format!("the entry of {name} is not in {}", config.path.display()))
            .remedy("it is in the environment: take it out there, and restart")
    })?;
    if config.tables().len() == 1 {
        return Err(Error::new(ErrorKind::Config, format!("{name} is the only table of the pipeline"))
            .remedy("remove the whole pipeline: `duckpipe drop`"));
    }
    change_file(config, overrides, &text, &without)?;
    let wanted = if remove.drop { Wanted::Drop } else { Wanted::Remove };
    let asked = match Config::load(overrides)?.tables().iter().find(|entry| entry.source.matches(&name)) {
        Some(entry) => Err(Error::new(ErrorKind::Config, format!("the entry {} selects {name} too", entry.source))
            .remedy(format!("let it stand still: `duckpipe tables pause {name}`"))),
        None => want(config, &[name.to_string()], Which::Named, wanted).await,
    };
    if let Err(error) = asked {
        edit::replace_file(config, &text)?;
        // The catalog may have taken it, and only its answer was lost: a table that is named is not removed.
        if let Err(also) = reload(config).await {
            tracing::warn!(error = %also, "the running sync was not told that the table stays");
        }
        return Err(error);
    }
    reload(config).await
}

fn table_name(text: &str) -> Result<TableName> {
    let pattern = TablePattern::parse(text);
    let pattern = pattern.map_err(|message| Error::new(ErrorKind::Config, format!("{text}: {message}")))?;
    pattern.exact().ok_or_else(|| Error::new(ErrorKind::Config, format!("{text} is a pattern, not a table")))
}

/// Puts another text in the place of the file; the old one stays where the new one would not be read.
fn change_file(config: &Config, overrides: &CliOverrides, old: &str, new: &str) -> Result<()> {
    edit::replace_file(config, new)?;
    if let Err(error) = Config::load(overrides) {
        edit::replace_file(config, old)?;
        return Err(error);
    }
    Ok(())
}

/// Has the running sync read its configuration again. Says whether one is running.
async fn reload(config: &Config) -> Result<bool> {
    match &config.lake.catalog {
        CatalogLocation::File(catalog) => Ok(admin::reload(catalog).await?.is_some()),
        CatalogLocation::Postgres { .. } => sync_point::ask_for_reload(config, RELOAD_PATIENCE).await,
    }
}

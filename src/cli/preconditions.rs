//! What `check` looks at, in the order in which a `sync` needs it. Nothing is changed but for a probe object in the store.

use duckpipe_storage::Store;

use super::catalog_copy::CatalogCopy;
use super::check::{self, CheckReport, ColumnFacts, Mapping, ServerFacts, TableFacts};
use super::engine::CATALOG_MEMORY;
use crate::batch::mapping::{self, Fidelity};
use crate::config::{CatalogLocation, Config, SelectedTable, TablePattern, select};
use crate::error::{ErrorKind, Result};
use crate::lake::{Lake, LakeSettings};
use crate::source::preflight::{self, Preflight};
use crate::source::publication::Sent;
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::source::table::{ReplicaIdentity, TableName};
use crate::source::{catalog, publication, slot};
use crate::sync::prepare;

/// Looks at every precondition. Errors are findings, not failures of the check.
pub(super) async fn examine(config: &Config) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    source(config, &mut report).await;
    store(config, &mut report).await;
    lake(config, &mut report).await;
    Ok(report)
}

async fn source(config: &Config, report: &mut CheckReport) {
    let Some(settings) = report.tried("source address", SourceSettings::parse(&config.source.url), |s| s.describe())
    else {
        return;
    };
    let session = Session::connect(&settings).await;
    let Some(session) = report.tried("source", session, |_| format!("{} answers", settings.describe())) else { return };
    let patterns: Vec<TablePattern> = config.tables().iter().map(|table| table.source.clone()).collect();
    let found = catalog::list_tables(&session, &patterns).await;
    let selected = found.and_then(|found| select(&config.tables(), &found));
    let selected = report.tried("tables", selected, |s| format!("{} match [[tables]]", s.len())).unwrap_or_default();
    let names: Vec<TableName> = selected.iter().map(|table| table.source.clone()).collect();
    match preflight::examine(&session, &settings, &names).await {
        Ok(facts) => {
            let own_slot = slot::find(&session, &config.source.slot).await.ok().flatten().is_some();
            report.extend(check::server(&server_facts(&facts, own_slot)));
            if let Err(error) = &facts.identity {
                report.fail("replication", error.to_string(), error.remedy_text().unwrap_or_default());
            }
            publish(config, &session, &selected, &facts, report).await;
            for table in &selected {
                examine_table(config, &session, table, &facts, report).await;
            }
        }
        Err(error) => report.fail("source catalog", error.to_string(), error.remedy_text().unwrap_or_default()),
    }
}

fn server_facts(facts: &Preflight, own_slot_exists: bool) -> ServerFacts {
    let count = |number: i64| u32::try_from(number).unwrap_or_default();
    ServerFacts {
        version: facts.version,
        standby: facts.in_recovery,
        wal_level: facts.wal_level.clone(),
        max_slots: count(facts.max_slots),
        used_slots: count(facts.used_slots),
        max_senders: count(facts.max_senders),
        used_senders: count(facts.used_senders),
        own_slot_exists,
        may_replicate: facts.may_replicate,
        role: facts.role.clone(),
        keep_mib: facts.max_slot_wal_keep_mib,
    }
}

async fn publish(
    config: &Config,
    session: &Session,
    selected: &[SelectedTable],
    facts: &Preflight,
    report: &mut CheckReport,
) {
    let name = &config.source.publication;
    let sent = |table: &SelectedTable| Sent { name: table.source.clone(), filter: table.filter.clone() };
    let sent: Vec<Sent> = selected.iter().map(sent).collect();
    let tables: Vec<TableName> = selected.iter().map(|table| table.source.clone()).collect();
    let what = format!("publication {name}");
    let mut remedy =
        format!("let the owner of the tables run: {};", publication::create_sql(session.major_version(), name, &sent));
    for grant in &facts.grants {
        remedy.push_str(&format!("\n{grant}"));
    }
    match publication::find(session, name).await {
        Ok(Some(found)) => {
            let missing: Vec<String> = tables
                .iter()
                .filter(|table| !found.tables.contains(table))
                .map(|table| crate::sql::qualified(&table.schema, &table.table))
                .collect();
            let unsaid = |table: &&TableName| selected.iter().any(|s| s.source == **table && s.filter.is_none());
            let filtered: Vec<String> = found.row_filters.iter().filter(unsaid).map(ToString::to_string).collect();
            if !filtered.is_empty() {
                let detail = format!("has row filters on {}, of which [[tables]] says nothing", filtered.join(", "));
                report.fail(what, detail, "say `where = …` in [[tables]], or publish these tables without WHERE");
            } else if !found.unsent().is_empty() {
                let detail = format!("does not publish {}", found.unsent().join(", "));
                report.fail(what, detail, format!("let its owner run: {};", found.send_all_sql()));
            } else if missing.is_empty() {
                report.pass(what, "exists and is used as it is");
            } else {
                let list = missing.join(", ");
                let sql = format!("ALTER PUBLICATION {} ADD TABLE {list};", crate::sql::identifier(name));
                report.fail(what, format!("lacks {list}"), format!("let its owner run: {sql}"));
            }
        }
        Ok(None) => match publication::may_create(session, &tables).await {
            Ok(None) => report.pass(what, "sync will create it"),
            Ok(Some(reason)) => report.fail(what, reason, remedy),
            Err(error) => report.fail(what, error.to_string(), error.remedy_text().unwrap_or_default()),
        },
        Err(error) => report.fail(what, error.to_string(), error.remedy_text().unwrap_or_default()),
    }
}

async fn examine_table(
    config: &Config,
    session: &Session,
    table: &SelectedTable,
    facts: &Preflight,
    report: &mut CheckReport,
) {
    let publication = publication::find(session, &config.source.publication).await.ok().flatten().map(|p| p.name);
    let described = catalog::describe_table(session, &table.source, publication.as_deref()).await;
    let source = match described {
        Ok(Some(source)) => source,
        Ok(None) => return report.fail(table.source.to_string(), "is gone", "start again"),
        Err(error) => {
            return report.fail(table.source.to_string(), error.to_string(), error.remedy_text().unwrap_or_default());
        }
    };
    for name in &table.exclude_columns {
        if !source.columns.iter().any(|column| column.name == *name) {
            let detail = format!("exclude_columns names {name}, which the table does not have");
            report.fail(
                table.source.to_string(),
                detail,
                "correct it: a column that was meant to be left out would be copied",
            );
        }
    }
    if let Some(filter) = &table.filter {
        let what = format!("{}: where", table.source);
        let understood = report.tried(what.clone(), prepare::filter_of(session, &source, filter).await, Clone::clone);
        if publication.is_some() && understood.is_some_and(|filter| source.filter.as_ref() != Some(&filter)) {
            let sent = source.filter.as_deref().unwrap_or("all rows");
            report.warn(
                what,
                format!("the publication sends {sent}"),
                "sync changes it, where duckpipe made it; else its owner has to",
            );
        }
    }
    let columns = source.columns.iter().filter(|column| !table.exclude_columns.contains(&column.name)).map(|column| {
        let mapped = mapping::map_column(column, table.text_columns.contains(&column.name));
        ColumnFacts {
            name: column.name.clone(),
            source_type: column.pg_type.display.clone(),
            lake_type: mapped.column.column_type.lake(),
            mapping: match mapped.fidelity {
                Fidelity::Exact => Mapping::Exact,
                Fidelity::Text => Mapping::Text,
                Fidelity::Lossy(what) => Mapping::Lossy(what),
                Fidelity::Unsupported(why) => Mapping::Unsupported(why),
            },
        }
    });
    let access = facts.tables.iter().find(|access| access.name == table.source);
    if let Some(access) = access.filter(|access| access.row_security) {
        report.fail(
            format!("{}: row security", access.name),
            "its policies apply to the role, which would copy only a part of the rows",
            format!("ALTER ROLE {} BYPASSRLS; or let the table's owner copy it", crate::sql::identifier(&facts.role)),
        );
    }
    report.extend(check::table(&TableFacts {
        name: sql_name(&table.source),
        by_pattern: table.by_pattern,
        may_select: access.is_some_and(|access| access.may_use_schema && access.may_select),
        role: facts.role.clone(),
        identity_is_nothing: source.replica_identity == ReplicaIdentity::Nothing,
        whole_rows: source.key.is_empty() && source.replica_identity == ReplicaIdentity::Full,
        key: source.key.iter().map(|&index| source.columns[index].name.clone()).collect(),
        columns: columns.collect(),
    }));
}

/// The table as SQL needs it: quoted only where it must be, for people read it too.
fn sql_name(table: &TableName) -> String {
    let plain = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    match plain(&table.schema) && plain(&table.table) {
        true => table.to_string(),
        false => crate::sql::qualified(&table.schema, &table.table),
    }
}

async fn store(config: &Config, report: &mut CheckReport) {
    let path = &config.lake.data_path;
    let probed = async {
        let store = Store::open(path, config.s3_settings().as_ref()).await?;
        store.probe().await
    };
    report.tried("data path", probed.await.map_err(Into::into), |()| {
        format!("{path}: wrote, read and deleted an object")
    });
}

async fn lake(config: &Config, report: &mut CheckReport) {
    let what = "catalog";
    let place = config.lake.catalog.describe();
    let copy = match &config.lake.catalog {
        CatalogLocation::File(file) if !file.exists() => {
            return report.pass(what, format!("{place}: sync will create it"));
        }
        CatalogLocation::File(file) => match report.tried(what, CatalogCopy::of(file).await, |_| place.clone()) {
            Some(copy) => Some(copy),
            None => return,
        },
        CatalogLocation::Postgres { .. } => None,
    };
    let catalog = copy.as_ref().map_or_else(|| config.lake.catalog.clone(), |copy| CatalogLocation::File(copy.path()));
    let settings = LakeSettings { catalog, ..config.lake_settings(CATALOG_MEMORY, true) };
    match Lake::open(&settings).await {
        Ok(lake) => {
            report.pass(what, format!("{place}: a lake of format 1.0"));
            lake.shutdown().await;
        }
        Err(error) if error.kind() == ErrorKind::Missing => {
            report.pass(what, format!("{place}: reachable; sync will create the lake"));
        }
        Err(error) => report.fail(what, error.to_string(), error.remedy_text().unwrap_or_default()),
    }
}

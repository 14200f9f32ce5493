//! Facts about a source that decide whether a pipeline can work: what `duckpipe check` shows. Reads only.

use super::failure::from_client;
use super::replication::{Identity, ReplicationConnection};
use super::session::Session;
use super::settings::SourceSettings;
use super::table::TableName;
use crate::error::{Error, Result};
use crate::sql;

/// The first version that duckpipe works with, as `server_version_num`: pgoutput's binary mode came with it.
pub const OLDEST_VERSION: u32 = 140_000;

/// The facts of a server and of the role that logged in.
#[derive(Debug)]
pub struct Preflight {
    /// `server_version_num`.
    pub version: u32,
    /// The server is a standby.
    pub in_recovery: bool,
    /// `wal_level`: must be `logical`.
    pub wal_level: String,
    /// `max_replication_slots`.
    pub max_slots: i64,
    /// Slots that exist.
    pub used_slots: i64,
    /// `max_wal_senders`.
    pub max_senders: i64,
    /// Walsenders that run.
    pub used_senders: i64,
    /// `max_slot_wal_keep_size` in MiB; -1: without limit, so that a pipeline that stands still can fill the server's disk.
    pub max_slot_wal_keep_mib: i64,
    /// `idle_replication_slot_timeout` in seconds (version 18): a slot that nobody reads for so long is invalidated. 0: never.
    pub idle_slot_timeout_seconds: i64,
    /// The role.
    pub role: String,
    /// The role is a superuser.
    pub superuser: bool,
    /// The role has the attribute REPLICATION.
    pub may_replicate: bool,
    /// The role may CREATE in the database, as a publication needs.
    pub may_create: bool,
    /// What IDENTIFY_SYSTEM answered on a replication connection; fails for instance behind a connection pooler.
    pub identity: Result<Identity>,
    /// The named tables that exist, in their order.
    pub tables: Vec<TableAccess>,
    /// Statements that an administrator should run so that the role may do what a pipeline does; empty: nothing is missing.
    pub grants: Vec<String>,
}

/// What the role may do with one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableAccess {
    /// The table.
    pub name: TableName,
    /// USAGE on its schema.
    pub may_use_schema: bool,
    /// SELECT on the table, or on each of its columns.
    pub may_select: bool,
    /// The role owns the table, as creating a publication of it needs.
    pub owned: bool,
    /// The owner.
    pub owner: String,
    /// Row-level security applies to the role: a copy would be refused, for it would miss rows.
    pub row_security: bool,
}

/// Collects the facts. A missing table is missing from [`Preflight::tables`]. Fails only where the catalog can't be read.
pub async fn examine(session: &Session, settings: &SourceSettings, tables: &[TableName]) -> Result<Preflight> {
    let failed = |error| from_client(error, "Examining the source");
    let client = session.client();
    let query = "SELECT current_setting('server_version_num')::int8, pg_is_in_recovery(), current_setting('wal_level'), \
                 current_setting('max_replication_slots')::int8, (SELECT count(*) FROM pg_replication_slots), \
                 current_setting('max_wal_senders')::int8, \
                 (SELECT count(*) FROM pg_stat_replication), \
                 coalesce((SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), -1), \
                 coalesce((SELECT CASE unit WHEN 'min' THEN setting::int8 * 60 ELSE setting::int8 END FROM pg_settings \
                           WHERE name = 'idle_replication_slot_timeout'), 0), \
                 current_user::text, r.rolsuper, r.rolreplication, \
                 has_database_privilege(current_database(), 'CREATE') FROM pg_roles r WHERE r.rolname = current_user";
    let facts = client.query_one(query, &[]).await.map_err(failed)?;
    let version: i64 = facts.get(0);
    let access = table_access(session, tables).await?;
    let role: String = facts.get(9);
    let (superuser, replication): (bool, bool) = (facts.get(10), facts.get(11));
    // Hosted services let roles replicate by membership instead of the attribute: what counts is whether it works.
    let identity = identify(settings).await;
    let may_replicate = superuser || replication || identity.is_ok();
    Ok(Preflight {
        version: u32::try_from(version).unwrap_or(0),
        in_recovery: facts.get(1),
        wal_level: facts.get(2),
        max_slots: facts.get(3),
        used_slots: facts.get(4),
        max_senders: facts.get(5),
        used_senders: facts.get(6),
        max_slot_wal_keep_mib: facts.get(7),
        idle_slot_timeout_seconds: facts.get(8),
        superuser,
        may_replicate,
        may_create: facts.get(12),
        grants: missing_grants(&role, may_replicate, &access),
        role,
        identity,
        tables: access,
    })
}

async fn identify(settings: &SourceSettings) -> Result<Identity> {
    const POOLER: &str = "Connect to Postgres itself, not to a connection pooler, and let the role replicate.";
    let remedy = |error: Error| match error.remedy_text() {
        Some(_) => error,
        None => error.remedy(POOLER),
    };
    ReplicationConnection::connect(settings).await.map_err(remedy)?.identify_system().await.map_err(remedy)
}

/// What the role may do with the tables, in their order; a missing one is missing.
///
/// # Errors
/// Where the catalog can't be read.
pub async fn table_access(session: &Session, tables: &[TableName]) -> Result<Vec<TableAccess>> {
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.table.as_str()).collect();
    // A privilege on every single column serves a COPY of columns as well as one on the table.
    let query = "SELECT n.nspname, c.relname, has_schema_privilege(n.oid, 'USAGE'), \
                 has_table_privilege(c.oid, 'SELECT') OR NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid \
                     AND a.attnum > 0 AND NOT a.attisdropped AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')), \
                 pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)::text, row_security_active(c.oid) \
                 FROM unnest($1::text[], $2::text[]) WITH ORDINALITY w (schema, name, place) \
                 JOIN pg_namespace n ON n.nspname = w.schema \
                 JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind IN ('r', 'p') ORDER BY w.place";
    let rows = session.client().query(query, &[&schemas, &names]).await;
    let rows = rows.map_err(|error| from_client(error, "Examining the tables' privileges"))?;
    let access = |row: tokio_postgres::Row| TableAccess {
        name: TableName { schema: row.get(0), table: row.get(1) },
        may_use_schema: row.get(2),
        may_select: row.get(3),
        owned: row.get(4),
        owner: row.get(5),
        row_security: row.get(6),
    };
    Ok(rows.into_iter().map(access).collect())
}

fn missing_grants(role: &str, may_replicate: bool, tables: &[TableAccess]) -> Vec<String> {
    let role = sql::identifier(role);
    let mut grants = Vec::new();
    if !may_replicate {
        grants.push(format!("ALTER ROLE {role} REPLICATION;"));
    }
    for table in tables.iter().filter(|table| !table.may_use_schema) {
        let grant = format!("GRANT USAGE ON SCHEMA {} TO {role};", sql::identifier(&table.name.schema));
        if !grants.contains(&grant) {
            grants.push(grant);
        }
    }
    for table in tables {
        let name = sql::qualified(&table.name.schema, &table.name.table);
        if !table.may_select {
            grants.push(format!("GRANT SELECT ON TABLE {name} TO {role};"));
        }
    }
    if tables.iter().any(|table| table.row_security) {
        grants.push(format!("ALTER ROLE {role} BYPASSRLS;"));
    }
    grants
}

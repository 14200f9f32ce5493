//! The publication: which tables' changes the slot sends.

use tokio_postgres::types::Oid;

use super::failure::from_client;
use super::session::Session;
use super::table::TableName;
use crate::error::{Error, ErrorKind, Result};
use crate::sql;

/// A publication as the catalog describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The name.
    pub name: String,
    /// The role that owns it.
    pub owner: String,
    /// FOR ALL TABLES.
    pub all_tables: bool,
    /// The tables that it sends, those of its schemas included, sorted. Roots of partitions stand for their partitions
    /// where `via_root`; elsewhere the partitions are listed.
    pub tables: Vec<TableName>,
    /// The tables that it sends some rows of only (a row filter, version 15 and later).
    pub row_filters: Vec<TableName>,
    /// Inserts are published.
    pub insert: bool,
    /// Updates are published.
    pub update: bool,
    /// Deletes are published.
    pub delete: bool,
    /// TRUNCATEs are published.
    pub truncate: bool,
    /// Changes of partitions are sent as changes of their root.
    pub via_root: bool,
}

/// A table as a publication is to send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The table.
    pub name: TableName,
    /// Which rows, as SQL; `None`: all.
    pub filter: Option<String>,
}

impl Sent {
    fn sql(&self) -> String {
        let filter = self.filter.as_ref().map_or_else(String::new, |filter| format!(" WHERE ({filter})"));
        format!("ONLY {}{filter}", sql::qualified(&self.name.schema, &self.name.table))
    }
}

impl Publication {
    /// The kinds of change that it does not send: they would be missing from whatever follows it, without a word.
    pub fn unsent(&self) -> Vec<&'static str> {
        let kinds =
            [("insert", self.insert), ("update", self.update), ("delete", self.delete), ("truncate", self.truncate)];
        kinds.into_iter().filter(|(_, sent)| !sent).map(|(kind, _)| kind).collect()
    }

    /// The statement that lets it send every kind of change.
    pub fn send_all_sql(&self) -> String {
        format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')", sql::identifier(&self.name))
    }
}

/// The publication of this name, if there is one.
pub async fn find(session: &Session, name: &str) -> Result<Option<Publication>> {
    let failed = |error| from_client(error, "Reading the publication").context(name.to_owned());
    let client = session.client();
    let query = "SELECT pg_get_userbyid(pubowner), puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot \
                 FROM pg_publication WHERE pubname = $1";
    let Some(row) = client.query_opt(query, &[&name]).await.map_err(failed)? else { return Ok(None) };
    let tables = client.query(&sent_tables(session.major_version()), &[&name]).await.map_err(failed)?;
    let filtered = match session.major_version() >= 15 {
        true => {
            let query = "SELECT n.nspname, c.relname FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
                         JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
                         WHERE p.pubname = $1 AND r.prqual IS NOT NULL ORDER BY 1, 2";
            client.query(query, &[&name]).await.map_err(failed)?
        }
        false => Vec::new(),
    };
    let names = |rows: Vec<tokio_postgres::Row>| {
        rows.into_iter().map(|row| TableName { schema: row.get(0), table: row.get(1) }).collect()
    };
    Ok(Some(Publication {
        name: name.to_owned(),
        owner: row.get(0),
        all_tables: row.get(1),
        tables: names(tables),
        row_filters: names(filtered),
        insert: row.get(2),
        update: row.get(3),
        delete: row.get(4),
        truncate: row.get(5),
        via_root: row.get(6),
    }))
}

/// The statement whose rows are the names of the tables that publication $1 sends, as `pg_publication_tables` shows them. From version 16
/// on that view opens each table to list its columns (`pg_get_publication_tables` in `src/backend/catalog/pg_publication.c`), and waits
/// for whoever has it to himself.
fn sent_tables(major: u32) -> String {
    let of_schemas = match major {
        ..15 => "",
        _ => {
            "UNION SELECT c.oid FROM p JOIN pg_publication_namespace s ON s.pnpubid = p.oid JOIN pg_class c ON c.relnamespace = s.pnnspid \
             WHERE pg_relation_is_publishable(c.oid)"
        }
    };
    format!(
        "WITH p AS (SELECT oid, puballtables, pubviaroot FROM pg_publication WHERE pubname = $1), \
         named AS MATERIALIZED (SELECT r.prrelid AS oid FROM p JOIN pg_publication_rel r ON r.prpubid = p.oid {of_schemas} \
             UNION SELECT c.oid FROM p, pg_class c WHERE p.puballtables AND pg_relation_is_publishable(c.oid)) \
         SELECT n.nspname, c.relname FROM p, pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, \
             LATERAL (SELECT c.relispartition AND EXISTS (SELECT FROM pg_partition_ancestors(c.oid) a \
                 WHERE a.relid <> c.oid AND a.relid IN (SELECT oid FROM named)) AS of_named) l \
         WHERE CASE WHEN p.pubviaroot THEN c.oid IN (SELECT oid FROM named) AND NOT l.of_named \
             ELSE c.relkind = 'r' AND (c.oid IN (SELECT oid FROM named) OR l.of_named) END ORDER BY 1, 2"
    )
}

/// The rows of `pg_publication_rel` and `pg_publication_namespace` by which publications send the table `c` of `pg_class`, or what it is a
/// partition of: numbers that are others once it was taken out and put in again.
pub(super) fn memberships(major: u32) -> String {
    // As an array, so that the catalog's indexes serve: there may be thousands of tables.
    let family = "ANY (ARRAY(SELECT c.oid UNION SELECT relid FROM pg_partition_ancestors(c.oid)))";
    let tables = format!("SELECT r.prpubid AS publication, r.oid FROM pg_publication_rel r WHERE r.prrelid = {family}");
    match major {
        ..15 => tables,
        _ => format!(
            "{tables} UNION ALL SELECT n.pnpubid, n.oid FROM pg_publication_namespace n \
             WHERE n.pnnspid = ANY (ARRAY(SELECT f.relnamespace FROM pg_class f WHERE f.oid = {family}))"
        ),
    }
}

/// What says that the publication sends the changes of a table: another text once the table was taken out and put in again, when changes
/// may have been passed over, and once they come as those of a table that it is a partition of. `None`: they are not sent.
///
/// # Errors
/// Kind `Transient` where the source does not answer.
pub async fn membership(session: &Session, publication: &str, oid: Oid) -> Result<Option<String>> {
    let of_schema = match session.major_version() {
        ..15 => "",
        _ => {
            "OR EXISTS (SELECT FROM pg_publication_namespace n WHERE n.pnpubid = p.oid AND n.pnnspid = f.relnamespace)"
        }
    };
    let query = format!(
        "SELECT nullif(concat_ws(' ', CASE WHEN p.puballtables THEN 'all' END, \
                (SELECT string_agg(m.oid::text, ' ' ORDER BY m.oid) FROM ({}) m WHERE m.publication = p.oid), \
                CASE WHEN p.pubviaroot THEN (SELECT string_agg('as ' || f.oid, ' ' ORDER BY f.oid) \
                     FROM pg_partition_ancestors(c.oid) a JOIN pg_class f ON f.oid = a.relid AND f.oid <> c.oid \
                     WHERE p.puballtables {of_schema} \
                     OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = f.oid)) END), '') \
         FROM pg_publication p, pg_class c WHERE p.pubname = $1 AND c.oid = $2",
        memberships(session.major_version())
    );
    let row = session.client().query_opt(&query, &[&publication, &oid]).await;
    let row = row.map_err(|error| from_client(error, "Reading what the publication sends"))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// Whether [`membership`] says that the changes are sent as those of a table that it is a partition of.
pub fn is_as_root(membership: &str) -> bool {
    membership.contains("as ")
}

/// The statement that creates the publication, for a server of this version. Changes of partitions are sent as their root's. From 18
/// on with stored generated columns, without which that refuses UPDATEs of a table that has some and REPLICA IDENTITY FULL.
pub fn create_sql(major: u32, name: &str, tables: &[Sent]) -> String {
    let tables: Vec<_> = tables.iter().map(Sent::sql).collect();
    let generated = if major >= 18 { ", publish_generated_columns = stored" } else { "" };
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true{generated})",
        sql::identifier(name),
        tables.join(", ")
    )
}

/// A generated column for whose sake the server would refuse UPDATEs of its table, once the publication sends that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// The table, with REPLICA IDENTITY FULL.
    pub table: TableName,
    /// The column.
    pub column: String,
    /// It is stored, so the publication could send it.
    pub stored: bool,
}

/// The first such column of these tables; `name` need not exist. Versions before 18 have no such rule.
pub async fn unpublished(session: &Session, name: &str, tables: &[TableName]) -> Result<Option<Unpublished>> {
    if session.major_version() < 18 {
        return Ok(None);
    }
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.table.as_str()).collect();
    let query = "SELECT n.nspname, c.relname, a.attname, a.attgenerated = 's' \
                 FROM unnest($1::text[], $2::text[]) w (schema, name) JOIN pg_namespace n ON n.nspname = w.schema \
                 JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relreplident = 'f' \
                 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped \
                 LEFT JOIN pg_publication p ON p.pubname = $3 \
                 WHERE a.attgenerated <> 's' OR coalesce(p.pubgencols, 's') <> 's' ORDER BY 4, 1, 2, 3 LIMIT 1";
    let row = session.client().query_opt(query, &[&schemas, &names, &name]).await;
    let row = row.map_err(|error| from_client(error, "Reading the generated columns"))?;
    Ok(row.map(|row| Unpublished {
        table: TableName { schema: row.get(0), table: row.get(1) },
        column: row.get(2),
        stored: row.get(3),
    }))
}

/// The statement that adds a table to the publication.
pub fn add_sql(name: &str, table: &Sent) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {}", sql::identifier(name), table.sql())
}

/// The statements that have the publication send other rows of a table.
pub fn change_sql(name: &str, table: &Sent) -> String {
    let (publication, dropped) = (sql::identifier(name), sql::qualified(&table.name.schema, &table.name.table));
    format!("ALTER PUBLICATION {publication} DROP TABLE {dropped}; {}", add_sql(name, table))
}

/// Has the publication send other rows of a table. Waits at most half a minute for another transaction's locks.
pub async fn change_table(session: &Session, name: &str, table: &Sent) -> Result<()> {
    alter(session, name, &change_sql(name, table)).await
}

/// The statement that has the publication send changes of partitions as their root's.
pub fn via_root_sql(name: &str) -> String {
    format!("ALTER PUBLICATION {} SET (publish_via_partition_root = true)", sql::identifier(name))
}

/// Has the publication send changes of partitions as their root's.
pub async fn send_via_root(session: &Session, name: &str) -> Result<()> {
    let sent = session.client().batch_execute(&via_root_sql(name)).await;
    let remedy = || format!("let its owner run: {};", via_root_sql(name));
    sent.map_err(|error| from_client(error, "Changing the publication").context(name.to_owned()).remedy(remedy()))
}

/// Adds a table to the publication. Waits at most half a minute for another transaction's locks.
pub async fn add_table(session: &Session, name: &str, table: &Sent) -> Result<()> {
    alter(session, name, &add_sql(name, table)).await
}

async fn alter(session: &Session, name: &str, statements: &str) -> Result<()> {
    let transaction = format!("BEGIN; SET LOCAL lock_timeout = '30s'; {statements}; COMMIT");
    let Err(error) = session.client().batch_execute(&transaction).await else { return Ok(()) };
    // The failed transaction is still open in this session.
    let _ = session.client().batch_execute("ROLLBACK").await;
    let remedy = format!("let its owner run: {statements};");
    Err(from_client(error, "Changing the publication").context(name.to_owned()).remedy(remedy))
}

/// Takes a table out of the publication. Waits at most half a minute for another transaction's locks.
pub async fn remove_table(session: &Session, name: &str, table: &TableName) -> Result<()> {
    let table = sql::qualified(&table.schema, &table.table);
    alter(session, name, &format!("ALTER PUBLICATION {} DROP TABLE {table}", sql::identifier(name))).await
}

/// Creates the publication. Waits at most half a minute for another transaction's locks.
pub async fn create(session: &Session, name: &str, tables: &[Sent]) -> Result<()> {
    if tables.is_empty() {
        return Err(Error::new(ErrorKind::Config, "A publication needs at least one table"));
    }
    let statement =
        format!("BEGIN; SET LOCAL lock_timeout = '30s'; {}; COMMIT", create_sql(session.major_version(), name, tables));
    let Err(error) = session.client().batch_execute(&statement).await else { return Ok(()) };
    // The failed transaction is still open in this session.
    let _ = session.client().batch_execute("ROLLBACK").await;
    Err(from_client(error, "Creating the publication").context(name.to_owned()))
}

/// Drops the publication; one that does not exist is fine.
pub async fn drop(session: &Session, name: &str) -> Result<()> {
    let statement = format!("DROP PUBLICATION IF EXISTS {}", sql::identifier(name));
    let dropped = session.client().batch_execute(&statement).await;
    dropped.map_err(|error| from_client(error, "Dropping the publication").context(name.to_owned()))
}

/// Whether this session's role may create a publication of these tables: `None`, or why not.
pub async fn may_create(session: &Session, tables: &[TableName]) -> Result<Option<String>> {
    let failed = |error| from_client(error, "Reading the role's privileges");
    let query = "SELECT current_user::text, current_database()::text, has_database_privilege(current_database(), 'CREATE'), \
                 pg_is_in_recovery()";
    let row = session.client().query_one(query, &[]).await.map_err(failed)?;
    if row.get(3) {
        return Ok(Some("the source is a standby, which has what its primary has".to_owned()));
    }
    let (role, database, may): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
    if !may {
        return Ok(Some(format!("role {role} may not CREATE in database {database}")));
    }
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.table.as_str()).collect();
    let query = "SELECT n.nspname, c.relname, pg_get_userbyid(c.relowner)::text \
                 FROM unnest($1::text[], $2::text[]) w (schema, name) JOIN pg_namespace n ON n.nspname = w.schema \
                 JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.name \
                 WHERE NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1, 2 LIMIT 1";
    let row = session.client().query_opt(query, &[&schemas, &names]).await.map_err(failed)?;
    Ok(row.map(|row| {
        let name = TableName { schema: row.get(0), table: row.get(1) };
        let owner: String = row.get(2);
        format!("role {role} does not own {name} (role {owner} does)")
    }))
}

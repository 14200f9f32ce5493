//! Fan-in: a view that shows the rows of several tables, of several pipelines even, and whose they are. Each table keeps files,
//! position and columns of its own, so that what happens to one does not reach the others.

use super::Lake;
use super::create::live_table;
use super::pipeline::{self, Fence};
use super::session::{LAKE, Session};
use crate::error::{Error, ErrorKind, Result, ResultExt};
use crate::source::table::TableName;
use crate::sql::{literal, qualified};

/// How often a view is written before it is left to the next who comes by.
const ATTEMPTS: u32 = 20;

/// What a view of ours reads of each table, after what its rows' `_source` is.
const COLUMNS: &str = " AS _source, COLUMNS(";

impl Lake {
    /// Has the views that show the pipeline's tables show all of them, and nothing that is gone. Where such a view's name is a table's, or a
    /// view's that is not ours, that is told, and stays.
    ///
    /// # Errors
    /// [`ErrorKind::Transient`] where the catalog fails.
    pub async fn refresh_views(&self, fence: &Fence) -> Result<()> {
        let fence = fence.clone();
        self.run(move |session| {
            pipeline::held(session, &fence)?;
            let condition = format!("pipeline = {} AND fan_in IS NOT NULL", literal(&fence.pipeline));
            views(session, &condition)?.iter().try_for_each(|view| refresh(session, view, None))
        })
        .await
    }
}

/// Refuses a view that can't be made.
pub(super) fn check(session: &Session, view: &TableName) -> Result<()> {
    live_sql(session, view).map(drop).context(|| format!("the lake's view {view}"))
}

/// The view that shows a table of the pipeline.
pub(super) fn view_of(session: &Session, fence: &Fence, table_id: i64) -> Result<Option<TableName>> {
    let pipeline = literal(&fence.pipeline);
    let condition = format!("pipeline = {pipeline} AND table_id = {table_id} AND fan_in IS NOT NULL");
    Ok(views(session, &condition)?.into_iter().next())
}

pub(super) fn views(session: &Session, condition: &str) -> Result<Vec<TableName>> {
    let sql = format!(
        "SELECT DISTINCT target_schema, fan_in FROM {}.duckpipe_table WHERE {condition} ORDER BY target_schema, fan_in",
        session.tables()
    );
    session.read(&sql, |row| Ok(TableName { schema: row.get(0)?, table: row.get(1)? }))
}

/// Makes, replaces or drops the view, so that it shows its tables, but for the one `without`. Nothing is written where it does already.
///
/// A view can't be changed together with the rows that say what it shows. So whoever has written it looks at these again: of several
/// who write at the same time, the last one has seen what the others recorded before.
pub(super) fn refresh(session: &Session, view: &TableName, without: Option<i64>) -> Result<()> {
    let context = || format!("the lake's view {view}");
    for _ in 0..ATTEMPTS {
        let wanted = tables_of(session, view, without)?;
        let shown = match live_sql(session, view).context(context) {
            // What somebody else has put in its place is no reason to let its tables wait.
            Err(error) if error.kind() == ErrorKind::Precondition => {
                tracing::error!(%error, fix = error.remedy_text(), "a view does not show what it should; its tables go on");
                return Ok(());
            }
            shown => shown?,
        };
        if shown.as_deref().map_or(wanted.is_empty(), |sql| shows(sql, view, &wanted)) {
            return Ok(());
        }
        match session.batch(&statement(view, &wanted)) {
            Err(error) if error.kind() == ErrorKind::Conflict => continue,
            written => written.context(context)?,
        }
        if tables_of(session, view, without)? == wanted {
            return Ok(());
        }
    }
    Err(Error::new(ErrorKind::Transient, "others change it all the time").context(context()))
}

/// The names of the lake's tables that the view is to show.
fn tables_of(session: &Session, view: &TableName, without: Option<i64>) -> Result<Vec<String>> {
    let tables = session.tables();
    let without = without.map_or_else(String::new, |table_id| format!(" AND t.table_id <> {table_id}"));
    let sql = format!(
        "SELECT l.table_name FROM {tables}.duckpipe_table t \
         JOIN {tables}.ducklake_table l ON l.table_id = t.table_id AND l.end_snapshot IS NULL \
         WHERE t.target_schema = {} AND t.fan_in = {}{without} ORDER BY l.table_name",
        literal(&view.schema),
        literal(&view.table)
    );
    session.read(&sql, |row| row.get(0))
}

/// What the view is made of; `None`, where there is none. As the lake's other names, its name is the same in upper and lower case.
fn live_sql(session: &Session, view: &TableName) -> Result<Option<String>> {
    let taken = |what: &str| {
        Err(Error::new(ErrorKind::Precondition, format!("{what} of that name exists, which duckpipe has not made"))
            .remedy("give the fan-in another target, or drop what the lake has there"))
    };
    if live_table(session, view)?.is_some() {
        return taken("a table");
    }
    let tables = session.tables();
    let sql = format!(
        "SELECT v.sql FROM {tables}.ducklake_view v JOIN {tables}.ducklake_schema s ON s.schema_id = v.schema_id \
         WHERE v.end_snapshot IS NULL AND s.end_snapshot IS NULL \
         AND lower(s.schema_name) = lower({}) AND lower(v.view_name) = lower({})",
        literal(&view.schema),
        literal(&view.table)
    );
    match session.read(&sql, |row| row.get::<_, String>(0))?.into_iter().next() {
        Some(sql) if !sql.contains(COLUMNS) => taken("a view"),
        sql => Ok(sql),
    }
}

/// Whether a view's SQL, as DuckDB prints it, reads these tables and no others.
fn shows(sql: &str, view: &TableName, tables: &[String]) -> bool {
    let part = |table: &String| format!("{}{COLUMNS}", literal(source_of(view, table)));
    sql.matches(COLUMNS).count() == tables.len() && tables.iter().all(|table| sql.contains(&part(table)))
}

/// What `_source` says of a table's rows: what follows the view's name in its own.
fn source_of<'a>(view: &TableName, table: &'a str) -> &'a str {
    table.strip_prefix(&view.table).and_then(|rest| rest.strip_prefix('@')).unwrap_or(table)
}

/// The columns are those that the tables have when the view is read: a change of one needs no new view. A column of that name in the
/// source would stand twice.
fn statement(view: &TableName, tables: &[String]) -> String {
    let name = format!("{LAKE}.{}", qualified(&view.schema, &view.table));
    if tables.is_empty() {
        return format!("DROP VIEW {name}");
    }
    let parts = tables.iter().map(|table| {
        let (source, table) = (literal(source_of(view, table)), qualified(&view.schema, table));
        format!("SELECT {source}{COLUMNS}lambda c: lower(c) <> '_source') FROM {table}")
    });
    format!("CREATE OR REPLACE VIEW {name} AS {}", parts.collect::<Vec<_>>().join(" UNION ALL BY NAME "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_known_by_what_it_shows() {
        let view = TableName { schema: "public".into(), table: "orders".into() };
        let tables = ["orders@shop.a.orders".to_owned(), "orders@shop.b's.orders".to_owned()];
        let made = statement(&view, &tables);
        assert_eq!(
            made,
            "CREATE OR REPLACE VIEW lake.\"public\".\"orders\" AS \
             SELECT 'shop.a.orders' AS _source, COLUMNS(lambda c: lower(c) <> '_source') FROM \"public\".\"orders@shop.a.orders\" \
             UNION ALL BY NAME \
             SELECT 'shop.b''s.orders' AS _source, COLUMNS(lambda c: lower(c) <> '_source') FROM \"public\".\"orders@shop.b's.orders\""
        );
        assert!(shows(&made, &view, &tables));
        assert!(!shows(&made, &view, &tables[..1]));
        assert!(!shows(&made, &view, &["orders@shop.a.orders".to_owned(), "orders@other.b.orders".to_owned()]));
        assert_eq!(statement(&view, &[]), "DROP VIEW lake.\"public\".\"orders\"");
    }
}

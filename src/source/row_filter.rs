//! Row filters of a publication (version 15 and later): which rows of a table it sends.
//!
//! The server keeps a filter in a form of its own, and refuses UPDATEs and DELETEs of a table whose filter uses a column outside of its
//! replica identity. Both are told by making a publication in a transaction that is rolled back.

use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Oid;

use super::failure::from_client;
use super::session::Session;
use super::table::TableName;
use crate::error::{Error, ErrorKind, Result};
use crate::sql;

/// The first version that has them.
const SINCE: u32 = 15;

/// A filter as the server understands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowFilter {
    /// As the server prints it; as it was written where the role may not find out.
    pub text: String,
    /// The columns that it uses, by their attnums; none where the role may not find out.
    pub columns: Vec<i16>,
}

/// The filter that a publication has on a table; `None`: it sends all rows.
pub async fn published(session: &Session, publication: &str, oid: Oid) -> Result<Option<String>> {
    if session.major_version() < SINCE {
        return Ok(None);
    }
    let query = "SELECT pg_get_expr(r.prqual, r.prrelid) FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
                 WHERE p.pubname = $1 AND r.prrelid = $2";
    let row = session.client().query_opt(query, &[&publication, &oid]).await;
    let row = row.map_err(|error| from_client(error, "Reading the publication's row filter"))?;
    Ok(row.and_then(|row| row.get(0)))
}

/// What the server makes of a filter on a table, which is left as it is. `sent` is the filter that a publication has on it: a role that may
/// not make one finds out that both are the same.
///
/// # Errors
/// Kind `Table`, where the server has no row filters or does not take this one.
pub async fn understood(session: &Session, table: &TableName, filter: &str, sent: Option<&str>) -> Result<RowFilter> {
    let cant = |why: &str, remedy: &str| {
        Err(Error::new(ErrorKind::Table, format!("{table} can't be filtered by {filter:?}: {why}")).remedy(remedy))
    };
    if session.major_version() < SINCE {
        return cant("row filters came with PostgreSQL 15", "take `where` out of [[tables]]");
    }
    let name = sql::identifier(&format!("duckpipe_{}", uuid::Uuid::new_v4().simple()));
    let make = format!(
        "BEGIN; CREATE PUBLICATION {name} FOR TABLE ONLY {} WHERE ({filter})",
        sql::qualified(&table.schema, &table.table)
    );
    let made = session.client().batch_execute(&make).await;
    let read = match &made {
        Ok(()) => {
            let query = "SELECT pg_get_expr(r.prqual, r.prrelid), ARRAY(SELECT DISTINCT d.refobjsubid::int2 FROM pg_depend d \
                         WHERE d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass \
                         AND d.refobjid = r.prrelid AND d.refobjsubid > 0) FROM pg_publication_rel r \
                         JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
                         WHERE n.nspname = $1 AND c.relname = $2 ORDER BY r.oid DESC LIMIT 1";
            session.client().query_one(query, &[&table.schema, &table.table]).await.map(Some)
        }
        Err(_) => Ok(None),
    };
    let ended = session.client().batch_execute("ROLLBACK").await;
    const WHAT: &str = "Examining a row filter";
    if let Err(error) = made {
        return match error.code() {
            // Somebody else made the publication, and knows whether its filter is right.
            Some(&SqlState::INSUFFICIENT_PRIVILEGE | &SqlState::READ_ONLY_SQL_TRANSACTION) => {
                let same = match sent {
                    Some(sent) if plan(session, table, filter).await? == plan(session, table, sent).await? => sent,
                    _ => filter.trim(),
                };
                Ok(RowFilter { text: same.to_owned(), columns: Vec::new() })
            }
            Some(_) => {
                let why = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
                cant(&why, "correct `where` in [[tables]]")
            }
            None => Err(from_client(error, WHAT)),
        };
    }
    ended.map_err(|error| from_client(error, WHAT))?;
    let row = read.map_err(|error| from_client(error, WHAT))?;
    let row = row.ok_or_else(|| Error::new(ErrorKind::Internal, "a row filter was made and is not there"))?;
    Ok(RowFilter { text: row.get(0), columns: row.get(1) })
}

/// How the server reads the rows of a filter, which it prints in its own form, whoever asks.
async fn plan(session: &Session, table: &TableName, filter: &str) -> Result<Vec<String>> {
    let failed = |error| from_client(error, "Examining a row filter").context(format!("{table} by {filter:?}"));
    // Partitions that have no such rows would be left out, whatever else the filter says.
    let begin = "BEGIN; SET LOCAL enable_partition_pruning = off; SET LOCAL constraint_exclusion = off";
    session.client().batch_execute(begin).await.map_err(failed)?;
    let name = sql::qualified(&table.schema, &table.table);
    let explain = format!("EXPLAIN (VERBOSE, COSTS OFF) SELECT FROM {name} WHERE ({filter})");
    let explained = session.client().simple_query(&explain).await;
    let ended = session.client().batch_execute("ROLLBACK").await;
    let lines = explained.map_err(failed)?.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    ended.map_err(failed)?;
    Ok(lines.collect())
}

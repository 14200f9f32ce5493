//! One SELECT on the lake, in a DuckDB of its own.
//!
//! In: a connection that nobody else uses, on which the lake is attached read-only as `lake`. The statement passes the
//! [guard](super::select_guard); then the connection itself is closed off: no files but the lake's data, no change of settings.
//! Out: rows, as they come, in the chosen [format](super::query_output). Never: more memory than its share, a longer time
//! than its limit.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{Array, AsArray};
use duckdb::Connection;
use tokio::sync::watch;

pub use super::query_output::OutputFormat;
use super::query_output::{Column, Writer};
use super::select_guard::{Guard, LakeNames, Select};
use crate::error::{Because, Error, ErrorKind, Result};

/// The name by which the lake is attached.
const LAKE: &str = "lake";
/// How often a cancelled query is told so: an interrupt between two statements is lost.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(50);
/// How long a cancelled query may take to end; it may hang in a write to a reader that does not read.
const INTERRUPT_PATIENCE: Duration = Duration::from_secs(2);

/// What a query may use and how it answers.
#[derive(Clone, Debug)]
pub struct QuerySettings {
    /// The statement.
    pub sql: String,
    /// The lake's data path, absolute or `s3://`: the only place that files are read from.
    pub data_path: String,
    /// DuckDB's memory limit in bytes.
    pub memory: u64,
    /// DuckDB's threads.
    pub threads: u16,
    /// The query is cancelled after this time.
    pub timeout: Duration,
    /// How rows are written.
    pub format: OutputFormat,
}

/// Judges a statement by itself, without a lake: what this refuses, [`run`] refuses too.
pub fn inspect(sql: &str) -> Result<()> {
    Guard::open()?.inspect(sql).map(|_| ())
}

/// Runs the query on a thread of its own and writes its rows to `out`; says how many there were. `shutdown` turning true
/// cancels it, as does the timeout: both are errors of kind [`ErrorKind::Transient`].
pub async fn run(
    connection: Connection,
    settings: QuerySettings,
    out: impl Write + Send + 'static,
    mut shutdown: watch::Receiver<bool>,
) -> Result<u64> {
    let timeout = settings.timeout;
    let interrupt = connection.interrupt_handle();
    let cancelled = Arc::new(AtomicBool::new(false));
    let (done, mut ended) = tokio::sync::oneshot::channel();
    let seen = Arc::clone(&cancelled);
    std::thread::Builder::new()
        .name("query".into())
        .spawn(move || {
            // Nobody listens any more where the query was given up.
            let _ = done.send(execute(&connection, &settings, out, &seen));
        })
        .because(ErrorKind::Internal, || "the query's thread can't start".into())?;

    let reason = tokio::select! {
        result = &mut ended => return result.because(ErrorKind::Internal, || "the query's thread died".into())?,
        () = tokio::time::sleep(timeout) => {
            Error::new(ErrorKind::Transient, format!("the query ran longer than {timeout:?} and was cancelled"))
                .remedy("narrow it, or allow more by --timeout")
        }
        () = until_true(&mut shutdown) => Error::new(ErrorKind::Transient, "the query was cancelled"),
    };
    cancelled.store(true, Ordering::Relaxed);
    let given_up = tokio::time::sleep(INTERRUPT_PATIENCE);
    tokio::pin!(given_up);
    loop {
        interrupt.interrupt();
        tokio::select! {
            // It may have ended well in the last moment.
            result = &mut ended => return match result {
                Ok(Ok(rows)) => Ok(rows),
                _ => Err(reason),
            },
            () = tokio::time::sleep(INTERRUPT_INTERVAL) => {}
            () = &mut given_up => return Err(reason),
        }
    }
}

async fn until_true(shutdown: &mut watch::Receiver<bool>) {
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}

/// Everything that blocks: the guard, the locks, the rows.
fn execute(connection: &Connection, settings: &QuerySettings, out: impl Write, cancelled: &AtomicBool) -> Result<u64> {
    let guard = Guard::open()?;
    let select = guard.inspect(&settings.sql)?;
    let names = names(connection, &guard)?;
    select.check(&names)?;
    // On more than one thread, DuckLake (DuckDB 1.5.5) may date all that it deleted from a file by the first such snapshot:
    // what tells it to look at each row is shared by the threads, and written anew for each file that one of them opens.
    let threads = if select.deleted_rows { 1 } else { settings.threads };
    close_off(connection, settings, threads, &names)?;
    let columns = columns(connection, &select)?;
    let writer = Writer::new(settings.format, columns, out);
    match rows(connection, &select, writer, cancelled) {
        Ok(rows) => Ok(rows),
        Err(Failure::Query(error)) => Err(failed(&error)),
        Err(Failure::Cancelled) => Err(Error::new(ErrorKind::Transient, "the query was cancelled")),
        // A reader that has enough, as `head` does, is no error.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(Failure::Output(error)) => Err(error).because(ErrorKind::Internal, || "the rows can't be written".into()),
    }
}

enum Failure {
    Query(duckdb::Error),
    Output(io::Error),
    Cancelled,
}

impl From<duckdb::Error> for Failure {
    fn from(error: duckdb::Error) -> Self {
        Failure::Query(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

fn failed(error: &duckdb::Error) -> Error {
    let text = error.to_string();
    let out = Error::new(ErrorKind::Transient, format!("the query failed: {}", text.trim()));
    if text.contains("Out of Memory") { out.remedy("narrow it, or allow more by --memory-limit") } else { out }
}

/// What the lake has. A view is harmless where its own statement is.
fn names(connection: &Connection, guard: &Guard) -> Result<LakeNames> {
    /// Schema, name and statement.
    type View = (String, String, String);
    let read = || -> duckdb::Result<(LakeNames, Vec<View>)> {
        let mut names = LakeNames { catalog: LAKE.to_owned(), ..LakeNames::default() };
        let sql = "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = ?";
        let pair = |row: &duckdb::Row<'_>| Ok((row.get(0)?, row.get(1)?));
        names.tables = connection.prepare(sql)?.query_map([LAKE], pair)?.collect::<duckdb::Result<_>>()?;
        let sql = "SELECT lower(function_name) FROM duckdb_functions() WHERE database_name = ? AND NOT internal";
        let one = |row: &duckdb::Row<'_>| row.get::<_, String>(0);
        names.functions = connection.prepare(sql)?.query_map([LAKE], one)?.collect::<duckdb::Result<HashSet<_>>>()?;
        let sql = "SELECT schema_name FROM duckdb_schemas() WHERE database_name = ? AND schema_name IN ('public', 'main') \
            ORDER BY schema_name DESC";
        names.search_path = connection.prepare(sql)?.query_map([LAKE], one)?.collect::<duckdb::Result<_>>()?;
        let sql = "SELECT schema_name, view_name, sql FROM duckdb_views() WHERE database_name = ? AND NOT internal";
        let three = |row: &duckdb::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        let views = connection.prepare(sql)?.query_map([LAKE], three)?.collect::<duckdb::Result<_>>()?;
        Ok((names, views))
    };
    let (mut names, views) = read().map_err(|error| failed(&error))?;
    let mut harmless = Vec::new();
    for (schema, view, sql) in views {
        match judge_view(guard, &sql) {
            Ok(select) => harmless.push((schema, view, select)),
            Err(reason) => names.refused_views.push((schema, view, reason)),
        }
    }
    // A view may build on views: all that parse count as there, then those that reach beyond the lake are taken out, until none is.
    names.tables.extend(harmless.iter().map(|(schema, view, _)| (schema.clone(), view.clone())));
    loop {
        let wrong = harmless.iter().position(|(_, _, select)| select.check(&names).is_err());
        let Some(index) = wrong else { return Ok(names) };
        let (schema, view, select) = harmless.swap_remove(index);
        names.tables.retain(|name| *name != (schema.clone(), view.clone()));
        let reason = select.check(&names).err().map(|error| error.to_string()).unwrap_or_default();
        names.refused_views.push((schema, view, reason));
    }
}

/// Judges `CREATE VIEW … AS SELECT …` by its SELECT.
fn judge_view(guard: &Guard, sql: &str) -> std::result::Result<Select, String> {
    let lower = sql.to_ascii_lowercase();
    // The first " as " whose rest is one SELECT: a name in quotes may hold the word too.
    let starts = lower.match_indices(" as ").map(|(at, word)| at + word.len()).chain([0]);
    let mut reason = String::from("its statement can't be read");
    for start in starts {
        match guard.inspect(&sql[start..]) {
            Ok(select) => return Ok(select),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}

/// From here on the connection reads the lake's files only, and its settings stay as they are.
fn close_off(connection: &Connection, settings: &QuerySettings, threads: u16, names: &LakeNames) -> Result<()> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let path: Vec<String> = names.search_path.iter().map(|schema| format!("{LAKE}.{schema}")).collect();
    let path = if path.is_empty() { vec![LAKE.to_owned()] } else { path };
    let statements = [
        format!("SET search_path = {}", quoted(&path.join(","))),
        format!("SET memory_limit = '{}B'", settings.memory),
        format!("SET threads = {threads}"),
        // A slash at the end, or data_path "lake" would open "lake2" too.
        format!("SET allowed_directories = [{}]", quoted(&format!("{}/", settings.data_path.trim_end_matches('/')))),
        "SET enable_external_access = false".to_owned(),
        "SET lock_configuration = true".to_owned(),
    ];
    statements.iter().try_for_each(|statement| {
        connection
            .execute_batch(statement)
            .because(ErrorKind::Internal, || "the query's DuckDB can't be closed off".into())
    })
}

/// The result's columns. The statement is prepared as it was written first, so that an error shows the person's own text.
fn columns(connection: &Connection, select: &Select) -> Result<Vec<Column>> {
    let read = || -> duckdb::Result<Vec<Column>> {
        drop(connection.prepare(&select.text)?);
        let mut statement = connection.prepare(&format!("DESCRIBE SELECT * FROM (\n{}\n)", select.text))?;
        let column = |row: &duckdb::Row<'_>| Ok(Column::new(row.get(0)?, row.get(1)?));
        statement.query_map([], column)?.collect()
    };
    read().map_err(|error| failed(&error))
}

fn rows(
    connection: &Connection,
    select: &Select,
    mut writer: Writer<impl Write>,
    cancelled: &AtomicBool,
) -> std::result::Result<u64, Failure> {
    // DuckDB itself makes the text of every value: what is printed is what its CAST to VARCHAR says.
    let aliases: Vec<String> = (0..writer.columns().len()).map(|index| format!("c{index}")).collect();
    let values: Vec<String> = writer
        .columns()
        .iter()
        .zip(&aliases)
        .map(|(column, alias)| column.expression(writer.format(), alias))
        .collect();
    let sql = format!("SELECT {} FROM (\n{}\n) AS q({})", values.join(", "), select.text, aliases.join(", "));
    let mut statement = connection.prepare(&sql)?;
    // The iterator that this returns panics on an error in a later chunk; the statement's own step says it.
    drop(statement.stream_arrow([])?);
    writer.begin()?;
    let mut count = 0;
    while let Some(batch) = statement.step()? {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Failure::Cancelled);
        }
        let texts: Vec<_> = batch.columns().iter().map(|column| column.as_string_opt::<i32>()).collect();
        for row in 0..batch.len() {
            let cells =
                texts.iter().map(|column| column.filter(|column| column.is_valid(row)).map(|column| column.value(row)));
            writer.row(cells)?;
            count += 1;
        }
    }
    writer.end(count)?;
    Ok(count)
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;

//! Reading tables as of an exported snapshot.

use std::ops::Range;

use bytes::Bytes;

use super::failure::ServerError;
use super::partitions::{self, partition};
use super::settings::SourceSettings;
use super::table::{Heap, SourceTable, TableName};
use super::wire::{QueryError, Wire, text};
use crate::error::{Because, Error, ErrorKind, Result, ResultExt};
use crate::sql;

/// Keeps an exported snapshot alive: a transaction of its own that has imported it and exports it again.
///
/// So neither a lost worker nor the loss of the replication connection that created the slot ends a copy.
pub struct SnapshotHolder {
    wire: tokio::sync::Mutex<Wire>,
    snapshot: String,
}

impl SnapshotHolder {
    /// Imports the snapshot. The connection that exports it must still be as it was then.
    pub async fn import(settings: &SourceSettings, snapshot: &str) -> Result<Self> {
        const WHAT: &str = "Exporting the snapshot again";
        let mut wire = Wire::connect(settings, false).await?;
        begin(&mut wire, snapshot).await?;
        let rows = wire.query("SELECT pg_export_snapshot()").await.map_err(|error| error.into_error(WHAT))?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, format!("{WHAT} gave no name")))?;
        let snapshot = text(row, 0)?.to_owned();
        Ok(SnapshotHolder { wire: wire.into(), snapshot })
    }

    /// The snapshot's name, valid while this lives.
    pub fn snapshot(&self) -> &str {
        &self.snapshot
    }

    /// Whether the transaction, and with it the snapshot, is still there.
    pub async fn check(&self) -> Result<()> {
        let alive = self.wire.lock().await.query("SELECT 1").await;
        alive.map(drop).map_err(|error| error.into_error("Keeping the snapshot"))
    }

    /// The snapshot's `xmin`, with its epoch: all transactions before it have ended.
    pub async fn xmin(&self) -> Result<u64> {
        const WHAT: &str = "Reading the snapshot's xmin";
        let rows = self.wire.lock().await.query("SELECT pg_snapshot_xmin(pg_current_snapshot())").await;
        let rows = rows.map_err(|error| error.into_error(WHAT))?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, format!("{WHAT} gave none")))?;
        text(row, 0)?.parse().because(ErrorKind::Internal, || WHAT.into())
    }

    /// Has a table be made of the partitions that it had at the snapshot, measured now.
    pub async fn settle(&self, table: &mut SourceTable) -> Result<()> {
        const WHAT: &str = "Reading a table's partitions at the snapshot";
        let Some(partitions) = &mut table.partitions else { return Ok(()) };
        let rows = self.wire.lock().await.query(&partitions::statement(table.oid, true)).await;
        let rows = rows.map_err(|error| error.into_error(WHAT))?;
        *partitions = rows.iter().map(|row| partition(|column| text(row, column).ok())).collect::<Result<_>>()?;
        Ok(())
    }

    /// Ends the transaction. Readers that have imported the snapshot go on.
    pub async fn release(self) {
        // Closing the connection does the same; this only spares the server a line in its log.
        let _ = self.wire.into_inner().query("COMMIT").await;
    }
}

/// A connection that reads tables as of a snapshot.
///
/// It locks what it reads, as any reader does, until it goes on to another table: so that whoever alters tables meanwhile waits for one of
/// them at most, and never for one that waits for him.
pub struct SnapshotReader {
    wire: Wire,
    snapshot: String,
    /// A COPY was begun and not read to its end: what comes next on the connection belongs to it.
    in_copy: bool,
    /// The table that is locked: the partitioned one, where a partition is read.
    locked: Option<TableName>,
}

/// A column as COPY shall read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyColumn {
    /// The column's name, unquoted.
    pub name: String,
    /// A type to cast it to: `text`, `text[]`. SQL, not quoted.
    pub cast: Option<&'static str>,
}

/// Rows by the transaction that inserted them, their `xmin`, without its epoch. Compared by age, as Postgres does: exact for those since one that
/// is younger than 2^31 transactions. A row that is older than that may be taken for one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// By this transaction or a later one.
    Since(u32),
    /// By an earlier one.
    Before(u32),
}

impl SnapshotReader {
    /// Connects and imports the snapshot.
    pub async fn open(settings: &SourceSettings, snapshot: &str) -> Result<Self> {
        let mut wire = Wire::connect(settings, false).await?;
        begin(&mut wire, snapshot).await?;
        Ok(SnapshotReader { wire, snapshot: snapshot.to_owned(), in_copy: false, locked: None })
    }

    /// Lets the server end each later COPY that takes longer.
    pub async fn limit(&mut self, timeout: std::time::Duration) -> Result<()> {
        let set = format!("SET statement_timeout = {}", timeout.as_millis());
        let done = self.wire.query(&set).await;
        done.map(drop).map_err(|error| error.into_error("Limiting a session's statements"))
    }

    /// Copies columns of a table, or of a range of its pages, as COPY (FORMAT binary) sends them. Only the table's own
    /// rows, not those of its partitions or of tables that inherit from it. The ranges need not lie within the table, and the one that ends
    /// at `u32::MAX` has no end.
    ///
    /// A stream that is dropped before its end leaves the reader unusable: open another.
    pub async fn copy(
        &mut self,
        heap: &Heap,
        columns: &[CopyColumn],
        pages: Option<Range<u32>>,
    ) -> Result<CopyStream<'_>> {
        self.begin_copy(heap, copy_sql(heap, columns, pages, None)).await
    }

    /// As [`SnapshotReader::copy`], of the rows of a range that were inserted before or since a transaction.
    pub async fn copy_inserted(
        &mut self,
        heap: &Heap,
        columns: &[CopyColumn],
        pages: Range<u32>,
        inserted: Inserted,
    ) -> Result<CopyStream<'_>> {
        self.begin_copy(heap, copy_sql(heap, columns, Some(pages), Some(inserted))).await
    }

    async fn begin_copy(&mut self, heap: &Heap, statement: String) -> Result<CopyStream<'_>> {
        let what = format!("Copying {}", heap.name);
        if self.in_copy {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{what}: an earlier copy on this connection was not read to its end"),
            ));
        }
        self.lock(heap).await.map_err(|error| altered(error, &what))?;
        self.wire.begin_copy(&statement).await.map_err(|error| altered(error, &what))?;
        self.in_copy = true;
        Ok(CopyStream { reader: self, heap: heap.clone(), what, file_node: 0 })
    }

    /// Lets go of the table that was read before. A partitioned one is locked before its partitions, as who alters it does.
    async fn lock(&mut self, heap: &Heap) -> Result<(), QueryError> {
        let table = heap.root.as_ref().unwrap_or(&heap.name);
        if self.locked.as_ref() == Some(table) {
            return Ok(());
        }
        if self.locked.take().is_some() {
            self.wire.query("COMMIT").await?;
            begin(&mut self.wire, &self.snapshot).await?;
        }
        if heap.root.is_some() {
            // As LOCK TABLE does, which wants more than the right to read its columns.
            let lock = format!("SELECT FROM ONLY {} LIMIT 0", sql::qualified(&table.schema, &table.table));
            self.wire.query(&lock).await?;
        }
        self.locked = Some(table.clone());
        Ok(())
    }

    /// The relfilenode that a table had at the snapshot, and whether it still has it, and its name. TRUNCATE and what rewrites a table do
    /// not follow snapshots: to one from before, the new heap is empty. Nor do names: another table may have this one's by now. The lock
    /// that the COPY took keeps the present heap and name in place.
    async fn heap_of(&mut self, heap: &Heap) -> Result<(u32, bool)> {
        const WHAT: &str = "Looking whether it is still the same heap";
        // The row of pg_class is the snapshot's, the function tells of now.
        let name = sql::literal(&sql::qualified(&heap.name.schema, &heap.name.table));
        let sql = format!(
            "SELECT relfilenode, relfilenode = pg_relation_filenode(oid) AND oid = to_regclass({name}) \
             FROM pg_class WHERE oid = {}",
            heap.oid
        );
        let rows = self.wire.query(&sql).await.map_err(|error| error.into_error(WHAT))?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, format!("{WHAT} found no table")))?;
        let file_node = text(row, 0)?.parse().because(ErrorKind::Internal, || WHAT.into())?;
        Ok((file_node, text(row, 1)? == "t"))
    }
}

/// The data of one COPY.
pub struct CopyStream<'a> {
    reader: &'a mut SnapshotReader,
    heap: Heap,
    what: String,
    file_node: u32,
}

impl CopyStream<'_> {
    /// The relfilenode of the heap that was read, once the stream has ended.
    pub fn file_node(&self) -> u32 {
        self.file_node
    }

    /// The next piece of the data, cut anywhere; `None` after its end. Cancel-safe before the end.
    ///
    /// # Errors
    /// Kind `Table` at the end, where the rows were not those of the snapshot: the table was truncated or rewritten since.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if !self.reader.in_copy {
            return Ok(None);
        }
        match self.reader.wire.copy_data().await {
            Ok(Some(data)) => Ok(Some(data)),
            Ok(None) => {
                let heap = self.reader.heap_of(&self.heap).await;
                self.reader.in_copy = false;
                let (file_node, same) = heap.context(|| self.what.clone())?;
                self.file_node = file_node;
                match same {
                    true => Ok(None),
                    false => Err(Error::new(
                        ErrorKind::Table,
                        format!(
                            "{}: it was truncated, rewritten (TRUNCATE, ALTER TABLE, VACUUM FULL, CLUSTER) or renamed while its rows of \
                             an earlier moment were to be read",
                            self.what
                        ),
                    )),
                }
            }
            Err(error) => {
                self.reader.in_copy &= !matches!(error, QueryError::Server(_));
                Err(error.into_error(&self.what))
            }
        }
    }
}

/// The error of beginning a COPY. What the snapshot has may be gone by now: names do not follow snapshots.
fn altered(error: QueryError, what: &str) -> Error {
    let gone = |error: &ServerError| ["42P01", "42703"].contains(&error.code.as_str());
    match error {
        QueryError::Server(error) if gone(&error) => {
            let what = format!("{what}: it was dropped, renamed or altered since its snapshot: {}", error.message);
            Error::new(ErrorKind::Table, what).mended_by_resync()
        }
        error => error.into_error(what),
    }
}

fn copy_sql(heap: &Heap, columns: &[CopyColumn], pages: Option<Range<u32>>, inserted: Option<Inserted>) -> String {
    let columns: Vec<_> = columns
        .iter()
        .map(|column| match column.cast {
            Some(cast) => format!("{}::{cast}", sql::identifier(&column.name)),
            None => sql::identifier(&column.name),
        })
        .collect();
    let range = match pages {
        None => None,
        // Pages may have been added between the measure and the snapshot.
        Some(Range { start, end: u32::MAX }) => Some(format!("ctid >= '({start},0)'")),
        Some(Range { start, end }) => Some(format!("ctid >= '({start},0)' AND ctid < '({end},0)'")),
    };
    let inserted = inserted.map(|inserted| match inserted {
        Inserted::Since(xid) => format!("age(xmin) <= age('{xid}'::xid)"),
        Inserted::Before(xid) => format!("age(xmin) > age('{xid}'::xid)"),
    });
    let filter = heap.filter.as_ref().map(|filter| format!("({filter})"));
    let conditions: Vec<String> = range.into_iter().chain(inserted).chain(filter).collect();
    let condition = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    let name = sql::qualified(&heap.name.schema, &heap.name.table);
    format!("COPY (SELECT {} FROM ONLY {name}{condition}) TO STDOUT (FORMAT binary)", columns.join(", "))
}

async fn begin(wire: &mut Wire, snapshot: &str) -> Result<()> {
    let begin = format!(
        // Rows come in the order in which they lie.
        "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT {}; \
         SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL synchronize_seqscans = off",
        sql::literal(snapshot)
    );
    wire.query(&begin).await.map(drop).map_err(|error| {
        error
            .into_error("Importing the snapshot")
            .remedy("The connection that exports it has ended: start the copy anew.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement() {
        let name = TableName { schema: "s".into(), table: "a\"b".into() };
        let heap = Heap { oid: 1, name, root: None, pages: 0, filter: None };
        let columns =
            [CopyColumn { name: "x".into(), cast: None }, CopyColumn { name: "y z".into(), cast: Some("text[]") }];
        assert_eq!(
            copy_sql(&heap, &columns, Some(2..7), None),
            "COPY (SELECT \"x\", \"y z\"::text[] FROM ONLY \"s\".\"a\"\"b\" WHERE ctid >= '(2,0)' AND ctid < '(7,0)') \
             TO STDOUT (FORMAT binary)"
        );
        assert!(copy_sql(&heap, &columns[..1], Some(7..u32::MAX), None).contains("WHERE ctid >= '(7,0)')"));
        assert!(copy_sql(&heap, &columns[..1], None, None).contains("FROM ONLY \"s\".\"a\"\"b\")"));
        let filtered = Heap { filter: Some("x OR y".into()), ..heap };
        assert!(copy_sql(&filtered, &columns[..1], None, None).contains("b\" WHERE (x OR y))"));
        assert!(copy_sql(&filtered, &columns[..1], Some(0..3), None).contains("ctid < '(3,0)' AND (x OR y))"));
        let since = copy_sql(&filtered, &columns[..1], Some(0..3), Some(Inserted::Since(9)));
        assert!(since.contains("ctid < '(3,0)' AND age(xmin) <= age('9'::xid) AND (x OR y))"), "{since}");
    }
}

//! Ranges of tables that an earlier try of a copy has read, and what of them holds at the present snapshot.
//!
//! A version of a row lies where it was written, until it is dead or the whole table is rewritten. So of a range that was read at an
//! earlier snapshot, this one sees:
//!
//! * what was inserted by transactions that had not ended then: read now, whole;
//! * what is left of the rest: among the rows that were read, and in the same order. Only its keys are read now. A row whose key does
//!   not come is gone.
//!
//! Together they are the range at the present snapshot, exactly. WAL of the time between is not needed.

use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::row::{RowConverter, Rows as KeyRows, SortField};
use duckpipe_storage::{DataFile, DataFileReader, PositionedStream, Rows, Store};
use futures::StreamExt;
use hashbrown::HashMap;
use roaring::RoaringTreemap;

use super::{Copied, CopyOptions, Job, Worker, copy_columns};
use crate::batch::copy::CopyDecoder;
use crate::batch::layout::{Mode, TableLayout};
use crate::error::{Because, ErrorKind, Result};
use crate::lake::Part;
use crate::lake::store::store_error;
use crate::source::snapshot::{Inserted, SnapshotReader};
use crate::source::table::SourceTable;
use crate::sync::flush::SyncTable;
use crate::sync::pipeline::Pipeline;

/// How many transactions may lie between two tries. Postgres compares by age, which is exact up to 2^31.
const MOST_TRANSACTIONS: u64 = 1 << 30;

/// Whether ranges of a table may be kept: its rows have keys, and are as they will be, not numbered changes.
pub(super) fn may_keep(layout: &TableLayout) -> bool {
    !layout.keyless && layout.mode != Mode::History
}

/// Of what a table is read. Values come out alike where this is the same.
pub(super) fn definition(options: &CopyOptions<'_>, table: &SyncTable, source: &SourceTable) -> Result<String> {
    let cluster = (&options.identity.system_id, options.identity.timeline);
    let of_source = (&source.columns, &source.key, &source.filter);
    serde_json::to_string(&(cluster, of_source, &table.lake.columns, options.on_unrepresentable))
        .because(ErrorKind::Internal, || "writing what a table is read of".into())
}

/// The kept ranges that are of use for this copy, by the tables' oids, and whether there were any. All others of its tables are given up; for
/// the first copy, of all.
pub(super) async fn usable(
    pipeline: &Pipeline,
    options: &CopyOptions<'_>,
    tables: &[(Arc<SyncTable>, SourceTable)],
    xmin: u64,
) -> Result<(HashMap<u32, Vec<Arc<Part>>>, bool)> {
    let mut usable: HashMap<u32, Vec<Arc<Part>>> = HashMap::new();
    let mut lost = Vec::new();
    let parts = pipeline.lake.parts(&pipeline.fence.pipeline).await?;
    let any = !parts.is_empty();
    for part in parts {
        let table = tables.iter().find(|(table, _)| table.lake.table_id == part.table_id);
        let Some((table, source)) = table else {
            if pipeline.slot.is_none() {
                lost.extend(part.files.into_iter().map(|file| file.path));
            }
            continue;
        };
        let kept = usable.entry(table.oid).or_default();
        let is_recent = xmin.checked_sub(part.xmin).is_some_and(|passed| passed < MOST_TRANSACTIONS);
        let has_heap = source.heaps().iter().any(|heap| heap.oid == part.relation);
        let overlaps =
            kept.last().is_some_and(|last| last.relation == part.relation && last.pages.end > part.pages.start);
        let fits = is_recent && has_heap && !overlaps && may_keep(&table.layout);
        match fits && !options.anew && part.definition == definition(options, table, source)? {
            true => kept.push(Arc::new(part)),
            false => lost.extend(part.files.into_iter().map(|file| file.path)),
        }
    }
    pipeline.lake.discard_parts(&pipeline.fence, lost).await?;
    for (table, _) in tables {
        if let Some(parts) = usable.get(&table.oid).filter(|parts| !parts.is_empty()) {
            let rows: u64 = parts.iter().flat_map(|part| &part.files).map(|file| file.rows).sum();
            let (table, ranges) = (&table.layout.table, parts.len());
            tracing::info!(%table, ranges, rows, "the copy goes on with what an earlier try has read");
        }
    }
    Ok((usable, any))
}

/// The range as it is at the present snapshot; `None`, where what was read can't be held against that: the table was rewritten, or
/// a file is gone.
pub(super) async fn renew(
    worker: &Worker,
    reader: &mut SnapshotReader,
    job: &Job,
    part: &Part,
) -> Result<Option<Copied>> {
    let (table, pipeline) = (&job.table, &worker.pipeline);
    let unreadable = format!("what was read of {} before can't be read back", table.layout.table);
    for file in &part.files {
        if !pipeline.store.exists(&file.path).await.map_err(store_error(&unreadable))? {
            return Ok(None);
        }
    }
    // Transactions are compared without their epoch.
    let xid = part.xmin as u32;
    let Some(gone) = gone(worker, reader, job, part, &unreadable).await? else { return Ok(None) };

    let schema = table.lake.schema(&table.layout)?;
    let mut writer = worker.writer(table, &schema);
    let unwritten = format!("the files of {} can't be written", table.layout.table);
    let (mut files, mut rows) = (Vec::new(), 0);
    for (file, gone) in part.files.iter().zip(&gone) {
        let left = file.rows - gone.len();
        rows += left;
        table.progress.add_rows_copied(left);
        if gone.is_empty() {
            files.push(file.clone());
        }
        if gone.is_empty() || left == 0 {
            continue;
        }
        let opened = DataFileReader::open(&pipeline.store, &file.path).await.map_err(store_error(&unreadable))?;
        let mut stream = opened.read(Arc::clone(&schema), Rows::All).map_err(store_error(&unreadable))?;
        while let Some(read) = stream.next().await {
            let read = read.map_err(store_error(&unreadable))?;
            let stays: BooleanArray = read.positions.iter().map(|position| Some(!gone.contains(*position))).collect();
            let batch = filter_record_batch(&read.batch, &stays)
                .because(ErrorKind::Internal, || "leaving out rows that are gone".into())?;
            writer.write(&batch).await.map_err(store_error(&unwritten))?;
        }
    }
    let columns = copy_columns(&table.layout);
    let mut stream = reader.copy_inserted(&job.heap, &columns, part.pages.clone(), Inserted::Since(xid)).await?;
    let (new, nulled) = worker.read(&mut stream, job, (&mut writer, &schema)).await?;
    if stream.file_node() != part.file_node {
        return Ok(None);
    }
    let dropped: u64 = gone.iter().map(RoaringTreemap::len).sum();
    tracing::debug!(table = %table.layout.table, pages = ?part.pages, kept = rows, dropped, new, "a range was brought up to now");
    files.extend(writer.finish().await.map_err(store_error(&unwritten))?);
    Ok(Some(Copied { files, rows: rows + new, nulled: part.nulled + nulled }))
}

/// Per file, which of its rows are gone.
async fn gone(
    worker: &Worker,
    reader: &mut SnapshotReader,
    job: &Job,
    part: &Part,
    unreadable: &str,
) -> Result<Option<Vec<RoaringTreemap>>> {
    let (table, pipeline) = (&job.table, &worker.pipeline);
    let keys = Arc::new(key_layout(&table.layout));
    let schema = table.lake.schema(&table.layout)?;
    let fields: Vec<_> = table.layout.key.iter().map(|index| Arc::clone(&schema.fields()[*index])).collect();
    let mut left = Left::new(pipeline.store.clone(), &part.files, Arc::new(Schema::new(fields)), unreadable)?;
    let inserted = Inserted::Before(part.xmin as u32);
    let mut stream = reader.copy_inserted(&job.heap, &copy_columns(&keys), part.pages.clone(), inserted).await?;
    let mut decoder = CopyDecoder::new(keys, worker.on_unrepresentable);
    let mut found = true;
    while let Some(chunk) = stream.next().await? {
        decoder.push(&chunk)?;
        if decoder.bytes() >= pipeline.budget.copy_batch || decoder.rows() >= 65_536 {
            let keys = decoder.take()?;
            found = found && left.find(&keys).await?;
        }
    }
    if decoder.rows() > 0 {
        let keys = decoder.take()?;
        found = found && left.find(&keys).await?;
    }
    decoder.finish()?;
    let same = stream.file_node() == part.file_node;
    Ok((found && same).then(|| left.finish()))
}

/// The key's columns alone, in its order.
fn key_layout(layout: &TableLayout) -> TableLayout {
    TableLayout {
        table: layout.table.clone(),
        columns: layout.key.iter().map(|index| layout.columns[*index].clone()).collect(),
        key: (0..layout.key.len()).collect(),
        keyless: false,
        mode: Mode::Mirror,
    }
}

/// Walks through files, row by row, along the keys of those that are left.
struct Left<'a> {
    store: Store,
    files: &'a [DataFile],
    schema: SchemaRef,
    unreadable: &'a str,
    converter: RowConverter,
    gone: Vec<RoaringTreemap>,
    /// The file at hand, and the position of its next row.
    file: usize,
    position: u64,
    stream: Option<PositionedStream>,
    /// The keys that were read ahead, and the next one of them.
    ahead: Option<(KeyRows, usize)>,
}

impl<'a> Left<'a> {
    fn new(store: Store, files: &'a [DataFile], schema: SchemaRef, unreadable: &'a str) -> Result<Left<'a>> {
        let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        let converter = RowConverter::new(fields).because(ErrorKind::Internal, cant_compare)?;
        let gone = vec![RoaringTreemap::new(); files.len()];
        let (stream, ahead) = (None, None);
        Ok(Left { store, files, schema, unreadable, converter, gone, file: 0, position: 0, stream, ahead })
    }

    /// Goes on to the rows with these keys, which come in the files' order; those between them are gone. `false`: a key does not come.
    async fn find(&mut self, keys: &RecordBatch) -> Result<bool> {
        let columns = keys.columns().iter().zip(self.schema.fields());
        let columns = columns.map(|(column, field)| match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => cast(column, field.data_type()).because(ErrorKind::Internal, cant_compare),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let keys = self.converter.convert_columns(&columns).because(ErrorKind::Internal, cant_compare)?;
        let mut next = 0;
        while next < keys.num_rows() {
            if self.ahead.is_none() && !self.read_on().await? {
                return Ok(false);
            }
            let Some((rows, at)) = &mut self.ahead else { continue };
            while next < keys.num_rows() && *at < rows.num_rows() {
                match rows.row(*at) == keys.row(next) {
                    true => next += 1,
                    false => {
                        self.gone[self.file].insert(self.position);
                    }
                }
                *at += 1;
                self.position += 1;
            }
            if *at == rows.num_rows() {
                self.ahead = None;
            }
        }
        Ok(true)
    }

    /// Reads the next rows, of the next file where this one has ended. `false`: there are none.
    async fn read_on(&mut self) -> Result<bool> {
        while let Some(file) = self.files.get(self.file) {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    let opened = DataFileReader::open(&self.store, &file.path).await;
                    let opened = opened.map_err(store_error(self.unreadable))?;
                    let stream = opened.read(Arc::clone(&self.schema), Rows::All);
                    self.stream.insert(stream.map_err(store_error(self.unreadable))?)
                }
            };
            match stream.next().await {
                Some(read) => {
                    let batch = read.map_err(store_error(self.unreadable))?.batch;
                    let rows = self.converter.convert_columns(batch.columns());
                    self.ahead = Some((rows.because(ErrorKind::Internal, cant_compare)?, 0));
                    return Ok(true);
                }
                None => {
                    self.stream = None;
                    self.file += 1;
                    self.position = 0;
                }
            }
        }
        Ok(false)
    }

    /// No more keys come: what was not reached is gone.
    fn finish(mut self) -> Vec<RoaringTreemap> {
        for (index, file) in self.files.iter().enumerate().skip(self.file) {
            let first = if index == self.file { self.position } else { 0 };
            self.gone[index].insert_range(first..file.rows);
        }
        self.gone
    }
}

fn cant_compare() -> String {
    "keys can't be compared".to_owned()
}

/// The ranges of a heap that no part covers, which are in order.
pub(super) fn uncovered(parts: &[Arc<Part>]) -> Vec<std::ops::Range<u32>> {
    let mut next = 0;
    let mut gaps = Vec::new();
    for part in parts {
        if part.pages.start > next {
            gaps.push(next..part.pages.start);
        }
        next = part.pages.end;
    }
    if next < u32::MAX {
        gaps.push(next..u32::MAX);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field};
    use duckpipe_storage::{BoxError, DataFileOptions, DataFileWriter, FieldId, UploadLog, with_field_ids};

    use super::*;

    struct NoLog;

    #[async_trait::async_trait]
    impl UploadLog for NoLog {
        async fn starting(&self, _: &[String]) -> std::result::Result<(), BoxError> {
            Ok(())
        }
    }

    fn keys(keys: impl IntoIterator<Item = i64>) -> RecordBatch {
        let column = Arc::new(Int64Array::from_iter_values(keys));
        RecordBatch::try_from_iter([("id", column as Arc<dyn arrow::array::Array>)]).unwrap()
    }

    #[tokio::test]
    async fn the_keys_that_are_left_tell_what_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap(), None).await.unwrap();
        let schema = Schema::new(vec![Field::new("id", DataType::Int64, true)]);
        let schema = with_field_ids(&schema, &[FieldId::leaf(1)]).unwrap();
        // Each batch is a file.
        let options = DataFileOptions { target_bytes: 1, ..DataFileOptions::default() };
        let mut writer = DataFileWriter::new(store.clone(), Arc::new(NoLog), "t", Arc::clone(&schema), options);
        for rows in [0..10, 10..25, 25..30] {
            writer.write(&keys(rows)).await.unwrap();
        }
        let files = writer.finish().await.unwrap();
        assert_eq!(files.len(), 3);
        let left = || Left::new(store.clone(), &files, Arc::clone(&schema), "").unwrap();
        let gone =
            |left: Left<'_>| -> Vec<Vec<u64>> { left.finish().iter().map(|gone| gone.iter().collect()).collect() };

        let mut some = left();
        assert!(some.find(&keys([1, 2, 9, 10, 11])).await.unwrap());
        assert!(some.find(&keys([24, 26])).await.unwrap());
        assert_eq!(gone(some), [vec![0, 3, 4, 5, 6, 7, 8], (2..14).collect(), vec![0, 2, 3, 4]]);
        let mut all = left();
        assert!(all.find(&keys(0..30)).await.unwrap());
        assert_eq!(gone(all), vec![Vec::<u64>::new(); 3]);
        assert_eq!(gone(left()).concat().len(), 30);
        for never in [vec![5, 3], vec![30], vec![29, 29]] {
            assert!(!left().find(&keys(never)).await.unwrap());
        }
    }

    #[test]
    fn ranges_that_are_left() {
        let part = |pages| {
            let (definition, files) = (String::new(), Vec::new());
            Arc::new(Part { table_id: 1, relation: 1, file_node: 1, pages, xmin: 3, definition, files, nulled: 0 })
        };
        assert_eq!(uncovered(&[]), vec![0..u32::MAX]);
        assert_eq!(uncovered(&[part(0..8), part(8..16), part(24..32)]), [16..24, 32..u32::MAX]);
        assert_eq!(uncovered(&[part(8..u32::MAX)]), vec![0..8]);
    }
}

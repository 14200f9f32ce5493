//! From keys to rows: where in a table's files a key lies, and what stands there.
//!
//! Both read the files themselves, by column id, so that no name of a user's column can get in the way. What is read is streamed;
//! memory follows the keys and what is found, never the files. Cost does follow the files: without an index of keys, all key columns
//! that no bounds exclude are read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, interleave, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use arrow::row::{RowConverter, SortField};
use duckpipe_storage::{DataFileReader, Rows, Store, read_deleted_positions};
use futures::TryStreamExt;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use roaring::RoaringTreemap;
use tokio::task::JoinSet;

use super::files::LiveFile;
use super::key_index::KeyIndex;
use super::store::of_its_table;
use crate::error::{Because, Error, ErrorKind, Result, ResultExt};

/// A table's key columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumns {
    /// Their column ids in the lake.
    pub field_ids: Vec<i32>,
    /// Their Arrow types.
    pub types: Vec<DataType>,
}

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowPosition {
    /// The index of its file among those that were searched.
    pub file: usize,
    /// Its position in the file, counted from 0.
    pub position: u64,
}

/// Keys, by their index among those that are looked up, each with a row's position.
type Matches = Vec<(u32, u64)>;

/// Finds the live row of each key. `keys` holds the key columns, each key once; the answer has an entry for each.
///
/// Fails with [`ErrorKind::Table`] where a key has two live rows.
pub async fn locate(
    store: &Store,
    files: &[LiveFile],
    key: &KeyColumns,
    keys: &RecordBatch,
) -> Result<Vec<Option<RowPosition>>> {
    let mut found: Vec<Option<RowPosition>> = vec![None; keys.num_rows()];
    let mut missing = keys.num_rows();
    if missing == 0 || files.is_empty() {
        return Ok(found);
    }
    let mut search = Search::new(store, files, key, keys)?;
    while missing > 0
        && let Some((file, rows)) = search.next().await?
    {
        for (key, position) in rows {
            let place = &mut found[key as usize];
            if let Some(other) = place {
                let message = format!(
                    "one key has two rows in the lake: row {position} of {} and row {} of {}",
                    files[file].path, other.position, files[other.file].path
                );
                return Err(
                    Error::new(ErrorKind::Table, message).remedy("copy the table anew: `duckpipe tables resync`")
                );
            }
            *place = Some(RowPosition { file, position });
            missing -= 1;
        }
    }
    Ok(found)
}

/// Finds all live rows that have one of the keys, in a lake where a key may have several.
pub async fn locate_every(
    store: &Store,
    files: &[LiveFile],
    key: &KeyColumns,
    keys: &RecordBatch,
) -> Result<Vec<RowPosition>> {
    let mut found = Vec::new();
    let mut search = Search::new(store, files, key, keys)?;
    while let Some((file, rows)) = search.next().await? {
        found.extend(rows.into_iter().map(|(_, position)| RowPosition { file, position }));
    }
    Ok(found)
}

/// Finds the newest live row of each key, in a lake that keeps all rows which a key ever had: the one with the largest values in two
/// columns of unsigned 64 bits. The answer has an entry for each key.
pub async fn locate_newest(
    store: &Store,
    files: &[LiveFile],
    key: &KeyColumns,
    keys: &RecordBatch,
    order: [i32; 2],
) -> Result<Vec<Option<RowPosition>>> {
    let mut newest: Vec<Option<((u64, u64), RowPosition)>> = vec![None; keys.num_rows()];
    let mut search = Search::new(store, files, key, keys)?;
    let types = [DataType::UInt64, DataType::UInt64];
    while let Some((file, rows)) = search.next().await? {
        for rows in rows.chunks(ROWS_AT_ONCE) {
            let places: Vec<_> = rows.iter().map(|(_, position)| RowPosition { file, position: *position }).collect();
            let values = fetch(store, files, &order, schema_by_id(&order, &types), &places).await?;
            let column = |at: usize| values.column(at).as_primitive::<UInt64Type>();
            for (row, ((key, _), place)) in rows.iter().zip(places).enumerate() {
                let at = (column(0).value(row), column(1).value(row));
                let known = &mut newest[*key as usize];
                if known.is_none_or(|(before, _)| before < at) {
                    *known = Some((at, place));
                }
            }
        }
    }
    Ok(newest.into_iter().map(|found| found.map(|(_, place)| place)).collect())
}

/// Finds a live row for each of these, which hold all values of a row: of equal ones any, but a different one each time, and none of
/// those in `taken` (positions by file). The answer has an entry for each; `None`: the lake has not so many.
pub async fn locate_equal(
    store: &Store,
    files: &[LiveFile],
    key: &KeyColumns,
    rows: &RecordBatch,
    taken: &BTreeMap<usize, RoaringTreemap>,
) -> Result<Vec<Option<RowPosition>>> {
    let cant = || "rows can't be told apart".to_string();
    let fields = rows.columns().iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let converter = RowConverter::new(fields).because(ErrorKind::Internal, cant)?;
    let encoded = converter.convert_columns(rows.columns()).because(ErrorKind::Internal, cant)?;
    let mut groups: HashMap<&[u8], usize> = HashMap::new();
    // Of each group of equal rows: those that still want one.
    let mut wanting: Vec<Vec<usize>> = Vec::new();
    let mut first: Vec<u64> = Vec::new();
    for row in 0..rows.num_rows() {
        let group = *groups.entry(encoded.row(row).data()).or_insert(wanting.len());
        if group == wanting.len() {
            wanting.push(Vec::new());
            first.push(row as u64);
        }
        wanting[group].push(row);
    }
    let distinct = take_record_batch(rows, &UInt64Array::from(first)).because(ErrorKind::Internal, cant)?;
    let mut found = vec![None; rows.num_rows()];
    let mut missing = rows.num_rows();
    let mut search = Search::by(store, files, key, KeyIndex::of_rows(&key.types, &distinct)?)?;
    while missing > 0
        && let Some((file, matches)) = search.next().await?
    {
        let taken = taken.get(&file);
        for (group, position) in matches {
            if taken.is_some_and(|taken| taken.contains(position)) {
                continue;
            }
            if let Some(row) = wanting[group as usize].pop() {
                found[row] = Some(RowPosition { file, position });
                missing -= 1;
            }
        }
    }
    Ok(found)
}

/// Rows whose order is read at once: some MB.
const ROWS_AT_ONCE: usize = 65_536;

/// A search for keys through files, some at once.
struct Search<'a> {
    store: &'a Store,
    files: &'a [LiveFile],
    index: Arc<KeyIndex>,
    schema: SchemaRef,
    /// Indices of files that may hold some of the keys; the next one is the last.
    waiting: Vec<usize>,
    running: JoinSet<Result<(usize, Matches)>>,
}

impl<'a> Search<'a> {
    fn new(store: &'a Store, files: &'a [LiveFile], key: &KeyColumns, keys: &RecordBatch) -> Result<Self> {
        Search::by(store, files, key, KeyIndex::new(&key.types, keys)?)
    }

    fn by(store: &'a Store, files: &'a [LiveFile], key: &KeyColumns, index: KeyIndex) -> Result<Self> {
        let index = Arc::new(index);
        // The newest files first: what changes has often changed lately, and a search may end with the last key found.
        let waiting = (0..files.len()).filter(|file| index.may_be_within(&files[*file].key_bounds)).collect();
        let schema = schema_by_id(&key.field_ids, &key.types);
        Ok(Search { store, files, index, schema, waiting, running: JoinSet::new() })
    }

    /// What one more file holds; `None` after the last.
    async fn next(&mut self) -> Result<Option<(usize, Matches)>> {
        while self.running.len() < self.store.reads_at_once()
            && let Some(file) = self.waiting.pop()
        {
            let (store, live) = (self.store.clone(), self.files[file].clone());
            let (index, schema) = (Arc::clone(&self.index), Arc::clone(&self.schema));
            self.running.spawn(async move {
                let found = search(&store, &live, &index, schema).await.map_err(of_its_table)?;
                Ok((file, found))
            });
        }
        match self.running.join_next().await {
            Some(ended) => {
                ended.because(ErrorKind::Table, || "a search for keys in a file did not end".to_string())?.map(Some)
            }
            None => Ok(None),
        }
    }
}

/// Reads rows, in the order of `positions`, which may repeat. A column that a file was written without has the default that `schema`
/// tells, else NULL. All of them are in memory at once: ask for as many as fit.
pub async fn fetch(
    store: &Store,
    files: &[LiveFile],
    field_ids: &[i32],
    schema: SchemaRef,
    positions: &[RowPosition],
) -> Result<RecordBatch> {
    if positions.is_empty() {
        return Ok(RecordBatch::new_empty(schema));
    }
    let mut by_file: HashMap<usize, Vec<u64>> = HashMap::new();
    for row in positions {
        by_file.entry(row.file).or_default().push(row.position);
    }
    let wanted = field_ids.iter().zip(schema.fields()).map(|(id, field)| {
        let mut metadata = field.metadata().clone();
        metadata.insert(PARQUET_FIELD_ID_META_KEY.to_string(), id.to_string());
        field.as_ref().clone().with_nullable(true).with_metadata(metadata)
    });
    let wanted = Arc::new(Schema::new(wanted.collect::<Vec<_>>()));
    let mut waiting = Vec::with_capacity(by_file.len());
    for (file, mut rows) in by_file {
        rows.sort_unstable();
        rows.dedup();
        let live =
            files.get(file).ok_or_else(|| Error::new(ErrorKind::Internal, format!("there is no file {file}")))?;
        waiting.push((file, live.path.clone(), rows));
    }
    let mut waiting = waiting.into_iter();
    let mut running: JoinSet<Result<(usize, Vec<u64>, RecordBatch)>> = JoinSet::new();
    // For each file, which of `read` its rows are in, and the positions of these.
    let mut places: HashMap<usize, (usize, Vec<u64>)> = HashMap::new();
    let mut read: Vec<RecordBatch> = Vec::new();
    loop {
        while running.len() < store.reads_at_once()
            && let Some((file, path, rows)) = waiting.next()
        {
            let (store, wanted) = (store.clone(), Arc::clone(&wanted));
            running.spawn(async move {
                let batch = read_rows(&store, &path, wanted, &rows).await.map_err(of_its_table).context(|| path)?;
                Ok((file, rows, batch))
            });
        }
        let Some(ended) = running.join_next().await else { break };
        let (file, rows, batch) =
            ended.because(ErrorKind::Table, || "a read of a file's rows did not end".to_string())??;
        places.insert(file, (read.len(), rows));
        read.push(batch);
    }
    let order: Vec<(usize, usize)> = positions
        .iter()
        .filter_map(|row| {
            let (batch, rows) = places.get(&row.file)?;
            Some((*batch, rows.binary_search(&row.position).ok()?))
        })
        .collect();
    let columns = (0..schema.fields().len())
        .map(|column| interleave(&read.iter().map(|batch| batch.column(column).as_ref()).collect::<Vec<_>>(), &order))
        .collect::<std::result::Result<Vec<_>, _>>()
        .because(ErrorKind::Internal, || "rows can't be put in order".to_string())?;
    if order.len() != positions.len() {
        return Err(Error::new(ErrorKind::Internal, "not all rows were read"));
    }
    RecordBatch::try_new(schema, columns).because(ErrorKind::Internal, || "rows do not fit their table".to_string())
}

/// The keys that a file holds in live rows, each with the row's position.
async fn search(store: &Store, live: &LiveFile, index: &KeyIndex, schema: SchemaRef) -> Result<Matches> {
    let file = DataFileReader::open(store, &live.path).await?;
    let ids: Vec<i32> = schema.fields().iter().filter_map(|field| duckpipe_storage::field_id(field)).collect();
    if !ids.iter().all(|id| file.has_column(*id)) {
        // Written before the key's column existed: NULL is no key.
        return Ok(Vec::new());
    }
    let mut keep = vec![true; file.row_groups().len()];
    for (column, id) in ids.iter().enumerate() {
        if let Some((min, max)) = file.bounds(*id)? {
            index.prune(column, &min, &max, &mut keep);
        }
    }
    let groups = (0..keep.len()).filter(|group| keep[*group]).collect();
    let mut input = file.read(schema, Rows::RowGroups(groups))?;
    let mut found = Vec::new();
    while let Some(rows) = input.try_next().await? {
        index.matches(&rows.batch, |row, key| found.push((key, rows.positions[row]))).context(|| live.path.clone())?;
    }
    if let Some(delete) = &live.delete
        && !found.is_empty()
    {
        let dead = read_deleted_positions(store, &delete.path).await?;
        found.retain(|(_, position)| !dead.contains(*position));
    }
    Ok(found)
}

async fn read_rows(store: &Store, path: &str, schema: SchemaRef, rows: &[u64]) -> Result<RecordBatch> {
    let file = DataFileReader::open(store, path).await?;
    let input = file.read(Arc::clone(&schema), Rows::Positions(rows.to_vec()))?;
    let batches: Vec<_> = input.map_ok(|rows| rows.batch).try_collect().await?;
    concat_batches(&schema, &batches).because(ErrorKind::Internal, || "rows can't be joined".to_string())
}

/// A schema that says columns by their ids; the names do not matter.
fn schema_by_id(field_ids: &[i32], types: &[DataType]) -> SchemaRef {
    let fields = field_ids.iter().zip(types).map(|(id, data_type)| {
        let metadata = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_string(), id.to_string())]);
        Field::new(id.to_string(), data_type.clone(), true).with_metadata(metadata)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

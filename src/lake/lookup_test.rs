//! Lookup against brute force, over random tables: files, deletes and keys of many kinds.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float64Array, Int16Array, Int32Array,
    Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use async_trait::async_trait;
use duckpipe_storage::{
    BoxError, DataFileOptions, DataFileWriter, FieldId, INITIAL_DEFAULT, Store, UploadLog, with_field_ids,
    write_delete_file,
};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::files::{LiveDelete, LiveFile};
use super::lookup::{KeyColumns, RowPosition, fetch, locate};
use crate::error::ErrorKind;

struct NoLog;

#[async_trait]
impl UploadLog for NoLog {
    async fn starting(&self, _paths: &[String]) -> Result<(), BoxError> {
        Ok(())
    }
}

/// A column of values that are all distinct, from numbers that are.
fn column(kind: &str, numbers: &[u32]) -> ArrayRef {
    let signed = || numbers.iter().map(|n| *n as i32);
    match kind {
        "int2" => Arc::new(signed().map(|n| Some(n as i16)).collect::<Int16Array>()),
        "int4" => Arc::new(signed().map(|n| Some(n.wrapping_mul(-3))).collect::<Int32Array>()),
        "int8" => Arc::new(signed().map(|n| Some(i64::from(n) << 30)).collect::<Int64Array>()),
        "oid" => Arc::new(numbers.iter().map(|n| Some(u32::MAX - n)).collect::<UInt32Array>()),
        "date" => Arc::new(signed().map(Some).collect::<Date32Array>()),
        "timestamptz" => {
            let micros = signed().map(|n| Some(i64::from(n) * 1_000_001));
            Arc::new(micros.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
        }
        "text" => Arc::new(StringArray::from_iter_values(numbers.iter().map(|n| format!("k'é{:x}", n.reverse_bits())))),
        "uuid" => {
            let bytes = numbers
                .iter()
                .map(|n| u128::from(*n).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_be_bytes());
            Arc::new(FixedSizeBinaryArray::try_from_iter(bytes).unwrap())
        }
        "decimal" => {
            let values: Decimal128Array = signed().map(|n| Some(i128::from(n) * 1_000_000_007)).collect();
            Arc::new(values.with_precision_and_scale(38, 4).unwrap())
        }
        "float8" => {
            Arc::new(signed().map(|n| Some(if n == 0 { -0.0 } else { f64::from(n) / 3.0 })).collect::<Float64Array>())
        }
        "tenant" => Arc::new(numbers.iter().map(|n| Some((n % 7) as i32)).collect::<Int32Array>()),
        other => panic!("{other}"),
    }
}

struct Table {
    store: Store,
    _folder: tempfile::TempDir,
    files: Vec<LiveFile>,
    /// What the files hold, and which rows live.
    content: Vec<(RecordBatch, Vec<bool>)>,
    key: KeyColumns,
    schema: SchemaRef,
}

impl Table {
    /// Files of random rows. A key may be dead in many files, and lives in one at most.
    async fn random(key: &[&str], random: &mut StdRng) -> Table {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap(), None).await.unwrap();
        let mut numbers: Vec<u32> = (0..3000).collect();
        if random.random() {
            numbers.shuffle(random);
        }
        let ids: Vec<i32> = (0..key.len() as i32).map(|index| 10 + index).collect();
        let mut table = None;
        let mut dead_before: Vec<u32> = Vec::new();
        for (file, fresh) in numbers.chunks(700).enumerate() {
            // Keys that died in an earlier file come back here and die again, or not at all.
            dead_before.shuffle(random);
            let back: Vec<u32> = dead_before.split_off(dead_before.len() / 2);
            let all: Vec<u32> = fresh.iter().chain(&back).copied().collect();
            let live: Vec<bool> = all.iter().map(|_| file == 2 || random.random_ratio(3, 4)).collect();
            dead_before.extend(all.iter().zip(&live).filter(|(_, live)| !**live).map(|(n, _)| *n));

            let mut fields: Vec<(String, ArrayRef)> =
                key.iter().enumerate().map(|(i, kind)| (format!("{kind}{i}"), column(kind, &all))).collect();
            fields.push(("filename".into(), Arc::new(all.iter().map(|n| Some(*n as i64)).collect::<Int64Array>())));
            let mut field_ids: Vec<FieldId> = ids.iter().map(|id| FieldId::leaf(*id)).collect();
            field_ids.push(FieldId::leaf(50));
            if file > 1 {
                fields.push(("later".into(), column("text", &all)));
                field_ids.push(FieldId::leaf(51));
            }
            let batch =
                RecordBatch::try_from_iter_with_nullable(fields.into_iter().map(|(n, c)| (n, c, true))).unwrap();
            let schema = with_field_ids(&batch.schema(), &field_ids).unwrap();
            let options = DataFileOptions { row_group_rows: 200, ..DataFileOptions::default() };
            let mut writer = DataFileWriter::new(store.clone(), Arc::new(NoLog), "t", schema, options);
            writer.write(&batch).await.unwrap();
            let written = writer.finish().await.unwrap().remove(0);
            let dead: Vec<(u64, i64)> =
                (0..).zip(&live).filter(|(_, live)| !**live).map(|(position, _)| (position, 7)).collect();
            let delete = match dead.is_empty() {
                true => None,
                false => {
                    let url = store.url(&written.path);
                    let file = write_delete_file(&store, &NoLog, "t", &url, &dead).await.unwrap();
                    Some(LiveDelete {
                        delete_file_id: 1,
                        path: file.path,
                        rows: file.rows,
                        begin_snapshot: 7,
                        partial_max: None,
                    })
                }
            };
            let key_bounds = ids.iter().map(|id| {
                let stats = written.columns.iter().find(|stats| stats.field_id == *id).unwrap();
                stats.min.clone().zip(stats.max.clone())
            });
            let live_file = LiveFile {
                data_file_id: file as i64,
                path: if random.random() { store.url(&written.path) } else { written.path },
                rows: written.rows,
                row_id_start: None,
                begin_snapshot: 1,
                delete,
                key_bounds: key_bounds.collect(),
            };
            let table = table.get_or_insert_with(|| (Vec::new(), Vec::new(), batch.schema()));
            table.0.push(live_file);
            table.1.push((batch.clone(), live));
        }
        let (files, content, schema) = table.unwrap();
        let types = (0..key.len()).map(|index| schema.field(index).data_type().clone()).collect();
        Table { store, _folder: folder, files, content, key: KeyColumns { field_ids: ids, types }, schema }
    }

    fn key_columns(&self, batch: &RecordBatch) -> RecordBatch {
        batch.project(&(0..self.key.types.len()).collect::<Vec<_>>()).unwrap()
    }

    /// Every live key's place, by looking at every row.
    fn truth(&self) -> HashMap<Vec<u8>, RowPosition> {
        let mut truth = HashMap::new();
        for (file, (batch, live)) in self.content.iter().enumerate() {
            for (row, bytes) in bytes_of(&self.key_columns(batch)).into_iter().enumerate() {
                if live[row] {
                    assert!(truth.insert(bytes, RowPosition { file, position: row as u64 }).is_none());
                }
            }
        }
        truth
    }
}

fn bytes_of(keys: &RecordBatch) -> Vec<Vec<u8>> {
    let fields = keys.columns().iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let converter = RowConverter::new(fields).unwrap();
    let rows = converter.convert_columns(keys.columns()).unwrap();
    rows.iter().map(|row| row.data().to_vec()).collect()
}

#[tokio::test]
async fn every_live_key_is_found_where_it_is_and_no_other() {
    let keys: [&[&str]; 11] = [
        &["int2"],
        &["int4"],
        &["int8"],
        &["oid"],
        &["date"],
        &["timestamptz"],
        &["text"],
        &["uuid"],
        &["decimal"],
        &["float8"],
        &["tenant", "text", "int4"],
    ];
    for (seed, key) in (0..).zip(keys) {
        let mut random = StdRng::seed_from_u64(seed);
        let table = Table::random(key, &mut random).await;
        let truth = table.truth();
        for share in [1, 40, 2000] {
            // Some of all that ever was, and some that never was.
            let mut numbers: Vec<u32> = (0..3400).collect();
            numbers.shuffle(&mut random);
            numbers.truncate(3400 / share);
            let columns = key.iter().enumerate().map(|(i, kind)| (format!("{i}"), column(kind, &numbers)));
            let keys = RecordBatch::try_from_iter(columns).unwrap();
            let found = locate(&table.store, &table.files, &table.key, &keys).await.unwrap();
            let expected: Vec<_> = bytes_of(&keys).iter().map(|bytes| truth.get(bytes).copied()).collect();
            assert_eq!(found, expected, "{key:?}, {share}");
        }
    }
}

#[tokio::test]
async fn rows_are_fetched_in_the_order_of_their_positions() {
    let mut random = StdRng::seed_from_u64(5);
    let table = Table::random(&["uuid", "decimal"], &mut random).await;
    let fields = vec![
        Field::new("d", table.schema.field(1).data_type().clone(), true),
        Field::new("later", DataType::Utf8, true)
            .with_metadata([(INITIAL_DEFAULT.to_owned(), "before".to_owned())].into()),
        Field::new("n", DataType::Int64, true),
        Field::new("u", table.schema.field(0).data_type().clone(), true),
    ];
    let schema = Arc::new(Schema::new(fields));
    for count in [0, 1, 50, 2000] {
        let positions: Vec<RowPosition> = (0..count)
            .map(|_| {
                let file = random.random_range(0..table.files.len());
                RowPosition { file, position: random.random_range(0..table.files[file].rows) }
            })
            .collect();
        let found = fetch(&table.store, &table.files, &[11, 51, 50, 10], schema.clone(), &positions).await.unwrap();
        assert_eq!(found.schema(), schema);
        let expected: Vec<RecordBatch> = positions
            .iter()
            .map(|row| {
                let (batch, _) = &table.content[row.file];
                let row = UInt32Array::from(vec![row.position as u32]);
                let row = take_record_batch(batch, &row).unwrap();
                let later = match row.column_by_name("later") {
                    Some(later) => later.clone(),
                    None => Arc::new(StringArray::from(vec!["before"])),
                };
                let columns = vec![row.column(1).clone(), later, row.column(2).clone(), row.column(0).clone()];
                RecordBatch::try_new(schema.clone(), columns).unwrap()
            })
            .collect();
        assert_eq!(found, concat_batches(&schema, &expected).unwrap());
    }
    let beyond = [RowPosition { file: 0, position: table.files[0].rows }];
    assert!(fetch(&table.store, &table.files, &[11, 51, 50, 10], schema, &beyond).await.is_err());
}

#[tokio::test]
async fn one_key_with_two_live_rows_is_an_error_of_its_table() {
    let mut random = StdRng::seed_from_u64(9);
    let mut table = Table::random(&["int4"], &mut random).await;
    table.files.iter_mut().for_each(|file| file.delete = None);
    let everything = column("int4", &(0..3000).collect::<Vec<_>>());
    let keys = RecordBatch::try_from_iter([("k", everything)]).unwrap();
    let error = locate(&table.store, &table.files, &table.key, &keys).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Table);
}

#[tokio::test]
async fn a_file_that_is_gone_is_said() {
    let mut random = StdRng::seed_from_u64(9);
    let table = Table::random(&["int4"], &mut random).await;
    table.store.delete(&table.files[3].path).await.unwrap();
    let everything = column("int4", &(0..3000).collect::<Vec<_>>());
    let keys = RecordBatch::try_from_iter([("k", everything)]).unwrap();
    let error = locate(&table.store, &table.files, &table.key, &keys).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Table);
    assert!(error.to_string().contains(&table.store.url(&table.files[3].path)));
    assert!(!keys.columns().is_empty());
}

//! One suite for every store. A folder is always there; a bucket where the environment says so:
//! `DUCKPIPE_TEST_S3_ENDPOINT`, `_BUCKET`, `_KEY_ID` and `_SECRET`.

mod deletes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray,
    Float32Array, Float64Array, Int16Array, Int32Array, Int32Builder, Int64Array, ListBuilder, RecordBatch,
    StringArray, Time64MicrosecondArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use parquet::basic::LogicalType;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use crate::*;

/// A log that keeps what it was told, and checks that no byte was there before.
struct Recorded {
    store: Store,
    paths: Mutex<Vec<String>>,
}

#[async_trait]
impl UploadLog for Recorded {
    async fn starting(&self, paths: &[String]) -> Result<(), BoxError> {
        for path in paths {
            assert!(!self.store.exists(path).await?, "{path} was written before it was announced");
        }
        self.paths.lock().unwrap().extend_from_slice(paths);
        Ok(())
    }
}

struct Unheard;

#[async_trait]
impl UploadLog for Unheard {
    async fn starting(&self, _paths: &[String]) -> Result<(), BoxError> {
        Ok(())
    }
}

struct Refusing;

#[async_trait]
impl UploadLog for Refusing {
    async fn starting(&self, _paths: &[String]) -> Result<(), BoxError> {
        Err("the catalog is gone".into())
    }
}

fn log(store: &Store) -> Arc<Recorded> {
    Arc::new(Recorded { store: store.clone(), paths: Mutex::default() })
}

/// Runs a test on every store that there is.
async fn on_every_store<F: Future<Output = ()>>(test: impl Fn(Store) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("la ke/dätä");
    test(Store::open(inside.to_str().unwrap(), None).await.unwrap()).await;
    if let Some(store) = bucket().await {
        test(store).await;
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("DUCKPIPE_TEST_S3_{name}")).ok()
}

fn s3_settings() -> Option<S3Settings> {
    Some(S3Settings {
        endpoint: Some(variable("ENDPOINT")?),
        access_key_id: variable("KEY_ID"),
        secret_access_key: variable("SECRET").map(SecretText::new),
        path_style: true,
        ..S3Settings::default()
    })
}

async fn bucket() -> Option<Store> {
    let place = format!("s3://{}/test-{}/la ke", variable("BUCKET")?, Uuid::now_v7());
    Some(Store::open(&place, Some(&s3_settings()?)).await.unwrap())
}

#[tokio::test]
async fn a_wrong_key_and_a_missing_bucket_are_said_as_such() {
    let (Some(right), Some(bucket)) = (s3_settings(), variable("BUCKET")) else { return };
    let wrong = S3Settings {
        access_key_id: Some("nobody".into()),
        secret_access_key: Some(SecretText::new("sup3rsecret")),
        ..right.clone()
    };
    let store = Store::open(&format!("s3://{bucket}"), Some(&wrong)).await.unwrap();
    for error in [store.probe().await.unwrap_err(), store.get("a").await.unwrap_err()] {
        assert!(error.is_settings() && !error.is_transient() && !error.to_string().contains("sup3rsecret"), "{error}");
    }
    let store = Store::open("s3://there-is-no-such-bucket", Some(&right)).await.unwrap();
    let error = store.probe().await.unwrap_err();
    assert!(error.is_settings() && !error.is_not_found(), "{error}");
    let batch = noise(&mut StdRng::seed_from_u64(7), 20_000, 1000);
    let mut writer = DataFileWriter::new(
        store.clone(),
        Arc::new(Unheard),
        "t",
        numbered(&batch.schema()),
        DataFileOptions::default(),
    );
    writer.write(&batch).await.ok();
    let error = writer.finish().await.unwrap_err();
    assert!(error.to_string().contains("failed before") || error.is_settings(), "{error}");
}

/// Every type that a table can have, with NULLs and extremes.
fn all_types(rows: usize, seed: u64) -> RecordBatch {
    let mut random = StdRng::seed_from_u64(seed);
    let valid: Vec<bool> = (0..rows).map(|_| random.random_ratio(4, 5)).collect();
    let bits: Vec<i64> = (0..rows).map(|_| random.random()).collect();
    let values = || valid.iter().zip(&bits).map(|(valid, bits)| valid.then_some(*bits));
    let texts: Vec<Option<String>> = values()
        .map(|v| v.map(|bits| format!("{}é'\"{bits}", "x".repeat((bits % 5).unsigned_abs() as usize))))
        .collect();
    let mut lists = ListBuilder::new(Int32Builder::new()).with_field(Field::new("element", DataType::Int32, true));
    for value in values() {
        match value {
            Some(bits) => {
                for item in 0..(bits % 4).unsigned_abs() {
                    lists.values().append_option((item != 1).then_some(bits as i32));
                }
                lists.append(true);
            }
            None => lists.append(false),
        }
    }
    let uuids = values().map(|v| v.map(|bits| [bits.to_be_bytes(), bits.to_le_bytes()].concat()));
    let decimals = |precision, scale| {
        let limit = 10_i128.pow(u32::from(precision));
        let array: Decimal128Array = values().map(|v| v.map(|bits| i128::from(bits) * 1_000_003 % limit)).collect();
        array.with_precision_and_scale(precision, scale).unwrap()
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new((0..rows as i64).collect::<Int64Array>())),
        ("bool", Arc::new(values().map(|v| v.map(|b| b % 2 == 0)).collect::<BooleanArray>())),
        ("int2", Arc::new(values().map(|v| v.map(|b| b as i16)).collect::<Int16Array>())),
        ("int4", Arc::new(values().map(|v| v.map(|b| b as i32)).collect::<Int32Array>())),
        ("oid", Arc::new(values().map(|v| v.map(|b| b as u32)).collect::<UInt32Array>())),
        ("float4", Arc::new(values().map(|v| v.map(|b| f32::from_bits(b as u32))).collect::<Float32Array>())),
        ("float8", Arc::new(values().map(|v| v.map(|b| f64::from_bits(b as u64))).collect::<Float64Array>())),
        ("decimal9", Arc::new(decimals(9, 2))),
        ("decimal18", Arc::new(decimals(18, 0))),
        ("decimal38", Arc::new(decimals(38, 10))),
        ("text", Arc::new(StringArray::from(texts))),
        ("bytes", Arc::new(values().map(|v| v.map(i64::to_be_bytes)).collect::<BinaryArray>())),
        ("date", Arc::new(values().map(|v| v.map(|b| b as i32)).collect::<Date32Array>())),
        (
            "time",
            Arc::new(values().map(|v| v.map(|b| b.rem_euclid(86_400_000_001))).collect::<Time64MicrosecondArray>()),
        ),
        ("timestamp", Arc::new(values().collect::<TimestampMicrosecondArray>())),
        ("timestamptz", Arc::new(values().collect::<TimestampMicrosecondArray>().with_timezone("UTC"))),
        ("uuid", Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(uuids, 16).unwrap())),
        ("list", Arc::new(lists.finish())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn numbered(schema: &Schema) -> SchemaRef {
    let ids = schema.fields().iter().enumerate().map(|(index, field)| {
        let id = 100 + index as i32 * 2;
        match field.data_type() {
            DataType::List(_) => FieldId::list(id, FieldId::leaf(id + 1)),
            _ => FieldId::leaf(id),
        }
    });
    with_field_ids(schema, &ids.collect::<Vec<_>>()).unwrap()
}

async fn read_all(store: &Store, path: &str, schema: &SchemaRef, rows: Rows) -> (Vec<u64>, RecordBatch) {
    let reader = DataFileReader::open(store, path).await.unwrap();
    let found: Vec<PositionedBatch> = reader.read(Arc::clone(schema), rows).unwrap().try_collect().await.unwrap();
    let positions = found.iter().flat_map(|batch| batch.positions.clone()).collect();
    (positions, concat_batches(schema, found.iter().map(|batch| &batch.batch)).unwrap())
}

/// Equal to the bit: `==` of arrays compares floating point by its bits.
fn same(left: &RecordBatch, right: &RecordBatch) {
    for (index, (l, r)) in left.columns().iter().zip(right.columns()).enumerate() {
        let r = arrow::compute::cast(r, l.data_type()).unwrap();
        assert_eq!(l, &r, "column {}", left.schema().field(index).name());
    }
    assert_eq!(left.num_rows(), right.num_rows());
}

#[tokio::test]
async fn small_objects() {
    on_every_store(|store| async move {
        store.probe().await.unwrap();
        assert_eq!(store.list("").await.unwrap(), []);
        assert!(!store.exists("a/b c").await.unwrap());
        assert!(store.get("a/b c").await.unwrap_err().is_not_found());
        store.put("a/b c", Bytes::from_static(b"one")).await.unwrap();
        store.put("a/b c", Bytes::from_static(b"two!")).await.unwrap();
        store.put("a/d%20e", Bytes::new()).await.unwrap();
        store.put("other", Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(&store.get("a/b c").await.unwrap()[..], b"two!");
        assert_eq!(store.size(&store.url("a/b c")).await.unwrap(), Some(4));
        let found: BTreeMap<String, u64> =
            store.list("a").await.unwrap().into_iter().map(|object| (object.path, object.size)).collect();
        assert_eq!(found, BTreeMap::from([("a/b c".to_string(), 4), ("a/d%20e".to_string(), 0)]));
        assert_eq!(store.list("").await.unwrap().len(), 3);
        for path in ["a/b c", "a/b c", "a/d%20e", "other"] {
            store.delete(path).await.unwrap();
        }
        assert_eq!(store.list("").await.unwrap(), []);
        assert!(store.put("a/../../b", Bytes::new()).await.is_err());
        assert!(store.get("/etc/passwd").await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_probe_leaves_no_folder_behind() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("a/b");
    Store::open(inside.to_str().unwrap(), None).await.unwrap().probe().await.unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn bad_places_are_refused() {
    for place in ["relative", "/", "s3://", "s3:///prefix"] {
        assert!(Store::open(place, None).await.unwrap_err().is_settings(), "{place}");
    }
    let settings = |endpoint: &str| S3Settings {
        endpoint: Some(endpoint.into()),
        access_key_id: Some("id".into()),
        secret_access_key: Some(SecretText::new("key")),
        ..S3Settings::default()
    };
    for endpoint in ["localhost:9000", "http://", "http://me:secret@host", "ftp://host"] {
        let error = Store::open("s3://bucket", Some(&settings(endpoint))).await.unwrap_err();
        assert!(error.is_settings() && !error.to_string().contains("secret"), "{endpoint}");
    }
    let store = Store::open("s3://bucket/a/b/", Some(&settings("http://host:9000"))).await.unwrap();
    assert_eq!(store.url("c/d.parquet"), "s3://bucket/a/b/c/d.parquet");
    assert_eq!(store.credentials().await.unwrap().unwrap().key_id, "id");
}

#[tokio::test]
async fn every_type_comes_back_equal() {
    on_every_store(|store| async move {
        let batches: Vec<RecordBatch> = (0..5).map(|seed| all_types(1000, seed)).collect();
        let schema = numbered(&batches[0].schema());
        let options = DataFileOptions { row_group_rows: 700, ..DataFileOptions::default() };
        let log = log(&store);
        let mut writer = DataFileWriter::new(store.clone(), log.clone(), "public/t", schema.clone(), options);
        for batch in &batches {
            writer.write(batch).await.unwrap();
            assert!(writer.memory() > 0);
        }
        let files = writer.finish().await.unwrap();
        assert_eq!(files.len(), 1);
        let file = &files[0];
        assert_eq!(*log.paths.lock().unwrap(), std::slice::from_ref(&file.path));
        assert!(file.path.starts_with("public/t/") && file.path.ends_with(".parquet"));
        assert_eq!(file.rows, 5000);
        assert_eq!(store.size(&file.path).await.unwrap(), Some(file.bytes));

        let everything = concat_batches(&batches[0].schema(), &batches).unwrap();
        let (positions, read) = read_all(&store, &file.path, &schema, Rows::All).await;
        assert_eq!(positions, (0..5000).collect::<Vec<u64>>());
        same(&everything, &read);

        let chosen = vec![0, 1, 699, 700, 2099, 2100, 4200, 4999];
        let (positions, read) = read_all(&store, &file.path, &schema, Rows::Positions(chosen.clone())).await;
        assert_eq!(positions, chosen);
        let wanted = UInt32Array::from_iter_values(chosen.iter().map(|position| *position as u32));
        same(&arrow::compute::take_record_batch(&everything, &wanted).unwrap(), &read);

        let (positions, _) = read_all(&store, &file.path, &schema, Rows::RowGroups(vec![1, 7])).await;
        assert_eq!(positions, (700..1400).chain(4900..5000).collect::<Vec<u64>>());
        let (positions, _) = read_all(&store, &file.path, &schema, Rows::Positions(vec![])).await;
        assert!(positions.is_empty());

        let sum: u64 = file.columns.iter().map(|column| column.bytes).sum();
        assert!(sum < file.bytes && sum > file.bytes / 2);
        assert_eq!(file.columns[0].min.as_deref(), Some("0"));
        assert_eq!(file.columns[0].max.as_deref(), Some("999"));
        assert_eq!(file.columns[17].field_id, 100 + 17 * 2 + 1, "a list's leaf is its element");
        for (column, array) in file.columns.iter().zip(everything.columns()).take(17) {
            assert_eq!(column.nulls, array.null_count() as u64);
            assert_eq!(column.values + column.nulls, 5000);
        }
    })
    .await;
}

#[tokio::test]
async fn any_number_of_threads_makes_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), None).await.unwrap();
    let batches: Vec<RecordBatch> = (0..5).map(|seed| all_types(1000, seed)).collect();
    let mut made = Vec::new();
    for threads in [1, 2, 5, 100] {
        let options = DataFileOptions { row_group_rows: 700, threads, ..DataFileOptions::default() };
        let mut writer = DataFileWriter::new(store.clone(), log(&store), "t", numbered(&batches[0].schema()), options);
        for batch in &batches {
            writer.write(batch).await.unwrap();
        }
        let file = writer.finish().await.unwrap().remove(0);
        made.push((store.get(&file.path).await.unwrap(), file.columns));
    }
    assert!(made.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn the_file_says_ids_and_types_as_the_lake_wants_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), None).await.unwrap();
    let batch = all_types(10, 1);
    let mut writer =
        DataFileWriter::new(store.clone(), log(&store), "t", numbered(&batch.schema()), DataFileOptions::default());
    writer.write(&batch).await.unwrap();
    let file = writer.finish().await.unwrap().remove(0);
    let bytes = store.get(&file.path).await.unwrap();
    let footer = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap());
    assert_eq!(u64::from(footer), file.footer_bytes);
    let metadata = parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&bytes).unwrap();
    let fields = metadata.file_metadata().schema().get_fields();
    for (index, field) in fields.iter().enumerate() {
        assert_eq!(field.get_basic_info().id(), 100 + index as i32 * 2);
    }
    assert_eq!(fields[16].get_basic_info().logical_type_ref(), Some(&LogicalType::Uuid));
    let element = &fields[17].get_fields()[0].get_fields()[0];
    assert_eq!((element.name(), element.get_basic_info().id()), ("element", 135));
    assert!(metadata.row_group(0).column(0).offset_index_offset().is_none_or(|offset| offset > 0));
    assert!(metadata.row_group(0).column(0).offset_index_length().is_some());
}

#[tokio::test]
async fn files_rotate_and_memory_stays_within_the_row_group() {
    on_every_store(|store| async move {
        let mut random = StdRng::seed_from_u64(7);
        let options = DataFileOptions {
            target_bytes: 20_000_000,
            row_group_rows: 100_000,
            row_group_bytes: 4_000_000,
            ..DataFileOptions::default()
        };
        let schema = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int32, true),
            Field::new("bytes", DataType::Binary, true),
        ]));
        let log = log(&store);
        let mut writer = DataFileWriter::new(store.clone(), log.clone(), "t", numbered(&schema), options);
        let mut next = 0;
        for _ in 0..50 {
            let ids: Int32Array = (next..next + 1000).collect();
            next += 1000;
            let noise: BinaryArray = (0..1000)
                .map(|_| {
                    let mut bytes = vec![0; 1000];
                    random.fill(bytes.as_mut_slice());
                    Some(bytes)
                })
                .collect();
            let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(ids), Arc::new(noise)]).unwrap();
            writer.write(&batch).await.unwrap();
            assert!(writer.memory() < 4_500_000 + 24 * 1024 * 1024, "{}", writer.memory());
        }
        let files = writer.finish().await.unwrap();
        assert_eq!(files.len(), 3);
        assert_eq!(*log.paths.lock().unwrap(), files.iter().map(|file| file.path.clone()).collect::<Vec<_>>());
        let mut expected = 0;
        for file in &files {
            assert!(file.bytes < 21_500_000, "{}", file.bytes);
            let reader = DataFileReader::open(&store, &file.path).await.unwrap();
            assert!(reader.row_groups().len() >= 2 && reader.rows() == file.rows);
            let only = numbered(&Schema::new(vec![schema.field(0).clone()]));
            let (_, read) = read_all(&store, &file.path, &only, Rows::All).await;
            for id in read.column(0).as_primitive::<Int32Type>().values() {
                assert_eq!(*id, expected);
                expected += 1;
            }
        }
        assert_eq!(expected, 50_000);
    })
    .await;
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_nothing_under_its_name() {
    on_every_store(|store| async move {
        let batch = all_types(5000, 3);
        let log = log(&store);
        let options = DataFileOptions { row_group_rows: 1000, ..DataFileOptions::default() };
        let mut writer = DataFileWriter::new(store.clone(), log.clone(), "t", numbered(&batch.schema()), options);
        writer.write(&batch).await.unwrap();
        let path = log.paths.lock().unwrap()[0].clone();
        assert!(!store.exists(&path).await.unwrap());
        drop(writer);
        assert!(!store.exists(&path).await.unwrap());
        assert_eq!(store.list("").await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn a_large_upload_is_given_up_without_a_trace() {
    on_every_store(|store| async move {
        let mut random = StdRng::seed_from_u64(7);
        let noise = noise(&mut random, 20_000, 1000);
        let log = log(&store);
        let options = DataFileOptions { row_group_bytes: 4_000_000, ..DataFileOptions::default() };
        let mut writer = DataFileWriter::new(store.clone(), log.clone(), "t", numbered(&noise.schema()), options);
        writer.write(&noise).await.unwrap();
        writer.abort().await;
        let path = log.paths.lock().unwrap()[0].clone();
        assert!(!store.exists(&path).await.unwrap());
        assert_eq!(store.list("").await.unwrap(), []);
    })
    .await;
}

/// Overwrites what must not be read: a fetch that still succeeds has not read it.
#[tokio::test]
async fn only_the_pages_of_the_chosen_rows_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), None).await.unwrap();
    let mut random = StdRng::seed_from_u64(3);
    for (rows, width, dense) in [(100_000, 8, true), (100_000, 8, false), (2000, 20_000, false)] {
        let batch = noise(&mut random, rows, width);
        let schema = numbered(&batch.schema());
        let options = DataFileOptions { row_group_bytes: 1 << 30, ..DataFileOptions::default() };
        let mut writer = DataFileWriter::new(store.clone(), log(&store), "t", schema.clone(), options);
        writer.write(&batch).await.unwrap();
        let file = writer.finish().await.unwrap().remove(0);
        let mut bytes = store.get(&file.path).await.unwrap().to_vec();
        let metadata = parquet::file::metadata::ParquetMetaDataReader::new()
            .with_page_index_policy(parquet::file::metadata::PageIndexPolicy::Required)
            .with_column_index_policy(parquet::file::metadata::PageIndexPolicy::Optional)
            .parse_and_finish(&Bytes::from(bytes.clone()))
            .unwrap();
        let mut pages = 0;
        let rows = rows as u64;
        let wanted: Vec<u64> = match dense {
            // Every second row of the first and of the last page.
            true => (0..rows / 7).chain(rows - rows / 7..rows).step_by(2).collect(),
            false => [3].into_iter().chain((rows / 2..rows / 2 + 60).step_by(2)).chain([rows - 1]).collect(),
        };
        for column in &metadata.offset_index().unwrap()[0] {
            let pages_of_column = column.page_locations();
            let next =
                |index: usize| pages_of_column.get(index + 1).map_or(u64::MAX, |page| page.first_row_index as u64);
            for (index, page) in pages_of_column.iter().enumerate() {
                assert!(page.compressed_page_size < 2_500_000, "{}", page.compressed_page_size);
                pages += 1;
                let inside = page.first_row_index as u64..next(index);
                if !wanted.iter().any(|position| inside.contains(position)) {
                    let begin = page.offset as usize;
                    bytes[begin..begin + page.compressed_page_size as usize].fill(0xff);
                }
            }
        }
        assert!(pages >= 10);
        store.put(&file.path, bytes.into()).await.unwrap();
        let (_, read) = read_all(&store, &file.path, &schema, Rows::Positions(wanted.clone())).await;
        let wanted = UInt32Array::from_iter_values(wanted.iter().map(|position| *position as u32));
        same(&arrow::compute::take_record_batch(&batch, &wanted).unwrap(), &read);
        let reader = DataFileReader::open(&store, &file.path).await.unwrap();
        assert!(reader.read(schema, Rows::All).unwrap().try_collect::<Vec<_>>().await.is_err());
    }
}

/// Rows that do not compress.
fn noise(random: &mut StdRng, rows: usize, width: usize) -> RecordBatch {
    let bytes: BinaryArray = (0..rows)
        .map(|_| {
            let mut bytes = vec![0; width];
            random.fill(bytes.as_mut_slice());
            Some(bytes)
        })
        .collect();
    let ids: Int64Array = (0..rows).map(|_| Some(random.random())).collect();
    let columns: [(&str, ArrayRef, bool); 2] = [("id", Arc::new(ids), true), ("noise", Arc::new(bytes), true)];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

/// A text that a dictionary holds once is as long in each row that is read.
#[tokio::test]
async fn a_row_is_as_large_as_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), None).await.unwrap();
    let texts = StringArray::from_iter_values((0..5000).map(|i| ["a", "b", "c"][i % 3].repeat(1000)));
    let plain = Schema::new(vec![Field::new("v", DataType::Utf8, true)]);
    let schema = numbered(&plain);
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(texts)]).unwrap();
    let mut writer = DataFileWriter::new(store.clone(), log(&store), "t", schema, DataFileOptions::default());
    writer.write(&batch).await.unwrap();
    let files = writer.finish().await.unwrap();
    assert!(files[0].bytes < 100_000, "{files:?}");
    let reader = DataFileReader::open(&store, &files[0].path).await.unwrap();
    assert!((1000..1100).contains(&reader.row_bytes()), "{}", reader.row_bytes());
}

#[tokio::test]
async fn without_a_record_nothing_is_begun_and_without_rows_nothing_is_recorded() {
    on_every_store(|store| async move {
        let batch = all_types(10, 3);
        let options = DataFileOptions::default();
        let mut writer =
            DataFileWriter::new(store.clone(), Arc::new(Refusing), "t", numbered(&batch.schema()), options);
        assert!(writer.write(&batch).await.unwrap_err().to_string().contains("the catalog is gone"));
        assert!(writer.write(&batch).await.is_err(), "a writer that failed does not go on");
        assert!(write_delete_file(&store, &Refusing, "t", "x", &[(1, 1)]).await.is_err());
        assert_eq!(store.list("").await.unwrap(), []);

        let log = log(&store);
        let mut writer = DataFileWriter::new(store.clone(), log.clone(), "t", numbered(&batch.schema()), options);
        writer.write(&batch.slice(0, 0)).await.unwrap();
        assert_eq!(writer.finish().await.unwrap(), []);
        assert!(log.paths.lock().unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_batch_of_another_kind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), None).await.unwrap();
    let ids = numbered(&Schema::new(vec![Field::new("a", DataType::Int32, true)]));
    let other: [(&str, ArrayRef); 1] = [("a", Arc::new(Int64Array::from(vec![1])))];
    let mut writer = DataFileWriter::new(store.clone(), log(&store), "t", ids, DataFileOptions::default());
    assert!(writer.write(&RecordBatch::try_from_iter(other).unwrap()).await.is_err());
    let plain = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, true)]));
    let good: [(&str, ArrayRef); 1] = [("a", Arc::new(Int32Array::from(vec![1])))];
    let mut writer = DataFileWriter::new(store.clone(), log(&store), "t", plain, DataFileOptions::default());
    assert!(
        writer.write(&RecordBatch::try_from_iter(good).unwrap()).await.unwrap_err().to_string().contains("column id")
    );
}

#[tokio::test]
async fn columns_are_found_by_their_id() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), None).await.unwrap();
    let written = Schema::new(vec![Field::new("a", DataType::Int32, true), Field::new("rowid", DataType::Int32, true)]);
    let columns: Vec<ArrayRef> = vec![Arc::new(Int32Array::from(vec![1, 2])), Arc::new(Int32Array::from(vec![3, 4]))];
    let batch = RecordBatch::try_new(Arc::new(written), columns).unwrap();
    let ids = with_field_ids(&batch.schema(), &[FieldId::leaf(5), FieldId::leaf(6)]).unwrap();
    let mut writer = DataFileWriter::new(store.clone(), log(&store), "t", ids, DataFileOptions::default());
    writer.write(&batch).await.unwrap();
    let file = writer.finish().await.unwrap().remove(0);
    // Renamed, widened, swapped; and a column of a later day.
    let today = Schema::new(vec![
        Field::new("b", DataType::Int64, true),
        Field::new("new", DataType::Utf8, false),
        Field::new("c", DataType::Int32, true),
    ]);
    let today = with_field_ids(&today, &[FieldId::leaf(6), FieldId::leaf(9), FieldId::leaf(5)]).unwrap();
    let reader = DataFileReader::open(&store, &file.path).await.unwrap();
    let read: Vec<PositionedBatch> = reader.read(today, Rows::All).unwrap().try_collect().await.unwrap();
    assert_eq!(read[0].batch.column(0).as_ref(), &Int64Array::from(vec![3, 4]) as &dyn Array);
    assert_eq!(read[0].batch.column(1).null_count(), 2);
    assert_eq!(read[0].batch.column(2).as_ref(), &Int32Array::from(vec![1, 2]) as &dyn Array);
    let (min, max) = reader.bounds(6).unwrap().unwrap();
    assert_eq!((value_text(&min, 0).as_deref(), value_text(&max, 0).as_deref()), (Some("3"), Some("4")));
    assert!(reader.bounds(9).unwrap().is_none());
    assert!(reader.read(reader_schema_without_ids(), Rows::All).is_err());
    assert!(reader.read(numbered(&Schema::empty()), Rows::Positions(vec![2])).is_err());
}

fn reader_schema_without_ids() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, true)]))
}

//! Our files under DuckLake itself: it must read them, delete on top of them and travel through time over them.
//!
//! The rows of the catalog are written here by hand, as the lake's commit does.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Decimal128Array, FixedSizeBinaryArray, Int32Array, Int32Builder, ListBuilder, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field};
use async_trait::async_trait;
use duckdb::Connection;
use duckpipe_storage::{
    BoxError, DataFile, DataFileOptions, DataFileWriter, DeleteFile, FieldId, Store, UploadLog, read_delete_file,
    with_field_ids, write_delete_file,
};

struct NoLog;

#[async_trait]
impl UploadLog for NoLog {
    async fn starting(&self, _paths: &[String]) -> Result<(), BoxError> {
        Ok(())
    }
}

fn lake(folder: &std::path::Path) -> Connection {
    let duckdb = Connection::open_in_memory().unwrap();
    let load = match std::env::var("DUCKPIPE_EXTENSIONS") {
        Ok(extensions) => format!("LOAD '{extensions}/ducklake.duckdb_extension'"),
        Err(_) => "INSTALL ducklake; LOAD ducklake".to_string(),
    };
    let folder = folder.display();
    duckdb
        .execute_batch(&format!(
            "{load};
             ATTACH 'ducklake:{folder}/catalog.ducklake' AS lake (DATA_PATH '{folder}/data', DATA_INLINING_ROW_LIMIT 0);
             USE lake;
             CREATE TABLE t (id INTEGER, name VARCHAR, price DECIMAL(12,2), moment TIMESTAMPTZ, u UUID, tags INTEGER[]);"
        ))
        .unwrap();
    duckdb
}

fn rows(first: i32, count: i32) -> RecordBatch {
    let numbers = || first..first + count;
    let mut lists = ListBuilder::new(Int32Builder::new()).with_field(Field::new("element", DataType::Int32, true));
    for number in numbers() {
        for item in 0..number % 3 {
            lists.values().append_option((item > 0).then_some(number));
        }
        lists.append(number % 5 > 0);
    }
    let prices: Decimal128Array = numbers().map(|n| (n % 7 > 0).then_some(i128::from(n) * 100 + 25)).collect();
    let uuids = numbers().map(|n| (u128::from(n as u32) << 97).to_be_bytes());
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(numbers().collect::<Int32Array>())),
        // Too long for bounds in every file but the first.
        (
            "name",
            Arc::new(
                numbers()
                    .map(|n| Some(format!("{n:0>width$}", width = if first == 0 { 8 } else { 80 })))
                    .collect::<StringArray>(),
            ),
        ),
        ("price", Arc::new(prices.with_precision_and_scale(12, 2).unwrap())),
        (
            "moment",
            Arc::new(
                numbers()
                    .map(|n| Some(i64::from(n) * 1_500_000))
                    .collect::<TimestampMicrosecondArray>()
                    .with_timezone("UTC"),
            ),
        ),
        ("u", Arc::new(FixedSizeBinaryArray::try_from_iter(uuids).unwrap())),
        ("tags", Arc::new(lists.finish())),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

async fn write(store: &Store, batch: &RecordBatch) -> DataFile {
    let ids: Vec<FieldId> = (1..=5).map(FieldId::leaf).chain([FieldId::list(6, FieldId::leaf(7))]).collect();
    let schema = with_field_ids(&batch.schema(), &ids).unwrap();
    let mut writer = DataFileWriter::new(store.clone(), Arc::new(NoLog), "main/t", schema, DataFileOptions::default());
    writer.write(batch).await.unwrap();
    writer.finish().await.unwrap().remove(0)
}

const META: &str = "__ducklake_metadata_lake";

fn number(duckdb: &Connection, query: &str) -> i64 {
    duckdb.query_row(query, [], |row| row.get(0)).unwrap()
}

fn literal(text: Option<&String>) -> String {
    text.map_or("NULL".to_string(), |text| format!("'{}'", text.replace('\'', "''")))
}

/// Registers a data file and a delete file for a data file, in one snapshot, which it returns.
fn commit(duckdb: &Connection, data: Option<&DataFile>, delete: Option<(i64, &DeleteFile)>) -> i64 {
    let table = number(duckdb, &format!("SELECT table_id FROM {META}.ducklake_table WHERE table_name = 't'"));
    let snapshot = number(duckdb, &format!("SELECT max(snapshot_id) + 1 FROM {META}.ducklake_snapshot"));
    let last = format!("{META}.ducklake_snapshot WHERE snapshot_id = {snapshot} - 1");
    let file = number(duckdb, &format!("SELECT next_file_id FROM {last}"));
    let name = |path: &str| path.rsplit('/').next().unwrap().to_string();
    let mut sql = format!(
        "BEGIN;
         INSERT INTO {META}.ducklake_snapshot (snapshot_id, snapshot_time, schema_version, next_catalog_id, next_file_id)
         SELECT {snapshot}, now(), schema_version, next_catalog_id, next_file_id + 2 FROM {last};"
    );
    let mut changes = Vec::new();
    if let Some(data) = data {
        changes.push(format!("inserted_into_table:{table}"));
        let first = duckdb
            .query_row(
                &format!("SELECT next_row_id FROM {META}.ducklake_table_stats WHERE table_id = {table}"),
                [],
                |r| r.get(0),
            )
            .unwrap_or(0_i64);
        let (rows, bytes) = (data.rows as i64, data.bytes);
        sql.push_str(&format!(
            "INSERT INTO {META}.ducklake_data_file (data_file_id, table_id, begin_snapshot, path, path_is_relative, file_format,
                 record_count, file_size_bytes, footer_size, row_id_start)
             VALUES ({file}, {table}, {snapshot}, '{}', true, 'parquet', {rows}, {bytes}, {}, {first});
             DELETE FROM {META}.ducklake_table_stats WHERE table_id = {table};
             INSERT INTO {META}.ducklake_table_stats (table_id, record_count, next_row_id, file_size_bytes)
             VALUES ({table}, {first} + {rows}, {first} + {rows}, {bytes});",
            name(&data.path),
            data.footer_bytes
        ));
        for column in &data.columns {
            sql.push_str(&format!(
                "INSERT INTO {META}.ducklake_file_column_stats (data_file_id, table_id, column_id, column_size_bytes, value_count,
                     null_count, min_value, max_value, contains_nan)
                 VALUES ({file}, {table}, {}, {}, {}, {}, {}, {}, {});",
                column.field_id,
                column.bytes,
                column.values,
                column.nulls,
                literal(column.min.as_ref()),
                literal(column.max.as_ref()),
                column.contains_nan.map_or("NULL".to_string(), |nan| nan.to_string()),
            ));
        }
    }
    if let Some((data_file, delete)) = delete {
        changes.push(format!("deleted_from_table:{table}"));
        let partial_max = snapshot;
        sql.push_str(&format!(
            "DELETE FROM {META}.ducklake_delete_file WHERE data_file_id = {data_file};
             INSERT INTO {META}.ducklake_delete_file (delete_file_id, table_id, begin_snapshot, data_file_id, path,
                 path_is_relative, format, delete_count, file_size_bytes, footer_size, partial_max)
             VALUES ({file} + 1, {table}, {snapshot}, {data_file}, '{}', true, 'parquet', {}, {}, {}, {partial_max});",
            name(&delete.path),
            delete.rows,
            delete.bytes,
            delete.footer_bytes
        ));
    }
    sql.push_str(&format!(
        "INSERT INTO {META}.ducklake_snapshot_changes (snapshot_id, changes_made) VALUES ({snapshot}, '{}'); COMMIT;",
        changes.join(",")
    ));
    duckdb.execute_batch(&sql).unwrap();
    snapshot
}

#[tokio::test]
async fn ducklake_reads_our_files_and_deletes_on_top_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let duckdb = lake(folder.path());
    let store = Store::open(folder.path().join("data").to_str().unwrap(), None).await.unwrap();
    let (low, high) = (rows(0, 1000), rows(1000, 1000));
    let low_file = write(&store, &low).await;
    let high_file = write(&store, &high).await;
    let first = commit(&duckdb, Some(&low_file), None);
    commit(&duckdb, Some(&high_file), None);
    let count = |condition: &str| number(&duckdb, &format!("SELECT count(*) FROM t {condition}"));

    // Every value, with and without the help of statistics.
    assert_eq!(count(""), 2000);
    assert_eq!(count(&format!("AT (VERSION => {first})")), 1000);
    assert_eq!(count("WHERE id BETWEEN 995 AND 1004"), 10);
    assert_eq!(count("WHERE name = '00000007'"), 1);
    assert_eq!(count(&format!("WHERE name = '{:0>80}'", 1500)), 1);
    assert_eq!(count("WHERE price = 1500.25"), 1);
    assert_eq!(count("WHERE price IS NULL"), (0..2000).filter(|n| n % 7 == 0).count() as i64);
    assert_eq!(count("WHERE moment = '1970-01-01 00:00:01.5+00'"), 1);
    assert_eq!(count("WHERE u = '00000002-0000-0000-0000-000000000000'"), 1);
    assert_eq!(count("WHERE typeof(u) = 'UUID' AND u = (SELECT max(u) FROM t)"), 1);
    assert_eq!(count("WHERE tags IS NULL"), 400);
    assert_eq!(count("WHERE tags = [NULL, 8]"), 1);
    assert_eq!(number(&duckdb, "SELECT sum(len(tags))::BIGINT FROM t"), {
        (0..2000).filter(|n| n % 5 > 0).map(|n| i64::from(n % 3)).sum::<i64>()
    });

    // Our deletes, ours on top of them, and DuckLake's own on top of both.
    let data_file = number(&duckdb, &format!("SELECT min(data_file_id) FROM {META}.ducklake_data_file"));
    let url = store.url(&low_file.path);
    let second = number(&duckdb, &format!("SELECT max(snapshot_id) + 1 FROM {META}.ducklake_snapshot"));
    let delete = write_delete_file(&store, &NoLog, "main/t", &url, &[(10, second), (20, second)]).await.unwrap();
    assert_eq!(commit(&duckdb, None, Some((data_file, &delete))), second);
    assert_eq!((count(""), count("WHERE id IN (10, 20, 30)")), (1998, 1));
    let third = second + 1;
    let delete =
        write_delete_file(&store, &NoLog, "main/t", &url, &[(10, second), (20, second), (30, third)]).await.unwrap();
    assert_eq!(commit(&duckdb, None, Some((data_file, &delete))), third);
    duckdb.execute_batch(&format!("UPDATE {META}.ducklake_delete_file SET begin_snapshot = {second}")).unwrap();
    assert_eq!((count(""), count("WHERE id IN (10, 20, 30)")), (1997, 0));
    duckdb.execute_batch("DELETE FROM t WHERE id IN (30, 40, 50, 1500)").unwrap();
    let fourth = third + 1;
    assert_eq!((count(""), count("WHERE id IN (10, 20, 30, 40, 50, 1500)")), (1994, 0));
    for (version, live) in [(second - 1, 2000), (second, 1998), (third, 1997), (fourth, 1994)] {
        assert_eq!(count(&format!("AT (VERSION => {version})")), live, "version {version}");
    }
    let changed = |from: i64, to: i64| {
        number(&duckdb, &format!("SELECT count(*) FROM ducklake_table_changes('lake', 'main', 't', {from}, {to})"))
    };
    assert_eq!((changed(second, second), changed(third, third), changed(fourth, fourth)), (2, 1, 3));

    // And we read what DuckLake made of it.
    let native: String = duckdb
        .query_row(
            &format!(
                "SELECT path FROM {META}.ducklake_delete_file WHERE data_file_id = {data_file} AND end_snapshot IS NULL"
            ),
            [],
            |row| row.get(0),
        )
        .unwrap();
    let read = read_delete_file(&store, &format!("main/t/{native}")).await.unwrap();
    let expected = [(10, second), (20, second), (30, third), (40, fourth), (50, fourth)];
    assert_eq!(read, expected.map(|(position, snapshot)| (position, Some(snapshot))));
    assert!(low.column(0).null_count() == 0);
}

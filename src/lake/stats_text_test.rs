//! The text of statistics against the engine that reads them: for every type, DuckDB must read back from our text exactly the
//! value; but for floating point it also prints the value as we do.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array, Float64Array, Int16Array,
    Int32Array, Int64Array, RecordBatch, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{Field, Schema};
use async_trait::async_trait;
use duckpipe_storage::{
    BoxError, DataFileOptions, DataFileWriter, FieldId, Store, UploadLog, value_text, with_field_ids,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

struct NoLog;

#[async_trait]
impl UploadLog for NoLog {
    async fn starting(&self, _paths: &[String]) -> Result<(), BoxError> {
        Ok(())
    }
}

/// The type's DuckDB name, and values with its extremes among them.
fn cases() -> Vec<(&'static str, ArrayRef)> {
    let mut random = StdRng::seed_from_u64(1);
    let mut bits: Vec<i64> = (0..2000).map(|_| random.random()).collect();
    bits.extend([0, 1, -1, i64::MAX, i64::MIN]);
    let mut doubles: Vec<f64> = bits.iter().map(|b| f64::from_bits(*b as u64)).collect();
    doubles.extend([0.0, -0.0, 0.1, 1e300, -1e-300, 1e15, 1e16, 1e17, 123456789.0, 1e-4, 1e-5, 1e-6, f64::MAX]);
    doubles.extend([f64::MIN_POSITIVE, 5e-324, f64::INFINITY, f64::NEG_INFINITY, f64::NAN]);
    doubles.extend((0..500).map(|_| (random.random::<f64>() * 1e6).round() / 1e3));
    let floats: Vec<f32> =
        bits.iter().map(|b| f32::from_bits(*b as u32)).chain(doubles[bits.len()..].iter().map(|d| *d as f32)).collect();
    let decimals = |precision: u8, scale| -> ArrayRef {
        let limit = 10_i128.pow(u32::from(precision));
        let values =
            bits.iter().map(|b| (i128::from(*b) * 9_999_999_999_999_999) % limit).chain([limit - 1, 1 - limit, 0, -5]);
        let array: Decimal128Array = values.map(Some).collect();
        Arc::new(array.with_precision_and_scale(precision, scale).unwrap())
    };
    // Years 1 to 9999, and what lies just outside.
    let days = bits.iter().map(|b| (b.rem_euclid(3_652_059) - 719_162) as i32);
    let days: Vec<i32> = days.chain([-719_162, 2_932_896, -719_163, 2_932_897, i32::MAX, -i32::MAX]).collect();
    let day = 86_400_000_000_i64;
    let instants: Vec<i64> = days
        .iter()
        .zip(bits.iter().cycle())
        .map(|(d, b)| i64::from(*d).saturating_mul(day).saturating_add(b.rem_euclid(day)))
        .collect();
    let instants: Vec<i64> = instants.into_iter().chain([0, -1, i64::MAX, -i64::MAX, 1_000_000, 1_500_000]).collect();
    let times: Vec<i64> =
        bits.iter().map(|b| b.rem_euclid(day)).chain([0, day, day - 1, 1_000, 3_600_000_000]).collect();
    let uuids = bits.iter().map(|b| [b.to_be_bytes(), b.to_le_bytes()].concat());
    vec![
        ("BOOLEAN", Arc::new(BooleanArray::from(vec![true, false]))),
        ("SMALLINT", Arc::new(bits.iter().map(|b| Some(*b as i16)).collect::<Int16Array>())),
        ("INTEGER", Arc::new(bits.iter().map(|b| Some(*b as i32)).collect::<Int32Array>())),
        ("BIGINT", Arc::new(Int64Array::from(bits.clone()))),
        ("UINTEGER", Arc::new(bits.iter().map(|b| Some(*b as u32)).collect::<UInt32Array>())),
        ("FLOAT", Arc::new(Float32Array::from(floats))),
        ("DOUBLE", Arc::new(Float64Array::from(doubles))),
        ("DECIMAL(4,1)", decimals(4, 1)),
        ("DECIMAL(9,2)", decimals(9, 2)),
        ("DECIMAL(18,0)", decimals(18, 0)),
        ("DECIMAL(18,18)", decimals(18, 18)),
        ("DECIMAL(38,10)", decimals(38, 10)),
        ("VARCHAR", Arc::new(StringArray::from(vec!["", "a", "it's", "\"q\"", "Füße 😀", "a\nb\tc\\", " 1 ", "NULL"]))),
        ("DATE", Arc::new(Date32Array::from(days))),
        ("TIME", Arc::new(Time64MicrosecondArray::from(times))),
        ("TIMESTAMP", Arc::new(TimestampMicrosecondArray::from(instants.clone()))),
        ("TIMESTAMPTZ", Arc::new(TimestampMicrosecondArray::from(instants).with_timezone("UTC"))),
        ("UUID", Arc::new(FixedSizeBinaryArray::try_from_iter(uuids).unwrap())),
    ]
}

#[tokio::test]
async fn duckdb_reads_and_prints_every_text_as_its_value() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), None).await.unwrap();
    let duckdb = duckdb::Connection::open_in_memory().unwrap();
    // Whatever the session's zone is, the text names its own; only printing needs UTC.
    let prints_zones = duckdb.execute_batch("SET TimeZone = 'UTC'").is_ok();
    for (name, values) in cases() {
        let texts: StringArray = (0..values.len()).map(|row| value_text(&values, row)).collect();
        let with_text = texts.iter().flatten().count();
        let schema = Schema::new(vec![
            Field::new("value", values.data_type().clone(), true),
            Field::new("text", arrow::datatypes::DataType::Utf8, true),
        ]);
        let schema = with_field_ids(&schema, &[FieldId::leaf(1), FieldId::leaf(2)]).unwrap();
        let batch = RecordBatch::try_new(schema.clone(), vec![values.clone(), Arc::new(texts)]).unwrap();
        let mut writer = DataFileWriter::new(store.clone(), Arc::new(NoLog), "t", schema, DataFileOptions::default());
        writer.write(&batch).await.unwrap();
        let file = writer.finish().await.unwrap().remove(0);
        let query = format!(
            "SELECT count(*) FILTER (typeof(value) = typeof(NULL::{name})), count(text),
                    count(*) FILTER (text IS NOT NULL AND text::{name} IS DISTINCT FROM value),
                    count(*) FILTER (text IS NOT NULL AND value::VARCHAR IS DISTINCT FROM text),
                    min(text || ' ' || value::VARCHAR) FILTER (value::VARCHAR IS DISTINCT FROM text)
             FROM read_parquet('{}')",
            store.url(&file.path)
        );
        let row: (i64, i64, i64, i64, Option<String>) = duckdb
            .query_row(&query, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
            .unwrap();
        assert_eq!(row.0, batch.num_rows() as i64, "{name}: the file has another type");
        assert_eq!(row.1, with_text as i64, "{name}");
        assert_eq!(row.2, 0, "{name}: texts that are read back as another value");
        // DuckDB prints some floating point numbers with more digits than they need.
        let prints_alike = match name {
            "FLOAT" | "DOUBLE" => false,
            "TIMESTAMPTZ" => prints_zones,
            _ => true,
        };
        if prints_alike {
            assert_eq!(row.3, 0, "{name}: texts that DuckDB writes otherwise, like {:?}", row.4);
        }
        assert!(with_text * 10 > batch.num_rows() * 9, "{name}: too few texts");
    }
}

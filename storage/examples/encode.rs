//! Measures how fast rows become a Parquet file: `cargo run --release -p duckpipe-storage --example encode [level] [rows]`.
//!
//! The rows are those of sysbench's `sbtest1`: two integers, 120 and 60 characters of digits.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use duckpipe_storage::{BoxError, DataFileOptions, DataFileWriter, FieldId, Store, UploadLog, with_field_ids};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

struct NoLog;

#[async_trait]
impl UploadLog for NoLog {
    async fn starting(&self, _paths: &[String]) -> Result<(), BoxError> {
        Ok(())
    }
}

fn digits(random: &mut StdRng, groups: usize) -> String {
    let group = |random: &mut StdRng| format!("{:011}", random.random_range(0..100_000_000_000_u64));
    (0..groups).map(|_| group(random)).collect::<Vec<_>>().join("-")
}

/// What all threads of this process have used, in clock ticks of a hundredth: fields 14 and 15 of proc(5)'s `stat`.
fn processor_seconds() -> Result<f64, BoxError> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = std::env::args().skip(1);
    let level = arguments.next().map_or(Ok(1), |text| text.parse())?;
    let rows: i32 = arguments.next().map_or(Ok(500_000), |text| text.parse())?;
    let mut random = StdRng::seed_from_u64(1);
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int32, true),
        Field::new("k", DataType::Int32, true),
        Field::new("c", DataType::Utf8, true),
        Field::new("pad", DataType::Utf8, true),
    ]);
    let ids: Vec<FieldId> = (1..=4).map(FieldId::leaf).collect();
    let schema = with_field_ids(&schema, &ids)?;
    let mut batches = Vec::new();
    for first in (0..rows).step_by(8192) {
        let count = (rows - first).min(8192);
        let k: Int32Array = (0..count).map(|_| Some(random.random_range(0..rows))).collect();
        let c: StringArray = (0..count).map(|_| Some(format!("{:<120}", digits(&mut random, 10)))).collect();
        let pad: StringArray = (0..count).map(|_| Some(format!("{:<60}", digits(&mut random, 5)))).collect();
        let id: Int32Array = (first..first + count).map(Some).collect();
        batches.push(RecordBatch::try_new(
            Arc::clone(&schema),
            vec![Arc::new(id), Arc::new(k), Arc::new(c), Arc::new(pad)],
        )?);
    }
    let folder = std::env::temp_dir().join(format!("duckpipe-encode-{}", std::process::id()));
    let store = Store::open(&folder.display().to_string(), None).await?;
    let options = DataFileOptions { compression_level: level, ..DataFileOptions::default() };
    let (begin, processor) = (Instant::now(), processor_seconds()?);
    let mut writer = DataFileWriter::new(store, Arc::new(NoLog), "t", schema, options);
    for batch in &batches {
        writer.write(batch).await?;
    }
    let files = writer.finish().await?;
    let seconds = begin.elapsed().as_secs_f64();
    let bytes: u64 = files.iter().map(|file| file.bytes).sum();
    let rows = f64::from(rows);
    println!(
        "level {level}: {:.0} rows/s, {:.0} rows per second of processor time, {:.1} bytes/row",
        rows / seconds,
        rows / (processor_seconds()? - processor),
        bytes as f64 / rows
    );
    for column in files.iter().flat_map(|file| &file.columns) {
        println!("  column {}: {:.2} bytes/row", column.field_id, column.bytes as f64 / rows);
    }
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

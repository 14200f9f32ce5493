//! What a lake consists of at one moment, and what it costs to read.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{METADATA, Outcome, Plan, TABLE};
use crate::lab::{CatalogKind, Client, Lake, Minio, NativeLake, Running};
use crate::scenario::Scenario;

/// Between two scans of a sample: what disturbs one, a flush or a merge, may be over before the next.
const PAUSE: Duration = Duration::from_secs(2);
/// Samples in the printed table; all are in the CSV file.
const PRINTED: usize = 30;

/// One look at a lake and its `sync`.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Since the writers began.
    pub at: Duration,
    /// Live data files.
    pub data_files: i64,
    /// Live delete files.
    pub delete_files: i64,
    /// Files in the store, of whatever kind.
    pub stored_files: u64,
    /// Their size in bytes.
    pub stored_bytes: u64,
    /// Rows by table of the catalog.
    pub catalog: BTreeMap<String, i64>,
    /// The catalog's size in bytes.
    pub catalog_bytes: u64,
    /// The fastest scan of the table.
    pub scan: Option<Scan>,
    /// What `status` says.
    pub lag_seconds: Option<f64>,
    /// Resident memory of `sync` in bytes.
    pub memory: u64,
    /// Its peak.
    pub peak_memory: u64,
    /// Transactions that the source has committed since the start.
    pub written: u64,
}

/// What a scan took.
#[derive(Clone, Copy, Debug)]
pub struct Scan {
    /// By the clock.
    pub wall: Duration,
    /// Of a processor.
    pub cpu: Duration,
}

impl Sample {
    /// The names of [`Sample::fields`].
    pub const HEAD: [&str; 15] = [
        "seconds",
        "data_files",
        "delete_files",
        "stored_files",
        "stored_mb",
        "catalog_rows",
        "largest_table",
        "largest_table_rows",
        "catalog_mb",
        "scan_ms",
        "scan_cpu_ms",
        "lag_s",
        "rss_mb",
        "peak_mb",
        "transactions",
    ];

    /// Looks at everything. The lake is read as anybody reads it: by stock DuckDB, which knows nothing of duckpipe.
    pub fn take(scenario: &Scenario<'_>, sync: &Running<'_>, written: u64, start: Instant, scans: u32) -> Sample {
        let lake = &scenario.lake;
        let at = start.elapsed();
        let lag_seconds = scenario.duckpipe.status().0["lag_seconds"].as_f64();
        let native = lake.open_beside_sync();
        let live =
            |table: &str| native.number(&format!("SELECT count(*) FROM {METADATA}.{table} WHERE end_snapshot IS NULL"));
        let (data_files, delete_files) = (live("ducklake_data_file"), live("ducklake_delete_file"));
        let catalog = catalog_rows(&native);
        let scans = (0..scans).map(|number| {
            std::thread::sleep(if number == 0 { Duration::ZERO } else { PAUSE });
            scan(&native)
        });
        let scan = scans.min_by_key(|scan| scan.wall);
        let (stored_files, stored_bytes) = stored(lake);
        Sample {
            at,
            data_files,
            delete_files,
            stored_files,
            stored_bytes,
            catalog,
            catalog_bytes: catalog_bytes(lake),
            scan,
            lag_seconds,
            memory: sync.resident_memory(),
            peak_memory: sync.peak_memory(),
            written,
        }
    }

    /// Rows of the catalog, but for some tables.
    pub fn catalog_rows(&self, left_out: &[&str]) -> i64 {
        self.catalog.iter().filter(|(table, _)| !left_out.contains(&table.as_str())).map(|(_, rows)| rows).sum()
    }

    /// Everything, as text.
    pub fn fields(&self) -> [String; 15] {
        let megabytes = |bytes: u64| format!("{:.1}", bytes as f64 / 1e6);
        let milliseconds = |part: fn(&Scan) -> Duration| {
            self.scan.as_ref().map_or_else(|| "-".into(), |scan| part(scan).as_millis().to_string())
        };
        let largest = self.catalog.iter().max_by_key(|(_, rows)| **rows);
        [
            self.at.as_secs().to_string(),
            self.data_files.to_string(),
            self.delete_files.to_string(),
            self.stored_files.to_string(),
            megabytes(self.stored_bytes),
            self.catalog_rows(&[]).to_string(),
            largest.map_or_else(|| "-".into(), |(table, _)| table.clone()),
            largest.map_or_else(|| "-".into(), |(_, rows)| rows.to_string()),
            megabytes(self.catalog_bytes),
            milliseconds(|scan| scan.wall),
            milliseconds(|scan| scan.cpu),
            self.lag_seconds.map_or_else(|| "-".into(), |lag| format!("{lag:.1}")),
            megabytes(self.memory),
            megabytes(self.peak_memory),
            self.written.to_string(),
        ]
    }
}

fn catalog_rows(native: &NativeLake) -> BTreeMap<String, i64> {
    let tables = native.rows(&format!(
        "SELECT table_name FROM duckdb_tables() WHERE database_name = '{METADATA}' \
         AND (starts_with(table_name, 'ducklake_') OR starts_with(table_name, 'duckpipe_'))"
    ));
    let counts: Vec<String> = tables
        .into_iter()
        .filter_map(|mut row| row[0].take())
        .map(|table| format!("SELECT '{table}', count(*) FROM {METADATA}.{table}"))
        .collect();
    assert!(counts.len() > 20, "the catalog's tables: {counts:?}");
    let rows = native.rows(&counts.join(" UNION ALL "));
    let named = |mut row: Vec<Option<String>>| Some((row[0].take()?, row[1].as_deref()?.parse().ok()?));
    rows.into_iter().filter_map(named).collect()
}

/// By one thread, so that its processor time can be told from everything else that the process does.
fn scan(native: &NativeLake) -> Scan {
    native.execute("SET threads = 1");
    let (start, cpu) = (Instant::now(), thread_cpu());
    native.rows(&format!("SELECT count(*), sum(n), max(\"at\") FROM {}", NativeLake::table(TABLE, None)));
    Scan { wall: start.elapsed(), cpu: thread_cpu().saturating_sub(cpu) }
}

/// Processor time of this thread.
fn thread_cpu() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or_default())
}

/// Files in the store and their size.
fn stored(lake: &Lake) -> (u64, u64) {
    match lake.bucket() {
        None => walk(Path::new(&lake.data_path()), &|name| name.ends_with(".parquet")),
        // MinIO keeps an object as a folder with this file.
        Some(bucket) => {
            let folder = Minio::shared().data().join(&bucket.name);
            let (objects, _) = walk(&folder, &|name| name == "xl.meta");
            (objects, walk(&folder, &|_| true).1)
        }
    }
}

fn walk(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> (u64, u64) {
    let (mut files, mut bytes) = (0, 0);
    // What vanishes under the walk was just deleted.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            let (more, size) = walk(&entry.path(), wanted);
            files += more;
            bytes += size;
        } else if entry.file_name().to_str().is_some_and(wanted) {
            files += 1;
            bytes += metadata.len();
        }
    }
    (files, bytes)
}

fn catalog_bytes(lake: &Lake) -> u64 {
    match lake.combination().catalog {
        CatalogKind::Postgres => {
            Client::connect(&lake.catalog()).number("SELECT pg_database_size(current_database())") as u64
        }
        CatalogKind::DuckDb => {
            let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
            let file = lake.catalog_file();
            size(&file) + size(&file.with_extension("ducklake.wal"))
        }
    }
}

/// The numbers over time and the maxima of both halves, as a document shows them.
pub fn markdown(outcomes: &[Outcome], plan: &Plan) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        let _ = writeln!(text, "### {}\n", outcome.combination.name());
        let _ = writeln!(text, "| measure | maximum, first half | second half | ratio |\n|---|---|---|---|");
        for growth in outcome.growth(plan) {
            let _ = writeln!(
                text,
                "| {} | {:.0} | {:.0} | {:.2} |",
                growth.name,
                growth.first,
                growth.second,
                growth.ratio()
            );
        }
        let _ = writeln!(text, "\n| {} |\n|{}", Sample::HEAD.join(" | "), "---|".repeat(Sample::HEAD.len()));
        let step = outcome.samples.len().div_ceil(PRINTED).max(1);
        for sample in outcome.samples.iter().step_by(step) {
            let _ = writeln!(text, "| {} |", sample.fields().join(" | "));
        }
        let _ = writeln!(text, "\n```\n{}\n{}\n```\n", outcome.validated[0], outcome.validated[1]);
    }
    text
}

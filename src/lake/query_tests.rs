//! Queries on a real lake.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::super::select_guard::tests::HOSTILE;
use super::*;

/// A lake in a folder: `public.orders` with 1001 rows over two files, a harmless view and one that reads a file.
struct TestLake {
    folder: tempfile::TempDir,
}

fn connection() -> Connection {
    let extensions =
        std::env::var_os("DUCKPIPE_EXTENSIONS").expect("DUCKPIPE_EXTENSIONS names the folder of DuckDB's extensions");
    let connection = Connection::open_in_memory().unwrap();
    let file = PathBuf::from(extensions).join("ducklake.duckdb_extension");
    connection.execute_batch(&format!("LOAD '{}'", file.display())).unwrap();
    connection
}

impl TestLake {
    fn new() -> TestLake {
        let folder = tempfile::tempdir().unwrap();
        let lake = TestLake { folder };
        let connection = connection();
        connection
            .execute_batch(&format!(
                "ATTACH 'ducklake:{}' AS lake (DATA_PATH '{}/');
                 CREATE SCHEMA lake.public;
                 CREATE TABLE lake.public.orders (id BIGINT, t VARCHAR);
                 INSERT INTO lake.public.orders SELECT i, 'row ' || i FROM range(1000) r(i);
                 INSERT INTO lake.public.orders VALUES (5000, NULL);
                 CREATE VIEW lake.public.good AS SELECT id AS number FROM public.orders;
                 CREATE VIEW lake.public.better AS SELECT number FROM public.good;
                 CREATE VIEW lake.public.bad AS SELECT 1 AS x, (SELECT count(*) FROM glob('/*')) AS y;
                 CREATE VIEW lake.public.worse AS FROM public.bad;
                 CREATE MACRO lake.public.lower(x) AS x || '!';",
                lake.catalog().display(),
                lake.data_path()
            ))
            .unwrap();
        lake
    }

    fn catalog(&self) -> PathBuf {
        self.folder.path().join("catalog.ducklake")
    }

    fn data_path(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn open(&self) -> Connection {
        let connection = connection();
        connection
            .execute_batch(&format!("ATTACH 'ducklake:{}' AS lake (READ_ONLY)", self.catalog().display()))
            .unwrap();
        connection
    }

    fn settings(&self, sql: &str, format: OutputFormat) -> QuerySettings {
        QuerySettings {
            sql: sql.into(),
            data_path: self.data_path(),
            memory: 256_000_000,
            threads: 2,
            timeout: Duration::from_secs(60),
            format,
        }
    }

    fn query(&self, sql: &str, format: OutputFormat) -> Result<String> {
        let mut out = Vec::new();
        execute(&self.open(), &self.settings(sql, format), &mut out, &AtomicBool::new(false))?;
        Ok(String::from_utf8(out).unwrap())
    }

    /// Every file with its size and content.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(folder: &Path, out: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, out) } else { out.push((path.clone(), std::fs::read(&path).unwrap())) }
            }
        }
        let mut out = Vec::new();
        walk(self.folder.path(), &mut out);
        out.sort();
        out
    }
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn rows_come_in_order_and_as_duckdb_writes_them() {
    let lake = TestLake::new();
    let csv = lake.query("SELECT id, t FROM public.orders ORDER BY id DESC;", OutputFormat::Csv).unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!((lines[0], lines[1], lines[2], lines[1001]), ("id,t", "5000,", "999,row 999", "0,row 0"));
    let json = lake
        .query(
            "SELECT 1.50::DECIMAL(10,2) AS d, [1, 2] AS l, {'a': DATE '2026-01-02'} AS s, 1 AS d, TIMESTAMPTZ '2026-01-01 00:00:00+00' AS z, '\\x00A'::BLOB AS b, 'nan'::DOUBLE AS n -- end",
            OutputFormat::Json,
        )
        .unwrap();
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value[0]["d"], "1.50", "{json}");
    assert_eq!(value[0]["l"][1], 2);
    assert_eq!(value[0]["s"]["a"], "2026-01-02");
    assert_eq!(value[0]["b"], "\\x00A");
    assert_eq!(value[0]["n"], "nan");
    assert_eq!(value[0].as_object().unwrap().len(), 7, "{json}");
    let table = lake.query("SELECT count(*) AS n FROM orders", OutputFormat::Table).unwrap();
    assert_eq!(table, "   n\n────\n1001\n(1 row)\n");
}

#[test]
fn what_shows_the_lake_runs() {
    let lake = TestLake::new();
    for sql in [
        "DESCRIBE public.orders",
        "SUMMARIZE public.orders",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "FROM public.better LIMIT 1",
        "SELECT count(*) FROM lake.public.orders AT (VERSION => 4)",
        "SELECT snapshot_id FROM lake.snapshots()",
        "SELECT count(*) FROM ducklake_table_insertions('lake', 'public', 'orders', 0, 4)",
        "SELECT count(*) FROM lake.table_changes('orders', 0, 4)",
        "SELECT table_name FROM information_schema.tables",
        "VALUES (1)",
        "WITH x AS (SELECT 1) FROM x",
    ] {
        let out = lake.query(sql, OutputFormat::Csv).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert!(out.lines().count() > 1, "{sql}: {out}");
    }
}

#[test]
fn deleted_rows_are_dated_on_one_thread() {
    let lake = TestLake::new();
    let threads = |from: &str| {
        let sql = format!("SELECT DISTINCT current_setting('threads') FROM {from}");
        lake.query(&sql, OutputFormat::Csv).unwrap().lines().nth(1).unwrap().to_owned()
    };
    assert_eq!(threads("public.orders"), "2");
    assert_eq!(threads("lake.table_changes('orders', 0, 4)"), "1");
    assert_eq!(threads("(FROM Ducklake_Table_Changes('lake', 'public', 'orders', 0, 4))"), "1");
}

#[test]
fn a_large_sorted_result_stays_sorted() {
    let lake = TestLake::new();
    let csv = lake.query("SELECT i FROM range(500000) t(i) ORDER BY i DESC", OutputFormat::Csv).unwrap();
    let numbers: Vec<u64> = csv.lines().skip(1).filter_map(|line| line.parse().ok()).collect();
    assert_eq!(numbers.len(), 500_000);
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1] + 1));
}

#[test]
fn hostile_statements_change_nothing() {
    let lake = TestLake::new();
    let before = lake.files();
    // Each is refused before the connection is closed off, so that one serves all.
    let connection = lake.open();
    let more = ["FROM public.bad", "FROM public.worse", "SELECT lower('X')", "SELECT * FROM public.good, public.bad"];
    for sql in HOSTILE.iter().chain(&more) {
        let settings = lake.settings(sql, OutputFormat::Csv);
        let error = execute(&connection, &settings, Vec::new(), &AtomicBool::new(false)).expect_err(sql);
        assert_eq!(error.kind(), ErrorKind::Config, "{sql}: {error}");
    }
    drop(connection);
    assert_eq!(lake.files(), before);
    for path in ["/tmp/duckpipe-hostile.csv", "/tmp/duckpipe-hostile.db", "/tmp/duckpipe-hostile"] {
        assert!(!Path::new(path).exists(), "{path}");
    }
}

#[test]
fn the_connection_itself_holds_where_the_guard_would_not() {
    let lake = TestLake::new();
    let before = lake.files();
    let guard = Guard::open().unwrap();
    let closed = || {
        let connection = lake.open();
        close_off(&connection, &lake.settings("", OutputFormat::Csv), 1, &names(&connection, &guard).unwrap()).unwrap();
        connection
    };
    // Statements that the guard lets through only by mistake: the closed-off connection must stop them too.
    let mut connection = closed();
    for sql in HOSTILE.iter().filter(|sql| !sql.contains("sleep")) {
        // One that succeeded, such as BEGIN or DETACH, may have left something behind.
        if connection.execute_batch(sql).is_ok() {
            connection = closed();
        }
    }
    assert_eq!(lake.files(), before);
    assert!(!Path::new("/tmp/duckpipe-hostile.csv").exists() && !Path::new("/tmp/duckpipe-hostile").exists());
    let connection = closed();
    std::fs::write(lake.folder.path().join("other.csv"), "x").unwrap();
    for sql in [
        "FROM read_text('/etc/passwd')".to_owned(),
        format!("FROM read_blob('{}/../other.csv')", lake.data_path()),
        format!("FROM glob('{}2/*')", lake.data_path()),
        "SET threads = 64".to_owned(),
        "SET enable_external_access = true".to_owned(),
        "LOAD '/tmp/x.duckdb_extension'".to_owned(),
    ] {
        assert!(connection.execute_batch(&sql).is_err(), "{sql}");
    }
}

#[test]
fn errors_show_the_persons_own_text() {
    let lake = TestLake::new();
    let error = lake.query("SELECT nothing FROM public.orders", OutputFormat::Csv).unwrap_err().to_string();
    assert!(error.contains("nothing") && !error.contains("VARCHAR"), "{error}");
    let error = lake.query("SELECT CAST(t AS INTEGER) FROM public.orders", OutputFormat::Csv).unwrap_err().to_string();
    assert!(error.contains("row 0"), "{error}");
    let mut settings = lake.settings(
        "SELECT count(*) FROM (SELECT DISTINCT i, i + 1, random() FROM range(100000000) t(i))",
        OutputFormat::Csv,
    );
    settings.memory = 20_000_000;
    let connection = lake.open();
    connection.execute_batch("SET temp_directory = ''").unwrap();
    let error = execute(&connection, &settings, Vec::new(), &AtomicBool::new(false)).unwrap_err();
    assert!(error.remedy_text().is_some_and(|remedy| remedy.contains("--memory-limit")), "{error}");
}

const ENDLESS: &str = "SELECT sum(a.i * b.i) FROM range(10000000) a(i), range(10000000) b(i)";

#[tokio::test(flavor = "multi_thread")]
async fn the_timeout_cancels() {
    let lake = TestLake::new();
    let (_stop, shutdown) = watch::channel(false);
    let mut settings = lake.settings(ENDLESS, OutputFormat::Csv);
    settings.timeout = Duration::from_millis(300);
    let start = std::time::Instant::now();
    let error = run(lake.open(), settings, Vec::new(), shutdown).await.unwrap_err();
    assert!(error.to_string().contains("ran longer than 300ms"), "{error}");
    assert_eq!(error.kind().exit_code(), 1);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_cancels_and_rows_stream() {
    let lake = TestLake::new();
    let (stop, shutdown) = watch::channel(false);
    let out = Shared::default();
    // More rows than fit in any memory: they must flow while the query runs.
    let settings = lake.settings("SELECT i FROM range(100000000000) t(i)", OutputFormat::Csv);
    let running = tokio::spawn(run(lake.open(), settings, out.clone(), shutdown));
    while out.0.lock().unwrap().len() < 1_000_000 {
        assert!(!running.is_finished(), "the query ended early");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.send_replace(true);
    let error = running.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("was cancelled"), "{error}");
}

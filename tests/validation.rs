//! Whatever makes the lake another than its source, or its files others than the catalog says, is found and named; and what is well
//! is never called damaged, whatever happens meanwhile.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{CatalogKind, Combination, Options, Postgres, StoreKind, wait_for};
use crate::scenario::{Scenario, seed};
use crate::workload;

const TABLES: &str = "[sync]\nflush_interval = \"50ms\"\n[[tables]]\nsource = \"public.*\"\n";
const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const MINUTE: Duration = Duration::from_secs(60);

/// What `validate --json` printed.
struct Verdict(Value);

impl Verdict {
    fn findings(&self) -> &[Value] {
        self.0["findings"].as_array().expect("findings")
    }

    /// The findings of a kind; panics where there are none.
    #[track_caller]
    fn of(&self, kind: &str) -> Vec<&Value> {
        let found: Vec<&Value> = self.findings().iter().filter(|finding| finding["kind"] == kind).collect();
        assert!(!found.is_empty(), "no {kind} in {:#}", self.0);
        found
    }

    #[track_caller]
    fn one(&self, kind: &str) -> &Value {
        let found = self.of(kind);
        assert_eq!(found.len(), 1, "{:#}", self.0);
        found[0]
    }

    fn kinds(&self) -> BTreeSet<&str> {
        self.findings().iter().filter_map(|finding| finding["kind"].as_str()).collect()
    }
}

#[track_caller]
fn validate(scenario: &Scenario<'_>, arguments: &[&str], code: i32) -> Verdict {
    let all: Vec<&str> = ["validate", "--json"].iter().chain(arguments).copied().collect();
    let finished = scenario.duckpipe.run(&all).expect(code);
    Verdict(serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {}", finished.output())))
}

/// Both questions answered with yes.
#[track_caller]
fn is_well(scenario: &Scenario<'_>) {
    for arguments in [&[][..], &["--files"]] {
        let verdict = validate(scenario, arguments, 0);
        assert!(verdict.findings().is_empty(), "{:#}", verdict.0);
        assert!(verdict.0.get("orphans").is_none(), "{:#}", verdict.0);
    }
}

/// A table in the lake, some of whose rows were changed since the copy: it has several data files, and delete files.
fn synced(name: &str, combination: Combination) -> Scenario<'static> {
    let scenario = Scenario::new(name, combination, TABLES);
    fill(&scenario);
    scenario
}

#[track_caller]
fn fill(scenario: &Scenario<'_>) {
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text); \
         INSERT INTO t SELECT i, CASE WHEN i % 10 > 0 THEN i END, md5(i::text) FROM generate_series(1, 5000) i; \
         CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other SELECT generate_series(1, 100)",
    );
    scenario.converge(&["public.t", "public.other"]);
    scenario.source.execute("UPDATE t SET n = -id WHERE id <= 20; DELETE FROM t WHERE id BETWEEN 21 AND 30");
    scenario.duckpipe.sync_once().expect(0);
    is_well(scenario);
}

/// The files of `public.t` in one of the catalog's tables, oldest first: id and path below the table's folder.
#[track_caller]
fn files(scenario: &Scenario<'_>, table: &str) -> Vec<(i64, String)> {
    let native = scenario.lake.open_native();
    let id = if table == "ducklake_data_file" { "data_file_id" } else { "delete_file_id" };
    let rows = native.rows(&format!(
        "SELECT {id}, f.path FROM __ducklake_metadata_lake.{table} f JOIN __ducklake_metadata_lake.ducklake_table t USING (table_id) \
         WHERE t.table_name = 't' AND f.end_snapshot IS NULL ORDER BY 1"
    ));
    assert!(!rows.is_empty());
    rows.into_iter().map(|row| (row[0].as_ref().unwrap().parse().unwrap(), row[1].clone().unwrap())).collect()
}

fn on_disk(scenario: &Scenario<'_>, path: &str) -> PathBuf {
    PathBuf::from(scenario.lake.data_path()).join("public/t").join(path)
}

/// The file that a finding names.
#[track_caller]
fn names(finding: &Value, path: &str) {
    assert!(finding["file"].as_str().is_some_and(|file| file.ends_with(path)), "{finding} does not name {path}");
    assert_eq!(finding["table"], "public.t");
}

/// Wherever in the values of a file a byte flips: the row, or the file as a whole, is named.
#[test]
fn a_flipped_byte_in_a_data_file() {
    let scenario = synced("validate_flip", Combination::EMBEDDED);
    let (_, path) = files(&scenario, "ducklake_data_file").remove(0);
    let file = on_disk(&scenario, &path);
    let good = std::fs::read(&file).unwrap();
    let footer = good.len() - 8 - u32::from_le_bytes(good[good.len() - 8..][..4].try_into().unwrap()) as usize;
    for part in 1..8 {
        let mut bad = good.clone();
        bad[footer * part / 8] ^= 0x10;
        std::fs::write(&file, bad).unwrap();
        let verdict = validate(&scenario, &[], 3);
        assert!(
            verdict.findings().iter().any(|f| f["file"].as_str().is_some_and(|f| f.ends_with(&path))),
            "{:#}",
            verdict.0
        );
        assert!(verdict.findings().iter().all(|finding| finding["table"] == "public.t"), "{:#}", verdict.0);
    }
    // In what says where the values are, or with the end cut off: without looking at the source too.
    let mut cut = good.clone();
    cut.truncate(good.len() / 2);
    let flipped = [good.len() - 7, good.len() - 1].map(|at| {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        bad
    });
    for bad in flipped.into_iter().chain([cut]) {
        std::fs::write(&file, bad).unwrap();
        let verdict = validate(&scenario, &["--files"], 3);
        names(verdict.one("file_unreadable"), &path);
    }
    std::fs::write(&file, good).unwrap();
    is_well(&scenario);
}

#[test]
fn a_removed_file() {
    let scenario = synced("validate_removed", POSTGRES);
    for table in ["ducklake_data_file", "ducklake_delete_file"] {
        let (_, path) = files(&scenario, table).remove(0);
        let file = on_disk(&scenario, &path);
        let good = std::fs::read(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        names(validate(&scenario, &["--files"], 3).one("file_missing"), &path);
        let verdict = validate(&scenario, &[], 3);
        assert!(!verdict.of("file_missing").is_empty());
        // Another table does not suffer.
        validate(&scenario, &["--files", "--table", "public.other"], 0);
        validate(&scenario, &["--table", "public.other"], 0);
        std::fs::write(&file, good).unwrap();
    }
    is_well(&scenario);
}

#[test]
fn rows_changed_in_the_lake() {
    let scenario = synced("validate_changed", Combination::EMBEDDED);
    let native = scenario.lake.open_native_writable();
    native.execute("UPDATE lake.public.t SET n = 7 WHERE id = 100");
    native.execute("DELETE FROM lake.public.t WHERE id = 200");
    native.execute("INSERT INTO lake.public.t VALUES (9001, 1, 'not from the source'), (300, 300, 'a second one')");
    drop(native);
    let verdict = validate(&scenario, &[], 3);
    let changed = verdict.one("value_differs");
    assert_eq!((changed["key"].as_str(), changed["column"].as_str()), (Some("id=100"), Some("n")), "{changed}");
    assert_eq!(changed["detail"], "NULL in the source, 7 in the lake");
    assert_eq!(verdict.one("missing_in_lake")["key"], "id=200");
    assert_eq!(verdict.one("extra_in_lake")["key"], "id=9001");
    assert!(verdict.of("duplicate_key").iter().all(|finding| finding["key"] == "id=300"), "{:#}", verdict.0);
    // A key with two rows needs no source to be seen.
    assert_eq!(validate(&scenario, &["--files"], 3).one("duplicate_key")["key"], "id=300");
    // What is shown is bounded, what is counted is not.
    let verdict = validate(&scenario, &["--max-diffs", "1"], 3);
    assert_eq!(verdict.kinds().len(), 2, "{:#}", verdict.0);
    let sums = verdict.one("sums_differ")["detail"].as_str().unwrap();
    // Two of the four keys may share a bucket.
    assert!(sums.starts_with("4 of ") || sums.starts_with("3 of "), "{sums}");
    // People read the same.
    let shown = scenario.duckpipe.run(&["validate"]).expect(3).stdout;
    assert!(shown.contains("public.t: value differs, row id=100, column n, file "), "{shown}");
}

#[test]
fn a_delete_file_lost_from_the_catalog() {
    let scenario = synced("validate_lost", Combination::EMBEDDED);
    let (id, path) = files(&scenario, "ducklake_delete_file").remove(0);
    let native = scenario.lake.open_native_writable();
    native.execute(&format!("DELETE FROM __ducklake_metadata_lake.ducklake_delete_file WHERE delete_file_id = {id}"));
    drop(native);
    // The 20 rows that were updated are there twice, the 10 that were deleted are back.
    let verdict = validate(&scenario, &["--max-diffs", "100"], 3);
    assert_eq!(verdict.of("extra_in_lake").len(), 10, "{:#}", verdict.0);
    let twice: BTreeSet<&str> = verdict.of("duplicate_key").iter().filter_map(|f| f["key"].as_str()).collect();
    assert_eq!(twice.len(), 20, "{:#}", verdict.0);
    let verdict = validate(&scenario, &["--files"], 3);
    assert_eq!(verdict.of("duplicate_key").len(), 20);
    let orphans = verdict.0["orphans"].as_array().unwrap();
    assert!(orphans.len() == 1 && orphans[0].as_str().unwrap().ends_with(&path), "{orphans:?}");
}

/// Each number and text of the catalog that a reader relies on.
#[test]
fn falsified_statistics() {
    let scenario = synced("validate_false", POSTGRES);
    let (data, data_path) = files(&scenario, "ducklake_data_file").remove(0);
    let (delete, delete_path) = files(&scenario, "ducklake_delete_file").remove(0);
    let catalog = crate::lab::Client::connect(&scenario.lake.catalog());
    let column = |name: &str| {
        format!(
            "(SELECT column_id FROM ducklake_column c JOIN ducklake_table t USING (table_id) WHERE t.table_name = 't' AND column_name = '{name}' AND c.end_snapshot IS NULL)"
        )
    };
    let file = format!("data_file_id = {data}");
    let of_column = |name: &str| format!("{file} AND column_id = {}", column(name));
    let id = format!("{} AND table_id = (SELECT table_id FROM ducklake_data_file WHERE {file})", column("id"));
    let (data_path, delete_path) = (data_path.as_str(), delete_path.as_str());
    // The catalog's table, the lie, where, then the finding's kind, column and file.
    let cases = [
        ("ducklake_file_column_stats", "max_value = '17'", of_column("id"), "file_statistics", Some("id"), data_path),
        ("ducklake_file_column_stats", "min_value = '9'", of_column("id"), "file_statistics", Some("id"), data_path),
        ("ducklake_file_column_stats", "min_value = 'f'", of_column("v"), "file_statistics", Some("v"), data_path),
        (
            "ducklake_file_column_stats",
            "max_value = 'no number'",
            of_column("n"),
            "file_statistics",
            Some("n"),
            data_path,
        ),
        ("ducklake_file_column_stats", "null_count = 0", of_column("n"), "file_statistics", Some("n"), data_path),
        (
            "ducklake_table_column_stats",
            "max_value = '17'",
            format!("column_id = {id}"),
            "table_statistics",
            Some("id"),
            "",
        ),
        (
            "ducklake_table_stats",
            "next_row_id = 1",
            format!("table_id = (SELECT table_id FROM ducklake_data_file WHERE {file})"),
            "table_statistics",
            None,
            "",
        ),
        ("ducklake_data_file", "record_count = record_count - 1", file.clone(), "row_count", None, data_path),
        ("ducklake_data_file", "footer_size = footer_size + 1", file.clone(), "footer_size", None, data_path),
        ("ducklake_data_file", "file_size_bytes = 5", file.clone(), "file_size", None, data_path),
        (
            "ducklake_delete_file",
            "delete_count = 3",
            format!("delete_file_id = {delete}"),
            "delete_count",
            None,
            delete_path,
        ),
        (
            "ducklake_delete_file",
            "footer_size = 3",
            format!("delete_file_id = {delete}"),
            "footer_size",
            None,
            delete_path,
        ),
        ("ducklake_column", "column_type = 'int16'", format!("column_id = {id}"), "schema", Some("id"), ""),
    ];
    for (table, change, condition, kind, column, path) in cases {
        catalog.execute(&format!(
            "CREATE TABLE kept AS SELECT * FROM {table}; UPDATE {table} SET {change} WHERE {condition}"
        ));
        let verdict = validate(&scenario, &["--files"], 3);
        let found = verdict.of(kind);
        assert_eq!(found[0]["table"], "public.t", "{change}: {:#}", verdict.0);
        assert_eq!(found[0]["column"].as_str(), column, "{change}: {:#}", verdict.0);
        assert!(path.is_empty() || found[0]["file"].as_str().unwrap().ends_with(path), "{change}: {:#}", verdict.0);
        catalog.execute(&format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept"));
    }
    catalog.execute(&format!(
        "INSERT INTO ducklake_files_scheduled_for_deletion (data_file_id, path, path_is_relative, schedule_start) \
         VALUES ({data}, 'public/t/{data_path}', true, now())"
    ));
    names(validate(&scenario, &["--files"], 3).one("scheduled_for_deletion"), data_path);
    catalog.execute(&format!("DELETE FROM ducklake_files_scheduled_for_deletion WHERE data_file_id = {data}"));
    // Wider bounds are right bounds.
    catalog.execute(&format!("UPDATE ducklake_file_column_stats SET max_value = '999999' WHERE {}", of_column("id")));
    is_well(&scenario);
}

/// A change that the slot never saw.
#[test]
fn a_row_changed_at_the_source_behind_the_slot() {
    for combination in [Combination::EMBEDDED, POSTGRES] {
        let scenario = synced(&format!("validate_behind_{}", combination.name()), combination);
        let publication = scenario.slot();
        let publishes = |kinds: &str| format!("ALTER PUBLICATION {publication} SET (publish = '{kinds}')");
        scenario.source.execute(&publishes("truncate"));
        scenario.source.execute("UPDATE t SET v = 'unseen' WHERE id = 4000; DELETE FROM t WHERE id = 4001; INSERT INTO t VALUES (6000, 1, 'x')");
        scenario.source.execute(&publishes("insert, update, delete, truncate"));
        let verdict = validate(&scenario, &[], 3);
        let changed = verdict.one("value_differs");
        assert_eq!((changed["key"].as_str(), changed["column"].as_str()), (Some("id=4000"), Some("v")), "{changed}");
        assert!(changed["detail"].as_str().unwrap().starts_with("unseen in the source, "), "{changed}");
        assert_eq!(verdict.one("extra_in_lake")["key"], "id=4001");
        assert_eq!(verdict.one("missing_in_lake")["key"], "id=6000");
        // No file is at fault.
        validate(&scenario, &["--files"], 0);
    }
}

/// The source has changed columns, and no row tells of it: they are followed before source and lake are compared, or are about to be.
#[test]
fn columns_that_no_row_tells_of() {
    for combination in [Combination::EMBEDDED, POSTGRES] {
        let scenario = Scenario::new(&format!("validate_columns_{}", combination.name()), combination, TABLES);
        scenario.source.execute(
            "CREATE TABLE t (id int PRIMARY KEY, n numeric(8,2)); INSERT INTO t SELECT i, i FROM generate_series(1, 100) i; \
             CREATE TABLE other (id int PRIMARY KEY)",
        );
        scenario.duckpipe.sync_once().expect(0);
        scenario.source.execute("ALTER TABLE t ALTER n TYPE numeric(12,2)");
        is_well(&scenario);
        scenario.source.execute("ALTER TABLE t ADD more int DEFAULT 7");
        is_well(&scenario);
        let sync = scenario.duckpipe.sync();
        sync.wait_for_output("INFO streaming", MINUTE);
        scenario.source.execute("ALTER TABLE t ADD again int DEFAULT 7");
        let found = scenario.duckpipe.run(&["validate", "--table", "public.t"]);
        assert!(matches!(found.code, Some(0 | 5)), "{}", found.output());
        sync.terminate().expect(0);
    }
}

/// Every type, from the copy and from the WAL.
#[test]
fn all_types_are_compared_exactly() {
    let scenario = Scenario::new("validate_types", Combination::EMBEDDED, TABLES);
    scenario.source.execute(
        "CREATE TYPE mood AS ENUM ('glad', 'sad'); \
         CREATE TABLE t (id uuid, part smallint, b bool, i2 int2, i4 int4, i8 int8, o oid, f4 real, f8 float8, n numeric(20,6), m numeric, \
         s text, c char(5), y bytea, d date, ti time, tz timetz, ts timestamp, tstz timestamptz, iv interval, j json, jb jsonb, e mood, \
         a int[], at text[], r int4range, ip inet, bi bit(3), PRIMARY KEY (id, part)); \
         INSERT INTO t SELECT md5(i::text)::uuid, i % 3, i % 2 = 0, i, i * 7, i * 1000000007::int8, i, i / 3.0, CASE i % 50 WHEN 0 THEN 'NaN' \
         WHEN 1 THEN '-Infinity' WHEN 2 THEN '-0' ELSE i / 7.0 END, i / 9.0, i * 1.500, repeat('ä', i % 90), 'c', decode(md5(i::text), 'hex'), \
         CASE i % 9 WHEN 0 THEN 'infinity' ELSE date '1500-01-01' + i END, time '00:00' + i * interval '1 second', '12:00+02', \
         timestamp '2024-02-29' + i * interval '1 hour', CASE i % 9 WHEN 0 THEN '-infinity' ELSE timestamptz '2024-02-29 12:00+00' + i * interval '1 us' END, \
         i * interval '1 day 1 second', '{\"a\": 1}', '{\"b\": [1, null]}', 'glad', ARRAY[i, NULL], ARRAY['x', NULL, '']::text[], \
         int4range(i, i + 5), '10.0.0.1/8', '101' FROM generate_series(1, 900) i; \
         INSERT INTO t (id, part) VALUES (md5('nulls')::uuid, 1)",
    );
    scenario.duckpipe.sync_once().expect(0);
    is_well(&scenario);
    scenario.source.execute(
        "UPDATE t SET f8 = 'NaN', m = m + 0.10, a = '{}', e = 'sad', jb = '{\"c\": 2}' WHERE i4 % 5 = 0; DELETE FROM t WHERE i4 % 7 = 0; \
         UPDATE t SET part = 9 WHERE i2 BETWEEN 100 AND 110; UPDATE t SET s = NULL, at = NULL WHERE i2 = 500",
    );
    is_well(&scenario);
}

/// What a sample finds, and what of the source it reads.
#[test]
fn a_sample_reads_a_part() {
    let scenario = Scenario::new("validate_sample", Combination::EMBEDDED, TABLES);
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 60000) i");
    scenario.duckpipe.sync_once().expect(0);
    let verdict = validate(&scenario, &["--sample", "20%"], 0);
    let rows = verdict.0["tables"][0]["source_rows"].as_u64().unwrap();
    assert!(rows > 2000 && rows < 30_000, "{:#}", verdict.0);
    assert_eq!(verdict.0["tables"][0]["lake_rows"].as_u64(), Some(rows));
    scenario.lake.open_native_writable().execute("UPDATE lake.public.t SET v = 'x' WHERE id % 100 = 0");
    let verdict = validate(&scenario, &["--sample", "20", "--max-diffs", "3"], 3);
    assert_eq!(verdict.of("value_differs").len(), 3);
}

/// Equal rows lie in all parts of a table: one without a key is compared whole.
#[test]
fn a_sample_of_a_table_without_a_key() {
    let scenario = Scenario::new("validate_sample_bag", Combination::EMBEDDED, TABLES);
    scenario.source.execute(
        "CREATE TABLE bag (n int, v text); ALTER TABLE bag REPLICA IDENTITY FULL; \
         INSERT INTO bag SELECT i % 100, repeat('x', 300) FROM generate_series(1, 60000) i",
    );
    scenario.duckpipe.sync_once().expect(0);
    let verdict = validate(&scenario, &["--sample", "20%"], 0);
    assert_eq!(verdict.0["tables"][0]["source_rows"], 60_000, "{:#}", verdict.0);
}

#[test]
fn a_table_that_stands_still_is_not_called_equal() {
    let scenario = synced("stands_still", Combination::EMBEDDED);
    scenario.duckpipe.run(&["tables", "pause", "public.other"]).expect(0);
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute("INSERT INTO other VALUES (101)");
    let all = scenario.duckpipe.run(&["validate"]).expect(0).stdout;
    assert!(all.contains("public.other: not compared") && all.contains("compared is equal: 1 of 2 tables"), "{all}");
    let alone = scenario.duckpipe.run(&["validate", "--table", "public.other"]).expect(5).stdout;
    assert!(alone.contains("no table was compared"), "{alone}");
    scenario.duckpipe.run(&["validate", "--table", "public.t"]).expect(0);
}

/// Between the position and the look at a table its columns change, in the lake too, or what its values are called: that is no difference.
#[test]
fn a_table_that_changes_meanwhile_is_no_difference() {
    for combination in [Combination::EMBEDDED, POSTGRES] {
        let scenario = Scenario::new(&format!("validate_ddl_{}", combination.name()), combination, TABLES);
        scenario.source.execute(
            "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'x'); \
             CREATE TABLE b (id int PRIMARY KEY, v mood); INSERT INTO b VALUES (1, 'sad'); CREATE TABLE c (id int PRIMARY KEY)",
        );
        scenario.converge(&["public.a", "public.b", "public.c"]);
        let mut sync = scenario.duckpipe.sync();
        sync.wait_for_output("INFO streaming", MINUTE);
        let validating =
            scenario.duckpipe.start_with(&["validate", "--json"], &[("DUCKPIPE_FAILPOINT", "validate_rows:stop")]);
        wait_for("the position", MINUTE, || validating.is_stopped().then_some(()), || validating.tail());
        scenario
            .source
            .execute("ALTER TABLE a ADD n int; UPDATE a SET n = 1; ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'");
        scenario.wait_for_state(&mut sync, "public.a", "streaming");
        validating.signal("CONT");
        let finished = validating.wait(MINUTE).expect(5);
        let verdict = Verdict(serde_json::from_str(&finished.stdout).unwrap());
        assert!(verdict.findings().is_empty(), "{:#}", verdict.0);
        let left_out = finished.stdout.matches("\"left_out\": \"not compared").count();
        assert_eq!(left_out, 2, "{:#}", verdict.0);
        sync.kill9();
    }
}

/// A transaction that is open for long holds every new slot back: it is named, and the stream goes on meanwhile.
#[test]
fn a_timeout_names_the_transaction_that_is_waited_for() {
    // A cluster of its own: the transaction would hold other tests' slots back too.
    let postgres = Postgres::start(Options::default());
    for combination in [Combination::EMBEDDED, POSTGRES] {
        let scenario = Scenario::on(&postgres, &format!("validate_wait_{}", combination.name()), combination, TABLES);
        fill(&scenario);
        let mut sync = scenario.duckpipe.sync();
        scenario.source.execute("UPDATE t SET n = 1 WHERE id = 60");
        sync.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(60));
        let holder = scenario.source.connect();
        holder.execute("SET application_name = 'the long report'; BEGIN; UPDATE other SET id = -1 WHERE id = 1");
        let pid = holder.text("SELECT pg_backend_pid()");
        let begun = Instant::now();
        let finished = scenario.duckpipe.run(&["validate", "--timeout", "2s"]).expect(1);
        assert!(begun.elapsed() < Duration::from_secs(30), "it took {:?}", begun.elapsed());
        assert!(finished.stderr.contains(&pid) && finished.stderr.contains("the long report"), "{}", finished.stderr);
        scenario.source.execute("UPDATE t SET n = 0 WHERE id = 60");
        sync.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(60));
        holder.execute("COMMIT");
        is_well(&scenario);
        sync.terminate().expect(0);
    }
}

/// Nothing is found where nothing is wrong, while rows of all tables change all the time, and `sync` goes on and compacts.
fn under_load(name: &str, combination: Combination, default_seed: u64) {
    let seed = seed(name, default_seed);
    let compacting = format!("{TABLES}\n[compact]\ninterval = \"500ms\"\nmin_files = 2\n");
    let scenario = Scenario::new(name, combination, &compacting);
    workload::create(&scenario.source, 2000);
    scenario.duckpipe.sync_once().expect(0);
    let mut sync = scenario.duckpipe.sync();
    // The lake is where the source is before this one has begun.
    sync.wait_for_output("INFO streaming", Duration::from_secs(60));
    let writer = workload::Writer::start(&scenario.source.url(), 2000, seed, Duration::from_millis(2));
    let mut positions = BTreeSet::new();
    let runs: usize = std::env::var("DUCKPIPE_TEST_VALIDATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    for _ in 0..runs {
        let verdict = validate(&scenario, &[], 0);
        let tables = verdict.0["tables"].as_array().unwrap();
        assert_eq!(tables.len(), 3);
        assert!(tables.iter().all(|t| t["source_rows"] == t["lake_rows"] && t["source_rows"].as_u64() > Some(0)));
        positions.insert(verdict.0["lsn"].as_str().unwrap().to_owned());
        let verdict = validate(&scenario, &["--files"], 0);
        assert!(verdict.0.get("orphans").is_none(), "{:#}", verdict.0);
    }
    assert_eq!(positions.len(), runs, "each at a position of its own");
    assert!(sync.runs(), "{}", sync.tail());
    assert!(sync.output().contains("compacted"), "{}", sync.tail());
    let written = writer.stop();
    assert!(written > 100, "only {written} transactions");
    sync.wait_for_lsn(scenario.source.lsn(), Duration::from_secs(60));
    sync.terminate().expect(0);
    scenario.converge(&workload::TABLES);
    is_well(&scenario);
}

/// The lake shows the position; then a table changes its columns, and a fresh copy takes its place before it is read.
#[test]
fn a_copy_that_joins_meanwhile_is_no_difference() {
    let mut scenario = Scenario::new("validate_copied", POSTGRES, TABLES);
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v bool); INSERT INTO t SELECT i, true FROM generate_series(1, 100) i; \
         CREATE TABLE bag (n int, v bool); ALTER TABLE bag REPLICA IDENTITY FULL; INSERT INTO bag SELECT i, true FROM generate_series(1, 100) i",
    );
    scenario.converge(&["public.t", "public.bag"]);
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    let sync = scenario.duckpipe.sync();
    sync.wait_for_output("INFO streaming", MINUTE);
    let validating =
        scenario.duckpipe.start_with(&["validate", "--json"], &[("DUCKPIPE_FAILPOINT", "validate_reached:stop")]);
    wait_for("the position", MINUTE, || validating.is_stopped().then_some(()), || validating.tail());
    scenario.source.execute("ALTER TABLE t ALTER v TYPE text; ALTER TABLE bag ALTER v TYPE text");
    let joined = || sync.output().matches("the fresh copy streams with the others").count();
    wait_for("both copies", MINUTE, || (joined() == 2).then_some(()), || sync.tail());
    validating.signal("CONT");
    let finished = validating.wait(MINUTE).expect(5);
    let verdict = Verdict(serde_json::from_str(&finished.stdout).unwrap());
    assert!(verdict.findings().is_empty(), "{:#}", verdict.0);
    assert_eq!(finished.stdout.matches("copied afresh meanwhile").count(), 2, "{:#}", verdict.0);
    sync.terminate().expect(0);
    is_well(&scenario);
}

#[test]
fn nothing_is_found_under_load_duckdb() {
    under_load("validate_load_duckdb", Combination::EMBEDDED, 0x7A11);
}

#[test]
fn nothing_is_found_under_load_postgres() {
    under_load("validate_load_postgres", Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 }, 0x7A12);
}

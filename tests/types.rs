//! Promise 5: a value arrives exactly or as its text, in the snapshot and in the stream, or its table stops and says so.

use crate::lab::{Client, Combination, Duckpipe, Lake, NativeLake, Postgres, assert_equal};
use crate::values::{self, AS_TEXT, Case, NATIVE, PREPARE};

const TABLES: &str = "[[tables]]\nsource = \"public.*\"\n";

/// The tables `one`, a column for each type, and `many`, a column for an array of each; then the same rows in three ways: copied,
/// inserted while streaming, and updated from NULLs while streaming.
fn each_type(name: &str, cases: &[Case]) {
    let source = Postgres::shared().database(name);
    source.execute(PREPARE);
    // What an array of arrays is, Postgres does not say in a type's name.
    let listed: Vec<&Case> =
        cases.iter().filter(|case| !case.lake_type.contains("[]") && !case.pg_type.contains("[]")).collect();
    let columns = |types: &mut dyn Iterator<Item = String>| {
        types.enumerate().map(|(i, pg_type)| format!("c{i} {pg_type}")).collect::<Vec<_>>().join(", ")
    };
    source.execute(&format!(
        "CREATE TABLE one (id int PRIMARY KEY, {}); CREATE TABLE many (id int PRIMARY KEY, {})",
        columns(&mut cases.iter().map(|case| case.pg_type.to_owned())),
        columns(&mut listed.iter().map(|case| format!("{}[]", case.pg_type)))
    ));
    let rows = cases.iter().map(|case| case.values.len()).max().unwrap_or_default();
    for row in 0..rows {
        let one = cases.iter().map(|case| values::literal(case.values[row % case.values.len()]));
        insert(&source, "one", row, one);
        insert(&source, "many", row, listed.iter().map(|case| list(case, row)));
    }
    // A row of NULLs, and rows of NULLs that the stream fills.
    for table in ["one", "many"] {
        source.execute(&format!(
            "INSERT INTO {table} (id) VALUES ({rows}); INSERT INTO {table} (id) SELECT 2000 + id FROM {table}"
        ));
    }
    let lake = Lake::new(Combination::EMBEDDED, name);
    let duckpipe = Duckpipe::new(name, &source.url(), &lake, TABLES);
    duckpipe.sync_once().expect(0);
    let native = lake.open_native();
    for (table, expected) in [
        ("public.one", cases.iter().map(|case| case.lake_type.to_owned()).collect::<Vec<_>>()),
        ("public.many", listed.iter().map(|case| format!("{}[]", case.lake_type)).collect()),
    ] {
        let types: Vec<String> =
            native.columns(table, None).into_iter().skip(1).map(|(_, lake_type)| lake_type).collect();
        assert_eq!(types, expected, "{table}");
        assert_eq!(assert_equal(&source, &native, table), 2 * (rows as u64 + 1));
    }
    drop(native);

    for (table, width) in [("one", cases.len()), ("many", listed.len())] {
        let columns = (0..width).map(|i| format!("c{i}")).collect::<Vec<_>>().join(", ");
        source.execute(&format!(
            "INSERT INTO {table} SELECT 1000 + id, {columns} FROM {table} WHERE id < 1000; \
             UPDATE {table} t SET ({columns}) = (SELECT {columns} FROM {table} s WHERE s.id = t.id - 2000) WHERE id >= 2000"
        ));
    }
    duckpipe.sync_once().expect(0);
    let native = lake.open_native();
    for table in ["public.one", "public.many"] {
        assert_eq!(assert_equal(&source, &native, table), 3 * (rows as u64 + 1));
    }
}

fn insert(source: &Client, table: &str, id: usize, values: impl Iterator<Item = String>) {
    source.execute(&format!("INSERT INTO {table} VALUES ({id}, {})", values.collect::<Vec<_>>().join(", ")));
}

/// An array for this row: empty, of a NULL, of all values, then of a few.
fn list(case: &Case, row: usize) -> String {
    let value = |i: usize| Some(case.values[i % case.values.len()]);
    let all = || case.values.iter().copied().map(Some);
    let elements: Vec<Option<&str>> = match row {
        0 => vec![],
        1 => vec![None],
        2 => all().chain([None]).chain(all()).collect(),
        _ => vec![value(row), None, value(row + 1)],
    };
    values::array(case.pg_type, &elements)
}

#[test]
fn types_that_are_read_in_binary() {
    each_type("types_binary", NATIVE);
}

/// With one such type, all values of the pipeline are read as text.
#[test]
fn types_that_are_read_as_text() {
    let cases: Vec<Case> = AS_TEXT.iter().chain(NATIVE).map(|case| Case { ..*case }).collect();
    each_type("types_text", &cases);
}

/// Values that their column's lake type can't hold.
const UNREPRESENTABLE: &[(&str, &str)] = &[
    ("int[]", "{{1,2},{3,4}}"),
    ("text[]", "[0:1]={a,b}"),
    ("numeric(10,2)", "NaN"),
    ("numeric(38,10)[]", "{1,NaN}"),
    ("timestamp", "294248-01-01 00:00:00"),
    ("timestamptz", "294270-01-01 00:00:00+00"),
];

/// A table per unrepresentable value, named `prefix` and a number, with a good row; and one that has nothing but good rows.
fn make(source: &Client, prefix: &str) -> Vec<String> {
    source.execute("CREATE TABLE IF NOT EXISTS good (id int PRIMARY KEY, v text); INSERT INTO good VALUES (1, 'a') ON CONFLICT DO NOTHING");
    let name = |i: usize| format!("{prefix}_{i}");
    for (i, (pg_type, _)) in UNREPRESENTABLE.iter().enumerate() {
        source.execute(&format!(
            "CREATE TABLE {} (id int, part text, the_value {pg_type}, PRIMARY KEY (id, part)); INSERT INTO {0} VALUES (1, 'good', NULL)",
            name(i)
        ));
    }
    (0..UNREPRESENTABLE.len()).map(name).collect()
}

fn spoil(source: &Client, tables: &[String]) {
    for (table, (_, value)) in tables.iter().zip(UNREPRESENTABLE) {
        source.execute(&format!("INSERT INTO {table} VALUES (4711, 'the bad', {})", values::literal(value)));
    }
}

#[track_caller]
fn assert_errored(duckpipe: &Duckpipe, tables: &[String]) {
    let status = duckpipe.status();
    for table in tables {
        let entry = status.table(&format!("public.{table}"));
        assert_eq!(entry["state"], "errored", "{entry}");
        let error = entry["error"].as_str().unwrap_or_default();
        for part in ["the_value", "4711", "the bad", "types = { \"the_value\" = \"text\" }"] {
            assert!(error.contains(part), "the error of {table} does not say {part}: {error}");
        }
    }
    assert_eq!(status.state("public.good"), "streaming");
}

#[test]
fn what_the_lake_cannot_hold_stops_its_table_only() {
    let source = Postgres::shared().database("types_unrepresentable");
    let (copied, streamed) = (make(&source, "copied"), make(&source, "streamed"));
    spoil(&source, &copied);
    let lake = Lake::new(Combination::EMBEDDED, "types_unrepresentable");
    let duckpipe = Duckpipe::new("types_unrepresentable", &source.url(), &lake, TABLES);
    duckpipe.sync_once().expect(5);
    assert_errored(&duckpipe, &copied);
    let status = duckpipe.status();
    assert!(streamed.iter().all(|table| status.state(&format!("public.{table}")) == "streaming"), "{}", status.0);

    spoil(&source, &streamed);
    source.execute("INSERT INTO good VALUES (2, 'b')");
    duckpipe.sync_once().expect(5);
    assert_errored(&duckpipe, &copied);
    assert_errored(&duckpipe, &streamed);
    let native = lake.open_native();
    assert_eq!(assert_equal(&source, &native, "public.good"), 2);
    // What was there stays, as it was.
    for table in &streamed {
        assert_eq!(
            native.rows(&format!("SELECT id, part, the_value FROM lake.public.{table}")),
            [[Some("1".into()), Some("good".into()), None]]
        );
    }
}

#[test]
fn the_remedy_is_text() {
    let source = Postgres::shared().database("types_remedy");
    let (copied, streamed) = (make(&source, "copied"), make(&source, "streamed"));
    spoil(&source, &copied);
    let lake = Lake::new(Combination::EMBEDDED, "types_remedy");
    let tables: String = copied
        .iter()
        .chain(&streamed)
        .map(|table| format!("[[tables]]\nsource = \"public.{table}\"\ntypes = {{ the_value = \"text\" }}\n"))
        .collect();
    let duckpipe = Duckpipe::new("types_remedy", &source.url(), &lake, &tables);
    duckpipe.sync_once().expect(0);
    spoil(&source, &streamed);
    duckpipe.sync_once().expect(0);
    let native = lake.open_native();
    for table in copied.iter().chain(&streamed) {
        let table = format!("public.{table}");
        assert_eq!(native.columns(&table, None)[2], ("the_value".to_owned(), "VARCHAR".to_owned()));
        assert_eq!(assert_equal(&source, &native, &table), 2);
    }
}

#[test]
fn null_in_its_place_is_counted_and_never_in_a_key() {
    let source = Postgres::shared().database("types_null");
    let (copied, streamed) = (make(&source, "copied"), make(&source, "streamed"));
    source.execute("CREATE TABLE late (at timestamp PRIMARY KEY); INSERT INTO late VALUES ('294248-01-01')");
    spoil(&source, &copied);
    let lake = Lake::new(Combination::EMBEDDED, "types_null");
    let settings = format!("[sync]\non_unrepresentable = \"null\"\n\n{TABLES}");
    let duckpipe = Duckpipe::new("types_null", &source.url(), &lake, &settings);
    duckpipe.sync_once().expect(5);
    spoil(&source, &streamed);
    duckpipe.sync_once().expect(5);
    let status = duckpipe.status();
    assert_eq!(status.state("public.late"), "errored");
    let native = lake.open_native();
    for (table, (pg_type, _)) in copied.iter().zip(UNREPRESENTABLE).chain(streamed.iter().zip(UNREPRESENTABLE)) {
        let row = native.rows(&format!("SELECT the_value IS NULL, part FROM lake.public.{table} WHERE id = 4711"));
        assert_eq!(row, [[Some("true".into()), Some("the bad".into())]], "{table}: {pg_type}");
        let entry = status.table(&format!("public.{table}"));
        assert_eq!((entry["state"].as_str(), entry["values_nulled"].as_u64()), (Some("streaming"), Some(1)), "{entry}");
    }
}

#[test]
fn a_key_must_not_lose_anything() {
    let source = Postgres::shared().database("types_key");
    source.execute("CREATE TABLE t (a int, b text, v int, PRIMARY KEY (a, b)); INSERT INTO t VALUES (1, 'x', 1)");
    let lake = Lake::new(Combination::EMBEDDED, "types_key");
    let tables = "[[tables]]\nsource = \"public.t\"\nexclude_columns = [\"b\"]\n";
    let finished = Duckpipe::new("types_key", &source.url(), &lake, tables).sync_once();
    assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
    assert!(finished.stderr.contains("\"b\"") && finished.stderr.contains("key"), "{}", finished.stderr);
    assert_eq!(source.number("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"), 0);
    assert!(!lake.catalog_file().exists() || lake_is_empty(&lake.open_native()));
}

fn lake_is_empty(lake: &NativeLake) -> bool {
    lake.number("SELECT count(*) FROM ducklake_table_info('lake')") == 0
}

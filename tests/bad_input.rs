//! Bad input: one clear error that says what, where and what to do, before anything is written; and no secret in any output.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::lab::lake::extension_file;
use crate::lab::minio::SECRET_KEY;
use crate::lab::{CatalogKind, Combination, Finished, Lake, Options, PASSWORD, Postgres, StoreKind, free_port};
use crate::scenario::Scenario;

const MINUTE: Duration = Duration::from_secs(60);
const POSTGRES_S3: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::S3 };
const T: &str = "[[tables]]\nsource = \"public.t\"\n";

/// A scenario with one good table, and a changed configuration.
fn scenario(name: &str, combination: Combination, tables: &str) -> Scenario<'static> {
    let scenario = Scenario::new(name, combination, tables);
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'one')");
    scenario
}

/// Replaces text in the configuration.
#[track_caller]
fn misconfigure(scenario: &Scenario<'_>, from: &str, to: &str) {
    let text = scenario.duckpipe.configuration();
    assert!(text.contains(from), "{text}");
    scenario.duckpipe.configure(&text.replace(from, to));
}

/// `sync` and `sync --once` fail with `code` and a message that has all of `words`; nothing was written anywhere.
#[track_caller]
fn refused(scenario: &Scenario<'_>, code: i32, words: &[&str]) -> Finished {
    for arguments in [&["sync"][..], &["sync", "--once"]] {
        let finished = scenario.duckpipe.run_within(arguments, MINUTE).expect(code);
        assert_says(&finished, words);
    }
    assert!(scenario.footprint().is_empty(), "written to the source: {:?}", scenario.footprint());
    let files = files(Path::new(&scenario.lake.data_path()));
    assert!(files.is_empty(), "written to the data path: {files:?}");
    scenario.duckpipe.sync_once().expect(code)
}

#[track_caller]
fn assert_says(finished: &Finished, words: &[&str]) {
    for word in words {
        let said = finished.stderr.to_lowercase().contains(&word.to_lowercase());
        assert!(said, "the message lacks {word:?}: {}", finished.stderr);
    }
    // One message, not a heap of them, and never a panic.
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    let errors = finished.stderr.lines().filter(|line| line.starts_with("error")).count();
    assert!(errors <= 1, "{errors} errors: {}", finished.stderr);
}

/// All files below a folder; none where there is no folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => all.extend(files(&path)),
            path => all.push(path),
        }
    }
    all
}

#[test]
fn an_unreachable_source() {
    let scenario = scenario("bad_unreachable", Combination::EMBEDDED, T);
    let port = free_port();
    misconfigure(&scenario, &format!(":{}/", Postgres::shared().port()), &format!(":{port}/"));
    refused(&scenario, 1, &["127.0.0.1", &port.to_string()]);
    assert!(!scenario.lake.catalog_file().exists());
}

#[test]
fn a_wrong_password_for_the_source() {
    let scenario = scenario("bad_password", Combination::EMBEDDED, T);
    misconfigure(&scenario, PASSWORD, "wr0ng-Pa55");
    let finished = refused(&scenario, 1, &["password", "postgres", "127.0.0.1"]);
    assert!(!finished.output().contains("wr0ng-Pa55"));
    assert!(!scenario.lake.catalog_file().exists());
}

#[test]
fn a_database_that_does_not_exist() {
    let scenario = scenario("bad_database", Combination::EMBEDDED, T);
    misconfigure(&scenario, "/bad_database\"", "/bad_nowhere\"");
    refused(&scenario, 1, &["bad_nowhere", "does not exist"]);
}

#[test]
fn a_source_without_logical_wal() {
    let postgres = Postgres::start(Options::default().set("wal_level", "replica"));
    let scenario = Scenario::on(&postgres, "bad_wal_level", Combination::EMBEDDED, T);
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY)");
    refused(&scenario, 1, &["wal_level", "logical", "restart"]);
}

#[test]
fn a_source_without_a_free_slot() {
    let postgres = Postgres::start(Options::default().set("max_replication_slots", "1"));
    let scenario = Scenario::on(&postgres, "bad_slots", Combination::EMBEDDED, T);
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY)");
    scenario.source.execute("SELECT pg_create_physical_replication_slot('of_another')");
    let finished = scenario.duckpipe.run_within(&["sync", "--once"], MINUTE).expect(1);
    assert_says(&finished, &["slot", "max_replication_slots"]);
    scenario.source.execute("SELECT pg_drop_replication_slot('of_another')");
    scenario.converge(&["public.t"]);
}

#[test]
fn a_role_that_may_not_replicate() {
    let scenario = scenario("bad_role", Combination::EMBEDDED, T);
    scenario.source.replication_role("bad_role_reader");
    scenario.source.execute("ALTER ROLE bad_role_reader NOREPLICATION; GRANT SELECT ON t TO bad_role_reader");
    misconfigure(&scenario, &scenario.source.url(), &scenario.source.url_of("bad_role_reader"));
    refused(&scenario, 1, &["replication", "127.0.0.1", "ALTER ROLE"]);
}

#[test]
fn a_bucket_that_does_not_exist() {
    let scenario = scenario("bad_bucket", POSTGRES_S3, T);
    misconfigure(&scenario, "s3://bad-bucket/", "s3://bad-nowhere/");
    refused(&scenario, 1, &["bad-nowhere"]);
}

#[test]
fn wrong_keys_for_the_bucket() {
    let scenario = scenario("bad_keys", POSTGRES_S3, T);
    misconfigure(&scenario, SECRET_KEY, "wr0ng-5eCr3t");
    let finished = refused(&scenario, 1, &["s3://bad-keys/lake"]);
    assert!(!finished.output().contains("wr0ng-5eCr3t"));
}

#[test]
fn an_unreachable_bucket() {
    let scenario = scenario("bad_endpoint", POSTGRES_S3, T);
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    misconfigure(&scenario, &scenario.lake.bucket().unwrap().endpoint.clone(), &endpoint);
    refused(&scenario, 1, &["s3://bad-endpoint/lake"]);
}

#[test]
fn a_data_path_that_is_no_folder() {
    let scenario = scenario("bad_folder", Combination::EMBEDDED, T);
    let file = scenario.duckpipe.folder().join("a-file");
    std::fs::write(&file, "").unwrap();
    misconfigure(&scenario, &scenario.lake.data_path(), file.to_str().unwrap());
    refused(&scenario, 2, &["a-file"]);
}

#[test]
fn an_unreachable_catalog() {
    let combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
    let scenario = scenario("bad_catalog", combination, T);
    let port = free_port();
    let good = scenario.lake.catalog();
    let bad = good.replace(&format!(":{}/", Postgres::shared().port()), &format!(":{port}/"));
    misconfigure(&scenario, &good, &bad);
    refused(&scenario, 1, &["127.0.0.1", &port.to_string()]);
}

#[test]
fn a_wrong_password_for_the_catalog() {
    let combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
    let scenario = scenario("bad_catalog_password", combination, T);
    let good = scenario.lake.catalog();
    misconfigure(&scenario, &good, &good.replace(PASSWORD, "wr0ng-Pa55"));
    let finished = refused(&scenario, 1, &["catalog", "password"]);
    assert!(!finished.output().contains("wr0ng-Pa55"));
}

#[test]
fn a_catalog_that_is_no_catalog() {
    let scenario = scenario("bad_file", Combination::EMBEDDED, T);
    std::fs::write(scenario.lake.catalog_file(), "this is no DuckDB file, whatever its name says").unwrap();
    refused(&scenario, 1, &["catalog.ducklake"]);
    let text = std::fs::read_to_string(scenario.lake.catalog_file()).unwrap();
    assert!(text.starts_with("this is no DuckDB file"), "it was overwritten");
}

#[test]
fn a_table_that_does_not_exist() {
    let scenario = scenario(
        "bad_missing",
        Combination::EMBEDDED,
        "[[tables]]\nsource = \"public.t\"\n[[tables]]\nsource = \"public.ordres\"\n",
    );
    refused(&scenario, 1, &["public.ordres", "check the name"]);
    assert!(!scenario.lake.catalog_file().exists());
}

#[test]
fn a_pattern_that_matches_nothing() {
    let scenario = scenario("bad_pattern", Combination::EMBEDDED, "[[tables]]\nsource = \"shop.*\"\n");
    refused(&scenario, 1, &["shop.*", "pattern"]);
}

#[test]
fn a_table_without_a_key() {
    let scenario = scenario("bad_keyless", Combination::EMBEDDED, "[[tables]]\nsource = \"public.keyless\"\n");
    scenario.source.execute("CREATE TABLE keyless (v text);");
    refused(&scenario, 1, &["public.keyless", "primary key"]);
}

/// Where only a pattern matched it, it is left out with a warning, and the others go on.
#[test]
fn a_table_without_a_key_beside_others() {
    let scenario = scenario("bad_keyless_pattern", Combination::EMBEDDED, "[[tables]]\nsource = \"public.*\"\n");
    scenario.source.execute("CREATE TABLE keyless (v text); INSERT INTO keyless VALUES ('v')");
    let finished = scenario.duckpipe.sync_once().expect(0);
    assert_says(&finished, &["public.keyless"]);
    scenario.assert_equal(&["public.t"]);
    // Which does not put it into the publication, where an UPDATE without an identity would fail at the source.
    scenario.source.execute("UPDATE keyless SET v = 'w'; DELETE FROM keyless");
    scenario.converge(&["public.t"]);
}

#[test]
fn two_tables_with_one_target() {
    let tables = "[[tables]]\nsource = \"public.t\"\ntarget = \"public.x\"\n[[tables]]\nsource = \"public.u\"\ntarget = \"public.X\"\n";
    let scenario = scenario("bad_target", Combination::EMBEDDED, tables);
    scenario.source.execute("CREATE TABLE u (id int PRIMARY KEY)");
    refused(&scenario, 2, &["public.t", "public.u", "target"]);
}

#[test]
fn tables_that_differ_only_in_case() {
    let scenario = scenario("bad_case", Combination::EMBEDDED, "[[tables]]\nsource = \"public.*\"\n");
    scenario.source.execute("CREATE TABLE \"T\" (id int PRIMARY KEY)");
    refused(&scenario, 2, &["public.t", "public.T", "target", "case"]);
}

#[test]
fn columns_that_differ_only_in_case() {
    let scenario = scenario("bad_column", Combination::EMBEDDED, "[[tables]]\nsource = \"public.c\"\n");
    scenario.source.execute("CREATE TABLE c (id int PRIMARY KEY, v text, \"V\" text)");
    refused(&scenario, 1, &["public.c", "\"v\"", "\"V\"", "exclude_columns"]);
}

#[test]
fn an_excluded_key() {
    let scenario = scenario(
        "bad_excluded",
        Combination::EMBEDDED,
        "[[tables]]\nsource = \"public.t\"\nexclude_columns = [\"id\"]\n",
    );
    let finished = scenario.duckpipe.sync_once();
    assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
    assert_says(&finished, &["public.t", "id", "key"]);
    assert!(scenario.footprint().is_empty());
}

#[test]
fn a_target_that_is_somebody_elses() {
    for combination in [Combination::EMBEDDED, Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local }]
    {
        let scenario = scenario(&format!("bad_foreign_{}", combination.name()), combination, T);
        let native = scenario.lake.open_native_writable();
        native.execute("CREATE SCHEMA IF NOT EXISTS lake.public; CREATE TABLE lake.public.t (mine INTEGER); INSERT INTO lake.public.t VALUES (7)");
        let versions = native.versions().len();
        drop(native);
        for arguments in [&["sync"][..], &["sync", "--once"]] {
            let finished = scenario.duckpipe.run_within(arguments, MINUTE).expect(1);
            assert_says(&finished, &["public.t", "target"]);
        }
        assert!(scenario.footprint().is_empty(), "{:?}", scenario.footprint());
        let native = scenario.lake.open_native();
        assert_eq!(native.versions().len(), versions);
        assert_eq!(native.text("SELECT mine FROM lake.public.t"), "7");
    }
}

#[test]
fn a_target_that_is_another_pipelines() {
    let combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
    let first = scenario("bad_first", combination, T);
    first.converge(&["public.t"]);
    let second = scenario("bad_second", combination, T);
    let configuration = second.duckpipe.configuration();
    let shared = configuration.replace(&second.lake.catalog(), &first.lake.catalog());
    second.duckpipe.configure(&shared.replace(&second.lake.data_path(), &first.lake.data_path()));
    let finished = second.duckpipe.sync_once().expect(1);
    assert_says(&finished, &["public.t", "bad_first"]);
    assert!(
        second.footprint().iter().flatten().flatten().all(|name| !name.contains("bad_second")),
        "{:?}",
        second.footprint()
    );
    // Under another name in the same lake they live side by side.
    let renamed = shared.replace(&second.lake.data_path(), &first.lake.data_path()) + "target = \"second.t\"\n";
    second.duckpipe.configure(&renamed);
    second.duckpipe.sync_once().expect(0);
    second.source.execute("UPDATE t SET v = 'of the second'");
    first.source.execute("UPDATE t SET v = 'of the first'");
    second.duckpipe.sync_once().expect(0);
    first.converge(&["public.t"]);
    let native = first.lake.open_native();
    crate::lab::Comparison::new(&second.source, &native, "public.t", "second.t", &[])
        .run(&second.source, &native)
        .unwrap();
}

#[test]
fn a_data_path_of_another_catalog() {
    for (first, second) in [("bad_marker_a", "bad_marker_b"), ("bad_marker_c", "bad_marker_d")] {
        let combination = if first.ends_with('a') { Combination::EMBEDDED } else { POSTGRES_S3 };
        let (first, second) = (scenario(first, combination, T), scenario(second, combination, T));
        first.converge(&["public.t"]);
        misconfigure(&second, &second.lake.data_path(), &first.lake.data_path());
        let finished = second.duckpipe.run_within(&["sync", "--once"], MINUTE).expect(1);
        assert_says(&finished, &[&first.lake.data_path(), "data_path"]);
        let left = second.footprint();
        assert!(left.is_empty(), "{left:?}");
        first.source.execute("INSERT INTO t VALUES (2, 'two')");
        first.converge(&["public.t"]);
    }
}

#[test]
fn an_unknown_key() {
    let scenario = scenario(
        "bad_unknown",
        Combination::EMBEDDED,
        "[sync]\nflush_intervall = \"1s\"\n[[tables]]\nsource = \"public.t\"\n",
    );
    refused(&scenario, 2, &["flush_intervall", "flush_interval", "duckpipe.toml"]);
}

#[test]
fn wrong_values() {
    let scenario = scenario("bad_values", Combination::EMBEDDED, T);
    let good = scenario.duckpipe.configuration();
    for (line, words) in [
        ("[sync]\nflush_interval = \"soon\"\n", &["sync.flush_interval", "soon"][..]),
        ("[sync]\nmemory_limit = \"-1\"\n", &["sync.memory_limit"]),
        ("[sync]\nsnapshot_workers = 0\n", &["sync.snapshot_workers"]),
        ("[sync]\non_unrepresentable = \"maybe\"\n", &["on_unrepresentable", "maybe"]),
    ] {
        scenario.duckpipe.configure(&format!("{good}{line}"));
        refused(&scenario, 2, words);
    }
    scenario.duckpipe.configure(&good.replace("name = \"bad_values\"", "name = \"Bad Values\""));
    refused(&scenario, 2, &["Bad Values"]);
    std::fs::remove_file(scenario.duckpipe.config()).unwrap();
    refused(&scenario, 2, &["duckpipe.toml", "duckpipe init"]);
}

#[test]
fn wrong_usage() {
    let scenario = scenario("bad_usage", Combination::EMBEDDED, T);
    for arguments in [&["snyc"][..], &[], &["sync", "--onec"], &["query"], &["status", "--format", "json"]] {
        scenario.duckpipe.run(arguments).expect(2);
    }
    scenario.duckpipe.run(&["--version"]).expect(0);
    // Before the first sync there is nothing to show, which status and query say.
    for arguments in [&["status"][..], &["status", "--json"], &["query", "SELECT 1"]] {
        let finished = scenario.duckpipe.run_within(arguments, MINUTE);
        assert!(!finished.output().contains("panicked"), "{}", finished.output());
        assert!(!scenario.lake.catalog_file().exists(), "{arguments:?} made a catalog");
    }
}

/// No command prints a password or a key, whatever goes wrong and however much it logs.
/// DuckDB loads nothing that its makers did not sign, unless it is told that the folder can be trusted.
#[test]
fn an_extension_that_was_tampered_with() {
    let mut scenario = scenario("bad_extension", Combination::EMBEDDED, T);
    let folder = scenario.duckpipe.folder().join("extensions");
    std::fs::create_dir(&folder).unwrap();
    let mut bytes = std::fs::read(extension_file("ducklake")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(folder.join("ducklake.duckdb_extension"), bytes).unwrap();
    scenario.duckpipe.set("DUCKPIPE_EXTENSIONS", &folder.display().to_string());
    scenario.duckpipe.set("DUCKPIPE_TRUST_EXTENSIONS", "0");
    refused(&scenario, 1, &["extension ducklake", "signature"]);
    // As it was fetched, it is loaded.
    scenario.duckpipe.set("DUCKPIPE_EXTENSIONS", &extension_file("").parent().unwrap().display().to_string());
    scenario.converge(&["public.t"]);
}

#[test]
fn secrets_stay_secret() {
    for (name, combination) in [("bad_secret_duckdb", Combination::EMBEDDED), ("bad_secret_postgres", POSTGRES_S3)] {
        let mut scenario = scenario(name, combination, T);
        let right = scenario.duckpipe.configuration();
        let source = scenario.source.url();
        let catalog = scenario.lake.catalog();
        let port = Postgres::shared().port().to_string();
        let dead = free_port().to_string();
        let wrong = "wr0ng-5eCr3t%21";
        let variants = [
            right.clone(),
            right.replace(&source, &source.replace(PASSWORD, wrong)),
            right.replace(&source, &source.replace(&port, &dead)),
            right.replace(&source, &format!("{source}?sslmode=verify-full")),
            right.replace(&source, &format!("{source}?pasword={wrong}")),
            right.replace(&source, &source.replace("postgres://", "postgre://")),
            right.replace(&source, &source.replace(&format!(":{port}"), ":port")),
            right.replace(&catalog, &catalog.replace(PASSWORD, wrong)),
            right.replace(&catalog, &catalog.replace(&port, &dead)),
            right.replace(&catalog, &catalog.replace("_catalog", "_nowhere")),
            right.replace(SECRET_KEY, wrong),
            right.replace(&format!("\"{SECRET_KEY}\""), SECRET_KEY),
            right.replace("secret_access_key", "secret_acces_key"),
            right.replace(&format!("{source}\""), &source),
            right.replace("url = ", "ulr = "),
            format!("{right}\n[source]\nurl = \"{source}\""),
        ];
        for (number, variant) in variants.iter().enumerate() {
            if number > 0 && *variant == right {
                continue;
            }
            scenario.duckpipe.configure(variant);
            for arguments in [
                &["-vv", "check"][..],
                if number % 2 == 0 { &["-vv", "sync", "--once"] } else { &["--log-format", "json", "sync", "--once"] },
                &["status", "--json"],
                &[
                    "-vv",
                    "query",
                    if number % 2 == 0 { "SELECT 1 / 0 FROM nowhere" } else { "FROM duckdb_databases()" },
                ],
                &["drop"],
            ] {
                scenario.duckpipe.set("RUST_LOG", "trace");
                scenario.duckpipe.set("DUCKPIPE_LOG", "trace");
                let finished = scenario.duckpipe.run_within(arguments, MINUTE);
                for secret in [PASSWORD, SECRET_KEY, wrong, "wr0ng-5eCr3t"] {
                    let output = finished.output();
                    let leak = output.lines().find(|line| line.contains(secret));
                    assert!(
                        leak.is_none(),
                        "{name}, variant {number}, {arguments:?} prints a secret: {}",
                        leak.unwrap()
                    );
                }
            }
        }
        // What stays on disk beside the configuration: the catalog tells every reader of the lake what it holds.
        scenario.duckpipe.unset("RUST_LOG");
        scenario.duckpipe.unset("DUCKPIPE_LOG");
        scenario.duckpipe.configure(&right);
        scenario.converge(&["public.t"]);
        let catalog_file = scenario.lake.catalog_file();
        if catalog_file.exists() {
            let bytes = std::fs::read(catalog_file).unwrap();
            for secret in [PASSWORD, SECRET_KEY] {
                let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
                assert!(!found, "the catalog holds a secret");
            }
        }
    }
}

/// Commands that only look change nothing and need no right to write.
#[test]
fn check_changes_nothing() {
    for combination in [Combination::EMBEDDED, POSTGRES_S3] {
        let name = format!("bad_check_{}", combination.name());
        let scenario = scenario(&name, combination, T);
        let finished = scenario.duckpipe.run_within(&["check"], MINUTE).expect(0);
        assert!(finished.stdout.contains('✓') && !finished.stdout.contains('✗'), "{}", finished.stdout);
        assert!(scenario.footprint().is_empty(), "{:?}", scenario.footprint());
        assert!(!scenario.lake.catalog_file().exists());
        assert!(files(Path::new(&scenario.lake.data_path())).is_empty());
        scenario.source.execute("ALTER TABLE t DROP CONSTRAINT t_pkey");
        let finished = scenario.duckpipe.run_within(&["check"], MINUTE).expect(1);
        assert!(finished.stdout.contains('✗') && finished.stdout.contains("ADD PRIMARY KEY"), "{}", finished.stdout);
    }
}

/// A lake's folder may lie in a place with a blank, a quote and an umlaut in its name.
#[test]
fn strange_paths_are_no_bad_input() {
    let scenario = scenario("bad_path", Combination::EMBEDDED, T);
    let folder = scenario.duckpipe.folder().join("a lake's Größe");
    std::fs::create_dir(&folder).unwrap();
    let text = scenario.duckpipe.configuration();
    let text = text
        .replace(&scenario.lake.catalog(), folder.join("c.ducklake").to_str().unwrap())
        .replace(&scenario.lake.data_path(), folder.join("d").to_str().unwrap());
    scenario.duckpipe.configure(&text);
    scenario.duckpipe.sync_once().expect(0);
    scenario.source.execute("UPDATE t SET v = 'zwei'; INSERT INTO t VALUES (3, NULL)");
    scenario.duckpipe.sync_once().expect(0);
    let finished =
        scenario.duckpipe.run(&["query", "SELECT v FROM public.t WHERE id = 1", "--format", "csv"]).expect(0);
    assert_eq!(finished.stdout.trim(), "v\nzwei");
    let native = Lake::new(Combination::EMBEDDED, "bad_path_reader").open_native_writable();
    native.execute("DETACH lake");
    let catalog = folder.join("c.ducklake").display().to_string().replace('\'', "''");
    native.execute(&format!("ATTACH 'ducklake:{catalog}' AS lake (READ_ONLY)"));
    crate::lab::assert_equal(&scenario.source, &native, "public.t");
}

/// What can't be followed keeps a first copy from beginning; a lake that is there goes on without it.
#[test]
fn a_new_table_that_no_lake_can_have() {
    let scenario = Scenario::new("bad_newcomer", Combination::EMBEDDED, "[[tables]]\nsource = \"public.*\"\n");
    scenario.source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    scenario.converge(&["public.t"]);
    scenario.source.execute(
        "CREATE TABLE twice (id int PRIMARY KEY, \"ID\" int); CREATE TABLE \"T\" (id int PRIMARY KEY); INSERT INTO t VALUES (2)",
    );
    let told = scenario.duckpipe.sync_once().expect(0).output();
    assert!(told.contains("the columns \"id\" and \"ID\""), "{told}");
    assert!(told.contains("public.T and public.t have targets that differ only in case"), "{told}");
    scenario.assert_equal(&["public.t"]);
    let refused = scenario.duckpipe.run(&["sync", "--once", "--resnapshot"]).output();
    assert!(refused.contains("differ only in case"), "{refused}");
    scenario.assert_equal(&["public.t"]);
}

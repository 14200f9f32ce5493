//! The laboratory itself: what the other tests stand on.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use duckpipe::lsn::Lsn;

use crate::lab::{Combination, Comparison, Lake, Minio, Options, Postgres, assert_equal, wait_for};

/// Every type with a native form in the lake, and the DuckDB type that it has there.
const TABLE: &str = "CREATE TABLE t (k int, part text, b bool, i2 int2, i8 int8, f4 float4, f8 float8, n numeric(20,4), s text, c char(6), \
    y bytea, d date, tm time, ts timestamp, tz timestamptz, u uuid, j jsonb, ia int[], ta text[], PRIMARY KEY (k, part))";
const LAKE_TABLE: &str = "CREATE SCHEMA IF NOT EXISTS lake.public; CREATE TABLE lake.public.t (k INTEGER, part VARCHAR, b BOOLEAN, i2 SMALLINT, \
    i8 BIGINT, f4 FLOAT, f8 DOUBLE, n DECIMAL(20,4), s VARCHAR, c VARCHAR, y BLOB, d DATE, tm TIME, ts TIMESTAMP, tz TIMESTAMPTZ, u UUID, \
    j JSON, ia INTEGER[], ta VARCHAR[])";
const ROWS: &str = "INSERT INTO t SELECT i, 'p' || i % 3, i % 2 = 0, i, i * 1000000007::int8, i / 3.0, i / 7.0, i / 9.0, repeat('é', i), 'ab', \
    decode(lpad(to_hex(i), 8, '0'), 'hex'), date '0044-03-15 BC' + i * 1000, time '00:00:00.000001' + i * interval '7 minutes', \
    timestamp '1969-12-31 23:59:59.999999' + i * interval '1 day', timestamptz '2020-02-29 12:00:00.5+02' - i * interval '1 hour', \
    md5(i::text)::uuid, jsonb_build_object('a', i, 'b', array[i, null]), array[i, null, -i], array['x', null, '', 'a,b'] \
    FROM generate_series(1, 200) i; \
    INSERT INTO t (k, part, f4, f8, d, ts, tz, ia, ta) VALUES (1000, '', 'NaN', '-0', 'infinity', '-infinity', 'infinity', '{}', '{}'), \
    (1001, ' ', '-Infinity', 'NaN', '9999-12-31', '0001-01-01', '9999-12-31 23:59:59.999999+00', '{NULL}', '{NULL}')";

#[test]
fn a_cluster_speaks_logical_replication() {
    let postgres = Postgres::shared();
    let database = postgres.database("laboratory_cluster");
    assert_eq!(database.text("SHOW wal_level"), "logical");
    database.execute("CREATE TABLE t (id int PRIMARY KEY)");
    database.execute("SELECT pg_create_logical_replication_slot('laboratory', 'pgoutput')");
    assert_eq!(database.number("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'laboratory'"), 1);
    assert!(database.lsn() > Lsn::ZERO);
    assert!(database.try_execute("SELECT 1/0").unwrap_err().contains("division by zero"));
    database.replication_role("laboratory_reader");
    let reader = crate::lab::Client::connect(&database.url_of("laboratory_reader"));
    assert!(reader.try_execute("SELECT * FROM t").unwrap_err().contains("permission denied"));
    drop(database);
    let admin = postgres.connect("postgres");
    assert_eq!(admin.number("SELECT count(*) FROM pg_database WHERE datname = 'laboratory_cluster'"), 0);
    assert_eq!(admin.number("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'laboratory'"), 0);
}

#[test]
fn a_cluster_of_ones_own_keeps_its_data_over_a_crash() {
    let mut postgres = Postgres::start(Options { fsync: true, ..Options::default() });
    let database = postgres.connect("postgres");
    database.execute("CREATE TABLE t AS SELECT 1 AS one");
    postgres.stop("QUIT");
    assert!(database.try_execute("SELECT 1").is_err());
    postgres.restart(|options| options.settings.push(("max_replication_slots".into(), "3".into())));
    let database = postgres.connect("postgres");
    assert_eq!(database.text("SELECT one FROM t"), "1");
    assert_eq!(database.text("SHOW max_replication_slots"), "3");
}

#[test]
fn a_dropped_server_leaves_nothing_behind() {
    let postgres = Postgres::start(Options::default());
    let (port, data) = (postgres.port(), postgres.data());
    assert!(data.is_dir());
    drop(postgres);
    assert!(!data.exists());
    assert!(!crate::lab::process::listens(port));
}

#[test]
fn minio_signs_and_stores() {
    let minio = Minio::shared();
    let bucket = minio.bucket("laboratory-minio");
    let buckets = minio.request("GET", "/");
    assert!(buckets.contains("<Name>laboratory-minio</Name>"), "{buckets}");
    let unsigned = Command::new("curl")
        .args(["--noproxy", "*", "-s", &format!("{}/laboratory-minio", minio.endpoint())])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&unsigned.stdout).contains("AccessDenied"));

    // Credentials for one bucket: they write there, and see no other.
    minio.bucket("laboratory-other");
    let [(_, key), (_, secret), (_, token)] = minio.limited(&bucket);
    let put = |bucket: &str| {
        let output = Command::new("curl")
            .args([
                "--noproxy",
                "*",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "--aws-sigv4",
                "aws:amz:us-east-1:s3",
            ])
            .args(["--user", &format!("{key}:{secret}"), "-H", &format!("x-amz-security-token: {token}")])
            .args([
                "-T",
                concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
                &format!("{}/{bucket}/object", minio.endpoint()),
            ])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(put("laboratory-minio"), "200");
    assert_eq!(put("laboratory-other"), "403");
}

/// The comparison sees equal where all is equal, on all four combinations, and names the rows where one value is not.
fn native_lake(combination: Combination) {
    let name = format!("laboratory_{}", combination.name());
    let source = Postgres::shared().database(&name);
    source.execute(TABLE);
    source.execute(ROWS);
    let lake = Lake::new(combination, &name);
    let native = lake.open_native_writable();
    native.execute(LAKE_TABLE);
    native.attach_source(&source);
    // The scanner drops the padding of char(n).
    native.execute("INSERT INTO lake.public.t SELECT * REPLACE (rpad(c, 6, ' ') AS c) FROM source.public.t");
    native.execute("DETACH source");
    drop(native);

    let native = lake.open_native();
    assert_eq!(assert_equal(&source, &native, "public.t"), 202);
    let before = native.versions().last().unwrap().id;
    assert!(native.versions().iter().all(|version| version.lsn().is_none()));
    drop(native);

    let native = lake.open_native_writable();
    let comparison = Comparison::new(&source, &native, "public.t", "public.t", &[]);
    // One bit of one float: as text, -0 and 0 could pass for equal.
    native.execute("UPDATE lake.public.t SET f8 = 0 WHERE k = 1000");
    let report = comparison.run(&source, &native).unwrap_err();
    assert_eq!(report.lines().filter(|line| line.contains("1000 | ")).count(), 2, "{report}");
    assert_eq!(comparison.lake_fingerprint(&native, Some(before)), comparison.source_fingerprint(&source));
    native.execute("DELETE FROM lake.public.t WHERE k IN (1000, 17)");
    source.execute("DELETE FROM t WHERE k = 1000");
    let report = comparison.run(&source, &native).unwrap_err();
    assert!(report.contains("only in source: 17 | p2"), "{report}");
    source.execute("DELETE FROM t WHERE k = 17");
    assert_eq!(comparison.run(&source, &native), Ok(200));
}

#[test]
fn native_lake_duckdb_local() {
    native_lake(Combination::all()[0]);
}

#[test]
fn native_lake_duckdb_s3() {
    native_lake(Combination::all()[1]);
}

#[test]
fn native_lake_postgres_local() {
    native_lake(Combination::all()[2]);
}

#[test]
fn native_lake_postgres_s3() {
    native_lake(Combination::all()[3]);
}

/// The environment variable that makes the test below, run again as a child, start servers and wait to be killed.
const VICTIM: &str = "DUCKPIPE_LAB_VICTIM";

#[test]
fn a_killed_test_process_leaves_no_servers() {
    if std::env::var_os(VICTIM).is_some() {
        println!("victim {} {}", Postgres::shared().port(), Postgres::shared().data().display());
        std::thread::park();
    }
    let folder = std::env::temp_dir().join(format!("duckpipe-lab-{}-victim.out", std::process::id()));
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "laboratory::a_killed_test_process_leaves_no_servers", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(std::fs::File::create(&folder).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let line = wait_for(
        "the victim's servers",
        Duration::from_secs(120),
        || std::fs::read_to_string(&folder).ok()?.lines().find(|line| line.contains("victim ")).map(str::to_owned),
        String::new,
    );
    let mut words = line.split("victim ").nth(1).unwrap().split(' ');
    let port: u16 = words.next().unwrap().parse().unwrap();
    let data = words.next().unwrap().to_owned();
    assert!(crate::lab::process::listens(port) && Path::new(&data).is_dir());
    victim.kill().unwrap();
    victim.wait().unwrap();
    std::fs::remove_file(&folder).unwrap();
    wait_for(
        "the end of the victim's servers",
        Duration::from_secs(60),
        || (!crate::lab::process::listens(port) && !Path::new(&data).exists()).then_some(()),
        || data.clone(),
    );
}

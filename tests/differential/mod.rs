//! Promises 1 and 5 under random writes: whatever several sessions write, each lake version that carries an `lsn` is the source at that
//! LSN, and at the end every row and value is the same.
//!
//! `DUCKPIPE_SEED` sets another seed than the tests' own; each test prints the one it uses, and a seed writes the same transactions
//! again. What differs between two runs is only when the pipeline runs beside them.

mod decoding;
mod model;
mod random;
mod schema;
mod workload;

use std::time::{Duration, Instant};

use crate::lab::{Combination, Comparison, Database, Duckpipe, Lake, NativeLake, Postgres, Running, Version, wait_for};
use model::Model;
use schema::TABLES;
use workload::Workload;

/// Committed transactions that are there before the pipeline starts: the snapshot copies what they left.
const BEFORE: u32 = 150;
/// Committed transactions until which no table is truncated, so that none is before it is copied: what was not copied in the state
/// of the snapshot stops.
const UNTRUNCATED: u32 = 500;
/// Committed transactions per run, at least.
const COMMITS: u32 = 2_100;
/// So many times the writers wait until the lake has caught up, so that there are at least as many versions.
const ROUNDS: u32 = 100;
/// So many runs of `sync --once` take the writers' last third.
const ONCE: u32 = 6;
/// The least number of versions compared with the model in each run.
const VERSIONS: usize = 100;
/// So many are compared, evenly chosen; with `DUCKPIPE_TEST_VERSIONS=all` every one.
const COMPARED: usize = 105;
/// How long the pipeline may take to catch up with what is written.
const CATCH_UP: Duration = Duration::from_secs(300);

#[test]
fn random_writes_duckdb_local() {
    run(Combination::all()[0], 11);
}

#[test]
fn random_writes_duckdb_s3() {
    run(Combination::all()[1], 12);
}

#[test]
fn random_writes_postgres_local() {
    run(Combination::all()[2], 13);
}

#[test]
fn random_writes_postgres_s3() {
    run(Combination::all()[3], 14);
}

/// Writes a seed's transactions while `sync`, then `sync --once` follow, and compares everything.
fn run(combination: Combination, seed: u64) {
    let seed = std::env::var("DUCKPIPE_SEED").map_or(seed, |text| text.parse().expect("DUCKPIPE_SEED is a number"));
    let name = format!("differential_{}", combination.name());
    println!("{name}: DUCKPIPE_SEED={seed}");
    let source = Postgres::shared().database(&name);
    model::create_tables(&source);
    let mut model = Model::new(&source);
    let mut workload = Workload::new(&source, seed);
    let lake = Lake::new(combination, &name);
    let sources: Vec<&str> = TABLES.iter().map(|table| table.name).collect();
    let sync = "[sync]\nflush_interval = \"50ms\"\n";
    let duckpipe = Duckpipe::new(&name, &source.url(), &lake, &format!("{sync}{}", Duckpipe::tables(&sources)));
    let clock = Instant::now();
    let told = |what: &str, workload: &Workload| {
        println!("{name}: {:.1} s, {} commits: {what}", clock.elapsed().as_secs_f32(), workload.commits());
    };

    workload.until(BEFORE);
    let mut running = duckpipe.sync();
    write_until_streaming(&duckpipe, &mut running, &mut workload);
    told("all tables stream", &workload);
    // By the time of the copy nothing is decided: all transactions end here in every run.
    workload.until(UNTRUNCATED);
    workload.finish();
    workload.truncate_too();
    let continuous = workload.commits() + (COMMITS - BEFORE) * 2 / 3;
    for round in 1..=ROUNDS {
        // Sometimes one commit to a version, sometimes many.
        let share =
            if round.is_multiple_of(2) { 1 } else { (continuous - workload.commits()) / (ROUNDS - round + 1) * 2 };
        workload.until(workload.commits() + share.max(1));
        wait_until_shown(&source, &mut running, &workload);
    }
    workload.until(continuous);
    // Transactions are open now, and the next process must see them whole.
    running.terminate().expect(0);
    told("sync ended", &workload);

    for _ in 0..ONCE {
        let until = workload.commits() + (COMMITS - BEFORE) / 3 / ONCE;
        let mut running = duckpipe.start(&["sync", "--once"]);
        while running.runs() && workload.commits() < until {
            workload.step();
        }
        running.wait(CATCH_UP).expect(0);
        workload.until(until);
    }
    workload.finish();
    duckpipe.sync_once().expect(0);
    told("the last sync --once ended", &workload);
    assert!(workload.commits() >= COMMITS, "{} commits", workload.commits());

    model.read(&source);
    told(&format!("the model read {} transactions", model.read), &workload);
    assert_eq!(model.read, workload.commits() as usize, "transactions of the model and of the writers");
    let native = lake.open_native();
    let compared = compare_versions(&mut model, &native);
    told(&format!("{compared} versions are the source at their LSN"), &workload);
    for comparison in comparisons(&source, &native) {
        comparison.run(&source, &native).unwrap_or_else(|report| panic!("at the end: {report}"));
    }
    assert!(compared >= VERSIONS, "only {compared} versions");
    assert!(model.truncates > 3, "only {} truncates", model.truncates);
    told("all rows are equal", &workload);
}

/// Writes on until the snapshot is done: the slot's creation waits for transactions that only the writers can end.
fn write_until_streaming(duckpipe: &Duckpipe, running: &mut Running<'_>, workload: &mut Workload) {
    let start = Instant::now();
    loop {
        for _ in 0..100 {
            if workload.commits() < UNTRUNCATED {
                workload.step();
            }
        }
        if workload.commits() >= UNTRUNCATED {
            workload.finish();
        }
        match duckpipe.try_status() {
            Ok(status) if status.all("streaming") => return,
            _ => {}
        }
        assert!(running.runs(), "sync ended\n{}", running.tail());
        assert!(start.elapsed() < CATCH_UP, "no table streams after {CATCH_UP:?}\n{}", running.tail());
    }
}

/// Waits until the slot was told that the last commit is in the lake.
fn wait_until_shown(source: &Database<'_>, running: &mut Running<'_>, workload: &Workload) {
    let sql = format!(
        "SELECT coalesce(confirmed_flush_lsn, '0/0') FROM pg_replication_slots WHERE slot_name = 'duckpipe_{}'",
        source.name()
    );
    let wanted = workload.before_last_commit();
    let tail = running.tail();
    wait_for(
        "the slot is confirmed",
        CATCH_UP,
        || {
            assert!(running.runs(), "sync ended\n{}", running.tail());
            (source.text(&sql).parse::<duckpipe::lsn::Lsn>().ok()? > wanted).then_some(())
        },
        || format!("it is at {}, not past {wanted}\n{tail}", source.text(&sql)),
    );
}

fn comparisons(source: &crate::lab::Client, lake: &NativeLake) -> Vec<Comparison> {
    TABLES.iter().map(|table| Comparison::new(source, lake, table.name, table.name, &[])).collect()
}

/// Compares every version that carries an LSN with the model at that LSN; gives the number of versions.
///
/// A table is read where the model says that it changed since the version compared before. All are read in every tenth, which sees
/// what changed a table that should have stayed.
fn compare_versions(model: &mut Model, lake: &NativeLake) -> usize {
    // Data files never change, so their footers can be kept.
    lake.execute("SET parquet_metadata_cache = true; SET enable_http_metadata_cache = true");
    let comparisons = comparisons(model.shadow(), lake);
    let all: Vec<Version> = lake.versions().into_iter().filter(|version| version.lsn().is_some()).collect();
    let compared = match std::env::var("DUCKPIPE_TEST_VERSIONS").as_deref() {
        Ok("all") => all.len(),
        _ => COMPARED.min(all.len()),
    };
    println!("{} versions, of which {compared} are compared", all.len());
    // The last one is among them.
    let versions: Vec<&Version> = (1..=compared).map(|number| &all[number * all.len() / compared - 1]).collect();
    let mut last = duckpipe::lsn::Lsn::ZERO;
    for (number, version) in versions.iter().enumerate() {
        let lsn = version.lsn().unwrap_or_default();
        assert!(lsn >= last, "version {} is at {lsn}, the one before at {last}", version.id);
        assert!(is_empty(&version.extra["behind"]), "version {}: tables are behind: {}", version.id, version.extra);
        last = lsn;
        let changed = model.advance_to(lsn);
        for (table, comparison) in comparisons.iter().enumerate() {
            if !changed.contains(&table) && !number.is_multiple_of(10) {
                continue;
            }
            if model.fingerprint(table, comparison) != comparison.lake_fingerprint(lake, Some(version.id)) {
                let report = comparison.run_at(model.shadow(), lake, Some(version.id)).unwrap_err();
                panic!("version {} is not the source at {lsn}: {report}", version.id);
            }
        }
    }
    versions.len()
}

fn is_empty(behind: &serde_json::Value) -> bool {
    match behind {
        serde_json::Value::Null => true,
        serde_json::Value::Array(entries) => entries.is_empty(),
        serde_json::Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

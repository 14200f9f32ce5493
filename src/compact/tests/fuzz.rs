//! Flushes, compactions, expiries, cleanups and stock DuckDB's own writes in random order; each version reads as the model has it.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::table::{Table, compactor};
use crate::compact::{Outcome, Request};
use crate::lake::tests::lab::{Kind, Lab};

/// Tables to run by default, and steps of each; `DUCKPIPE_FUZZ_SEEDS` and `DUCKPIPE_FUZZ_STEPS` ask for more.
const SEEDS: u64 = 3;
const STEPS: u64 = 60;

fn asked(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(default)
}

fn seeds() -> u64 {
    asked("DUCKPIPE_FUZZ_SEEDS", SEEDS)
}

async fn run(kind: Kind, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    let mut next_native = 10_000_000;
    let (mut merged, mut carried) = (0, 0);
    println!("seed {seed}");
    for step in 0..asked("DUCKPIPE_FUZZ_STEPS", STEPS) {
        match random.random_range(0..20) {
            _ if step < 3 => {
                table.flush(&lab, &table.random_changes(&mut random, 30)).await;
            }
            0..12 if random.random_bool(0.06) => {
                table.truncate(&lab, &table.random_changes(&mut random, 20)).await;
            }
            0..12 => {
                table.flush(&lab, &table.random_changes(&mut random, 30)).await;
            }
            12..14 => {
                let least = random.random_range(2..6);
                let settings =
                    format!("target_file_size = \"1MB\"\ndelete_ratio = \"{}%\"", random.random_range(1..60));
                let mut compactor = compactor(&lab, &settings).await;
                compactor.resources.threads = random.random_range(1..4);
                let mut config = (*compactor.config).clone();
                config.compact.min_files = least;
                compactor.config = config.into();
                let report = compactor.pass(&Request::default()).await.unwrap();
                assert_eq!(report.tables[0].given_up, [] as [String; 0], "seed {seed} step {step}");
                merged += report.tables[0].files_rewritten;
            }
            14..17 => {
                // Flushes land while some of the files are being rewritten.
                let compactor = compactor(&lab, "").await;
                let view = lab.lake.compaction_view("shop").await.unwrap();
                let known = &view.tables[0];
                let sources: Vec<_> = known.files.iter().filter(|_| random.random_bool(0.7)).cloned().collect();
                if sources.is_empty() {
                    continue;
                }
                let rewritten = compactor.rewrite(view.oldest, known, sources).await.unwrap();
                let mut truncated = false;
                for _ in 0..random.random_range(1..4) {
                    let changes = table.random_changes(&mut random, 20);
                    if random.random_bool(0.04) {
                        table.truncate(&lab, &changes).await;
                        truncated = true;
                    } else {
                        table.flush(&lab, &changes).await;
                    }
                }
                match compactor.replace(known, rewritten).await.unwrap() {
                    Outcome::Replaced { carried_over, .. } if !truncated => carried += carried_over,
                    Outcome::GivenUp(_) if truncated => {
                        compactor.lake.discard_uploads(&compactor.run, &compactor.store).await.unwrap();
                    }
                    other => panic!("seed {seed} step {step}: {other:?}"),
                }
            }
            17 => {
                let newest = lab.lake.latest_snapshot().await.unwrap();
                let view = lab.lake.compaction_view("shop").await.unwrap();
                let oldest = random.random_range(view.oldest..=newest);
                let old: Vec<i64> = (view.oldest..oldest).collect();
                if !old.is_empty() {
                    lab.lake.expire_snapshots(&old).await.unwrap();
                }
            }
            18 => {
                next_native += 1;
                let gone: Vec<i64> = table.rows.keys().copied().filter(|_| random.random_bool(0.05)).collect();
                table.native(&mut lab, (next_native, ("theirs".into(), step as i32)), &gone).await;
            }
            _ => {
                let checked = &table;
                let random = &mut random;
                lab.stock(|connection| checked.check(connection, random)).await;
            }
        }
    }
    lab.stock(|connection| table.check(connection, &mut random)).await;
    let last = compactor(&lab, "").await;
    last.pass(&Request::default()).await.unwrap();
    lab.stock(|connection| table.check(connection, &mut random)).await;
    println!("seed {seed}: {merged} files merged, {carried} deletes carried over");
    assert!(merged > 0 && carried > 0, "seed {seed} met nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_of_maintenance_reads_as_its_model_in_a_file() {
    for seed in 0..seeds() {
        run(Kind::File, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_order_of_maintenance_reads_as_its_model_in_postgres() {
    for seed in 100..100 + seeds() {
        run(Kind::Postgres, seed).await;
    }
}

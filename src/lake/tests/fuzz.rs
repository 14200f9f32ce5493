//! Random commits; DuckDB reads each version as the model has it.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::lab::{Kind, Lab};
use super::model::{Change, Model};

/// Tables to run by default; `DUCKPIPE_FUZZ_SEEDS` asks for more.
const SEEDS: u64 = 8;
const STEPS: usize = 40;

fn seeds() -> u64 {
    std::env::var("DUCKPIPE_FUZZ_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS)
}

/// Runs one seed on a table of its own.
async fn run(lab: &mut Lab, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut model = Model::new(lab, &format!("t{seed}")).await;
    let mut next_id = 0;
    for step in 0..STEPS {
        let mut changes: Vec<(i64, Change)> = Vec::new();
        let replace = random.random_bool(0.04);
        let mut taken = std::collections::HashSet::new();
        for _ in 0..random.random_range(1..25) {
            let keys: Vec<i64> = model.rows.keys().copied().collect();
            let insert = replace || keys.len() < 5 || random.random_bool(0.4);
            let id = if insert {
                next_id += 1;
                // Not ascending, so that bounds widen on both sides.
                if next_id % 2 == 0 { next_id } else { -next_id }
            } else {
                keys[random.random_range(0..keys.len())]
            };
            if !taken.insert(id) {
                continue;
            }
            let long = random.random_bool(0.03);
            let text = format!("{step}'{id}{}", if long { "é".repeat(80) } else { String::new() });
            let row = (text, random.random_range(-1000..1000));
            let change = if insert || random.random_bool(0.7) { Change::Put(row) } else { Change::Remove };
            changes.push((id, change));
        }
        let parts = random.random_range(1..3);
        model.apply(lab, &changes, parts, replace).await.unwrap_or_else(|e| panic!("seed {seed} step {step}: {e}"));
        if step == STEPS / 2 {
            let checked = &model;
            lab.stock(|connection| checked.check(connection, true)).await;
        }
    }
    lab.stock(|connection| model.check(connection, false)).await;
}

#[tokio::test]
async fn random_commits_read_as_their_model_in_a_file() {
    let mut lab = Lab::new(Kind::File).await;
    for seed in 0..seeds() {
        run(&mut lab, seed).await;
    }
}

#[tokio::test]
async fn random_commits_read_as_their_model_in_postgres() {
    let mut lab = Lab::new(Kind::Postgres).await;
    for seed in 0..seeds() {
        run(&mut lab, seed).await;
    }
}

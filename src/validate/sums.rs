//! Counts and sums of row hashes per bucket of keys: equal on both sides where all rows are.

use std::sync::Arc;

use arrow::array::RecordBatch;
use hashbrown::HashSet;

use super::lake_rows::RowSink;
use super::progress::ValidateProgress;
use super::row_hash::RowHasher;
use crate::error::Result;

/// How a table's rows are hashed: the same on both sides.
#[derive(Clone, Debug)]
pub(super) struct Hashing {
    pub(super) hasher: RowHasher,
    /// The key's columns.
    pub(super) key: Arc<Vec<usize>>,
    /// All columns.
    pub(super) all: Arc<Vec<usize>>,
    /// A power of two.
    pub(super) buckets: usize,
    /// Only these keys count, where the source was sampled.
    pub(super) only: Option<Arc<HashSet<u128>>>,
}

impl Hashing {
    pub(super) fn bucket(&self, key: u128) -> usize {
        // The upper half: what tells keys of one bucket apart stays.
        (key >> 64) as usize & (self.buckets - 1)
    }

    /// Whether the key is among those that are compared.
    pub(super) fn counts(&self, key: u128) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&key))
    }
}

/// What the rows of each bucket add up to.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    hashing: Hashing,
    progress: Arc<ValidateProgress>,
    buckets: Vec<(u64, u128)>,
    /// The keys that were seen, where a sample is taken.
    keys: Option<HashSet<u128>>,
}

impl Sums {
    pub(super) fn new(hashing: &Hashing, progress: &Arc<ValidateProgress>) -> Sums {
        let buckets = vec![(0, 0); hashing.buckets];
        Sums { hashing: hashing.clone(), progress: Arc::clone(progress), buckets, keys: None }
    }

    /// Keeps the keys too.
    pub(super) fn with_keys(hashing: &Hashing, progress: &Arc<ValidateProgress>) -> Sums {
        Sums { keys: Some(HashSet::new()), ..Sums::new(hashing, progress) }
    }

    /// Several as one; `None` of none.
    pub(super) fn total(all: Vec<Sums>) -> Option<Sums> {
        all.into_iter().reduce(|mut total, other| {
            for (bucket, (rows, sum)) in total.buckets.iter_mut().zip(other.buckets) {
                *bucket = (bucket.0 + rows, bucket.1.wrapping_add(sum));
            }
            if let (Some(keys), Some(others)) = (&mut total.keys, other.keys) {
                keys.extend(others);
            }
            total
        })
    }

    pub(super) fn rows(&self) -> u64 {
        self.buckets.iter().map(|(rows, _)| rows).sum()
    }

    pub(super) fn take_keys(&mut self) -> HashSet<u128> {
        self.keys.take().unwrap_or_default()
    }

    /// The buckets that differ.
    pub(super) fn differing(&self, other: &Sums) -> Vec<usize> {
        (0..self.buckets.len()).filter(|bucket| self.buckets[*bucket] != other.buckets[*bucket]).collect()
    }
}

impl RowSink for Sums {
    fn add(&mut self, batch: &RecordBatch, _: Option<&str>) -> Result<()> {
        let keys = self.hashing.hasher.rows(batch, &self.hashing.key)?;
        let rows = self.hashing.hasher.rows(batch, &self.hashing.all)?;
        for (key, row) in keys.into_iter().zip(rows) {
            if !self.hashing.counts(key) {
                continue;
            }
            let bucket = &mut self.buckets[self.hashing.bucket(key)];
            *bucket = (bucket.0 + 1, bucket.1.wrapping_add(row));
            if let Some(seen) = &mut self.keys {
                seen.insert(key);
            }
        }
        self.progress.add(batch.num_rows() as u64);
        Ok(())
    }
}

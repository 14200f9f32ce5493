//! What a running validation shows of itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// What is being done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ValidateStep {
    /// In words: a table's name, or what is waited for.
    pub what: String,
    /// Rows, or files, that the step is about to read; an estimate.
    pub total: u64,
}

/// Counters that the work updates and any thread may read.
#[derive(Debug, Default)]
pub struct ValidateProgress {
    step: Mutex<ValidateStep>,
    done: AtomicU64,
}

impl ValidateProgress {
    /// Nothing done yet.
    pub fn new() -> Arc<ValidateProgress> {
        Arc::default()
    }

    /// The next step begins.
    pub fn begin(&self, what: impl Into<String>, total: u64) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = ValidateStep { what: what.into(), total };
        self.done.store(0, Relaxed);
    }

    /// So many more rows or files were read.
    pub fn add(&self, count: u64) {
        self.done.fetch_add(count, Relaxed);
    }

    /// The step, and how much of it is done.
    pub fn now(&self) -> (ValidateStep, u64) {
        (self.step.lock().unwrap_or_else(PoisonError::into_inner).clone(), self.done.load(Relaxed))
    }
}

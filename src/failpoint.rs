//! Places where tests let the process die, or stand still.

use std::sync::atomic::{AtomicU32, Ordering};

/// Kills this process, as `kill -9` does, when `DUCKPIPE_FAILPOINT` names this point: `upload`, or `upload:3` for the third time
/// that it is reached. `upload:stop` stops it there, as `kill -STOP` does, until it is told to go on. Costs one look at an environment
/// variable; it exists in every build, so that tests run what users run.
pub fn failpoint(name: &str) {
    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("DUCKPIPE_FAILPOINT") else { return };
    let (point, nth) = match wanted.split_once(':') {
        Some((point, "stop")) => {
            if point == name {
                signal("-STOP");
            }
            return;
        }
        Some((point, nth)) => (point, nth.parse().unwrap_or(1)),
        None => (wanted.as_str(), 1),
    };
    if point == name && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == nth {
        // A signal that no handler sees: nothing is flushed, no destructor runs.
        signal("-9");
        std::process::abort();
    }
}

fn signal(signal: &str) {
    let _ = std::process::Command::new("kill").args([signal, &std::process::id().to_string()]).status();
}

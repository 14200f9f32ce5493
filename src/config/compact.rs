//! The `[compact]` section.

use std::time::Duration;

use super::document::{Document, Item, wrong};
use super::units::format_size;
use crate::error::Result;

/// The `[compact]` section.
#[derive(Clone, Debug, PartialEq)]
pub struct CompactConfig {
    /// Whether `sync` compacts by itself.
    pub enabled: bool,
    /// How often it looks whether there is anything to do.
    pub interval: Duration,
    /// The size that data files shall have, in bytes.
    pub target_file_size: u64,
    /// Small files that are worth a rewrite.
    pub min_files: usize,
    /// The part of a file's rows, dead and readable by nobody, that is worth a rewrite.
    pub delete_ratio: f64,
    /// How long a snapshot can be read; `None`: for ever.
    pub retain: Option<Duration>,
    /// How long a file that nothing needs any more stays for those who are reading it.
    pub delete_grace: Duration,
    /// Bytes of memory of a rewrite.
    pub memory_limit: u64,
    /// Threads of a rewrite.
    pub threads: usize,
}

impl Default for CompactConfig {
    fn default() -> Self {
        CompactConfig {
            enabled: true,
            interval: Duration::from_secs(60),
            target_file_size: 128_000_000,
            min_files: 8,
            delete_ratio: 0.2,
            retain: Some(Duration::from_secs(7 * 86_400)),
            delete_grace: Duration::from_secs(3600),
            memory_limit: 128_000_000,
            threads: 1,
        }
    }
}

/// The least time that a replaced file stays: a flush that has looked at it before must be able to end.
const LEAST_GRACE: Duration = Duration::from_secs(60);

pub(super) fn read(document: &Document) -> Result<CompactConfig> {
    let mut compact = CompactConfig::default();
    if let Some(item) = document.get("compact.enabled") {
        compact.enabled = item.boolean("compact.enabled")?;
    }
    if let Some(item) = document.get("compact.interval") {
        compact.interval = item.duration("compact.interval")?;
        let range = Duration::from_millis(100)..=Duration::from_secs(86_400);
        if !range.contains(&compact.interval) {
            return Err(wrong(&item.origin, "compact.interval must be between \"100ms\" and \"1d\""));
        }
    }
    if let Some(item) = document.get("compact.target_file_size") {
        compact.target_file_size = item.size("compact.target_file_size")?;
        if !(1_000_000..=10_000_000_000).contains(&compact.target_file_size) {
            return Err(wrong(&item.origin, "compact.target_file_size must be between \"1MB\" and \"10GB\""));
        }
    }
    if let Some(item) = document.get("compact.min_files") {
        let count = item.count("compact.min_files")?;
        if !(2..=1000).contains(&count) {
            return Err(wrong(&item.origin, "compact.min_files must be between 2 and 1000"));
        }
        compact.min_files = count as usize;
    }
    if let Some(item) = document.get("compact.delete_ratio") {
        compact.delete_ratio = percentage(item, "compact.delete_ratio")?;
    }
    if let Some(item) = document.get("compact.retain") {
        compact.retain = match item.text("compact.retain")? {
            "forever" => None,
            _ => Some(item.duration("compact.retain")?),
        };
    }
    if let Some(item) = document.get("compact.delete_grace") {
        compact.delete_grace = item.duration("compact.delete_grace")?;
        if compact.delete_grace < LEAST_GRACE {
            return Err(wrong(&item.origin, "compact.delete_grace must be at least \"1m\"")
                .remedy("a reader, or sync itself, may still be reading a file that was replaced a moment ago"));
        }
    }
    if let Some(item) = document.get("compact.memory_limit") {
        compact.memory_limit = item.size("compact.memory_limit")?;
        let least = 64_000_000;
        if compact.memory_limit < least {
            let message = format!("compact.memory_limit must be at least \"{}\"", format_size(least));
            return Err(wrong(&item.origin, message));
        }
    }
    if let Some(item) = document.get("compact.threads") {
        let count = item.count("compact.threads")?;
        if !(1..=64).contains(&count) {
            return Err(wrong(&item.origin, "compact.threads must be between 1 and 64"));
        }
        compact.threads = count as usize;
    }
    Ok(compact)
}

/// A part as people write it: `"20%"`.
fn percentage(item: &Item, path: &str) -> Result<f64> {
    let text = item.text(path)?;
    let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    match number {
        Some(number) if number > 0.0 && number <= 100.0 => Ok(number / 100.0),
        _ => Err(wrong(&item.origin, format!("{path} must be a percentage such as \"20%\", not {text:?}"))),
    }
}

//! Logs: to stderr, as lines for people or as JSON, without secrets, and without tearing a progress bar.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::arguments::LogFormat;
use super::redact::redact;

/// The bars that are on the terminal, if any.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Starts logging. The filter is `DUCKPIPE_LOG`, else `level`.
pub(super) fn start(format: LogFormat, level: &str) {
    let filter = std::env::var("DUCKPIPE_LOG").ok().filter(|filter| !filter.is_empty());
    let filter = EnvFilter::try_new(filter.as_deref().unwrap_or(level)).unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Stderr);
    // A second start, as tests make, keeps the first.
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        LogFormat::Text => {
            let color = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(color).with_target(false).compact().try_init()
        }
    };
}

/// From now on logs go above these bars.
pub(super) fn above(bars: &MultiProgress) {
    let _ = BARS.set(bars.clone());
}

#[derive(Clone, Copy)]
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Stderr;

    fn make_writer(&'a self) -> Stderr {
        Stderr
    }
}

impl Write for Stderr {
    /// The formatter hands over whole events.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = redact(&text);
        let write = || io::stderr().lock().write_all(text.as_bytes());
        match BARS.get() {
            Some(bars) => bars.suspend(write)?,
            None => write()?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

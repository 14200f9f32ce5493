//! Takes over an edited configuration without a restart: on SIGHUP, and when `duckpipe tables add` or `remove` asks for it.

use tokio::signal::unix::{SignalKind, signal};

use crate::config::{CliOverrides, Config};
use crate::error::{Because, ErrorKind, Result};

/// The configuration at work, and how it is read again.
#[derive(Clone, Debug)]
pub(super) struct Reloader {
    config: Config,
    overrides: CliOverrides,
}

impl Reloader {
    /// For the configuration that these overrides gave.
    pub(super) fn new(config: Config, overrides: CliOverrides) -> Reloader {
        Reloader { config, overrides }
    }

    /// Reads the configuration again. Only its tables are taken over.
    ///
    /// # Errors
    /// Kind `Config` where it is wrong; everything stays as it was then.
    pub(super) fn reload(&self) -> Result<()> {
        let read = Config::load(&self.overrides)?;
        let others = self.config.reload(&read);
        tracing::info!(file = %self.config.path.display(), tables = read.tables().len(), "the configuration was read again");
        if !others.is_empty() {
            tracing::warn!(sections = others.join(", "), "only [[tables]] is taken over without a restart");
        }
        Ok(())
    }

    /// Reloads at each SIGHUP, for ever.
    ///
    /// # Errors
    /// Kind `Internal` where the signal can't be listened to.
    pub(super) async fn on_hangup(&self) -> Result<()> {
        let hangups = signal(SignalKind::hangup());
        let mut hangups = hangups.because(ErrorKind::Internal, || "signals can't be listened to".into())?;
        while hangups.recv().await.is_some() {
            if let Err(error) = self.reload() {
                tracing::error!(%error, fix = error.remedy_text(), "the configuration is wrong; the former one stays");
            }
        }
        Ok(())
    }
}

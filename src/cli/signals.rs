//! SIGINT and SIGTERM: the first asks the work to end, the second ends the process.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::exit::exit;
use crate::error::{Because, ErrorKind, Result};

/// The process ends this long after the first signal, whatever hangs. What was not committed is read again at the next start.
const PATIENCE: Duration = Duration::from_secs(19);

/// Listens from now on. The receiver turns true with the first signal. A thread of its own listens, so that work which
/// keeps the runtime's threads busy can't stand in the way.
pub(super) fn listen() -> Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let start = || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (interrupt, terminate) = {
            let _entered = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || runtime.block_on(wait(interrupt, terminate, sender)))?;
        Ok(())
    };
    start().because(ErrorKind::Internal, || "signals can't be listened to".into())?;
    Ok(receiver)
}

async fn wait(mut interrupt: Signal, mut terminate: Signal, sender: watch::Sender<bool>) {
    next(&mut interrupt, &mut terminate).await;
    tracing::info!("stopping; a second signal stops at once");
    sender.send_replace(true);
    tokio::select! {
        () = next(&mut interrupt, &mut terminate) => exit(130),
        () = tokio::time::sleep(PATIENCE) => {
            tracing::error!("the work did not end within {} s of the signal; it goes on from the lake's position at the next start", PATIENCE.as_secs());
            exit(1);
        }
    }
}

async fn next(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

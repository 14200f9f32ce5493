//! One position that both sides show: a snapshot of the source that a slot was made with, and the lake brought to it.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::lsn::Lsn;
use crate::source::replication::ReplicationConnection;
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::source::slot;
use crate::source::snapshot::SnapshotHolder;
use crate::sync::repair::Repair;

/// The longest that a stream is kept from reading while the slot is made.
const HOLD: Duration = Duration::from_secs(15);
/// A transaction that is older than this is waited for before the stream is held, not while it is.
const OLD: Duration = Duration::from_millis(500);
/// What a slot gets to be made in, however much of the timeout is gone by then.
const LEAST_WAIT: Duration = Duration::from_secs(1);

/// Has the lake show a source position exactly, through whatever writes to it.
#[async_trait]
pub trait SyncPoint: Send + Sync {
    /// Keeps the lake from passing any position that the source reaches from now on, for `patience` at most.
    async fn hold(&self, patience: Duration) -> Result<()>;
    /// Waits until the lake shows exactly `lsn`. Returns the lake, open for reading, and the snapshot that shows it. Where it
    /// `stands`, it shows that until [`SyncPoint::release`].
    async fn reach(&self, lsn: Lsn, patience: Duration, stands: bool) -> Result<(Lake, i64)>;
    /// Replaces rows of a lake that stands. Returns it as it is then, open for reading, and the snapshot that shows it.
    async fn repair(&self, repair: Repair) -> Result<(Lake, i64)>;
    /// Lets the stream go on, where it holds or stands.
    async fn release(&self);
}

/// A snapshot of the source whose position is known, and which the lake has not passed.
pub(super) async fn pin(
    settings: &SourceSettings,
    session: &Session,
    timeout: Duration,
    point: &dyn SyncPoint,
) -> Result<(ReplicationConnection, Lsn, SnapshotHolder)> {
    let begun = Instant::now();
    loop {
        wait_for_old_transactions(session, begun, timeout).await?;
        point.hold(HOLD).await?;
        // A little earlier than the stream would go on by itself.
        let left = timeout.saturating_sub(begun.elapsed()).max(LEAST_WAIT);
        let made = tokio::time::timeout(left.min(HOLD - Duration::from_secs(1)), make_slot(settings)).await;
        if let Ok(Ok(pinned)) = made {
            return Ok(pinned);
        }
        point.release().await;
        match made {
            Ok(made) => return made,
            Err(_) if begun.elapsed() >= timeout => return Err(held_back(session, timeout).await),
            // A transaction that had just begun turned out to be long.
            Err(_) => {}
        }
    }
}

async fn make_slot(settings: &SourceSettings) -> Result<(ReplicationConnection, Lsn, SnapshotHolder)> {
    let mut replication = ReplicationConnection::connect(settings).await?;
    // Names of slots are shared by the whole cluster.
    let name = format!("duckpipe_validate_{}", &Uuid::new_v4().simple().to_string()[..16]);
    let created = replication.create_temporary_slot(&name).await?;
    let holder = SnapshotHolder::import(settings, &created.snapshot).await?;
    Ok((replication, created.consistent_point, holder))
}

/// A slot waits for all transactions that are open. The stream is not held meanwhile.
async fn wait_for_old_transactions(session: &Session, begun: Instant, patience: Duration) -> Result<()> {
    while slot::oldest_writer(session).await?.is_some_and(|oldest| oldest.age > OLD) {
        if begun.elapsed() > patience {
            return Err(held_back(session, patience).await);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn held_back(session: &Session, waited: Duration) -> Error {
    let by = match slot::oldest_writer(session).await {
        Ok(Some(oldest)) => format!("{}, open for {} s", oldest.description, oldest.age.as_secs()),
        Ok(None) => "no transaction that is still open".to_owned(),
        Err(error) => return error,
    };
    Error::new(
        ErrorKind::Transient,
        format!("the source gave no consistent point within {} s; it is held back by {by}", waited.as_secs()),
    )
    .remedy("end that transaction, or wait for its end, longer with --timeout")
}

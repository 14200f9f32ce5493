//! What is no longer needed: old snapshots, and the files that nothing shows any more.
//!
//! Snapshots are expired by DuckLake itself. The files that it and commits schedule for deletion are deleted here, not by
//! DuckLake: it would delete them one by one on the lake's only connection, which every flush would wait for.

use std::time::Duration;

use super::Lake;
use super::files::id_list;
use super::session::LAKE;
use super::uploads::{CHUNK, path_list, split_used};
use crate::error::{ErrorKind, Result};

/// Snapshots that one call expires: a few milliseconds that a flush may wait.
const EXPIRED_AT_ONCE: usize = 1_000;

/// Tries of one call where another process is in its way.
const ATTEMPTS: u32 = 5;

/// Files that may be deleted.
#[derive(Clone, Debug, Default)]
pub struct Scheduled {
    /// Their paths below the data path.
    pub paths: Vec<String>,
    /// Files that stay: paths outside the data path, or still in use, which must not happen.
    pub kept: Vec<String>,
}

impl Lake {
    /// The snapshots that were made longer than `retain` ago. Never the newest.
    pub async fn expirable_snapshots(&self, retain: Duration) -> Result<Vec<i64>> {
        self.run(move |session| {
            let table = format!("{}.ducklake_snapshot", session.tables());
            let sql = format!(
                "SELECT snapshot_id FROM {table} WHERE snapshot_time < {} - INTERVAL '{} milliseconds' \
                 AND snapshot_id < (SELECT max(snapshot_id) FROM {table}) ORDER BY snapshot_id",
                session.clock(),
                retain.as_millis()
            );
            session.read(&sql, |row| row.get::<_, i64>(0))
        })
        .await
    }

    /// Expires snapshots, in slices, so that a flush gets its turn in between. What only they show is scheduled for deletion.
    pub async fn expire_snapshots(&self, snapshots: &[i64]) -> Result<()> {
        for slice in snapshots.chunks(EXPIRED_AT_ONCE) {
            let expire =
                format!("CALL ducklake_expire_snapshots('{LAKE}', versions => [{}])", id_list(slice.iter().copied()));
            for attempt in 1.. {
                let expire = expire.clone();
                match self.run(move |session| session.batch(&expire)).await {
                    // Another process expires the same ones; this is no work under the commit lock.
                    Err(error) if error.kind() == ErrorKind::Conflict && attempt < ATTEMPTS => {
                        tracing::debug!(%error, attempt, "expiring anew");
                    }
                    Err(error) => return Err(error),
                    Ok(()) => break,
                }
            }
        }
        Ok(())
    }

    /// The files that were scheduled for deletion longer than `grace` ago.
    pub async fn scheduled_files(&self, grace: Duration) -> Result<Scheduled> {
        self.run(move |session| {
            session.transaction(|session| {
                let tables = session.tables();
                let sql = format!(
                    "SELECT path, path_is_relative FROM {tables}.ducklake_files_scheduled_for_deletion \
                     WHERE schedule_start <= {} - INTERVAL '{} milliseconds'",
                    session.clock(),
                    grace.as_millis()
                );
                let mut scheduled = Scheduled::default();
                for (path, relative) in
                    session.read(&sql, |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)))?
                {
                    match relative {
                        true => scheduled.paths.push(path),
                        false => scheduled.kept.push(path),
                    }
                }
                // By the rules nothing live is ever scheduled. But what is deleted does not come back.
                let (free, live) = split_used(session, std::mem::take(&mut scheduled.paths))?;
                scheduled.paths = free;
                scheduled.kept.extend(live);
                Ok(scheduled)
            })
        })
        .await
    }

    /// Forgets files that were deleted.
    pub async fn forget_scheduled(&self, paths: &[String]) -> Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        let paths = paths.to_vec();
        self.run(move |session| {
            // Under the lock: another process may have deleted the same ones.
            session.locked_transaction(|session| {
                for chunk in paths.chunks(CHUNK) {
                    session.write(&format!(
                        "DELETE FROM {}.ducklake_files_scheduled_for_deletion WHERE path IN ({})",
                        session.tables(),
                        path_list(chunk.iter().map(String::as_str))
                    ))?;
                }
                Ok(())
            })
        })
        .await
    }
}

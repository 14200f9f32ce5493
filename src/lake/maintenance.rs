//! Runs of maintenance and the files that they bring.
//!
//! A run works beside a pipeline's `sync`, in the same process or in another one. It takes no epoch: that would fence the
//! `sync` out. Its uploads are recorded under a name of its own, whose rows it renews while it lives. What was not renewed for
//! [`LEASE`] is taken from it, in the catalog first: a run that only slept finds its records gone when it commits, and its files
//! are in nobody's way.

use std::time::Duration;

use duckpipe_storage::{BoxError, UploadLog};

use super::Lake;
use super::marker::LakeStore;
use super::session::{CatalogKind, Session};
use super::uploads::{CHUNK, path_list, split_registered};
use crate::error::Result;
use crate::sql::literal;

/// How often a run shows that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a run that does not show it may live. By the catalog's clock alone.
const LEASE: Duration = Duration::from_secs(120);

/// A run of maintenance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// The pipeline whose tables it works on.
    pub pipeline: String,
    owner: String,
}

impl Maintenance {
    /// A new run.
    pub fn new(pipeline: &str) -> Maintenance {
        Maintenance { pipeline: pipeline.to_owned(), owner: format!("{pipeline}:compact:{}", uuid::Uuid::now_v7()) }
    }

    /// Whether all these uploads are still its own.
    pub(super) fn owns(&self, session: &Session, paths: &[String]) -> Result<bool> {
        let mut owned = 0;
        for chunk in paths.chunks(CHUNK) {
            let sql = format!(
                "SELECT count(*) FROM {}.duckpipe_upload WHERE pipeline = {} AND path IN ({})",
                session.tables(),
                literal(&self.owner),
                path_list(chunk.iter().map(String::as_str))
            );
            owned += session.read(&sql, |row| row.get::<_, i64>(0))?.first().copied().unwrap_or_default();
        }
        Ok(owned == paths.len() as i64)
    }

    /// The statement that forgets these uploads, which are registered now.
    pub(super) fn forget_sql(&self, session: &Session, paths: &[String]) -> String {
        match paths.is_empty() {
            true => String::new(),
            false => format!(
                "DELETE FROM {}.duckpipe_upload WHERE path IN ({});\n",
                session.tables(),
                path_list(paths.iter().map(String::as_str))
            ),
        }
    }
}

/// Records a run's uploads before they start.
#[derive(Clone, Debug)]
pub struct MaintenanceLog {
    /// The catalog.
    pub lake: Lake,
    /// The run.
    pub run: Maintenance,
}

#[async_trait::async_trait]
impl UploadLog for MaintenanceLog {
    async fn starting(&self, paths: &[String]) -> Result<(), BoxError> {
        if paths.is_empty() {
            return Ok(());
        }
        let (run, paths) = (self.run.clone(), paths.to_vec());
        let recorded = self.lake.run(move |session| {
            let rows = paths.iter().map(|path| format!("({}, {}, 0, now())", literal(path), literal(&run.owner)));
            session.write(&format!(
                "INSERT INTO {}.duckpipe_upload (path, pipeline, epoch, started_at) VALUES {}",
                session.tables(),
                rows.collect::<Vec<_>>().join(", ")
            ))
        });
        Ok(recorded.await?)
    }
}

impl Lake {
    /// Shows that the run lives.
    pub async fn maintenance_lives(&self, run: &Maintenance) -> Result<()> {
        let owner = literal(&run.owner);
        self.run(move |session| {
            let table = format!("{}.duckpipe_upload", session.tables());
            session.write(&format!("UPDATE {table} SET started_at = now() WHERE pipeline = {owner}"))
        })
        .await
    }

    /// Removes files that this run wrote and will not register: those whose record it still holds.
    pub async fn discard_uploads(&self, run: &Maintenance, store: &impl LakeStore) -> Result<u64> {
        let owner = literal(&run.owner);
        let paths = self
            .run(move |session| {
                // Under the lock: a commit whose answer was lost has ended by then, one way or the other.
                session.locked_transaction(|session| {
                    let sql = format!("SELECT path FROM {}.duckpipe_upload WHERE pipeline = {owner}", session.tables());
                    split_registered(session, session.read(&sql, |row| row.get::<_, String>(0))?)
                })
            })
            .await?;
        self.remove_recorded(paths, store).await
    }

    /// Removes from the store what other runs of maintenance began to upload and will never register, because they died. Returns
    /// the number of files removed.
    pub async fn remove_maintenance_orphans(&self, run: &Maintenance, store: &impl LakeStore) -> Result<u64> {
        let condition = literal(&run.owner);
        let taken = self
            .run(move |session| {
                session.locked_transaction(|session| {
                    let table = format!("{}.duckpipe_upload", session.tables());
                    // A catalog file is open in one process, which has one run: every other one is dead.
                    let dead = match session.kind {
                        CatalogKind::File => String::new(),
                        CatalogKind::Postgres => {
                            format!(" AND started_at < now() - INTERVAL '{} seconds'", LEASE.as_secs())
                        }
                    };
                    let dead = format!("pipeline LIKE '%:compact:%' AND pipeline <> {condition}{dead}");
                    let uploads =
                        session.read(&format!("SELECT path FROM {table} WHERE {dead}"), |row| row.get::<_, String>(0))?;
                    if uploads.is_empty() {
                        return Ok((Vec::new(), Vec::new()));
                    }
                    // Taken from its run, but not forgotten before the object is gone: this process may die too.
                    session.write(&format!(
                        "UPDATE {table} SET pipeline = ':compact:dead', started_at = now() - INTERVAL '1 day' WHERE {dead}"
                    ))?;
                    split_registered(session, uploads)
                })
            })
            .await?;
        self.remove_recorded(taken, store).await
    }

    /// The recorded uploads of dead runs, for a look beforehand.
    pub async fn maintenance_orphans(&self) -> Result<u64> {
        self.run(|session| {
            let lease = match session.kind {
                CatalogKind::File => 0,
                CatalogKind::Postgres => LEASE.as_secs(),
            };
            let sql = format!(
                "SELECT count(*) FROM {}.duckpipe_upload WHERE pipeline LIKE '%:compact:%' \
                 AND started_at < now() - INTERVAL '{lease} seconds'",
                session.tables()
            );
            Ok(session.read(&sql, |row| row.get::<_, i64>(0))?.first().copied().unwrap_or_default() as u64)
        })
        .await
    }

    async fn remove_recorded(
        &self,
        (orphans, registered): (Vec<String>, Vec<String>),
        store: &impl LakeStore,
    ) -> Result<u64> {
        for path in &orphans {
            store.delete(path).await?;
        }
        let removed = orphans.len() as u64;
        let forgotten: Vec<String> = orphans.into_iter().chain(registered).collect();
        if !forgotten.is_empty() {
            self.run(move |session| {
                session.locked_transaction(|session| {
                    for chunk in forgotten.chunks(CHUNK) {
                        session.write(&format!(
                            "DELETE FROM {}.duckpipe_upload WHERE pipeline LIKE '%:compact:%' AND path IN ({})",
                            session.tables(),
                            path_list(chunk.iter().map(String::as_str))
                        ))?;
                    }
                    Ok(())
                })
            })
            .await?;
        }
        Ok(removed)
    }
}

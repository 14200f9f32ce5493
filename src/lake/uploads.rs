//! Files on their way into the lake, and those that never arrived.

use std::collections::HashSet;

use super::Lake;
use super::marker::LakeStore;
use super::pipeline::{self, Fence};
use super::session::Session;
use crate::error::Result;
use crate::sql::literal;

/// Paths per statement.
pub(super) const CHUNK: usize = 500;

impl Lake {
    /// Records that uploads to these paths (below the data path) are about to begin.
    pub async fn uploads_starting(&self, fence: &Fence, paths: &[String]) -> Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        let (fence, paths) = (fence.clone(), paths.to_vec());
        self.run(move |session| {
            session.transaction(|session| {
                pipeline::held(session, &fence)?;
                let rows = paths
                    .iter()
                    .map(|path| format!("({}, {}, {}, now())", literal(path), literal(&fence.pipeline), fence.epoch));
                session.write(&format!(
                    "INSERT INTO {}.duckpipe_upload (path, pipeline, epoch, started_at) VALUES {}",
                    session.tables(),
                    rows.collect::<Vec<_>>().join(", ")
                ))
            })
        })
        .await
    }

    /// Records that the files at these paths were removed by the caller itself.
    pub async fn forget_uploads(&self, fence: &Fence, paths: &[String]) -> Result<()> {
        let (fence, paths) = (fence.clone(), paths.to_vec());
        self.run(move |session| {
            session.transaction(|session| {
                pipeline::held(session, &fence)?;
                for chunk in paths.chunks(CHUNK) {
                    session.write(&format!(
                        "DELETE FROM {}.duckpipe_upload WHERE pipeline = {} AND path IN ({})",
                        session.tables(),
                        literal(&fence.pipeline),
                        path_list(chunk.iter().map(String::as_str))
                    ))?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Removes from the store what this epoch began to upload into a table's folder and never registered: nobody is to write there
    /// any more. It stays recorded, for what is on its way nevertheless.
    ///
    /// # Errors
    /// As the store's and the catalog's.
    pub async fn remove_uploads(&self, fence: &Fence, folder: &str, store: &impl LakeStore) -> Result<()> {
        let (fence, folder) = (fence.clone(), format!("{folder}/"));
        let (orphans, _) = self
            .run(move |session| {
                session.transaction(|session| {
                    let which = format!("epoch = {} AND starts_with(path, {})", fence.epoch, literal(&folder));
                    find_orphans(session, &fence, &which)
                })
            })
            .await?;
        for path in &orphans {
            store.delete(path).await?;
        }
        Ok(())
    }

    /// Removes from the store what this pipeline's earlier epochs began to upload and the lake never registered. Returns the
    /// number of files removed.
    ///
    /// The holder of an earlier epoch can't commit any more, so what is not registered now never will be. What DuckLake knows,
    /// ended or scheduled for deletion, is left to its own expiry and cleanup.
    pub async fn remove_orphans(&self, fence: &Fence, store: &impl LakeStore) -> Result<u64> {
        let for_thread = fence.clone();
        let (orphans, settled) = self
            .run(move |session| {
                session
                    .transaction(|session| find_orphans(session, &for_thread, &format!("epoch < {}", for_thread.epoch)))
            })
            .await?;
        for path in &orphans {
            store.delete(path).await?;
        }
        let forgotten: Vec<String> = orphans.iter().chain(&settled).cloned().collect();
        if !forgotten.is_empty() {
            self.forget_uploads(fence, &forgotten).await?;
        }
        Ok(orphans.len() as u64)
    }
}

/// Uploads of the pipeline for which the condition holds: those that nothing in the catalog names, and those that something does.
fn find_orphans(session: &Session, fence: &Fence, which: &str) -> Result<(Vec<String>, Vec<String>)> {
    pipeline::held(session, fence)?;
    let tables = session.tables();
    let sql =
        format!("SELECT path FROM {tables}.duckpipe_upload WHERE pipeline = {} AND {which}", literal(&fence.pipeline));
    let uploads = session.read(&sql, |row| row.get::<_, String>(0))?;
    split_registered(session, uploads)
}

/// Those paths that nothing in the catalog names, and those that something does.
pub(super) fn split_registered(session: &Session, paths: Vec<String>) -> Result<(Vec<String>, Vec<String>)> {
    let scheduled = format!("SELECT path FROM {}.ducklake_files_scheduled_for_deletion", session.tables());
    let (unused, mut registered) = split_used(session, paths)?;
    let mut known = HashSet::new();
    for chunk in unused.chunks(CHUNK) {
        let sql = format!("{scheduled} WHERE path IN ({})", path_list(chunk.iter().map(String::as_str)));
        known.extend(session.read(&sql, |row| row.get::<_, String>(0))?);
    }
    let (scheduled, unknown) = unused.into_iter().partition::<Vec<_>, _>(|path| known.contains(path));
    registered.extend(scheduled);
    Ok((unknown, registered))
}

/// Those paths that are no data file or delete file of any snapshot, and those that are.
pub(super) fn split_used(session: &Session, paths: Vec<String>) -> Result<(Vec<String>, Vec<String>)> {
    let tables = session.tables();
    let mut used = HashSet::new();
    for chunk in paths.chunks(CHUNK) {
        // DuckLake stores names below the table's folder; the names are unique by themselves, so they are enough to find
        // candidates, and a candidate is never removed.
        let names = path_list(chunk.iter().map(|path| file_name(path)));
        let sql = format!(
            "SELECT path FROM {tables}.ducklake_data_file WHERE path IN ({names}) \
             UNION ALL SELECT path FROM {tables}.ducklake_delete_file WHERE path IN ({names})"
        );
        used.extend(session.read(&sql, |row| row.get::<_, String>(0))?.iter().map(|path| file_name(path).to_owned()));
    }
    Ok(paths.into_iter().partition(|path| !used.contains(file_name(path))))
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

pub(super) fn path_list<'a>(paths: impl Iterator<Item = &'a str>) -> String {
    paths.map(literal).collect::<Vec<_>>().join(", ")
}

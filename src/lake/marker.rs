//! The data path's marker: which catalog the files belong to.
//!
//! Two catalogs over one data path would each take the other's files for orphans. The marker is an object that holds the
//! catalog's id; it is written once and never changed.

use std::future::Future;

use serde::{Deserialize, Serialize};

use super::Lake;
use super::attach::Found;
use super::settings::LakeSettings;
use crate::error::{Because, Error, ErrorKind, Result};

/// The marker's path below the data path.
pub const MARKER: &str = ".duckpipe-lake.json";

/// What the lake needs of the store of its data files. Paths are below the data path.
pub trait LakeStore: Send + Sync {
    /// The object's bytes; `None` where there is none.
    fn get(&self, path: &str) -> impl Future<Output = Result<Option<Vec<u8>>>> + Send;
    /// Writes an object.
    fn put(&self, path: &str, bytes: Vec<u8>) -> impl Future<Output = Result<()>> + Send;
    /// Removes an object; one that is not there is no error.
    fn delete(&self, path: &str) -> impl Future<Output = Result<()>> + Send;
}

#[derive(Serialize, Deserialize)]
struct Marker {
    v: u32,
    catalog_id: String,
}

impl Lake {
    /// Opens the lake as [`Lake::open`] does, and ties its data path to its catalog. A data path that is another catalog's is
    /// refused before anything is written.
    pub async fn open_with_store(settings: &LakeSettings, store: &impl LakeStore) -> Result<Lake> {
        let marker = match store.get(MARKER).await? {
            None => None,
            Some(bytes) => {
                let marker: Marker = serde_json::from_slice(&bytes).because(ErrorKind::Precondition, || {
                    format!("{}/{MARKER} is no marker of duckpipe", settings.data_path)
                })?;
                Some(marker.catalog_id)
            }
        };
        let (found, data_path) = (marker.clone(), settings.data_path.clone());
        let lake = Lake::start(settings, move |catalog| match (&found, catalog) {
            (None, _) => Ok(()),
            (Some(marker), Found::Lake(Some(id))) if marker == id => Ok(()),
            (Some(marker), _) => Err(Error::new(
                ErrorKind::Precondition,
                format!("the data path {data_path} belongs to another catalog ({marker})"),
            )
            .remedy(format!("take another lake.data_path, or go back to that catalog; {MARKER} there names it"))),
        })
        .await?;
        if marker.is_none() && !settings.read_only {
            let marker = Marker { v: 1, catalog_id: lake.catalog_id().to_owned() };
            let bytes = serde_json::to_vec(&marker).because(ErrorKind::Internal, || "writing the marker".into())?;
            store.put(MARKER, bytes).await?;
        }
        Ok(lake)
    }
}

//! A stock DuckDB that reads a lake again and again, and now and then writes to it.

use std::path::PathBuf;

use duckdb::Connection;

use crate::lake::Lake;
use crate::lake::tests::lab::{Kind, Lab, attach_file};

/// A DuckDB of its own, whose extensions are loaded once: checking their signatures takes longer than most reads of a test.
///
/// A catalog in Postgres stays attached, as that of a reader who stays: what it remembers must not mislead it. A DuckDB file is
/// locked by the lake's own connection: a copy of it is attached anew for each read, and the file itself for each write.
pub struct Judge {
    connection: Connection,
    copy: PathBuf,
}

impl Judge {
    pub fn new(lab: &Lab) -> Judge {
        let connection = lab.stock_duckdb();
        if lab.kind == Kind::Postgres {
            connection.execute_batch(&lab.attach_statement()).unwrap();
        }
        Judge { connection, copy: lab.folder.path().join("copy.ducklake") }
    }

    /// Reads the lake. Nobody may write to it meanwhile.
    pub async fn read<T>(&self, lab: &Lab, work: impl FnOnce(&Connection) -> T) -> T {
        if lab.kind == Kind::Postgres {
            return work(&self.connection);
        }
        let crate::lake::CatalogLocation::File(catalog) = &lab.settings.catalog else { unreachable!() };
        // What was asked of the lake's thread before is done when this is answered.
        lab.lake.latest_snapshot().await.unwrap();
        for suffix in ["", ".wal"] {
            let named = |path: &PathBuf| PathBuf::from(format!("{}{suffix}", path.display()));
            match std::fs::copy(named(catalog), named(&self.copy)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let _ = std::fs::remove_file(named(&self.copy));
                }
                copied => drop(copied.unwrap()),
            }
        }
        self.attached(&attach_file(&self.copy), work)
    }

    /// Writes to the lake. Handles of a file's catalog that were made before end by that.
    pub async fn write<T>(&self, lab: &mut Lab, work: impl FnOnce(&Connection) -> T) -> T {
        if lab.kind == Kind::Postgres {
            return work(&self.connection);
        }
        lab.lake.clone().shutdown().await;
        let result = self.attached(&lab.attach_statement(), work);
        lab.lake = Lake::open(&lab.settings).await.unwrap();
        result
    }

    fn attached<T>(&self, attach: &str, work: impl FnOnce(&Connection) -> T) -> T {
        self.connection.execute_batch(attach).unwrap();
        let result = work(&self.connection);
        self.connection.execute_batch("DETACH lake").unwrap();
        result
    }
}

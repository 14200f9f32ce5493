//! How the source defined its tables where the lake is. A commit records it with the first rows that come under a definition; who
//! starts later knows from it what the WAL speaks of, whatever became of the table since.

use std::collections::HashMap;

use super::Lake;
use crate::error::{Because, ErrorKind, Result};
use crate::source::table::SourceTable;
use crate::sql::literal;

/// The statement that records a definition, whose tables are called `tables`.
pub(super) fn record(tables: &str, pipeline: &str, table_id: i64, definition: &SourceTable) -> Result<String> {
    let definition =
        serde_json::to_string(definition).because(ErrorKind::Internal, || "writing a table's definition".into())?;
    Ok(format!(
        "INSERT INTO {tables}.duckpipe_definition (pipeline, table_id, definition) VALUES ({}, {table_id}, {}) \
         ON CONFLICT (pipeline, table_id) DO UPDATE SET definition = EXCLUDED.definition",
        literal(pipeline),
        literal(&definition)
    ))
}

impl Lake {
    /// What is recorded of a pipeline's tables, by DuckLake's `table_id`.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where it can't be read back.
    pub async fn definitions(&self, pipeline: &str) -> Result<HashMap<i64, SourceTable>> {
        let pipeline = pipeline.to_owned();
        self.run(move |session| {
            let sql = format!(
                "SELECT table_id, definition FROM {}.duckpipe_definition WHERE pipeline = {}",
                session.tables(),
                literal(&pipeline)
            );
            let rows = session.read(&sql, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
            let read = rows.into_iter().map(|(table_id, text)| {
                let definition = serde_json::from_str(&text)
                    .because(ErrorKind::Internal, || format!("the definition of table {table_id} is broken"))?;
                Ok((table_id, definition))
            });
            read.collect()
        })
        .await
    }
}

//! Ranges of tables that a copy has read and not registered yet. Whoever makes the copy again goes on with them.

use std::ops::Range;

use duckpipe_storage::DataFile;

use super::Lake;
use super::pipeline::{self, Fence};
use super::uploads::{CHUNK, path_list};
use crate::error::{Because, ErrorKind, Result};
use crate::sql::literal;

/// A range of a table as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// DuckLake's `table_id`.
    pub table_id: i64,
    /// `pg_class.oid` of the table, or of its partition, in which the rows lie.
    pub relation: u32,
    /// Its relfilenode then.
    pub file_node: u32,
    /// The pages. A range that ends at `u32::MAX` has no end.
    pub pages: Range<u32>,
    /// The `xmin` of the snapshot, with its epoch: all transactions before it had ended.
    pub xmin: u64,
    /// Of what it was read; a part of another definition is of no use.
    pub definition: String,
    /// The files, with the rows in the order in which they lie in the heap.
    pub files: Vec<DataFile>,
    /// Values set to NULL because the lake's type can't hold them.
    pub nulled: u64,
}

impl Lake {
    /// Keeps a part whose files are complete. They are no longer recorded as uploads.
    ///
    /// # Errors
    /// Kind `Fenced`, where another process holds the pipeline.
    pub async fn keep_part(&self, fence: &Fence, part: &Part) -> Result<()> {
        let (fence, part) = (fence.clone(), part.clone());
        self.run(move |session| {
            let rows = part.files.iter().enumerate().map(|(place, file)| {
                let text = serde_json::to_string(file);
                let text = text.because(ErrorKind::Internal, || "writing what a file holds".into())?;
                Ok(format!(
                    "({}, {}, {}, {}, {}, {}, {}, {}, {}, {place}, {}, {})",
                    literal(&file.path),
                    literal(&fence.pipeline),
                    part.table_id,
                    part.relation,
                    part.file_node,
                    part.pages.start,
                    part.pages.end,
                    part.xmin,
                    literal(&part.definition),
                    part.nulled,
                    literal(&text)
                ))
            });
            let rows = rows.collect::<Result<Vec<_>>>()?.join(", ");
            let paths = path_list(part.files.iter().map(|file| file.path.as_str()));
            session.transaction(|session| {
                pipeline::held(session, &fence)?;
                let tables = session.tables();
                session.write(&format!(
                    "DELETE FROM {tables}.duckpipe_upload WHERE path IN ({paths}); \
                     INSERT INTO {tables}.duckpipe_part (path, pipeline, table_id, relation, file_node, first_page, end_page, \
                     snapshot_xmin, definition, place, nulled, file) VALUES {rows};"
                ))
            })
        })
        .await
    }

    /// The parts that a pipeline keeps, by table, heap and pages.
    ///
    /// # Errors
    /// Kind `Internal`, where they can't be read back.
    pub async fn parts(&self, pipeline: &str) -> Result<Vec<Part>> {
        let pipeline = pipeline.to_owned();
        self.run(move |session| {
            let sql = format!(
                "SELECT table_id, relation, file_node, first_page, end_page, snapshot_xmin, definition, nulled, file \
                 FROM {}.duckpipe_part WHERE pipeline = {} ORDER BY table_id, relation, first_page, snapshot_xmin, place",
                session.tables(),
                literal(&pipeline)
            );
            let rows = session.read(&sql, |row| {
                let number = |index| row.get::<_, i64>(index);
                let part = Part {
                    table_id: number(0)?,
                    relation: number(1)? as u32,
                    file_node: number(2)? as u32,
                    pages: number(3)? as u32..number(4)? as u32,
                    xmin: number(5)? as u64,
                    definition: row.get(6)?,
                    files: Vec::new(),
                    nulled: number(7)? as u64,
                };
                Ok((part, row.get::<_, String>(8)?))
            })?;
            let mut parts: Vec<Part> = Vec::new();
            for (part, file) in rows {
                let file: DataFile = serde_json::from_str(&file)
                    .because(ErrorKind::Internal, || "a file of duckpipe_part is broken".into())?;
                let place = |part: &Part| (part.table_id, part.relation, part.pages.clone(), part.xmin);
                match parts.last_mut() {
                    Some(last) if place(last) == place(&part) => last.files.push(file),
                    _ => parts.push(Part { files: vec![file], ..part }),
                }
            }
            Ok(parts)
        })
        .await
    }

    /// Keeps these files no longer: they are orphans then.
    ///
    /// # Errors
    /// Kind `Fenced`, where another process holds the pipeline.
    pub async fn discard_parts(&self, fence: &Fence, paths: Vec<String>) -> Result<()> {
        if paths.is_empty() {
            return Ok(());
        }
        let fence = fence.clone();
        self.run(move |session| {
            session.transaction(|session| {
                pipeline::held(session, &fence)?;
                for chunk in paths.chunks(CHUNK) {
                    let which = format!("path IN ({})", path_list(chunk.iter().map(String::as_str)));
                    session.write(&discard(&session.tables(), &fence.pipeline, &which))?;
                }
                Ok(())
            })
        })
        .await
    }
}

/// The statements, each ended by a semicolon, by which files of parts become uploads of a process that is gone.
pub(super) fn discard(tables: &str, pipeline: &str, which: &str) -> String {
    let which = format!("FROM {tables}.duckpipe_part WHERE pipeline = {} AND {which}", literal(pipeline));
    format!(
        "INSERT INTO {tables}.duckpipe_upload (path, pipeline, epoch, started_at) SELECT path, pipeline, 0, now() {which}; \
         DELETE {which};"
    )
}

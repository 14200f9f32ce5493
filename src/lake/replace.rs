//! The commit of a compaction: files out, files in, and every version reads as before.
//!
//! The new file holds its sources' rows, each with the id that it had and the snapshot that added it, so it takes the sources'
//! place in the past too: it begins with their oldest snapshot. Rows that are dead, but that a version that is still readable
//! shows, stay in it, under a delete file with the snapshots that deleted them.

use std::collections::{HashMap, HashSet};

use duckpipe_storage::{DataFile, DeleteFile};

use super::Lake;
use super::compaction::{ROW_ID, SNAPSHOT_ID, live_deletes};
use super::copies::Shown;
use super::files::{LiveDelete, Snapshot, id_list, latest_snapshot};
use super::maintenance::Maintenance;
use super::pipeline::{self, PipelineRow, PipelineState};
use super::script::{file_stats, in_folder};
use super::session::Session;
use super::stamp;
use super::table_row::read_rows;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::sql::literal;

/// What takes the place of some of a table's files.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// DuckLake's `table_id`.
    pub table_id: i64,
    /// The files that go, each with the live delete file whose deletes were carried over.
    pub sources: Vec<(i64, Option<i64>)>,
    /// The files that come. None where no row of the sources is readable any more.
    pub outputs: Vec<RewrittenFile>,
}

/// A file that a compaction wrote.
#[derive(Clone, Debug)]
pub struct RewrittenFile {
    /// The file. Its rows carry their ids and the snapshots that added them.
    pub data: DataFile,
    /// The least of these snapshots.
    pub begin_snapshot: i64,
    /// The greatest.
    pub partial_max: i64,
    /// Which of its rows are dead.
    pub delete: Option<RewrittenDelete>,
}

/// The delete file of a [`RewrittenFile`].
#[derive(Clone, Debug)]
pub struct RewrittenDelete {
    /// The file, with the snapshot that deleted each row.
    pub file: DeleteFile,
    /// The least of these snapshots.
    pub begin_snapshot: i64,
    /// The greatest.
    pub partial_max: i64,
}

/// What became of a [`Replacement`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// It is committed as this snapshot.
    Committed(i64),
    /// More rows of a source were deleted meanwhile: carry these over, and commit anew. Nothing was written.
    Moved,
    /// It can't be committed any more, and why: a source is gone, or this run was taken for dead. Nothing was written.
    Void(String),
}

impl Lake {
    /// Replaces files under the lake-wide commit lock, as a snapshot that repeats the pipeline's position.
    ///
    /// # Errors
    /// As [`Lake::commit`], but for its conflicts, which are [`Replaced`]. A [`ErrorKind::Transient`] error whose message speaks
    /// of COMMIT may have taken place: the sources tell.
    pub async fn replace_files(&self, run: &Maintenance, replacement: &Replacement) -> Result<Replaced> {
        let (run, replacement) = (run.clone(), replacement.clone());
        self.run(move |session| {
            session.locked_transaction(|session| replace(session, &run, &replacement)).inspect(after_commit)
        })
        .await
    }

    /// As [`Lake::replace_files`], for a table whose files change faster than their deletes are carried over: `prepare` does
    /// that while the lock is held, and is told the sources' live delete files. It says why where there is nothing to commit.
    /// Every other commit waits for it.
    pub async fn replace_files_at_once(
        &self,
        run: &Maintenance,
        table_id: i64,
        sources: &[i64],
        prepare: impl FnOnce(HashMap<i64, Option<LiveDelete>>) -> Result<std::result::Result<Replacement, String>>
        + Send
        + 'static,
    ) -> Result<Replaced> {
        let (run, sources) = (run.clone(), sources.to_vec());
        self.run(move |session| {
            let replaced =
                session.locked_transaction(|session| match prepare(live_deletes(session, table_id, &sources)?)? {
                    Ok(replacement) => replace(session, &run, &replacement),
                    Err(why) => Ok(Replaced::Void(why)),
                });
            replaced.inspect(after_commit)
        })
        .await
    }
}

fn after_commit(replaced: &Replaced) {
    if matches!(replaced, Replaced::Committed(_)) {
        failpoint("compact_after_commit");
    }
}

fn replace(session: &Session, run: &Maintenance, replacement: &Replacement) -> Result<Replaced> {
    let table_id = replacement.table_id;
    let Some(pipeline) = pipeline::read(session, &run.pipeline)? else {
        return Ok(Replaced::Void(format!("the pipeline {} is gone", run.pipeline)));
    };
    if pipeline.state != PipelineState::Streaming {
        return Ok(Replaced::Void(format!("the pipeline {} is copied anew", run.pipeline)));
    }
    let base = latest_snapshot(session)?;
    let Some(known) = session.known_table(table_id, base.schema_version)? else {
        return Ok(Replaced::Void("the table was dropped".into()));
    };
    if let Some(unfit) = check_sources(session, replacement)? {
        return Ok(unfit);
    }
    if !run.owns(session, &paths(replacement))? {
        return Ok(Replaced::Void("this run stood still for so long that it was taken for dead".into()));
    }

    let (tables, clock, id, folder) = (session.tables(), session.clock(), base.id + 1, &known.folder);
    let mut next_file_id = base.next_file_id;
    let mut file_id = || {
        next_file_id += 1;
        next_file_id - 1
    };
    let (mut files, mut stats, mut deletes) = (Vec::new(), Vec::new(), Vec::new());
    for output in &replacement.outputs {
        let data_file_id = file_id();
        let data = &output.data;
        // No row_id_start: the rows carry their ids.
        files.push(format!(
            "({data_file_id}, {table_id}, {}, NULL, NULL, {}, true, 'parquet', {}, {}, {}, NULL, NULL, NULL, NULL, {})",
            output.begin_snapshot,
            literal(in_folder(folder, &data.path)?),
            data.rows,
            data.bytes,
            data.footer_bytes,
            output.partial_max
        ));
        let own = data.columns.iter().filter(|column| ![ROW_ID, SNAPSHOT_ID].contains(&column.field_id));
        stats.extend(own.map(|column| file_stats(data_file_id, table_id, column, &known.columns)));
        if let Some(RewrittenDelete { file, begin_snapshot, partial_max }) = &output.delete {
            if *partial_max > base.id {
                return Err(Error::new(ErrorKind::Internal, format!("{} holds deletes of the future", file.path)));
            }
            deletes.push(format!(
                "({}, {table_id}, {begin_snapshot}, NULL, {data_file_id}, {}, true, 'parquet', {}, {}, {}, NULL, {partial_max})",
                file_id(),
                literal(in_folder(folder, &file.path)?),
                file.rows,
                file.bytes,
                file.footer_bytes,
            ));
        }
    }
    let sources = id_list(replacement.sources.iter().map(|(id, _)| *id));
    let mut sql = head(session, &base, next_file_id, &pipeline, replacement, &known.name.to_string())?;
    for (table, file) in [("ducklake_data_file", "data_file_id"), ("ducklake_delete_file", "delete_file_id")] {
        // Unlike elsewhere, these paths are relative to the data path.
        sql.push_str(&format!(
            "INSERT INTO {tables}.ducklake_files_scheduled_for_deletion (data_file_id, path, path_is_relative, schedule_start) \
             SELECT {file}, CASE WHEN path_is_relative THEN {} || path ELSE path END, path_is_relative, {clock} \
             FROM {tables}.{table} WHERE data_file_id IN ({sources});\n",
            literal(&format!("{folder}/"))
        ));
    }
    for table in [
        "ducklake_data_file",
        "ducklake_file_column_stats",
        "ducklake_delete_file",
        "ducklake_file_partition_value",
        "ducklake_file_variant_stats",
    ] {
        sql.push_str(&format!("DELETE FROM {tables}.{table} WHERE data_file_id IN ({sources});\n"));
    }
    let inserts = [
        (
            "ducklake_data_file (data_file_id, table_id, begin_snapshot, end_snapshot, file_order, path, path_is_relative, \
             file_format, record_count, file_size_bytes, footer_size, row_id_start, partition_id, encryption_key, mapping_id, \
             partial_max)",
            files,
        ),
        (
            "ducklake_file_column_stats (data_file_id, table_id, column_id, column_size_bytes, value_count, null_count, \
             min_value, max_value, contains_nan, extra_stats)",
            stats,
        ),
        (
            "ducklake_delete_file (delete_file_id, table_id, begin_snapshot, end_snapshot, data_file_id, path, \
             path_is_relative, format, delete_count, file_size_bytes, footer_size, encryption_key, partial_max)",
            deletes,
        ),
    ];
    for (into, rows) in inserts.into_iter().filter(|(_, rows)| !rows.is_empty()) {
        sql.push_str(&format!("INSERT INTO {tables}.{into} VALUES {};\n", rows.join(", ")));
    }
    sql.push_str(&run.forget_sql(session, &paths(replacement)));
    session.write(&sql)?;
    failpoint("compact_before_commit");
    Ok(Replaced::Committed(id))
}

/// The files that the replacement brings.
fn paths(replacement: &Replacement) -> Vec<String> {
    let outputs = replacement.outputs.iter();
    let deletes = outputs.clone().filter_map(|output| output.delete.as_ref()).map(|delete| delete.file.path.clone());
    outputs.map(|output| output.data.path.clone()).chain(deletes).collect()
}

/// Whether the sources are as the rewrite saw them; if not, what that means.
fn check_sources(session: &Session, replacement: &Replacement) -> Result<Option<Replaced>> {
    let (tables, table_id) = (session.tables(), replacement.table_id);
    let sources = id_list(replacement.sources.iter().map(|(id, _)| *id));
    let sql = format!(
        "SELECT f.data_file_id, d.delete_file_id, d.end_snapshot FROM {tables}.ducklake_data_file f \
         LEFT JOIN {tables}.ducklake_delete_file d ON d.data_file_id = f.data_file_id \
         WHERE f.table_id = {table_id} AND f.end_snapshot IS NULL AND f.data_file_id IN ({sources})"
    );
    let rows = session.read(&sql, |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?, row.get::<_, Option<i64>>(2)?.is_some()))
    })?;
    let mut found: HashMap<i64, Option<i64>> = HashMap::new();
    for (file, delete, ended) in rows {
        if found.insert(file, delete).is_some() || ended {
            return Ok(Some(Replaced::Void(format!("data file {file} got deletes of a form that is not rewritten"))));
        }
    }
    if let Some((gone, _)) = replacement.sources.iter().find(|(file, _)| !found.contains_key(file)) {
        return Ok(Some(Replaced::Void(format!("data file {gone} is not live any more"))));
    }
    let inlined = format!("ducklake_inlined_delete_{table_id}");
    if session.has_table(&inlined)? {
        let sql = format!("SELECT count(*) FROM {tables}.{inlined} WHERE file_id IN ({sources})");
        if session.read(&sql, |row| row.get::<_, i64>(0))? != [0] {
            return Ok(Some(Replaced::Void("somebody else keeps deletes of the table in its catalog".into())));
        }
    }
    let distinct: HashSet<i64> = replacement.sources.iter().map(|(file, _)| *file).collect();
    if distinct.len() != replacement.sources.len() {
        return Err(Error::new(ErrorKind::Internal, "one file is replaced twice"));
    }
    let moved = replacement.sources.iter().any(|(file, delete)| found.get(file) != Some(delete));
    Ok(moved.then_some(Replaced::Moved))
}

/// The snapshot's rows: its primary key is what two writers collide on.
fn head(
    session: &Session,
    base: &Snapshot,
    next_file_id: i64,
    pipeline: &PipelineRow,
    replacement: &Replacement,
    name: &str,
) -> Result<String> {
    let (tables, id) = (session.tables(), base.id + 1);
    let Snapshot { schema_version, next_catalog_id, .. } = *base;
    // Raised even where no file came: readers keep statistics by it.
    let next_file_id = next_file_id.max(base.next_file_id + 1);
    Ok(format!(
        "INSERT INTO {tables}.ducklake_snapshot (snapshot_id, snapshot_time, schema_version, next_catalog_id, next_file_id) \
         VALUES ({id}, {}, {schema_version}, {next_catalog_id}, {next_file_id});\n\
         INSERT INTO {tables}.ducklake_snapshot_changes \
         (snapshot_id, changes_made, author, commit_message, commit_extra_info) \
         VALUES ({id}, 'merge_adjacent:{}', 'duckpipe', {}, {});\n",
        session.clock(),
        replacement.table_id,
        literal(&format!("{}: compacted {name}", pipeline.name)),
        literal(&repeated_stamp(session, pipeline)?)
    ))
}

/// The pipeline's position once more, as its last flush stamped it.
fn repeated_stamp(session: &Session, pipeline: &PipelineRow) -> Result<String> {
    let condition = format!("t.pipeline = {} AND t.table_id IS NOT NULL", literal(&pipeline.name));
    let shown = read_rows(session, &condition)?.into_iter();
    let shown = shown.map(|row| Shown { name: row.target, state: row.state, lsn: row.lsn, slot: row.slot });
    let behind = shown.filter_map(|shown| shown.behind(pipeline.lsn)).collect();
    Ok(stamp::stamp(pipeline, pipeline.lsn, stamp::last_commit_ts(session, pipeline)?, behind))
}

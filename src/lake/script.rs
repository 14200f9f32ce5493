//! The statements of a commit.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use duckpipe_storage::{ColumnStats, DataFile};

use super::alter::{self, Alteration, Altered, Place, Renamed};
use super::commit::{Commit, TableCommit};
use super::facts::Facts;
use super::files::{Snapshot, id_list};
use super::pipeline::PipelineRow;
use super::session::Session;
use super::stamp;
use super::statistics::{self, Change, TableColumnStats};
use super::table::{CatalogColumn, KnownTable, data_path};
use super::table_row::TableState;
use super::{copies, definitions, parts};
use crate::error::{Because, Error, ErrorKind, Result, ResultExt};
use crate::sql::{identifier, literal};

/// The statements of one commit, put together so that a Postgres catalog gets them in one round trip.
pub(super) struct Script<'a> {
    session: &'a Session,
    tables: String,
    base: Snapshot,
    pipeline: PipelineRow,
    facts: Facts,
    next_file_id: i64,
    /// The lake's schema has a new version with this commit.
    alters: bool,
    changes: Vec<String>,
    /// The statements, each ended by a semicolon.
    pub(super) sql: String,
    /// The new snapshot's id.
    pub(super) id: i64,
    /// Per table, the ids that its data files got.
    pub(super) data_file_ids: Vec<Vec<i64>>,
    /// Per table, the ids that its delete files got.
    pub(super) delete_file_ids: Vec<Vec<i64>>,
}

impl<'a> Script<'a> {
    pub(super) fn new(session: &'a Session, base: Snapshot, pipeline: PipelineRow, facts: Facts) -> Self {
        Script {
            session,
            tables: session.tables(),
            base,
            pipeline,
            facts,
            next_file_id: base.next_file_id,
            alters: false,
            changes: Vec::new(),
            sql: String::new(),
            id: base.id + 1,
            data_file_ids: Vec::new(),
            delete_file_ids: Vec::new(),
        }
    }

    fn file_id(&mut self) -> i64 {
        let id = self.next_file_id;
        self.next_file_id += 1;
        id
    }

    fn statement(&mut self, statement: &str) {
        self.sql.push_str(statement);
        self.sql.push_str(";\n");
    }

    /// Adds what a commit brings to one table.
    pub(super) fn table(&mut self, commit: &Commit, table: &TableCommit) -> Result<()> {
        let table_id = table.table_id;
        let known = self.session.known_table(table_id, self.base.schema_version)?.ok_or_else(|| {
            Error::new(ErrorKind::Table, format!("the lake's table {table_id} was dropped by somebody else"))
                .remedy("copy the table anew: `duckpipe tables resync`")
        })?;
        let context = || format!("the lake's table {}", known.name);
        let own = self.facts.own(&self.pipeline.name, table_id).context(context)?;
        own.check(commit)?;
        let before = own.state;
        let (mut data_file_ids, mut delete_file_ids) = (Vec::new(), Vec::new());
        // A file without rows is not registered. Its upload stays recorded, and is removed as an orphan.
        let data: Vec<DataFile> = table.data.iter().filter(|file| file.rows > 0).cloned().collect();
        let mut altered = None;
        if let Some(alteration) = &table.alteration {
            altered = Some(self.alter(table_id, alteration, &known).context(context)?);
        }
        let columns = altered.as_ref().unwrap_or(&known.columns);
        if table.replace {
            self.end_all_files(table_id);
        }
        if !table.deletes.is_empty() {
            delete_file_ids = self.deletes(table, &known.folder).context(context)?;
        }
        if !data.is_empty() {
            data_file_ids = self.data(table_id, &data, (columns, &known.folder)).context(context)?;
            self.changes.push(format!("inserted_into_table:{table_id}"));
        }
        if table.replace || !table.deletes.is_empty() {
            self.changes.push(format!("deleted_from_table:{table_id}"));
        }
        if table.replace {
            // What a copy was made of, and what it did without.
            let statements = parts::discard(&self.tables, &self.pipeline.name, &format!("table_id = {table_id}"));
            self.sql.push_str(&statements);
        }
        let registered = data.iter().map(|file| &file.path).chain(table.deletes.iter().map(|delete| &delete.file.path));
        let registered: Vec<String> = registered.map(|path| literal(path)).collect();
        if !registered.is_empty() {
            let tables = &self.tables;
            self.statement(&format!("DELETE FROM {tables}.duckpipe_upload WHERE path IN ({})", registered.join(", ")));
        }
        self.own_row(commit, table, before);
        if let Some(definition) = &table.definition {
            let statement = definitions::record(&self.tables, &self.pipeline.name, table_id, definition)?;
            self.statement(&statement);
        }
        self.data_file_ids.push(data_file_ids);
        self.delete_file_ids.push(delete_file_ids);
        Ok(())
    }

    /// The table's columns from now on.
    fn alter(&mut self, table_id: i64, alteration: &Alteration, known: &KnownTable) -> Result<Vec<CatalogColumn>> {
        let tables = self.tables.clone();
        let next = alter::next_column_id(self.session, table_id)?;
        let place = Place { tables: &tables, table_id, snapshot: self.id };
        let Altered { columns, statements } = alter::alter(&place, &known.columns, next, &alteration.changes)?;
        for statement in statements {
            self.statement(&statement);
        }
        let (id, version) = (self.id, self.base.schema_version + 1);
        self.statement(&format!(
            "INSERT INTO {tables}.ducklake_schema_versions (begin_snapshot, schema_version, table_id) \
             VALUES ({id}, {version}, {table_id})"
        ));
        let own =
            serde_json::to_string(&alteration.columns).because(ErrorKind::Internal, || "writing the columns".into())?;
        self.statement(&format!(
            "UPDATE {tables}.duckpipe_table SET columns = {} WHERE pipeline = {} AND table_id = {table_id}",
            literal(&own),
            literal(&self.pipeline.name)
        ));
        if let Some(name) = &alteration.name {
            self.rename(table_id, name, known)?;
        }
        self.changes.push(format!("altered_table:{table_id}"));
        self.alters = true;
        Ok(columns)
    }

    /// As DuckLake's own ALTER TABLE … RENAME TO, and into another schema, which DuckLake has no statement for. The files stay in their folder.
    fn rename(&mut self, table_id: i64, Renamed { source, target }: &Renamed, known: &KnownTable) -> Result<()> {
        if copies::is_taken(self.session, target, Some(table_id))? {
            let what = format!("the source's table is {source} now, and the lake has another table of that name");
            return Err(Error::new(ErrorKind::Table, what).remedy("rename one of them, or set on_rename = \"keep\""));
        }
        let (tables, id, name) = (self.tables.clone(), self.id, literal(&target.table));
        let place = match target.schema == known.name.schema {
            true => "schema_id, path, path_is_relative".to_owned(),
            false => self.place_in(&target.schema, &known.folder)?,
        };
        self.statement(&format!(
            "UPDATE {tables}.ducklake_table SET end_snapshot = {id} WHERE table_id = {table_id} AND end_snapshot IS NULL"
        ));
        self.statement(&format!(
            "INSERT INTO {tables}.ducklake_table \
             (table_id, table_uuid, begin_snapshot, end_snapshot, table_name, schema_id, path, path_is_relative) \
             SELECT table_id, table_uuid, {id}, NULL, {name}, {place} \
             FROM {tables}.ducklake_table WHERE table_id = {table_id} AND end_snapshot = {id}"
        ));
        self.statement(&format!(
            "UPDATE {tables}.duckpipe_table SET target_schema = {}, target_table = {name}, {} WHERE pipeline = {} AND table_id = {table_id}",
            literal(&target.schema),
            copies::renamed(source),
            literal(&self.pipeline.name)
        ));
        Ok(())
    }

    /// A schema's id, and the path of a folder for a table in it, with whether that is relative: below the schema's own folder it is.
    fn place_in(&self, schema: &str, folder: &str) -> Result<String> {
        let sql = format!(
            "SELECT schema_id, path FROM {}.ducklake_schema WHERE end_snapshot IS NULL AND lower(schema_name) = lower({})",
            self.tables,
            literal(schema)
        );
        let rows = self.session.read(&sql, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
        let (schema_id, path) = rows.into_iter().next().ok_or_else(|| {
            // It was there when the name was looked at.
            Error::new(ErrorKind::Table, format!("the lake's schema {schema} was dropped")).mended_by_resync()
        })?;
        let folder = format!("{folder}/");
        Ok(match folder.strip_prefix(&path) {
            Some(below) => format!("{schema_id}, {}, true", literal(below)),
            None => format!("{schema_id}, {}, false", literal(&(data_path(self.session)? + &folder))),
        })
    }

    /// As DuckLake's own TRUNCATE, or DELETE of all rows, does it: data files end; their delete files stay as they are, they hang
    /// on them. Nor do the table's statistics change: they are of all rows that it ever had.
    fn end_all_files(&mut self, table_id: i64) {
        let (tables, id) = (self.tables.clone(), self.id);
        self.statement(&format!(
            "UPDATE {tables}.ducklake_data_file SET end_snapshot = {id} WHERE table_id = {table_id} AND end_snapshot IS NULL"
        ));
        let inlined: Vec<String> = self.facts.inlined(table_id).iter().map(|name| identifier(name)).collect();
        for name in inlined {
            self.statement(&format!("UPDATE {tables}.{name} SET end_snapshot = {id} WHERE end_snapshot IS NULL"));
        }
    }

    fn deletes(&mut self, table: &TableCommit, folder: &str) -> Result<Vec<i64>> {
        let table_id = table.table_id;
        let distinct: HashSet<i64> = table.deletes.iter().map(|delete| delete.data_file_id).collect();
        if distinct.len() != table.deletes.len() {
            return Err(Error::new(ErrorKind::Internal, "two delete files for one data file in one commit"));
        }
        if table.replace {
            return Err(Error::new(ErrorKind::Internal, "a commit that replaces all files can't delete rows in them"));
        }
        let tables = self.tables.clone();
        let mut replaced = Vec::new();
        for delete in &table.deletes {
            replaced.extend(self.facts.replaced(table_id, delete)?);
        }
        if !replaced.is_empty() {
            let clock = self.session.clock();
            let rows = replaced.iter().map(|old| {
                // Unlike elsewhere, this path is relative to the data path.
                let path = if old.relative { format!("{folder}/{}", old.path) } else { old.path.clone() };
                format!("({}, {}, {}, {clock})", old.id, literal(&path), old.relative)
            });
            let rows = rows.collect::<Vec<_>>().join(", ");
            self.statement(&format!(
                "INSERT INTO {tables}.ducklake_files_scheduled_for_deletion \
                 (data_file_id, path, path_is_relative, schedule_start) VALUES {rows}"
            ));
            self.statement(&format!(
                "DELETE FROM {tables}.ducklake_delete_file WHERE delete_file_id IN ({})",
                id_list(replaced.iter().map(|old| old.id))
            ));
        }
        let mut ids = Vec::with_capacity(table.deletes.len());
        let mut rows = Vec::with_capacity(table.deletes.len());
        for delete in &table.deletes {
            if delete.partial_max > self.id || delete.begin_snapshot > delete.partial_max {
                return Err(Error::new(
                    ErrorKind::Internal,
                    format!("{} holds deletes of snapshots that are not this commit's", delete.file.path),
                ));
            }
            let id = self.file_id();
            ids.push(id);
            rows.push(format!(
                "({id}, {table_id}, {}, NULL, {}, {}, true, 'parquet', {}, {}, {}, NULL, {})",
                delete.begin_snapshot,
                delete.data_file_id,
                literal(in_folder(folder, &delete.file.path)?),
                delete.file.rows,
                delete.file.bytes,
                delete.file.footer_bytes,
                delete.partial_max
            ));
        }
        self.statement(&format!(
            "INSERT INTO {tables}.ducklake_delete_file (delete_file_id, table_id, begin_snapshot, end_snapshot, data_file_id, \
             path, path_is_relative, format, delete_count, file_size_bytes, footer_size, encryption_key, partial_max) VALUES {}",
            rows.join(", ")
        ));
        Ok(ids)
    }

    fn data(
        &mut self,
        table_id: i64,
        data: &[DataFile],
        (columns, folder): (&[CatalogColumn], &str),
    ) -> Result<Vec<i64>> {
        let next_row_id = self.facts.next_row_id(table_id);
        let mut row_id = next_row_id.unwrap_or(0);
        let (mut ids, mut files, mut stats) = (Vec::with_capacity(data.len()), Vec::new(), Vec::new());
        for file in data {
            let id = self.file_id();
            ids.push(id);
            files.push(format!(
                "({id}, {table_id}, {}, NULL, NULL, {}, true, 'parquet', {}, {}, {}, {row_id}, NULL, NULL, NULL, NULL)",
                self.id,
                literal(in_folder(folder, &file.path)?),
                file.rows,
                file.bytes,
                file.footer_bytes,
            ));
            row_id += file.rows as i64;
            stats.extend(file.columns.iter().map(|column| file_stats(id, table_id, column, columns)));
        }
        let tables = self.tables.clone();
        self.statement(&format!(
            "INSERT INTO {tables}.ducklake_data_file (data_file_id, table_id, begin_snapshot, end_snapshot, file_order, path, \
             path_is_relative, file_format, record_count, file_size_bytes, footer_size, row_id_start, partition_id, \
             encryption_key, mapping_id, partial_max) VALUES {}",
            files.join(", ")
        ));
        if !stats.is_empty() {
            self.statement(&format!(
                "INSERT INTO {tables}.ducklake_file_column_stats (data_file_id, table_id, column_id, column_size_bytes, \
                 value_count, null_count, min_value, max_value, contains_nan, extra_stats) VALUES {}",
                stats.join(", ")
            ));
        }
        let rows: u64 = data.iter().map(|file| file.rows).sum();
        let bytes: u64 = data.iter().map(|file| file.bytes).sum();
        self.statement(&match next_row_id {
            Some(_) => format!(
                "UPDATE {tables}.ducklake_table_stats SET record_count = record_count + {rows}, next_row_id = {row_id}, \
                 file_size_bytes = file_size_bytes + {bytes} WHERE table_id = {table_id}"
            ),
            None => format!(
                "INSERT INTO {tables}.ducklake_table_stats (table_id, record_count, next_row_id, file_size_bytes) \
                 VALUES ({table_id}, {rows}, {row_id}, {bytes})"
            ),
        });
        let current = self.facts.column_stats(table_id);
        let changes = statistics::widen(self.session, columns, &current, next_row_id.is_some(), data)?;
        self.column_stats(table_id, &current, changes);
        Ok(ids)
    }

    fn column_stats(&mut self, table_id: i64, current: &HashMap<i64, TableColumnStats>, changes: Vec<(i64, Change)>) {
        let (mut inserted, mut updated, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        for (column_id, change) in changes {
            let known = current.contains_key(&column_id);
            match change {
                Change::Keep => {}
                Change::Remove if known => removed.push(column_id),
                Change::Remove => {}
                Change::Write(stats) => {
                    let row = format!(
                        "(CAST({table_id} AS BIGINT), CAST({column_id} AS BIGINT), CAST({} AS BOOLEAN), CAST({} AS BOOLEAN), \
                         CAST({} AS VARCHAR), CAST({} AS VARCHAR))",
                        truth(stats.contains_null),
                        truth(stats.contains_nan),
                        text(stats.min.as_deref()),
                        text(stats.max.as_deref())
                    );
                    if known { updated.push(row) } else { inserted.push(row) }
                }
            }
        }
        let tables = self.tables.clone();
        if !removed.is_empty() {
            self.statement(&format!(
                "DELETE FROM {tables}.ducklake_table_column_stats WHERE table_id = {table_id} AND column_id IN ({})",
                id_list(removed)
            ));
        }
        if !updated.is_empty() {
            self.statement(&format!(
                "UPDATE {tables}.ducklake_table_column_stats AS s SET contains_null = v.contains_null, \
                 contains_nan = v.contains_nan, min_value = v.min_value, max_value = v.max_value FROM (VALUES {}) \
                 AS v(table_id, column_id, contains_null, contains_nan, min_value, max_value) \
                 WHERE s.table_id = v.table_id AND s.column_id = v.column_id",
                updated.join(", ")
            ));
        }
        if !inserted.is_empty() {
            self.statement(&format!(
                "INSERT INTO {tables}.ducklake_table_column_stats \
                 (table_id, column_id, contains_null, contains_nan, min_value, max_value) VALUES {}",
                inserted.join(", ")
            ));
        }
    }

    fn own_row(&mut self, commit: &Commit, table: &TableCommit, before: TableState) {
        let own = table.lsn.unwrap_or(commit.lsn);
        let lsn = match table.state {
            // At its pipeline's position: the column is not read.
            TableState::Streaming => text(Some(&commit.lsn.to_string())),
            TableState::Errored if before == TableState::Streaming => {
                text(self.pipeline.lsn.map(|lsn| lsn.to_string()).as_deref())
            }
            TableState::Errored | TableState::Dropped | TableState::Paused => "lsn".into(),
            TableState::Pending | TableState::Snapshot | TableState::Catchup => text(Some(&own.to_string())),
        };
        let mut statement = format!(
            "UPDATE {}.duckpipe_table SET state = '{}', lsn = {lsn}, rows_copied = rows_copied + {}, \
             rows_applied = rows_applied + {}, values_nulled = values_nulled + {}",
            self.tables, table.state, table.rows_copied, table.rows_applied, table.values_nulled
        );
        if table.changes_rows() {
            statement.push_str(", last_commit_at = now()");
        }
        if table.state != TableState::Errored {
            statement.push_str(", error = NULL");
        }
        let _ =
            write!(statement, " WHERE pipeline = {} AND table_id = {}", literal(&self.pipeline.name), table.table_id);
        self.statement(&statement);
    }

    /// The snapshot's rows go first: its primary key is what two writers collide on.
    pub(super) fn snapshot(&mut self, commit: &Commit) -> Result<()> {
        let Snapshot { schema_version, next_catalog_id, next_file_id, .. } = self.base;
        let schema_version = schema_version + i64::from(self.alters);
        // Raised even where no file id was taken: readers keep statistics by it.
        let next_file_id = self.next_file_id.max(next_file_id + 1);
        let lsn = if commit.slot.is_none() { Some(commit.lsn) } else { self.pipeline.lsn };
        let commit_ts = match commit.commit_ts.filter(|_| commit.slot.is_none()) {
            Some(micros) => chrono::DateTime::from_timestamp_micros(micros),
            // No transaction of the pipeline's: the last one's time stays.
            None if commit.follows.is_some() || commit.slot.is_some() => {
                stamp::last_commit_ts(self.session, &self.pipeline)?
            }
            None => None,
        };
        let info = stamp::stamp(&self.pipeline, lsn, commit_ts, self.facts.behind(commit, lsn));
        let (tables, id) = (&self.tables, self.id);
        let head = format!(
            "INSERT INTO {tables}.ducklake_snapshot (snapshot_id, snapshot_time, schema_version, next_catalog_id, next_file_id) \
             VALUES ({id}, {}, {schema_version}, {next_catalog_id}, {next_file_id});\n\
             INSERT INTO {tables}.ducklake_snapshot_changes \
             (snapshot_id, changes_made, author, commit_message, commit_extra_info) \
             VALUES ({id}, {}, 'duckpipe', {}, {});\n",
            self.session.clock(),
            literal(&self.changes.join(",")),
            literal(&match &commit.slot {
                None => format!("{} up to {}", self.pipeline.name, commit.lsn),
                Some(_) => format!("{}: a copy up to {}", self.pipeline.name, commit.lsn),
            }),
            literal(&info)
        );
        self.sql.insert_str(0, &head);
        Ok(())
    }
}

pub(super) fn file_stats(file: i64, table_id: i64, stats: &ColumnStats, columns: &[CatalogColumn]) -> String {
    let floating =
        columns.iter().any(|column| column.id == i64::from(stats.field_id) && column.lake_type.starts_with("float"));
    format!(
        "({file}, {table_id}, {}, {}, {}, {}, {}, {}, {}, NULL)",
        stats.field_id,
        stats.bytes,
        stats.values,
        stats.nulls,
        text(stats.min.as_deref()),
        text(stats.max.as_deref()),
        truth(stats.contains_nan.filter(|_| floating))
    )
}

/// The file's path below its table's folder, as DuckLake stores it.
pub(super) fn in_folder<'a>(folder: &str, path: &'a str) -> Result<&'a str> {
    path.strip_prefix(folder)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{path} does not lie in its table's folder {folder}")))
}

pub(super) fn text(value: Option<&str>) -> String {
    value.map_or_else(|| "NULL".into(), literal)
}

pub(super) fn truth(value: Option<bool>) -> &'static str {
    match value {
        Some(true) => "true",
        Some(false) => "false",
        None => "NULL",
    }
}

//! A table that is flushed to as `sync` does it, and what every version of it must read as.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use async_trait::async_trait;
use duckdb::Connection;
use duckpipe_storage::{
    BoxError, DataFile, DataFileOptions, DataFileWriter, Deletes, Store, UploadLog, read_delete_file,
    write_delete_files,
};
use rand::Rng;
use rand::rngs::StdRng;

use crate::batch::layout::{ColumnType, TableLayout};
use crate::compact::Compactor;
use crate::config::{CliOverrides, Config};
use crate::lake::lookup::{KeyColumns, locate};
use crate::lake::tests::lab::{Lab, query, table_commit};
use crate::lake::{Commit, DeleteCommit, LakeTable, LiveFile, PipelineState};
use crate::lsn::Lsn;
use crate::sql::literal;

/// The columns beside the key.
pub type Row = (String, i32);

struct NoLog;

#[async_trait]
impl UploadLog for NoLog {
    async fn starting(&self, _: &[String]) -> Result<(), BoxError> {
        Ok(())
    }
}

/// A table `(id bigint, s text, v int)` with the key `id`.
pub struct Table {
    pub table: LakeTable,
    layout: TableLayout,
    pub store: Store,
    lsn: u64,
    next_row: i64,
    pub rows: BTreeMap<i64, (Row, i64)>,
    /// What each version shows: rows with their ids.
    pub versions: BTreeMap<i64, BTreeMap<i64, (Row, i64)>>,
    /// The change feed: snapshot, row id, kind, then the row.
    events: Vec<(i64, i64, &'static str, i64, Row)>,
}

/// A compactor with a configuration that finds something to do in small tables.
pub async fn compactor(lab: &Lab, settings: &str) -> Compactor {
    let path = lab.folder.path().join("duckpipe.toml");
    let least = if settings.contains("min_files") { "" } else { "min_files = 2\n" };
    let text = format!(
        "name = \"shop\"\n[source]\nurl = \"postgres://nobody@localhost/none\"\n[lake]\ncatalog = \"unused\"\n\
         data_path = {}\n[compact]\n{least}{settings}\n[[tables]]\nsource = \"public.*\"\n",
        serde_json::to_string(&lab.settings.data_path).unwrap()
    );
    std::fs::write(&path, text).unwrap();
    let overrides = CliOverrides { config: Some(path), settings: Vec::new() };
    let mut config = Config::load_from(&overrides, &BTreeMap::new(), lab.folder.path()).unwrap();
    config.compact.retain = None;
    config.compact.delete_grace = std::time::Duration::ZERO;
    let store = Store::open(&lab.settings.data_path, None).await.unwrap();
    Compactor::new(Arc::new(config), lab.lake.clone(), store)
}

impl Table {
    pub async fn new(lab: &Lab, name: &str) -> Table {
        let columns = [("id", ColumnType::Int8), ("s", ColumnType::Text), ("v", ColumnType::Int4)];
        let (table, layout) = lab.table(name, &columns).await;
        Table {
            table,
            layout,
            store: Store::open(&lab.settings.data_path, None).await.unwrap(),
            lsn: lab.lake.pipeline("shop").await.unwrap().unwrap().lsn.map_or(1 << 32, |lsn| lsn.0),
            next_row: 0,
            rows: BTreeMap::new(),
            versions: BTreeMap::new(),
            events: Vec::new(),
        }
    }

    /// Commits changes of keys, a new row or none each, as a flush does. Gives the snapshot.
    pub async fn flush(&mut self, lab: &Lab, changes: &BTreeMap<i64, Option<Row>>) -> i64 {
        self.commit(lab, changes, false).await
    }

    /// Removes all rows, as the flush of a TRUNCATE does, and commits changes on top.
    pub async fn truncate(&mut self, lab: &Lab, changes: &BTreeMap<i64, Option<Row>>) -> i64 {
        self.commit(lab, changes, true).await
    }

    async fn commit(&mut self, lab: &Lab, changes: &BTreeMap<i64, Option<Row>>, truncate: bool) -> i64 {
        let key_id = self.table.columns[0].id.column_id;
        let live = lab.lake.live_files(&[(self.table.table_id, vec![key_id])]).await.unwrap();
        let snapshot = live.base_snapshot + 1;
        let files = &live.files[&self.table.table_id];
        let mut commit = table_commit(self.table.table_id);
        commit.data = self.write(changes).await;
        commit.replace = truncate;
        if !truncate {
            commit.deletes = self.deletes(files, changes, snapshot).await;
        }
        self.lsn += 1;
        let commit = Commit {
            base_snapshot: live.base_snapshot,
            follows: None,
            lsn: Lsn(self.lsn),
            commit_ts: Some(1_700_000_000_000_000 + self.lsn as i64),
            tables: vec![commit],
            behind: Vec::new(),
            pipeline_state: Some(PipelineState::Streaming),
        };
        assert_eq!(lab.lake.commit(&lab.fence, &commit).await.unwrap().snapshot, snapshot);
        if truncate {
            let gone = std::mem::take(&mut self.rows).into_iter();
            self.events.extend(gone.map(|(id, (row, row_id))| (snapshot, row_id, "delete", id, row)));
        }
        self.learn(changes, snapshot);
        snapshot
    }

    async fn write(&self, changes: &BTreeMap<i64, Option<Row>>) -> Vec<DataFile> {
        let puts: Vec<(i64, &Row)> = changes.iter().filter_map(|(id, row)| Some((*id, row.as_ref()?))).collect();
        let schema = self.table.schema(&self.layout).unwrap();
        let log = Arc::new(NoLog);
        let options = DataFileOptions::default();
        let mut writer = DataFileWriter::new(self.store.clone(), log, &self.table.folder, Arc::clone(&schema), options);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(puts.iter().map(|(id, _)| *id).collect::<Int64Array>()),
            Arc::new(puts.iter().map(|(_, row)| Some(row.0.as_str())).collect::<StringArray>()),
            Arc::new(puts.iter().map(|(_, row)| row.1).collect::<Int32Array>()),
        ];
        writer.write(&RecordBatch::try_new(schema, columns).unwrap()).await.unwrap();
        writer.finish().await.unwrap()
    }

    async fn deletes(
        &self,
        files: &[LiveFile],
        changes: &BTreeMap<i64, Option<Row>>,
        snapshot: i64,
    ) -> Vec<DeleteCommit> {
        let old: Int64Array = changes.keys().copied().filter(|id| self.rows.contains_key(id)).collect();
        let keys = RecordBatch::try_from_iter([("id", Arc::new(old) as ArrayRef)]).unwrap();
        let key =
            KeyColumns { field_ids: vec![self.table.columns[0].id.column_id as i32], types: vec![DataType::Int64] };
        let mut by_file: BTreeMap<usize, Vec<(u64, i64)>> = BTreeMap::new();
        for place in locate(&self.store, files, &key, &keys).await.unwrap() {
            let place = place.expect("a live key is found");
            by_file.entry(place.file).or_default().push((place.position, snapshot));
        }
        let mut commits = Vec::new();
        for (file, mut positions) in by_file {
            let live = &files[file];
            if let Some(delete) = &live.delete {
                let before = read_delete_file(&self.store, &delete.path).await.unwrap();
                positions.extend(before.into_iter().map(|(p, s)| (p, s.unwrap_or(delete.begin_snapshot))));
            }
            let begin_snapshot = positions.iter().map(|(_, snapshot)| *snapshot).min().unwrap();
            let deletes = Deletes { data_file_url: self.store.url(&live.path), rows: positions.into_iter().collect() };
            let written = write_delete_files(&self.store, &NoLog, &self.table.folder, vec![deletes]).await.unwrap();
            commits.push(DeleteCommit {
                data_file_id: live.data_file_id,
                file: written[0].clone(),
                replaces: live.delete.as_ref().map(|delete| delete.delete_file_id),
                begin_snapshot,
                partial_max: snapshot,
            });
        }
        commits
    }

    fn learn(&mut self, changes: &BTreeMap<i64, Option<Row>>, snapshot: i64) {
        for (id, row) in changes {
            if let Some((old, row_id)) = self.rows.remove(id) {
                self.events.push((snapshot, row_id, "delete", *id, old));
            }
            if let Some(row) = row {
                self.events.push((snapshot, self.next_row, "insert", *id, row.clone()));
                self.rows.insert(*id, (row.clone(), self.next_row));
                self.next_row += 1;
            }
        }
        self.versions.insert(snapshot, self.rows.clone());
    }

    /// Stock DuckDB's own INSERT and DELETE, each in a transaction of its own, and its CHECKPOINT.
    pub async fn native(&mut self, lab: &mut Lab, insert: (i64, Row), delete: &[i64]) {
        let name = self.sql_name();
        let (id, (s, v)) = insert.clone();
        let keys = delete.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let snapshots = lab
            .stock(|connection| {
                let mut snapshots = Vec::new();
                let mut run = |sql: &str| {
                    connection.execute_batch(sql).unwrap();
                    let newest = query(connection, "SELECT max(snapshot_id) FROM ducklake_snapshots('lake')");
                    snapshots.push(newest[0][0].parse::<i64>().unwrap());
                };
                run(&format!("INSERT INTO {name} VALUES ({id}, {}, {v})", literal(&s)));
                if !keys.is_empty() {
                    run(&format!("DELETE FROM {name} WHERE id IN ({keys})"));
                }
                // DuckLake's own maintenance: it keeps away from our tables, and may clean up what is long due.
                connection.execute_batch("CHECKPOINT lake").unwrap();
                snapshots
            })
            .await;
        self.learn(&[(insert.0, Some(insert.1))].into(), snapshots[0]);
        if let Some(snapshot) = snapshots.get(1) {
            self.learn(&delete.iter().map(|id| (*id, None)).collect(), *snapshot);
        }
    }

    /// Changes of some keys at random, at most `most`.
    pub fn random_changes(&self, random: &mut StdRng, most: usize) -> BTreeMap<i64, Option<Row>> {
        let keys: Vec<i64> = self.rows.keys().copied().collect();
        let mut changes = BTreeMap::new();
        for _ in 0..random.random_range(1..=most) {
            let known = !keys.is_empty() && random.random_bool(0.6);
            let id = match known {
                true => keys[random.random_range(0..keys.len())],
                false => random.random_range(-1_000_000..1_000_000),
            };
            let row = (format!("{}'é", random.random_range(0..1000)), random.random());
            let gone = self.rows.contains_key(&id) && random.random_bool(0.4);
            changes.insert(id, (!gone).then_some(row));
        }
        changes
    }

    fn sql_name(&self) -> String {
        format!("lake.{}", crate::sql::qualified(&self.table.name.schema, &self.table.name.table))
    }

    /// Stock DuckDB reads each version, the ids of rows, the change feed and filters as the model has them.
    pub fn check(&self, connection: &Connection, random: &mut StdRng) {
        let table = self.sql_name();
        let snapshots: Vec<i64> = query(connection, "SELECT snapshot_id FROM ducklake_snapshots('lake') ORDER BY 1")
            .iter()
            .map(|row| row[0].parse().unwrap())
            .collect();
        let first_of_ours = *self.versions.keys().next().unwrap();
        for snapshot in snapshots.iter().filter(|snapshot| **snapshot >= first_of_ours) {
            let (_, rows) = self.versions.range(..=snapshot).next_back().unwrap();
            let sql = format!("SELECT id, s, v, rowid FROM {table} AT (VERSION => {snapshot}) ORDER BY id");
            assert_eq!(query(connection, &sql), as_text(rows), "version {snapshot}");
            let count = query(connection, &format!("SELECT count(*) FROM {table} AT (VERSION => {snapshot})"));
            assert_eq!(count[0][0], rows.len().to_string(), "count of version {snapshot}");
        }
        let now = query(connection, &format!("SELECT id, s, v, rowid FROM {table} ORDER BY id"));
        assert_eq!(now, as_text(&self.rows));
        for (id, ((s, v), _)) in self.rows.iter().step_by(self.rows.len() / 5 + 1) {
            for filter in [format!("id = {id}"), format!("s = {} AND v = {v}", literal(s))] {
                let found = query(connection, &format!("SELECT id FROM {table} WHERE {filter}"));
                assert!(found.contains(&vec![id.to_string()]), "{filter}");
            }
        }
        let readable: Vec<i64> = snapshots.into_iter().filter(|snapshot| *snapshot >= first_of_ours).collect();
        let (first, last) = (readable[0], readable[readable.len() - 1]);
        self.check_feed(connection, first, last);
        for _ in 0..3 {
            let a = readable[random.random_range(0..readable.len())];
            let b = readable[random.random_range(0..readable.len())];
            self.check_feed(connection, a.min(b), a.max(b));
        }
    }

    fn check_feed(&self, connection: &Connection, first: i64, last: i64) {
        let mut expected: Vec<Vec<String>> = self
            .events
            .iter()
            .filter(|event| (first..=last).contains(&event.0))
            .map(|(snapshot, row_id, kind, id, (s, v))| {
                vec![snapshot.to_string(), row_id.to_string(), (*kind).into(), id.to_string(), s.clone(), v.to_string()]
            })
            .collect();
        expected.sort();
        let (schema, name) = (literal(&self.table.name.schema), literal(&self.table.name.table));
        let sql = format!(
            "SELECT snapshot_id, rowid, change_type, id, s, v \
             FROM ducklake_table_changes('lake', {schema}, {name}, {first}, {last})"
        );
        let mut read = query(connection, &sql);
        read.sort();
        assert_eq!(read, expected, "changes from {first} to {last}");
    }
}

fn as_text(rows: &BTreeMap<i64, (Row, i64)>) -> Vec<Vec<String>> {
    let text = |(id, ((s, v), row_id)): (&i64, &(Row, i64))| {
        vec![id.to_string(), s.clone(), v.to_string(), row_id.to_string()]
    };
    rows.iter().map(text).collect()
}

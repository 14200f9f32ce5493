//! A model of one table that commits to the lake what it does to itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};
use duckdb::Connection;

use super::lab::{Lab, query, table_commit, write_data, write_deletes};
use crate::batch::layout::{ColumnType, TableLayout};
use crate::error::Result;
use crate::lake::{Commit, Committed, DeleteCommit, LakeTable, TableCommit};
use crate::lsn::Lsn;

pub type Row = (String, i32);

/// One data file as the model knows it.
#[derive(Clone)]
struct ModelFile {
    path: String,
    rows: Vec<(i64, Row)>,
    first_row_id: i64,
    begin: i64,
    end: Option<i64>,
    deletes: BTreeMap<u64, i64>,
    delete_file: Option<i64>,
}

/// A table `(id bigint, s text, v int)`.
pub struct Model {
    pub table: LakeTable,
    layout: TableLayout,
    files: BTreeMap<i64, ModelFile>,
    places: HashMap<i64, (i64, u64)>,
    next_row_id: i64,
    pub rows: BTreeMap<i64, Row>,
    pub versions: BTreeMap<i64, BTreeMap<i64, Row>>,
    pub base: i64,
    pub lsn: u64,
}

/// What a commit does to one key.
#[derive(Clone, Debug)]
pub enum Change {
    Put(Row),
    Remove,
}

impl Model {
    pub async fn new(lab: &Lab, name: &str) -> Model {
        let columns = [("id", ColumnType::Int8), ("s", ColumnType::Text), ("v", ColumnType::Int4)];
        let (table, layout) = lab.table(name, &columns).await;
        let base = lab.lake.latest_snapshot().await.unwrap();
        Model {
            table,
            layout,
            files: BTreeMap::new(),
            places: HashMap::new(),
            next_row_id: 0,
            rows: BTreeMap::new(),
            versions: BTreeMap::new(),
            base,
            lsn: lab.lake.pipeline("shop").await.unwrap().unwrap().lsn.map_or(0x1_0000_0000, |lsn| lsn.0),
        }
    }

    /// The files that bring `changes` to the lake; `parts` data files.
    pub fn prepare(
        &self,
        lab: &Lab,
        changes: &[(i64, Change)],
        parts: usize,
        replace: bool,
    ) -> (Commit, Vec<Vec<(i64, Row)>>) {
        let root = lab.data_path();
        let snapshot = self.base + 1;
        let puts: Vec<(i64, Row)> = changes
            .iter()
            .filter_map(|(id, change)| match change {
                Change::Put(row) => Some((*id, row.clone())),
                Change::Remove => None,
            })
            .collect();
        let mut touched: BTreeMap<i64, Vec<u64>> = BTreeMap::new();
        if !replace {
            for (id, _) in changes {
                if let Some((file, position)) = self.places.get(id) {
                    touched.entry(*file).or_default().push(*position);
                }
            }
        }
        let mut commit = table_commit(self.table.table_id);
        let size = puts.len().div_ceil(parts).max(1);
        let parts: Vec<Vec<(i64, Row)>> = puts.chunks(size).map(<[_]>::to_vec).collect();
        for rows in &parts {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>()),
                Arc::new(rows.iter().map(|row| Some(row.1.0.as_str())).collect::<StringArray>()),
                Arc::new(rows.iter().map(|row| row.1.1).collect::<Int32Array>()),
            ];
            let schema = self.table.schema(&self.layout).unwrap();
            commit.data.push(write_data(&root, &self.table, schema, columns));
        }
        for (file_id, positions) in touched {
            let file = &self.files[&file_id];
            let mut deletes = file.deletes.clone();
            deletes.extend(positions.into_iter().map(|position| (position, snapshot)));
            let path = root.join(&file.path);
            commit.deletes.push(DeleteCommit {
                data_file_id: file_id,
                file: write_deletes(&root, &self.table, &path.to_string_lossy(), &deletes),
                replaces: file.delete_file,
                begin_snapshot: *deletes.values().min().unwrap(),
                partial_max: *deletes.values().max().unwrap(),
            });
        }
        commit.replace = replace;
        commit.rows_applied = changes.len() as u64;
        let commit = self.commit_of(vec![commit]);
        (commit, parts)
    }

    pub fn commit_of(&self, tables: Vec<TableCommit>) -> Commit {
        Commit {
            follows: None,
            base_snapshot: self.base,
            lsn: Lsn(self.lsn + 1),
            commit_ts: Some(1_700_000_000_123_456),
            tables,
            slot: None,
            pipeline_state: None,
        }
    }

    pub async fn apply(
        &mut self,
        lab: &Lab,
        changes: &[(i64, Change)],
        parts: usize,
        replace: bool,
    ) -> Result<Committed> {
        let (commit, parts) = self.prepare(lab, changes, parts, replace);
        let committed = lab.lake.commit(&lab.fence, &commit).await?;
        self.learn(&commit, &parts, changes, &committed);
        Ok(committed)
    }

    fn learn(&mut self, commit: &Commit, parts: &[Vec<(i64, Row)>], changes: &[(i64, Change)], committed: &Committed) {
        let table = &commit.tables[0];
        let snapshot = self.base + 1;
        assert_eq!(committed.snapshot, snapshot);
        if table.replace {
            for file in self.files.values_mut().filter(|file| file.end.is_none()) {
                file.end = Some(snapshot);
            }
            self.places.clear();
            self.rows.clear();
        }
        for (delete, id) in table.deletes.iter().zip(&committed.delete_file_ids[0]) {
            self.files.get_mut(&delete.data_file_id).unwrap().delete_file = Some(*id);
        }
        for (id, change) in changes {
            if let Some((file, position)) = self.places.remove(id) {
                self.files.get_mut(&file).unwrap().deletes.insert(position, snapshot);
            }
            match change {
                Change::Put(row) => self.rows.insert(*id, row.clone()),
                Change::Remove => self.rows.remove(id),
            };
        }
        for ((rows, file), id) in parts.iter().zip(&table.data).zip(&committed.data_file_ids[0]) {
            for (position, (key, _)) in rows.iter().enumerate() {
                self.places.insert(*key, (*id, position as u64));
            }
            let file = ModelFile {
                path: file.path.clone(),
                rows: rows.clone(),
                first_row_id: self.next_row_id,
                begin: snapshot,
                end: None,
                deletes: BTreeMap::new(),
                delete_file: None,
            };
            self.next_row_id += rows.len() as i64;
            self.files.insert(*id, file);
        }
        self.base = snapshot;
        self.lsn += 1;
        self.versions.insert(snapshot, self.rows.clone());
    }

    /// Compares the lake with the model: the present, every version, the change feed and filters.
    pub fn check(&self, connection: &Connection, quick: bool) {
        let table = format!(
            "lake.{}.{}",
            crate::sql::identifier(&self.table.name.schema),
            crate::sql::identifier(&self.table.name.table)
        );
        let as_text = |rows: &BTreeMap<i64, Row>| -> Vec<Vec<String>> {
            rows.iter().map(|(id, (s, v))| vec![id.to_string(), s.clone(), v.to_string()]).collect()
        };
        let step = if quick { (self.versions.len() / 4).max(1) } else { 3 };
        for (version, rows) in self.versions.iter().rev().step_by(step) {
            let read =
                query(connection, &format!("SELECT id, s, v FROM {table} AT (VERSION => {version}) ORDER BY id"));
            assert_eq!(read, as_text(rows), "version {version}");
        }
        assert_eq!(query(connection, &format!("SELECT id, s, v FROM {table} ORDER BY id")), as_text(&self.rows));
        assert_eq!(query(connection, &format!("SELECT count(*) FROM {table}"))[0][0], self.rows.len().to_string());
        if let (Some(first), Some(last)) = (self.rows.keys().next(), self.rows.keys().last()) {
            let read = query(connection, &format!("SELECT min(id), max(id) FROM {table}"));
            assert_eq!(read, [[first.to_string(), last.to_string()]]);
        }
        for (id, (s, v)) in self.rows.iter().step_by(self.rows.len() / 5 + 1) {
            let text = crate::sql::literal(s);
            for filter in
                [format!("id = {id}"), format!("s = {text} AND id >= {id}"), format!("v = {v} AND id <= {id}")]
            {
                let read = query(connection, &format!("SELECT id FROM {table} WHERE {filter} ORDER BY id"));
                assert!(read.contains(&vec![id.to_string()]), "{filter}");
            }
        }
        let row_ids = query(connection, &format!("SELECT count(*) - count(DISTINCT rowid) FROM {table}"));
        assert_eq!(row_ids[0][0], "0");
        self.check_changes(connection);
    }

    fn check_changes(&self, connection: &Connection) {
        let (Some(first), Some(last)) = (self.versions.keys().next(), self.versions.keys().last()) else { return };
        let mut expected: Vec<Vec<String>> = Vec::new();
        for file in self.files.values() {
            for (position, (id, (s, v))) in file.rows.iter().enumerate() {
                let row_id = file.first_row_id + position as i64;
                let mut event = |snapshot: i64, kind: &str| {
                    let row = [
                        snapshot.to_string(),
                        row_id.to_string(),
                        kind.into(),
                        id.to_string(),
                        s.clone(),
                        v.to_string(),
                    ];
                    expected.push(row.to_vec());
                };
                event(file.begin, "insert");
                match (file.deletes.get(&(position as u64)), file.end) {
                    (Some(snapshot), _) => event(*snapshot, "delete"),
                    (None, Some(end)) => event(end, "delete"),
                    (None, None) => {}
                }
            }
        }
        expected.sort();
        let name = crate::sql::literal(&self.table.name.table);
        let schema = crate::sql::literal(&self.table.name.schema);
        let mut read = query(
            connection,
            &format!(
                "SELECT snapshot_id, rowid, change_type, id, s, v FROM ducklake_table_changes('lake', {schema}, {name}, {first}, {last})"
            ),
        );
        read.sort();
        assert_eq!(read, expected, "changes");
    }
}

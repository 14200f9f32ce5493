//! A table that is flushed to as `sync` does it, and what every version of it must read as.

use std::collections::{BTreeMap, BTreeSet, HashSet};
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
use crate::lake::tests::lab::{Lab, table_commit};
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
    /// The catalog's tables, as stock DuckDB names them.
    catalog: &'static str,
    pub store: Store,
    lsn: u64,
    next_row: i64,
    pub rows: BTreeMap<i64, (Row, i64)>,
    /// What each version that changed it shows: the number of rows, and all of them as [`ROWS`] gives them.
    versions: BTreeMap<i64, (usize, String)>,
    /// The change feed of each snapshot, as [`FEED`] gives it.
    feed: BTreeMap<i64, Vec<String>>,
    /// Snapshots that may have ended whole files.
    ended_files: BTreeSet<i64>,
    /// The snapshot that inserted each row, by the row's id.
    born: BTreeMap<i64, i64>,
    /// The files that each version had when DuckDB read it.
    read: BTreeMap<i64, String>,
}

/// How much of a table DuckDB reads to check it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// What may read otherwise than when it was read before: versions that have other files in the catalog than then, for a file
    /// is written once and never changed. And some of the rest.
    Changed,
}

/// All rows of a table with their ids as one text: one value to fetch, and one to compare.
const ROWS: &str = "coalesce(string_agg(concat_ws('|', id, s, v, rowid), chr(10) ORDER BY id), '')";
/// The same of a change feed.
const FEED: &str = "coalesce(string_agg(concat_ws('|', snapshot_id, rowid, change_type, id, s, v), chr(10) \
    ORDER BY snapshot_id, rowid, change_type), '')";

/// A compactor with a configuration that finds something to do in small tables.
pub async fn compactor(lab: &Lab, settings: &str) -> Compactor {
    let path = lab.folder.path().join("duckpipe.toml");
    let least = if settings.contains("min_files") { "" } else { "min_files = 2\n" };
    let text = format!(
        "name = \"shop\"\n[source]\nurl = \"postgres://nobody@127.0.0.1:1/none\"\n[lake]\ncatalog = \"unused\"\n\
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
            catalog: lab.stock_catalog(),
            store: Store::open(&lab.settings.data_path, None).await.unwrap(),
            lsn: lab.lake.pipeline("shop").await.unwrap().unwrap().lsn.map_or(1 << 32, |lsn| lsn.0),
            next_row: 0,
            rows: BTreeMap::new(),
            versions: BTreeMap::new(),
            feed: BTreeMap::new(),
            ended_files: BTreeSet::new(),
            born: BTreeMap::new(),
            read: BTreeMap::new(),
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
            slot: None,
            pipeline_state: Some(PipelineState::Streaming),
        };
        assert_eq!(lab.lake.commit(&lab.fence, &commit).await.unwrap().snapshot, snapshot);
        let mut changes = changes.clone();
        if truncate {
            self.ended_files.insert(snapshot);
            for id in self.rows.keys() {
                changes.entry(*id).or_insert(None);
            }
        }
        self.learn(&changes, snapshot);
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

    /// That these changes were committed as this snapshot. Each row gets the next id, in the order of the keys.
    fn learn(&mut self, changes: &BTreeMap<i64, Option<Row>>, snapshot: i64) {
        let mut events = Vec::new();
        for (id, row) in changes {
            if let Some((old, row_id)) = self.rows.remove(id) {
                events.push((row_id, "delete", *id, old));
            }
            if let Some(row) = row {
                events.push((self.next_row, "insert", *id, row.clone()));
                self.rows.insert(*id, (row.clone(), self.next_row));
                self.born.insert(self.next_row, snapshot);
                self.next_row += 1;
            }
        }
        events.sort_by_key(|(row_id, kind, ..)| (*row_id, *kind));
        let line =
            |(row_id, kind, id, (s, v)): (i64, &str, i64, Row)| format!("{snapshot}|{row_id}|{kind}|{id}|{s}|{v}");
        self.feed.insert(snapshot, events.into_iter().map(line).collect());
        let lines: Vec<String> =
            self.rows.iter().map(|(id, ((s, v), row_id))| format!("{id}|{s}|{v}|{row_id}")).collect();
        self.versions.insert(snapshot, (lines.len(), lines.join("\n")));
    }

    /// Stock DuckDB's own INSERT of some rows.
    pub fn native_insert(&mut self, connection: &Connection, rows: &BTreeMap<i64, Row>) {
        let name = self.sql_name();
        let values = rows.iter().map(|(id, (s, v))| format!("({id}, {}, {v})", literal(s)));
        let values = values.collect::<Vec<_>>().join(", ");
        connection.execute_batch(&format!("INSERT INTO {name} VALUES {values}")).unwrap();
        let changes = rows.iter().map(|(id, row)| (*id, Some(row.clone()))).collect();
        self.learn(&changes, newest(connection));
    }

    /// Stock DuckDB's own DELETE of rows that are there.
    pub fn native_delete(&mut self, connection: &Connection, ids: &[i64]) {
        let name = self.sql_name();
        let keys = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        connection.execute_batch(&format!("DELETE FROM {name} WHERE id IN ({keys})")).unwrap();
        let snapshot = newest(connection);
        self.ended_files.insert(snapshot);
        self.learn(&ids.iter().map(|id| (*id, None)).collect(), snapshot);
    }

    /// Stock DuckDB's own INSERT and DELETE, each in a transaction of its own, and its CHECKPOINT.
    pub async fn native(&mut self, lab: &mut Lab, insert: (i64, Row), delete: &[i64]) {
        lab.stock(|connection| {
            self.native_insert(connection, &[insert].into());
            if !delete.is_empty() {
                self.native_delete(connection, delete);
            }
            // DuckLake's own maintenance: it keeps away from our tables, and may clean up what is long due.
            connection.execute_batch("CHECKPOINT lake").unwrap();
        })
        .await;
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

    /// Stock DuckDB reads each version, the ids of rows, the change feed and filters as the model has them. Gives the numbers of
    /// versions that there are and that were read.
    pub fn check(&mut self, connection: &Connection, random: &mut StdRng, extent: Extent) -> (usize, usize) {
        connection.execute_batch("BEGIN").unwrap();
        let first_of_ours = *self.versions.keys().next().unwrap();
        let files = self.files_of_versions(connection, first_of_ours);
        let readable: Vec<i64> = files.keys().copied().collect();
        let any = |random: &mut StdRng| readable[random.random_range(0..readable.len())];
        let (last, counted) = (readable[readable.len() - 1], any(random));
        let changed = |version: &i64| extent == Extent::Whole || self.read.get(version) != files.get(version);
        let is_read = |version: &i64| changed(version) || [counted, last].contains(version);
        let versions: Vec<i64> = readable.iter().copied().filter(is_read).collect();
        self.check_versions(connection, &versions, [counted, last]);
        self.check_filters(connection, random, extent);
        if let Some(since) = readable.iter().copied().find(changed) {
            self.check_feed(connection, &readable, (since, last));
        }
        let (a, b) = (any(random), any(random));
        if extent == Extent::Whole || random.random_bool(0.2) {
            self.check_feed(connection, &readable, (a.min(b), a.max(b)));
        }
        connection.execute_batch("COMMIT").unwrap();
        let numbers = (readable.len(), versions.len());
        self.read = files;
        numbers
    }

    /// The data and delete files of each version from the first one on, as one text each.
    fn files_of_versions(&self, connection: &Connection, first: i64) -> BTreeMap<i64, String> {
        let tables = self.catalog;
        let shown = |of: &str| {
            format!(
                "{of}.begin_snapshot <= snapshot_id AND ({of}.end_snapshot IS NULL OR snapshot_id < {of}.end_snapshot)"
            )
        };
        let parts = "data.path, data.begin_snapshot, data.row_id_start, data.partial_max, deletes.path, deletes.begin_snapshot, \
            deletes.partial_max";
        let sql = format!(
            "SELECT snapshot_id::VARCHAR, coalesce(string_agg(concat_ws('|', {parts}), chr(10) ORDER BY data.data_file_id), '') \
             FROM {tables}.ducklake_snapshot \
             LEFT JOIN {tables}.ducklake_data_file data ON data.table_id = {table_id} AND {data} \
             LEFT JOIN {tables}.ducklake_delete_file deletes ON deletes.data_file_id = data.data_file_id AND {deletes} \
             WHERE snapshot_id >= {first} GROUP BY snapshot_id",
            table_id = self.table.table_id,
            data = shown("data"),
            deletes = shown("deletes"),
        );
        let rows = texts(connection, &sql).into_iter().map(|row| <[String; 2]>::try_from(row).unwrap());
        rows.map(|[version, files]| (version.parse().unwrap(), files)).collect()
    }

    /// Filters find a row of the newest state.
    fn check_filters(&self, connection: &Connection, random: &mut StdRng, extent: Extent) {
        let table = self.sql_name();
        let chosen = random.random_range(0..self.rows.len().max(1));
        let by_key = random.random_bool(0.5);
        let Some((id, ((s, v), _))) = self.rows.iter().nth(chosen) else { return };
        let filters = [(by_key, format!("id = {id}")), (!by_key, format!("s = {} AND v = {v}", literal(s)))];
        for (_, filter) in filters.iter().filter(|(chosen, _)| *chosen || extent == Extent::Whole) {
            let sql = format!("SELECT count(*) FILTER (id = {id})::VARCHAR FROM {table} WHERE {filter}");
            assert_eq!(texts(connection, &sql), [["1"]], "{filter}");
        }
    }

    /// Each of these versions: its rows with their ids, and no id twice. The last one as who names no version reads it. Of some also
    /// their number as DuckLake answers it without reading a file.
    fn check_versions(&self, connection: &Connection, versions: &[i64], counted: [i64; 2]) {
        let table = self.sql_name();
        let reads = versions.iter().enumerate().map(|(index, version)| {
            let at = match index + 1 == versions.len() {
                true => table.clone(),
                false => format!("{table} AT (VERSION => {version})"),
            };
            let count = match counted.contains(version) {
                true => format!("(SELECT count(*) FROM {at})"),
                false => "count(*)".to_owned(),
            };
            format!("SELECT '{version}', {count}::VARCHAR, count(DISTINCT rowid)::VARCHAR, {ROWS} FROM {at}")
        });
        let read = texts(connection, &reads.collect::<Vec<_>>().join(" UNION ALL "));
        assert_eq!(read.len(), versions.len());
        for [version, count, ids, rows] in read.into_iter().map(|row| <[String; 4]>::try_from(row).unwrap()) {
            let (_, expected) = self.versions.range(..=version.parse::<i64>().unwrap()).next_back().unwrap();
            assert_same(&rows, &expected.1, &format!("version {version}"));
            let number = expected.0.to_string();
            assert_eq!([&count, &ids], [&number, &number], "rows and row ids of version {version}");
        }
    }

    /// The changes of these snapshots, but for what DuckLake itself takes along or does not know: see [`Table::may_be_gone`] and
    /// [`Table::misdated`].
    fn check_feed(&self, connection: &Connection, readable: &[i64], (first, last): (i64, i64)) {
        let (schema, name) = (literal(&self.table.name.schema), literal(&self.table.name.table));
        let sql = format!("SELECT {FEED} FROM ducklake_table_changes('lake', {schema}, {name}, {first}, {last})");
        let read = &texts(connection, &sql)[0][0];
        let misdated = self.misdated(connection);
        let dated = |line: &&str| !misdated.contains(&Event::parse(line).row_id);
        let known: HashSet<&str> = read.lines().collect();
        let expected = self.feed.range(first..=last).flat_map(|(_, lines)| lines).map(String::as_str);
        let expected = expected.filter(dated).filter(|line| known.contains(line) || !self.may_be_gone(line, readable));
        let read = read.lines().filter(dated);
        let (read, expected): (Vec<_>, Vec<_>) = (read.collect(), expected.collect());
        assert_same(&read.join("\n"), &expected.join("\n"), &format!("changes from {first} to {last}"));
    }

    /// A file that ended whole goes with the last snapshot that showed it, and takes along what the feed knew of its rows: that
    /// is DuckLake's own expiry.
    fn may_be_gone(&self, line: &str, readable: &[i64]) -> bool {
        let event = Event::parse(line);
        let since = if event.kind == "delete" { event.snapshot } else { event.snapshot + 1 };
        let shown = |ended: i64| (self.born[&event.row_id]..ended).any(|snapshot| readable.contains(&snapshot));
        self.ended_files.range(since..).next().is_some_and(|ended| !shown(*ended))
    }

    /// The rows that stock DuckDB itself deleted from merged files that had no deletes yet. The feed gives the snapshot that
    /// inserted them, until more rows of the file are deleted: `promises::a_foreign_delete_from_a_merged_file`.
    pub fn misdated(&self, connection: &Connection) -> HashSet<i64> {
        let sql = format!(
            "SELECT DISTINCT deletes.begin_snapshot::VARCHAR FROM {tables}.ducklake_delete_file deletes \
             JOIN {tables}.ducklake_data_file data USING (data_file_id) \
             WHERE deletes.table_id = {table_id} AND deletes.partial_max IS NULL AND data.partial_max IS NOT NULL",
            tables = self.catalog,
            table_id = self.table.table_id,
        );
        let snapshots = texts(connection, &sql);
        let lines = snapshots.iter().filter_map(|row| self.feed.get(&row[0].parse().unwrap())).flatten();
        lines.map(|line| Event::parse(line)).filter(|event| event.kind == "delete").map(|event| event.row_id).collect()
    }
}

/// What a line of [`FEED`] begins with.
struct Event<'a> {
    snapshot: i64,
    row_id: i64,
    kind: &'a str,
}

impl Event<'_> {
    fn parse(line: &str) -> Event<'_> {
        let [snapshot, row_id, kind] = line.splitn(4, '|').take(3).collect::<Vec<_>>().try_into().unwrap();
        Event { snapshot: snapshot.parse().unwrap(), row_id: row_id.parse().unwrap(), kind }
    }
}

/// The newest snapshot.
pub fn newest(connection: &Connection) -> i64 {
    let newest = texts(connection, "SELECT max(snapshot_id)::VARCHAR FROM ducklake_snapshots('lake')");
    newest[0][0].parse().unwrap()
}

/// The snapshots that can be read, oldest first.
pub fn snapshots(connection: &Connection) -> Vec<i64> {
    let sql = "SELECT snapshot_id::VARCHAR FROM ducklake_snapshots('lake') ORDER BY snapshot_id";
    let rows = texts(connection, sql);
    rows.iter().map(|row| row[0].parse().unwrap()).collect()
}

/// The rows of a query that gives texts. Unlike `query` it is bound once: DuckLake reads its catalog each time.
pub fn texts(connection: &Connection, sql: &str) -> Vec<Vec<String>> {
    let read = || {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let width = row.as_ref().column_count();
            all.push((0..width).map(|column| row.get::<_, String>(column)).collect::<duckdb::Result<Vec<_>>>()?);
        }
        Ok(all)
    };
    read().unwrap_or_else(|error: duckdb::Error| panic!("{sql}: {error}"))
}

/// Both texts have the same lines; else says which only one of them has.
fn assert_same(read: &str, expected: &str, what: &str) {
    if read != expected {
        let only = |of: &str, other: &str| {
            let other: HashSet<&str> = other.lines().collect();
            of.lines().filter(|line| !other.contains(line)).take(10).map(str::to_owned).collect::<Vec<_>>()
        };
        let (read_only, expected_only) = (only(read, expected), only(expected, read));
        let (lines, wanted) = (read.lines().count(), expected.lines().count());
        panic!("{what}: {lines} lines for {wanted}; only read: {read_only:?}, only expected: {expected_only:?}");
    }
}

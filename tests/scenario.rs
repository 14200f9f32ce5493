//! One pipeline between a database and a lake, and what several promises check of it.

use std::collections::BTreeSet;
use std::time::Duration;

use duckpipe::lsn::Lsn;

use crate::lab::{
    Combination, Comparison, Database, Duckpipe, Finished, Lake, NativeLake, Postgres, Running, wait_for,
};

/// A source database, a lake and the pipeline between them. Dropping it drops the database with its slot, so that
/// the shared cluster keeps no WAL for a test that is over.
#[derive(Debug)]
pub struct Scenario<'a> {
    /// The program and its configuration. Declared first: nothing may read the source when it goes.
    pub duckpipe: Duckpipe,
    /// The source.
    pub source: Database<'a>,
    /// The lake.
    pub lake: Lake,
    /// The name of all three.
    pub name: String,
}

impl Scenario<'static> {
    /// On the cluster that all tests share. `rest` is the further text of the configuration: `[sync]`, `[[tables]]`.
    #[track_caller]
    pub fn new(name: &str, combination: Combination, rest: &str) -> Self {
        Scenario::on(Postgres::shared(), name, combination, rest)
    }
}

impl<'a> Scenario<'a> {
    /// On a cluster of the test's own.
    #[track_caller]
    pub fn on(postgres: &'a Postgres, name: &str, combination: Combination, rest: &str) -> Self {
        let source = postgres.database(name);
        let lake = Lake::new(combination, name);
        let duckpipe = Duckpipe::new(name, &source.url(), &lake, rest);
        Scenario { duckpipe, source, lake, name: name.to_owned() }
    }

    /// The name of the slot and of the publication.
    pub fn slot(&self) -> String {
        format!("duckpipe_{}", self.name)
    }

    /// The position that the slot has been told is safe; `None` where there is no slot.
    pub fn confirmed(&self) -> Option<Lsn> {
        self.slot_column("confirmed_flush_lsn").parse().ok()
    }

    /// A column of the slot's row, as text; empty where there is none.
    pub fn slot_column(&self, column: &str) -> String {
        let sql = format!("SELECT {column} FROM pg_replication_slots WHERE slot_name = '{}'", self.slot());
        self.source.query(&sql).first().and_then(|row| row[0].clone()).unwrap_or_default()
    }

    /// Waits until the source has been told that everything before this position is safe: it keeps no WAL for it any more.
    #[track_caller]
    pub fn wait_for_confirmation(&self, lsn: Lsn) {
        wait_for(
            &format!("the confirmation of {lsn}"),
            Duration::from_secs(60),
            || (self.confirmed() >= Some(lsn)).then_some(()),
            || format!("confirmed {:?}", self.confirmed()),
        );
    }

    /// Bytes of WAL that the slot makes the source keep beyond its confirmed position.
    pub fn slot_lag(&self) -> i64 {
        self.source.number(&format!(
            "SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            self.slot()
        ))
    }

    /// The slots and publications of the source, to see that nothing was made.
    pub fn footprint(&self) -> Vec<Vec<Option<String>>> {
        self.source.query(&format!(
            "SELECT slot_name::text FROM pg_replication_slots WHERE database = '{}' UNION ALL SELECT pubname::text FROM pg_publication ORDER BY 1",
            self.source.name()
        ))
    }

    /// Asserts that each table is in the lake as it is in the source; gives the number of rows of all.
    #[track_caller]
    pub fn assert_equal(&self, tables: &[&str]) -> u64 {
        let native = self.lake.open_native();
        tables.iter().map(|table| crate::lab::assert_equal(&self.source, &native, table)).sum()
    }

    /// Waits until a table of the source, as it is called now, has this state, and all that the source has by now is in the lake.
    #[track_caller]
    pub fn wait_for_state(&self, sync: &mut Running<'_>, table: &str, wanted: &str) {
        let lsn = self.source.lsn();
        sync.wait_until(&format!("{table} {wanted}"), Duration::from_secs(60), |status| {
            let tables = status.0["tables"].as_array().cloned().unwrap_or_default();
            let state = tables.iter().find(|known| known["source"] == table).map(|known| known["state"].clone());
            state.unwrap_or("unknown".into()) == wanted && status.applied_lsn() >= Some(lsn)
        });
    }

    /// `sync --once`, then every table is equal.
    #[track_caller]
    pub fn converge(&self, tables: &[&str]) {
        self.duckpipe.sync_once().expect(0);
        self.assert_equal(tables);
    }

    /// `sync --once`, which ends with this code because some table stands still; then every other one is equal.
    #[track_caller]
    pub fn converge_but(&self, code: i32, tables: &[&str]) {
        self.duckpipe.sync_once().expect(code);
        self.assert_equal(tables);
    }

    /// `sync --once --resnapshot`, then every table is equal.
    #[track_caller]
    pub fn resnapshot(&self, tables: &[&str]) -> Finished {
        let finished = self.duckpipe.run(&["sync", "--once", "--resnapshot"]).expect(0);
        self.assert_equal(tables);
        finished
    }

    /// Ids of the lake's versions; empty where there is no lake yet.
    pub fn version_ids(&self) -> Vec<i64> {
        self.lake.open_native().versions().iter().map(|version| version.id).collect()
    }

    /// Waits until the slot lags less than `bytes` behind the source.
    #[track_caller]
    pub fn wait_for_lag_below(&self, bytes: i64, deadline: Duration) {
        wait_for(
            &format!("the slot lags less than {bytes} bytes"),
            deadline,
            || (self.slot_lag() < bytes).then_some(()),
            || format!("{} bytes behind", self.slot_lag()),
        );
    }
}

impl Drop for Scenario<'_> {
    fn drop(&mut self) {
        // The database goes by itself, but not after a failure. Its slot must: it would keep others from making theirs.
        let postgres = self.source.postgres();
        if std::thread::panicking() && std::env::var_os("DUCKPIPE_LAB_KEEP").is_none() {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| postgres.drop_database(&self.name)));
        }
    }
}

/// The files that a catalog knows, and those that the store holds; paths relative to the data path.
#[derive(Debug)]
pub struct Files {
    /// Data and delete files of any snapshot.
    pub registered: BTreeSet<String>,
    /// Files that a later cleanup deletes.
    pub scheduled: BTreeSet<String>,
    /// What is in the store.
    pub stored: BTreeSet<String>,
}

impl Files {
    /// Reads the catalog and lists the store.
    #[track_caller]
    pub fn read(lake: &Lake, native: &NativeLake) -> Files {
        let root = lake.data_path();
        let root = root.trim_end_matches('/');
        let relative = |path: String| {
            let path = path.strip_prefix(root).unwrap_or(&path).trim_start_matches('/').to_owned();
            assert!(!path.contains("//"), "{path}");
            path
        };
        let set = |sql: &str| -> BTreeSet<String> {
            native.rows(sql).into_iter().map(|mut row| relative(row[0].take().unwrap_or_default())).collect()
        };
        let catalog = "__ducklake_metadata_lake";
        let file = |table: &str| {
            format!(
                "SELECT CASE WHEN NOT f.path_is_relative THEN f.path WHEN NOT t.path_is_relative THEN t.path || f.path \
                 ELSE rtrim(s.path, '/') || '/' || rtrim(t.path, '/') || '/' || f.path END \
                 FROM {catalog}.{table} f JOIN {catalog}.ducklake_table t USING (table_id) JOIN {catalog}.ducklake_schema s USING (schema_id)"
            )
        };
        Files {
            registered: set(&format!("{} UNION ALL {}", file("ducklake_data_file"), file("ducklake_delete_file"))),
            scheduled: set(&format!("SELECT path FROM {catalog}.ducklake_files_scheduled_for_deletion")),
            stored: set(&format!("SELECT file FROM glob('{root}/**/*.parquet')")),
        }
    }

    /// Asserts that every registered file exists.
    #[track_caller]
    pub fn assert_complete(&self) {
        let missing: Vec<&String> = self.registered.difference(&self.stored).collect();
        assert!(missing.is_empty(), "registered, but not in the store: {missing:?}");
    }

    /// Asserts that the store holds nothing that no one will ever read or remove.
    #[track_caller]
    pub fn assert_no_orphans(&self) {
        let orphans: Vec<&String> = self
            .stored
            .iter()
            .filter(|path| !self.registered.contains(*path) && !self.scheduled.contains(*path))
            .collect();
        assert!(orphans.is_empty(), "in the store, but neither registered nor scheduled for deletion: {orphans:?}");
    }
}

/// In every version with a position, those of the tables that are there and not said to be behind show the same value in the row of this
/// id. Gives the number of versions that show all of them.
#[track_caller]
pub fn assert_level(native: &NativeLake, tables: &[&str], column: &str, id: i64) -> usize {
    let mut together = 0;
    for version in native.versions().iter().filter(|version| version.lsn().is_some()) {
        let behind = |table: &str| version.extra["behind"].as_object().is_some_and(|behind| behind.contains_key(table));
        let shown = |table: &&str| {
            let from = NativeLake::table(table, Some(version.id));
            native.try_rows(&format!("SELECT {column} FROM {from} WHERE id = {id}")).ok()
        };
        let shown: Vec<_> = tables.iter().filter(|table| !behind(table)).filter_map(shown).collect();
        assert!(
            shown.windows(2).all(|pair| pair[0] == pair[1]),
            "version {}: {shown:?}: {}",
            version.id,
            version.extra
        );
        together += usize::from(shown.len() == tables.len());
    }
    together
}

/// Comparisons of several tables, prepared once.
#[derive(Debug)]
pub struct Tables(Vec<Comparison>);

impl Tables {
    /// For tables that are in the source and, under the same name, in the lake.
    #[track_caller]
    pub fn new(source: &crate::lab::Client, native: &NativeLake, tables: &[&str]) -> Tables {
        Tables(tables.iter().map(|table| Comparison::new(source, native, table, table, &[])).collect())
    }

    /// What all tables add up to at a version.
    #[track_caller]
    pub fn fingerprints(&self, native: &NativeLake, version: i64) -> Vec<crate::lab::Fingerprint> {
        self.0.iter().map(|table| table.lake_fingerprint(native, Some(version))).collect()
    }
}

/// The seed of a test: `DUCKPIPE_TEST_SEED`, else the test's own. Printed, so that a failure can be run again.
pub fn seed(test: &str, default: u64) -> u64 {
    let seed = std::env::var("DUCKPIPE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    println!("{test}: DUCKPIPE_TEST_SEED={seed}");
    seed
}

//! What must hold after each step, whoever did it.

use std::collections::BTreeMap;

use duckpipe::config::{CliOverrides, Config};
use duckpipe::lake::Lake;
use duckpipe::lsn::Lsn;
use duckpipe::validate::{ValidateProgress, check_files, stored_files};
use duckpipe_storage::Store;

use super::{FOREIGN, Fuzz, MINUTE, State};
use crate::lab::{Duckpipe, NativeLake, RUNTIME, Version};

/// What `validate --files` does, over connections that stay: to start a process takes longer than all else here.
pub(super) struct Validator {
    config: Config,
    lake: Lake,
    store: Store,
}

impl Validator {
    pub(super) fn new(duckpipe: &Duckpipe) -> Validator {
        let overrides = CliOverrides { config: Some(duckpipe.config()), ..CliOverrides::default() };
        let config = Config::load_from(&overrides, &BTreeMap::new(), duckpipe.folder()).unwrap();
        RUNTIME.block_on(async {
            let store = Store::open(&config.lake.data_path, config.s3_settings().as_ref()).await.unwrap();
            let lake = Lake::open(&config.lake_settings(config.sync.memory_limit, true)).await.unwrap();
            Validator { config, lake, store }
        })
    }

    fn finds_nothing(&self) {
        let report = RUNTIME.block_on(async {
            let stored = stored_files(&self.store).await.unwrap();
            let progress = ValidateProgress::new();
            check_files(&self.config, &self.lake, (&self.store, stored), None, &progress).await.unwrap()
        });
        assert!(report.findings.is_empty(), "{}", report.render());
    }
}

impl Fuzz<'_> {
    /// What must hold after each step.
    pub(super) fn examine(&mut self) {
        self.bury();
        if self.on_postgres() || self.alone() {
            let readings = self.with_native(|native| self.read(native));
            self.judge(readings);
        }
    }

    /// Every version from our first on: its position, then rows, ids and hashed rows. Asserts what needs no model.
    fn read(&self, native: &NativeLake) -> Vec<(i64, Option<Lsn>, String, String)> {
        let mut versions = native.versions();
        // What is written meanwhile comes the next time.
        let first = self.stamps.keys().next().copied();
        let ours =
            versions.iter().position(|version| first.map_or(version.lsn().is_some(), |first| version.id >= first));
        versions.drain(..ours.expect("a version of ours"));
        let (oldest, newest) = (versions[0].id, versions[versions.len() - 1].id);
        // Snapshots expire by their time, and two writers' clocks may differ.
        let whole = newest - oldest + 1 == versions.len() as i64;
        let states = versions.iter().map(|Version { id, .. }| {
            format!("SELECT {id} AS s, rowid AS r, id, v FROM lake.public.t AT (VERSION => {id})")
        });
        native.execute(&format!(
            "CREATE OR REPLACE TEMP TABLE states AS {}",
            states.collect::<Vec<_>>().join(" UNION ALL ")
        ));
        let read = native.rows(
            "SELECT s, count(*), count(DISTINCT r), string_agg(id || '|' || v, chr(10) ORDER BY id), \
             md5(string_agg(concat_ws('|', r, id, v), chr(10) ORDER BY r)) FROM states GROUP BY s ORDER BY s",
        );
        assert_eq!(read.len(), versions.len(), "a version is empty");
        for row in &read {
            assert_eq!(row[1], row[2], "row ids of version {:?}", row[0]);
        }
        for version in [oldest, newest] {
            let count = native.text(&format!("SELECT count(*) FROM lake.public.t AT (VERSION => {version})"));
            let rows = read.iter().find(|row| row[0] == Some(version.to_string())).unwrap();
            assert_eq!(Some(count), rows[1], "count(*) of version {version}");
        }
        let reused = native.rows("SELECT r FROM states GROUP BY r HAVING count(DISTINCT (id, v)) > 1");
        assert!(reused.is_empty(), "row ids with two rows: {reused:?}");
        if oldest < newest && whole {
            native.execute(&format!(
                "CREATE OR REPLACE TEMP TABLE feed AS SELECT snapshot_id AS s, rowid AS r, id, v, change_type AS kind \
                 FROM ducklake_table_changes('lake', 'public', 't', {}, {newest})",
                oldest + 1
            ));
            // What stock DuckDB deletes from a merged file is dated by the inserts of its rows, until more of the file is deleted.
            let misdated = format!(
                "SELECT states.id FROM __ducklake_metadata_lake.ducklake_delete_file deletes \
                 JOIN __ducklake_metadata_lake.ducklake_data_file data USING (data_file_id) \
                 JOIN states ON states.s = deletes.begin_snapshot - 1 \
                 WHERE deletes.partial_max IS NULL AND data.partial_max IS NOT NULL AND states.id >= {FOREIGN}"
            );
            // A version, less the one before it, less its changes: nothing is left, and no row both comes and goes.
            let wrong = native.rows(&format!(
                "SELECT s, r, id, v, sum(w), count(*) FROM (SELECT s, r, id, v, 1 AS w, true AS shown FROM states WHERE s > {oldest} \
                 UNION ALL SELECT s + 1, r, id, v, -1, true FROM states WHERE s < {newest} \
                 UNION ALL SELECT s, r, id, v, CASE kind WHEN 'insert' THEN -1 WHEN 'delete' THEN 1 ELSE 1000 END, false FROM feed) \
                 WHERE id NOT IN ({misdated}) GROUP BY s, r, id, v HAVING sum(w) <> 0 OR count(*) > 2 OR NOT bool_or(shown) LIMIT 20"
            ));
            assert!(wrong.is_empty(), "the change feed is not the difference of the versions: {wrong:?}");
        }
        let sums = native.rows("SELECT count(*), count(DISTINCT id) FROM lake.main.theirs");
        let theirs = Some(self.theirs.to_string());
        assert_eq!(sums, [[theirs.clone(), theirs]]);
        let texts = read.into_iter().map(|mut row| (row[3].take().unwrap(), row[4].take().unwrap()));
        versions.into_iter().zip(texts).map(|(version, (rows, hash))| (version.id, version.lsn(), rows, hash)).collect()
    }

    /// Holds what was read against the model, and against what was read before.
    fn judge(&mut self, readings: Vec<(i64, Option<Lsn>, String, String)>) {
        for (id, lsn, rows, hash) in readings {
            if let Some(lsn) = lsn {
                self.stamps.insert(id, lsn);
            }
            let before = self.seen.entry(id).or_insert_with(|| hash.clone());
            assert_eq!(before, &hash, "version {id} reads otherwise than before");
            let (_, lsn) = self.stamps.range(..=id).next_back().expect("a position");
            let foreign = self.foreign_states.range(..=id).next_back().map(|(_, text)| text.as_str());
            let expected = |state: &State| match foreign {
                Some(foreign) if !foreign.is_empty() => format!("{}\n{foreign}", state.text),
                _ => state.text.clone(),
            };
            // The last transaction that has ended for sure; the one after it may have ended too.
            let sure = self.states.partition_point(|state| state.after <= *lsn);
            let state = expected(&self.states[sure.checked_sub(1).expect("a state")]);
            let next = self.states.get(sure).filter(|next| next.before < *lsn);
            if next.is_none_or(|next| expected(next) != rows) {
                assert_same(&rows, &state, &format!("version {id} at {lsn}"));
            }
        }
    }

    pub(super) fn validate(&mut self) {
        if let Some(validator) = &self.validator {
            return validator.finds_nothing();
        }
        for last in [false, true] {
            let finished = self.scenario.duckpipe.run_within(&["validate", "--files"], MINUTE);
            self.bury();
            if finished.code == Some(0) {
                return;
            }
            // It asked a sync that died meanwhile.
            let excused = finished.code == Some(1) && !last && !self.on_postgres() && self.sync.is_none();
            assert!(excused, "{:?}\n{}", finished.code, finished.output());
        }
    }
}

/// Both texts have the same lines; else says which only one of them has.
#[track_caller]
pub(super) fn assert_same(read: &str, expected: &str, what: &str) {
    if read != expected {
        let only = |of: &str, other: &str| {
            let other: std::collections::BTreeSet<&str> = other.lines().collect();
            of.lines().filter(|line| !other.contains(line)).take(10).map(str::to_owned).collect::<Vec<_>>()
        };
        panic!("{what}: only read: {:?}, only expected: {:?}", only(read, expected), only(expected, read));
    }
}

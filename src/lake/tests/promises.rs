//! What a commit promises, one test each, on both kinds of catalog.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};

use super::lab::{
    Folder, Kind, Lab, layout, name, new_table, pipeline, query, table_commit, write_data, write_deletes,
};
use super::model::{Change, Model};
use crate::batch::layout::ColumnType;
use crate::error::ErrorKind;
use crate::lake::pipeline::update;
use crate::lake::{DeleteCommit, Fence, Lake, MARKER, PipelineChange, PipelineState, TableState};
use crate::lsn::Lsn;
use crate::source::table::TableName;

super::on_both_catalogs!(
    a_claim_fences_the_holder_before,
    foreign_changes_are_noticed_and_built_upon,
    a_failing_commit_leaves_nothing,
    advancing_makes_no_snapshot,
    several_tables_change_in_one_snapshot,
    a_fresh_copy_replaces_all_rows,
    a_truncate_leaves_the_catalog_as_ducklakes_own_does,
    a_truncate_ends_rows_that_are_in_no_file,
    odd_names_work,
    unknown_bounds_hide_no_row,
    a_failed_table_keeps_its_position,
    a_foreign_table_is_refused,
    a_half_made_table_is_finished,
    orphans_go_and_registered_files_stay,
    another_catalogs_data_path_is_refused,
);

fn put(id: i64, text: &str) -> (i64, Change) {
    (id, Change::Put((text.into(), id as i32)))
}

/// Number of rows in each of the catalog's tables that a commit writes.
async fn counts(lake: &Lake) -> Vec<i64> {
    lake.run(|session| {
        let tables = [
            "ducklake_snapshot",
            "ducklake_snapshot_changes",
            "ducklake_data_file",
            "ducklake_delete_file",
            "ducklake_file_column_stats",
            "ducklake_table_stats",
            "ducklake_table_column_stats",
            "ducklake_files_scheduled_for_deletion",
            "duckpipe_upload",
        ];
        let count = |table| {
            let sql = format!("SELECT count(*) FROM {}.{table}", session.tables());
            Ok(session.read(&sql, |row| row.get::<_, i64>(0))?[0])
        };
        tables.into_iter().map(count).collect()
    })
    .await
    .unwrap()
}

async fn a_claim_fences_the_holder_before(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut model = Model::new(&lab, "t").await;
    model.apply(&lab, &[put(1, "a")], 1, false).await.unwrap();
    let before = lab.fence.clone();
    lab.fence = lab.lake.claim(&pipeline("shop")).await.unwrap();
    assert_eq!(lab.fence.epoch, before.epoch + 1);
    let counted = counts(&lab.lake).await;
    let (commit, _) = model.prepare(&lab, &[put(2, "b")], 1, false);
    let fenced = |result: Option<crate::error::Error>| assert_eq!(result.unwrap().kind(), ErrorKind::Fenced);
    fenced(lab.lake.commit(&before, &commit).await.err());
    fenced(lab.lake.advance(&before, None, Lsn(u64::MAX >> 1)).await.err());
    fenced(lab.lake.uploads_starting(&before, &["public/t/x.parquet".into()]).await.err());
    fenced(lab.lake.set_state(&before, PipelineState::Creating, &PipelineChange::default()).await.err());
    fenced(lab.lake.create_table(&before, &new_table("u", &layout(&[("id", ColumnType::Int8)]))).await.err());
    fenced(lab.lake.fail_table(&before, model.table.table_id, "no", false).await.err());
    assert_eq!(counts(&lab.lake).await, counted);
    // The row's own count of changed rows fences too, without the look before.
    fenced(lab.lake.run(move |session| update(session, &before, "lsn = NULL")).await.err());
    model.apply(&lab, &[put(2, "b")], 1, false).await.unwrap();
    lab.stock(|connection| model.check(connection, false)).await;
}

async fn foreign_changes_are_noticed_and_built_upon(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut model = Model::new(&lab, "t").await;
    let table_id = model.table.table_id;
    let rows: Vec<_> = (0..100).map(|id| put(id, "ours")).collect();
    model.apply(&lab, &rows, 1, false).await.unwrap();
    model.apply(&lab, &[(0, Change::Remove), (1, Change::Remove)], 1, false).await.unwrap();
    lab.stock(|connection| {
        connection
            .execute_batch(
                "DELETE FROM lake.public.t WHERE id IN (2, 3); UPDATE lake.public.t SET s = 'theirs' WHERE id = 4; \
                 INSERT INTO lake.public.t VALUES (1000, 'theirs', 7)",
            )
            .unwrap();
    })
    .await;
    let (commit, _) = model.prepare(&lab, &[(5, Change::Remove)], 1, false);
    let counted = counts(&lab.lake).await;
    let conflict = lab.lake.commit(&lab.fence, &commit).await.unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict, "{conflict}");
    assert_eq!(counts(&lab.lake).await, counted);
    // Look again: the file has their delete file now. The base alone is not enough.
    let live = lab.lake.live_files(&[(table_id, vec![1])]).await.unwrap();
    let mut stale = commit.clone();
    stale.base_snapshot = live.base_snapshot;
    stale.tables[0].deletes[0].partial_max = live.base_snapshot + 1;
    assert_eq!(lab.lake.commit(&lab.fence, &stale).await.unwrap_err().kind(), ErrorKind::Conflict);
    let file = &live.files[&table_id][0];
    assert_eq!(file.key_bounds, [Some(("0".to_owned(), "99".to_owned()))]);
    let theirs = file.delete.clone().unwrap();
    assert_eq!((file.rows, theirs.rows), (100, 5));
    let snapshot = live.base_snapshot + 1;
    let deletes: BTreeMap<u64, i64> =
        [0, 1, 2, 3, 4].map(|p| (p, theirs.begin_snapshot)).into_iter().chain([(5, snapshot)]).collect();
    let root = lab.data_path();
    let mut again = table_commit(table_id);
    again.deletes.push(DeleteCommit {
        data_file_id: file.data_file_id,
        file: write_deletes(&root, &model.table, &root.join(&file.path).to_string_lossy(), &deletes),
        replaces: Some(theirs.delete_file_id),
        begin_snapshot: theirs.begin_snapshot,
        partial_max: snapshot,
    });
    model.base = live.base_snapshot;
    model.lsn += 1;
    let commit = model.commit_of(vec![again]);
    assert_eq!(lab.lake.commit(&lab.fence, &commit).await.unwrap().snapshot, snapshot);
    lab.stock(|connection| {
        let read = query(connection, "SELECT count(*), sum(id) FROM lake.public.t");
        let sum: i64 = (6..100).sum::<i64>() + 4 + 1000;
        assert_eq!(read, [["96".to_owned(), sum.to_string()]]);
        let scheduled = query(
            connection,
            "SELECT count(*) FROM ducklake_cleanup_old_files('lake', dry_run => true, cleanup_all => true)",
        );
        assert!(scheduled[0][0].parse::<i64>().unwrap() >= 2);
        // And native changes on top of ours.
        connection
            .execute_batch("DELETE FROM lake.public.t WHERE id = 6; UPDATE lake.public.t SET v = 0 WHERE id = 7")
            .unwrap();
        assert_eq!(
            query(connection, "SELECT count(*), sum(id) FROM lake.public.t"),
            [["95".to_owned(), (sum - 6).to_string()]]
        );
        connection.execute_batch("CALL ducklake_cleanup_old_files('lake', cleanup_all => true)").unwrap();
        assert_eq!(query(connection, "SELECT count(*) FROM lake.public.t"), [["95"]]);
    })
    .await;
}

async fn a_failing_commit_leaves_nothing(kind: Kind) {
    let lab = Lab::new(kind).await;
    let mut model = Model::new(&lab, "t").await;
    model.apply(&lab, &[put(1, "a")], 1, false).await.unwrap();
    let state = lab.lake.pipeline("shop").await.unwrap();
    let counted = counts(&lab.lake).await;
    let (commit, _) = model.prepare(&lab, &[put(1, "b"), put(2, "c")], 1, false);
    let mut broken = commit.clone();
    broken.tables.push(table_commit(777));
    assert_eq!(lab.lake.commit(&lab.fence, &broken).await.unwrap_err().kind(), ErrorKind::Table);
    let mut broken = commit.clone();
    broken.tables[0].data[0].path = "elsewhere/x.parquet".into();
    assert_eq!(lab.lake.commit(&lab.fence, &broken).await.unwrap_err().kind(), ErrorKind::Internal);
    // Only the database finds this one, after a part of the script has run.
    let mut broken = commit.clone();
    broken.tables[0].data[0].columns[0].bytes = u64::MAX;
    lab.lake.commit(&lab.fence, &broken).await.unwrap_err();
    let mut broken = commit;
    broken.lsn = Lsn(1);
    lab.lake.commit(&lab.fence, &broken).await.unwrap_err();
    assert_eq!(counts(&lab.lake).await, counted);
    assert_eq!(lab.lake.pipeline("shop").await.unwrap(), state);
    model.apply(&lab, &[put(1, "b"), put(2, "c")], 1, false).await.unwrap();
}

async fn advancing_makes_no_snapshot(kind: Kind) {
    let lab = Lab::new(kind).await;
    let mut model = Model::new(&lab, "t").await;
    model.apply(&lab, &[put(1, "a")], 1, false).await.unwrap();
    let counted = counts(&lab.lake).await;
    let later = Lsn(model.lsn + 1000);
    lab.lake.advance(&lab.fence, None, later).await.unwrap();
    assert_eq!(lab.lake.pipeline("shop").await.unwrap().unwrap().lsn, Some(later));
    // A streaming table is where its pipeline is.
    assert_eq!(lab.lake.tables("shop").await.unwrap()[0].lsn, Some(later));
    assert!(lab.lake.advance(&lab.fence, None, Lsn(5)).await.is_err());
    // A commit without rows only moves states and the position.
    let mut commit = model.commit_of(vec![table_commit(model.table.table_id)]);
    commit.lsn = Lsn(later.0 + 1);
    commit.pipeline_state = Some(PipelineState::Streaming);
    assert_eq!(lab.lake.commit(&lab.fence, &commit).await.unwrap().snapshot, model.base);
    assert_eq!(lab.lake.pipeline("shop").await.unwrap().unwrap().state, PipelineState::Streaming);
    assert_eq!(counts(&lab.lake).await, counted);
}

async fn several_tables_change_in_one_snapshot(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut first = Model::new(&lab, "first").await;
    let slow = Model::new(&lab, "slow").await;
    lab.lake.fail_table(&lab.fence, slow.table.table_id, "too slow", false).await.unwrap();
    let second = Model::new(&lab, "second").await;
    first.base = second.base;
    let (mut commit, _) = first.prepare(&lab, &[put(1, "a"), put(2, "b")], 2, false);
    commit.tables.extend(second.prepare(&lab, &[put(7, "z")], 1, false).0.tables);
    commit.tables[0].rows_copied = 2;
    let committed = lab.lake.commit(&lab.fence, &commit).await.unwrap();
    assert_eq!(committed.data_file_ids.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    let rows = lab.lake.tables("shop").await.unwrap();
    assert_eq!((rows[0].rows_copied, rows[0].rows_applied, rows[0].state), (2, 2, TableState::Streaming));
    let now = chrono::Utc::now().timestamp_micros();
    assert!((now - rows[1].last_commit_at.unwrap()).abs() < 600_000_000);
    lab.stock(|connection| {
        let read = query(
            connection,
            "SELECT (SELECT count(*) FROM lake.public.first), (SELECT count(*) FROM lake.public.second)",
        );
        assert_eq!(read, [["2", "1"]]);
        let last = query(
            connection,
            "SELECT snapshot_id, author, commit_extra_info FROM lake.snapshots() ORDER BY 1 DESC LIMIT 1",
        );
        assert_eq!(last[0][..2], [committed.snapshot.to_string(), "duckpipe".into()]);
        let info: serde_json::Value = serde_json::from_str(&last[0][2]).unwrap();
        let expected = serde_json::json!({"v": 1, "pipeline": "shop", "system_id": "7311111111111111111",
            "lsn": commit.lsn, "commit_ts": "2023-11-14T22:13:20.123456Z", "behind": {"public.slow": "0/0"}});
        assert_eq!(info, expected);
    })
    .await;
}

async fn a_fresh_copy_replaces_all_rows(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut model = Model::new(&lab, "t").await;
    let rows: Vec<_> = (0..50).map(|id| put(id, "old")).collect();
    model.apply(&lab, &rows, 3, false).await.unwrap();
    model.apply(&lab, &[(3, Change::Remove), put(4, "newer")], 1, false).await.unwrap();
    model.apply(&lab, &[put(3, "fresh"), put(200, "fresh")], 1, true).await.unwrap();
    model.apply(&lab, &[(200, Change::Remove)], 1, false).await.unwrap();
    // Nothing at all is a copy too.
    model.apply(&lab, &[], 1, true).await.unwrap();
    model.apply(&lab, &[put(1, "again")], 1, false).await.unwrap();
    lab.stock(|connection| {
        model.check(connection, false);
        connection
            .execute_batch("CALL ducklake_expire_snapshots('lake', older_than => now() + INTERVAL 1 DAY)")
            .unwrap();
        connection.execute_batch("CALL ducklake_cleanup_old_files('lake', cleanup_all => true)").unwrap();
        assert_eq!(query(connection, "SELECT id, s FROM lake.public.t"), [["1", "again"]]);
    })
    .await;
    model.versions.retain(|version, _| *version == model.base);
    model.apply(&lab, &[put(1, "and again")], 1, false).await.unwrap();
    lab.stock(|connection| {
        assert_eq!(query(connection, "SELECT id, s FROM lake.public.t"), [["1", "and again"]]);
        let orphans = query(
            connection,
            "SELECT count(*) FROM ducklake_delete_orphaned_files('lake', dry_run => true, cleanup_all => true)",
        );
        assert_eq!(orphans, [["0"]]);
    })
    .await;
}

/// Two tables with the same past, one emptied by stock DuckDB's TRUNCATE, the other by a commit: what the catalog says of their
/// files, deletes and statistics is the same, and so is the kind of change.
async fn a_truncate_leaves_the_catalog_as_ducklakes_own_does(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut said = Vec::new();
    for native in [true, false] {
        let mut model = Model::new(&lab, if native { "theirs" } else { "ours" }).await;
        let table_id = model.table.table_id;
        assert!(!lab.lake.with_rows(&[table_id]).await.unwrap().contains(&table_id), "a new table");
        let rows: Vec<_> = (0..60).map(|id| put(id, "old")).collect();
        model.apply(&lab, &rows, 3, false).await.unwrap();
        model.apply(&lab, &[(3, Change::Remove), (25, Change::Remove)], 1, false).await.unwrap();
        model.apply(&lab, &[(4, Change::Remove), put(59, "newer")], 1, false).await.unwrap();
        assert!(lab.lake.with_rows(&[table_id]).await.unwrap().contains(&table_id));
        if native {
            lab.stock(|connection| connection.execute_batch("TRUNCATE lake.public.theirs").unwrap()).await;
        } else {
            model.apply(&lab, &[], 1, true).await.unwrap();
        }
        assert!(!lab.lake.with_rows(&[table_id]).await.unwrap().contains(&table_id), "emptied");
        let emptied = lab.lake.latest_snapshot().await.unwrap();
        let m = lab.stock_catalog();
        // Relative to the snapshot that emptied the table, and without the table's id.
        let queries = [
            format!(
                "SELECT record_count, row_id_start, {emptied} - begin_snapshot, {emptied} - end_snapshot FROM {m}.ducklake_data_file \
                 WHERE table_id = {table_id} ORDER BY row_id_start"
            ),
            format!(
                "SELECT delete_count, {emptied} - begin_snapshot, {emptied} - end_snapshot, {emptied} - partial_max \
                 FROM {m}.ducklake_delete_file WHERE table_id = {table_id} ORDER BY delete_file_id"
            ),
            format!("SELECT record_count, next_row_id FROM {m}.ducklake_table_stats WHERE table_id = {table_id}"),
            format!(
                "SELECT column_id, contains_null, contains_nan, min_value, max_value FROM {m}.ducklake_table_column_stats \
                 WHERE table_id = {table_id} ORDER BY column_id"
            ),
            format!(
                "SELECT replace(changes_made, '{table_id}', 'T') FROM {m}.ducklake_snapshot_changes WHERE snapshot_id = {emptied}"
            ),
        ];
        let read =
            |connection: &duckdb::Connection| queries.iter().map(|sql| query(connection, sql)).collect::<Vec<_>>();
        let texts = lab.stock(read).await;
        said.push(texts);
        if !native {
            model.apply(&lab, &[put(1, "again"), put(100, "new")], 1, false).await.unwrap();
            lab.stock(|connection| model.check(connection, false)).await;
        }
    }
    assert_eq!(said[0], said[1]);
    assert_eq!(said[0][0].len(), 4, "the files are there still, and say when they ended");
}

/// Rows that somebody else keeps in the catalog go too.
async fn a_truncate_ends_rows_that_are_in_no_file(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut model = Model::new(&lab, "t").await;
    let table_id = model.table.table_id;
    lab.stock(|connection| {
        connection
            .execute_batch(
                "CALL lake.set_option('data_inlining_row_limit', 10, schema => 'public', table_name => 't'); \
                 INSERT INTO lake.public.t VALUES (1, 'theirs', 7)",
            )
            .unwrap();
    })
    .await;
    assert!(lab.lake.with_rows(&[table_id]).await.unwrap().contains(&table_id));
    model.base = lab.lake.latest_snapshot().await.unwrap();
    let before = model.base;
    model.apply(&lab, &[], 1, true).await.unwrap();
    assert!(!lab.lake.with_rows(&[table_id]).await.unwrap().contains(&table_id));
    lab.stock(|connection| {
        assert_eq!(query(connection, "SELECT count(*) FROM lake.public.t"), [["0"]]);
        let sql = format!("SELECT s FROM lake.public.t AT (VERSION => {before})");
        assert_eq!(query(connection, &sql), [["theirs"]]);
    })
    .await;
}

async fn odd_names_work(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let target = TableName { schema: "we\"ird sch'ema".into(), table: "sélect {0} /x\\".into() };
    let columns = [
        ("id", ColumnType::Int8),
        ("filename", ColumnType::Text),
        ("file_row_number", ColumnType::Int8),
        ("rowid", ColumnType::Text),
        ("se\"lect", ColumnType::Text),
        ("it's ü", ColumnType::List(Box::new(ColumnType::Int8))),
        ("_ducklake_internal_row_id", ColumnType::Int8),
        ("{m}", ColumnType::Text),
        ("snapshot_id", ColumnType::Int8),
    ];
    let layout = layout(&columns);
    let mut new = new_table("unused", &layout);
    new.target = target.clone();
    let table = lab.lake.create_table(&lab.fence, &new).await.unwrap();
    assert_eq!(lab.lake.create_table(&lab.fence, &new).await.unwrap(), table);
    let schema = table.schema(&layout).unwrap();
    let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
    let int = |value: i64| -> ArrayRef { Arc::new(Int64Array::from(vec![value])) };
    let arrow::datatypes::DataType::List(element) = schema.field(5).data_type().clone() else { panic!() };
    let offsets = arrow::buffer::OffsetBuffer::from_lengths([2]);
    let list = arrow::array::ListArray::new(element, offsets, Arc::new(Int64Array::from(vec![5, 6])), None);
    let columns = vec![
        int(1),
        text("mine"),
        int(77),
        text("r'"),
        text("s"),
        Arc::new(list) as ArrayRef,
        int(8),
        text("m"),
        int(9),
    ];
    let root = lab.data_path();
    let model = Model::new(&lab, "unused").await;
    let mut commit = table_commit(table.table_id);
    commit.data.push(write_data(&root, &table, schema, columns));
    lab.lake.commit(&lab.fence, &model.commit_of(vec![commit])).await.unwrap();
    let rows = lab.lake.tables("shop").await.unwrap();
    let row = rows.iter().find(|row| row.target == target).unwrap();
    assert_eq!(lab.lake.lake_table(row).await.unwrap(), table);
    lab.stock(|connection| {
        let read = query(
            connection,
            r#"SELECT id, filename, file_row_number, rowid, "se""lect", "it's ü", "_ducklake_internal_row_id", "{m}", snapshot_id
               FROM lake."we""ird sch'ema"."sélect {0} /x\""#,
        );
        assert_eq!(read, [["1", "mine", "77", "r'", "s", "[5, 6]", "8", "m", "9"]]);
    })
    .await;
}

async fn unknown_bounds_hide_no_row(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut model = Model::new(&lab, "t").await;
    let table_id = model.table.table_id;
    model.apply(&lab, &[put(5, "m"), put(7, "n")], 1, false).await.unwrap();
    // Unknown bounds of a file with values.
    let (mut commit, parts) = model.prepare(&lab, &[put(-100, "a"), put(100, "z")], 1, false);
    for stats in &mut commit.tables[0].data[0].columns {
        (stats.min, stats.max) = (None, None);
    }
    lab.lake.commit(&lab.fence, &commit).await.unwrap();
    assert_eq!(parts.len(), 1);
    let find = |connection: &duckdb::Connection| {
        for (filter, expected) in [
            ("id < 0", "-100"),
            ("id > 50 AND id < 200", "100"),
            ("s < 'b'", "-100"),
            ("s = 'z'", "100"),
            ("v = 7", "7"),
        ] {
            let read = query(connection, &format!("SELECT id FROM lake.public.t WHERE {filter}"));
            assert_eq!(read, [[expected]], "{filter}");
        }
    };
    lab.stock(|connection| {
        find(connection);
        // A native insert must not take its own bounds for the whole table's.
        connection.execute_batch("INSERT INTO lake.public.t VALUES (1000, 'mm', 1000)").unwrap();
        find(connection);
    })
    .await;
    // Known bounds later change nothing about it.
    model.base = lab.lake.latest_snapshot().await.unwrap();
    let (mut commit, _) = model.prepare(&lab, &[put(2000, "mmm")], 1, false);
    commit.lsn = Lsn(commit.lsn.0 + 1);
    lab.lake.commit(&lab.fence, &commit).await.unwrap();
    lab.stock(find).await;
    let rows = lab
        .lake
        .run(move |session| {
            let sql = format!(
                "SELECT count(*) FROM {}.ducklake_table_column_stats WHERE table_id = {table_id}",
                session.tables()
            );
            session.read(&sql, |row| row.get::<_, i64>(0))
        })
        .await
        .unwrap();
    assert_eq!(rows, [0]);
}

async fn a_failed_table_keeps_its_position(kind: Kind) {
    let lab = Lab::new(kind).await;
    let mut model = Model::new(&lab, "t").await;
    model.apply(&lab, &[put(1, "a")], 1, false).await.unwrap();
    let at = Lsn(model.lsn);
    lab.lake.fail_table(&lab.fence, model.table.table_id, "it's broken", false).await.unwrap();
    lab.lake.advance(&lab.fence, None, Lsn(at.0 + 5)).await.unwrap();
    let row = lab.lake.tables("shop").await.unwrap().remove(0);
    assert_eq!((row.state, row.lsn, row.error.as_deref()), (TableState::Errored, Some(at), Some("it's broken")));
    model.lsn += 10;
    model.apply(&lab, &[put(1, "fresh")], 1, true).await.unwrap();
    let row = lab.lake.tables("shop").await.unwrap().remove(0);
    assert_eq!((row.state, row.lsn, row.error), (TableState::Streaming, Some(Lsn(model.lsn)), None));
}

async fn a_foreign_table_is_refused(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    lab.stock(|connection| {
        connection.execute_batch("CREATE SCHEMA lake.public; CREATE TABLE lake.public.theirs(id BIGINT)").unwrap();
    })
    .await;
    let columns = layout(&[("id", ColumnType::Int8)]);
    let refused = |result: crate::error::Result<_>| {
        let error = match result {
            Ok(_) => panic!("not refused"),
            Err(error) => error,
        };
        assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");
    };
    refused(lab.lake.create_table(&lab.fence, &new_table("theirs", &columns)).await);
    refused(lab.lake.create_table(&lab.fence, &new_table("THEIRS", &columns)).await);
    let ours = lab.lake.create_table(&lab.fence, &new_table("ours", &columns)).await.unwrap();
    refused(lab.lake.create_table(&lab.fence, &new_table("Ours", &columns)).await);
    let other: Fence = lab.lake.claim(&pipeline("other")).await.unwrap();
    refused(lab.lake.create_table(&other, &new_table("ours", &columns)).await);
    // Another source table's, which has its name here since that one was renamed.
    let mut namesake = new_table("ours", &columns);
    (namesake.source_oid, namesake.source) = (2, name("another"));
    refused(lab.lake.create_table(&lab.fence, &namesake).await);
    // Other columns: only where asked for.
    let wider = layout(&[("id", ColumnType::Int8), ("more", ColumnType::Text)]);
    let mut new = new_table("ours", &wider);
    refused(lab.lake.create_table(&lab.fence, &new).await);
    new.recreate = true;
    let anew = lab.lake.create_table(&lab.fence, &new).await.unwrap();
    assert_ne!(anew.table_id, ours.table_id);
    assert_eq!(lab.lake.tables("shop").await.unwrap()[0].generation, 2);
    assert_eq!(lab.lake.tables("other").await.unwrap(), []);
    lab.lake.set_table_state(&lab.fence, anew.table_id, TableState::Snapshot).await.unwrap();
    assert_eq!(lab.lake.tables("shop").await.unwrap()[0].state, TableState::Snapshot);
    // What was let go is nobody's, and refused like any foreign table.
    lab.lake.remove_table(&other, anew.table_id, false).await.unwrap();
    assert_eq!(lab.lake.tables("shop").await.unwrap().len(), 1);
    lab.lake.remove_table(&lab.fence, anew.table_id, false).await.unwrap();
    assert_eq!(lab.lake.tables("shop").await.unwrap(), []);
    refused(lab.lake.create_table(&lab.fence, &new).await);
}

async fn a_half_made_table_is_finished(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let columns = layout(&[("id", ColumnType::Int8)]);
    let first = lab.lake.create_table(&lab.fence, &new_table("t", &columns)).await.unwrap();
    // It died after the row, after the wrong table that was to be dropped, after the table.
    for (there, reused) in
        [("DROP TABLE lake.public.t", false), ("CREATE OR REPLACE TABLE lake.public.t(no VARCHAR)", false), ("", true)]
    {
        lab.stock(|connection| connection.execute_batch(there).unwrap()).await;
        let before = lab.lake.tables("shop").await.unwrap()[0].table_id;
        let half = "UPDATE {m}.duckpipe_table SET table_id = NULL, columns = '[]'";
        lab.lake.run(move |session| session.write(&half.replace("{m}", &session.tables()))).await.unwrap();
        let again = lab.lake.create_table(&lab.fence, &new_table("t", &columns)).await.unwrap();
        assert_eq!(Some(again.table_id) == before, reused, "{there}");
        assert_ne!(again.table_id, first.table_id);
        let rows = lab.lake.tables("shop").await.unwrap();
        assert_eq!((rows.len(), rows[0].table_id, &rows[0].columns), (1, Some(again.table_id), &again.columns));
    }
}

async fn orphans_go_and_registered_files_stay(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut model = Model::new(&lab, "t").await;
    let store = Folder(lab.data_path());
    let (commit, _) = model.prepare(&lab, &[put(1, "a")], 1, false);
    let registered = commit.tables[0].data[0].path.clone();
    let lost = "public/t/lost.parquet".to_owned();
    crate::lake::LakeStore::put(&store, &lost, vec![1]).await.unwrap();
    lab.lake.uploads_starting(&lab.fence, &[registered.clone(), lost.clone()]).await.unwrap();
    lab.lake.commit(&lab.fence, &commit).await.unwrap();
    model.base += 1;
    // A live epoch's uploads are left alone.
    assert_eq!(lab.lake.remove_orphans(&lab.fence, &store).await.unwrap(), 0);
    assert!(lab.data_path().join(&lost).exists());
    lab.fence = lab.lake.claim(&pipeline("shop")).await.unwrap();
    // An upload that is recorded and registered, as a crash between two transactions can't leave, is still safe.
    let again = registered.clone();
    lab.lake
        .run(move |session| {
            session.write(&format!(
                "INSERT INTO {}.duckpipe_upload (path, pipeline, epoch, started_at) VALUES ('{again}', 'shop', 1, now())",
                session.tables()
            ))
        })
        .await
        .unwrap();
    assert_eq!(lab.lake.remove_orphans(&lab.fence, &store).await.unwrap(), 1);
    assert!(!lab.data_path().join(&lost).exists());
    assert!(lab.data_path().join(&registered).exists());
    assert_eq!(counts(&lab.lake).await.last(), Some(&0));
}

async fn another_catalogs_data_path_is_refused(kind: Kind) {
    let lab = Lab::new(kind).await;
    let store = Folder(lab.data_path());
    lab.lake.clone().shutdown().await;
    let lake = Lake::open_with_store(&lab.settings, &store).await.unwrap();
    let marker = std::fs::read_to_string(lab.data_path().join(MARKER)).unwrap();
    assert!(marker.contains(lake.catalog_id()));
    lake.shutdown().await;
    Lake::open_with_store(&lab.settings, &store).await.unwrap().shutdown().await;
    // Another catalog over the same files: refused before its own tables are made.
    let mut other = Lab::new(kind).await;
    other.lake.clone().shutdown().await;
    other.settings.data_path = lab.settings.data_path.clone();
    if let crate::lake::CatalogLocation::File(path) = &mut other.settings.catalog {
        path.set_file_name("new.ducklake");
    } else if let crate::lake::CatalogLocation::Postgres { schema, .. } = &mut other.settings.catalog {
        *schema = Some("new".into());
    }
    let error = Lake::open_with_store(&other.settings, &store).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");
    match &other.settings.catalog {
        crate::lake::CatalogLocation::File(path) => assert!(!path.exists()),
        crate::lake::CatalogLocation::Postgres { .. } => {
            let server = other.server.as_ref().unwrap();
            let count = server.sql(&other.database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'new'");
            assert_eq!(count, "0");
        }
    }
    // And the same catalog with another data path.
    let mut moved = lab.settings.clone();
    moved.data_path.push_str("-elsewhere");
    let error = Lake::open(&moved).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");
}

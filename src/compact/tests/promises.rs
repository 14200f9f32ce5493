//! What a compaction promises, one test each, on both kinds of catalog.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use duckpipe_storage::{DataFileReader, Rows, UploadLog};
use futures::TryStreamExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::table::{Extent, Row, Table, compactor, newest, texts};
use crate::compact::{Change, Compactor, Outcome, Report, Request};
use crate::error::ErrorKind;
use crate::lake::tests::lab::{Kind, Lab, query};
use crate::lake::{CompactionView, Maintenance, MaintenanceLog};
use crate::sql::identifier;
use crate::validate::{Finding, FindingKind, forget_removed};

fn row(text: &str) -> Row {
    (text.to_owned(), text.len() as i32)
}

fn puts(ids: impl IntoIterator<Item = i64>, text: &str) -> BTreeMap<i64, Option<Row>> {
    ids.into_iter().map(|id| (id, Some(row(text)))).collect()
}

fn removes(ids: impl IntoIterator<Item = i64>) -> BTreeMap<i64, Option<Row>> {
    ids.into_iter().map(|id| (id, None)).collect()
}

async fn pass(compactor: &Compactor) -> Report {
    compactor.pass(&Request::default()).await.unwrap()
}

async fn judge(lab: &mut Lab, table: &mut Table) {
    let mut random = StdRng::seed_from_u64(1);
    lab.stock(|connection| table.check(connection, &mut random, Extent::Whole)).await;
}

/// The live data files of the only table.
async fn files(lab: &Lab) -> CompactionView {
    lab.lake.compaction_view("shop").await.unwrap()
}

/// Files with deletes, merged, read as before; and what is committed on top reads right too.
async fn files_with_deletes_are_merged(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..6 {
        table.flush(&lab, &puts(round * 100..round * 100 + 50, "new")).await;
        table.flush(&lab, &puts(round * 100..round * 100 + 5, "changed")).await;
    }
    table.flush(&lab, &removes([1, 101, 201])).await;
    judge(&mut lab, &mut table).await;
    let report = pass(&compactor(&lab, "").await).await;
    assert_eq!(report.tables[0].files_rewritten, 12, "{report:?}");
    assert_eq!((report.tables[0].files_written, report.tables[0].rows_dropped), (1, 0), "{report:?}");
    assert_eq!(files(&lab).await.tables[0].files.len(), 1);
    judge(&mut lab, &mut table).await;
    table.flush(&lab, &puts(40..60, "on top")).await;
    table.native(&mut lab, (9_000, row("theirs")), &[3, 45, 150]).await;
    judge(&mut lab, &mut table).await;
    pass(&compactor(&lab, "").await).await;
    judge(&mut lab, &mut table).await;
}

/// Deletes that land on a file while it is being rewritten, twice, are carried over.
async fn deletes_that_land_meanwhile_are_carried_over(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..4 {
        // Not in the key's order, so that positions change.
        table.flush(&lab, &puts((0..30).map(|id| id * 4 + round), "new")).await;
    }
    table.flush(&lab, &removes([0, 1])).await;
    let compactor = compactor(&lab, "").await;
    let view = files(&lab).await;
    let known = &view.tables[0];
    let rewritten = compactor.rewrite(view.oldest, known, known.files.clone()).await.unwrap();
    table.flush(&lab, &removes([2, 50, 99])).await;
    table.flush(&lab, &puts([3, 51, 119], "changed")).await;
    let outcome = compactor.replace(known, rewritten).await.unwrap();
    let Outcome::Replaced { carried_over, files, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!((carried_over, files), (6, 1));
    judge(&mut lab, &mut table).await;
}

/// The last resort: the same under the commit lock.
async fn deletes_are_carried_over_under_the_lock(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..4 {
        table.flush(&lab, &puts((0..30).map(|id| id * 4 + round), "new")).await;
    }
    let compactor = compactor(&lab, "").await;
    let view = files(&lab).await;
    let known = &view.tables[0];
    let rewritten = compactor.rewrite(view.oldest, known, known.files.clone()).await.unwrap();
    table.flush(&lab, &removes([2, 50, 99])).await;
    let change = Change { rewritten, deletes: HashMap::new(), carried_over: 0 };
    let outcome = compactor.replace_at_once(known, change).await.unwrap();
    assert!(matches!(outcome, Outcome::Replaced { carried_over: 3, files: 1, .. }), "{outcome:?}");
    judge(&mut lab, &mut table).await;
    table.flush(&lab, &puts([3, 51, 119], "changed")).await;
    judge(&mut lab, &mut table).await;
}

/// A source that was replaced meanwhile ends the rewrite, and its files go.
async fn a_source_that_vanished_is_given_up(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..4 {
        table.flush(&lab, &puts(round * 10..round * 10 + 10, "new")).await;
    }
    let (one, other) = (compactor(&lab, "").await, compactor(&lab, "").await);
    let view = files(&lab).await;
    let known = &view.tables[0];
    let late = other.rewrite(view.oldest, known, known.files.clone()).await.unwrap();
    let written = late.files[0].path.clone();
    pass(&one).await;
    // In a catalog file a second run counts as dead, so its files may be gone already; on Postgres it lives.
    let outcome = other.replace(known, late).await.unwrap();
    assert!(matches!(outcome, Outcome::GivenUp(_)), "{outcome:?}");
    other.lake.discard_uploads(&other.run, &other.store).await.unwrap();
    assert!(!table.store.exists(&written).await.unwrap());
    judge(&mut lab, &mut table).await;
}

/// A TRUNCATE while files are being rewritten ends the rewrite, also under the lock: no row comes back, and none of the past goes.
async fn a_table_that_was_truncated_meanwhile_stays_empty(kind: Kind) {
    for at_once in [false, true] {
        let mut lab = Lab::new(kind).await;
        let mut table = Table::new(&lab, "t").await;
        for round in 0..4 {
            table.flush(&lab, &puts(round * 10..round * 10 + 10, "new")).await;
        }
        table.flush(&lab, &removes([5, 15])).await;
        let one = compactor(&lab, "").await;
        let view = files(&lab).await;
        let known = &view.tables[0];
        let rewritten = one.rewrite(view.oldest, known, known.files.clone()).await.unwrap();
        let written = rewritten.files[0].path.clone();
        table.truncate(&lab, &puts([3, 4], "after")).await;
        let outcome = match at_once {
            false => one.replace(known, rewritten).await.unwrap(),
            true => {
                let change = Change { rewritten, deletes: HashMap::new(), carried_over: 0 };
                one.replace_at_once(known, change).await.unwrap()
            }
        };
        assert!(matches!(&outcome, Outcome::GivenUp(why) if why.contains("not live any more")), "{outcome:?}");
        one.lake.discard_uploads(&one.run, &one.store).await.unwrap();
        assert!(!table.store.exists(&written).await.unwrap());
        judge(&mut lab, &mut table).await;
        // What is left is compacted as ever, and so is a table without rows.
        table.flush(&lab, &puts([5, 6], "more")).await;
        pass(&compactor(&lab, "").await).await;
        judge(&mut lab, &mut table).await;
        table.truncate(&lab, &BTreeMap::new()).await;
        pass(&compactor(&lab, "").await).await;
        judge(&mut lab, &mut table).await;
    }
}

/// Two passes at once: each file is replaced once.
async fn two_passes_at_once_agree(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..6 {
        table.flush(&lab, &puts(round * 10..round * 10 + 10, "new")).await;
    }
    let (one, other) = (compactor(&lab, "").await, compactor(&lab, "").await);
    let request = Request::default();
    let (a, b) = tokio::join!(one.pass(&request), other.pass(&request));
    let replaced: u64 = [a.unwrap(), b.unwrap()].iter().map(|report| report.tables[0].files_rewritten).sum();
    assert_eq!(replaced, 6);
    judge(&mut lab, &mut table).await;
}

/// Expired history takes the rows with it that only it showed, and their files.
async fn expired_history_is_dropped(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    table.flush(&lab, &puts(0..1000, "new")).await;
    for round in 0..4 {
        table.flush(&lab, &puts(round * 100..round * 100 + 100, "changed")).await;
    }
    table.flush(&lab, &removes(900..1000)).await;
    let kept = table.flush(&lab, &removes([899])).await;
    table.flush(&lab, &removes([898])).await;
    let mut compactor = compactor(&lab, "").await;
    // Nothing is expired: everything is kept.
    let report = pass(&compactor).await;
    assert_eq!(report.tables[0].rows_dropped, 0, "{report:?}");
    judge(&mut lab, &mut table).await;
    let old: Vec<i64> = (0..kept).collect();
    lab.lake.expire_snapshots(&old).await.unwrap();
    compactor.lake = lab.lake.clone();
    let report = pass(&compactor).await;
    // 500 dead rows before `kept`; the rows that `kept` and the one after it deleted are still to be seen.
    assert_eq!(report.tables[0].rows_dropped, 500, "{report:?}");
    judge(&mut lab, &mut table).await;
    compactor.lake = lab.lake.clone();
    pass(&compactor).await;
    let stored = table.store.list("").await.unwrap().into_iter().filter(|object| object.path.ends_with(".parquet"));
    let view = files(&lab).await;
    let files = view.tables[0].files.len() + view.tables[0].files.iter().filter(|file| file.delete.is_some()).count();
    assert_eq!(stored.count(), files);
    // Where no row is left, no file is.
    let all: Vec<i64> = table.rows.keys().copied().collect();
    table.flush(&lab, &removes(all)).await;
    let last = table.flush(&lab, &puts([1], "the last")).await;
    lab.lake.expire_snapshots(&(0..last).collect::<Vec<_>>()).await.unwrap();
    pass(&compactor).await;
    judge(&mut lab, &mut table).await;
}

/// Files go no sooner than their grace is over; a dry run changes nothing.
async fn replaced_files_stay_for_their_grace(kind: Kind) {
    let lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..4 {
        table.flush(&lab, &puts(round * 10..round * 10 + 10, "new")).await;
    }
    let before = table.store.list("").await.unwrap();
    let former = lab.lake.registered(&[], true).await.unwrap().all_paths;
    let newest = lab.lake.latest_snapshot().await.unwrap();
    let patient = compactor(&lab, "delete_grace = \"1h\"").await;
    let mut config = (*patient.config).clone();
    config.compact.delete_grace = Duration::from_secs(3600);
    let patient = Compactor { config: config.into(), ..patient };
    let dry = patient.pass(&Request { dry_run: true, table: None }).await.unwrap();
    assert!(dry.dry_run && dry.tables[0].files_rewritten == 4, "{dry:?}");
    assert_eq!(table.store.list("").await.unwrap(), before);
    assert_eq!(lab.lake.latest_snapshot().await.unwrap(), newest);
    pass(&patient).await;
    let after = table.store.list("").await.unwrap();
    assert!(before.iter().all(|object| after.contains(object)) && after.len() == before.len() + 1);
    assert_eq!(pass(&patient).await.files_deleted, 0);
    let missing = |file: &String| Finding::new(FindingKind::FileMissing, "public.t", "not in the store").file(file);
    let then = former.iter().map(missing).collect();
    assert_eq!(pass(&compactor(&lab, "").await).await.files_deleted, 4);
    // Who looked at the catalog before that, and at the store only now, must not take them for missing; those of now are needed.
    let mut report = crate::validate::Report { findings: then, ..Default::default() };
    let now: Vec<Finding> = lab.lake.registered(&[], true).await.unwrap().all_paths.iter().map(missing).collect();
    report.findings.extend(now.clone());
    forget_removed(&lab.lake, &mut report).await.unwrap();
    assert!(!now.is_empty() && report.findings == now, "{}", report.render());
}

/// A run that died leaves files that the next one removes; one that lives keeps its own.
async fn what_a_dead_run_left_is_removed(kind: Kind) {
    let lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..4 {
        table.flush(&lab, &puts(round * 10..round * 10 + 10, "new")).await;
    }
    let dead = compactor(&lab, "min_files = 3").await;
    let view = files(&lab).await;
    let known = &view.tables[0];
    let slow = dead.rewrite(view.oldest, known, known.files.clone()).await.unwrap();
    let path = slow.files[0].path.clone();
    let other = compactor(&lab, "min_files = 100").await;
    let request = Request::default();
    if kind == Kind::Postgres {
        assert_eq!(other.pass(&request).await.unwrap().orphans_deleted, 0, "it lives");
        assert!(table.store.exists(&path).await.unwrap());
        // Its heart stops.
        let stop = "UPDATE \"My lake\".duckpipe_upload SET started_at = started_at - interval '1 hour'";
        lab.server.as_ref().unwrap().sql(&lab.database, stop);
    }
    // A sync that starts anew takes nothing from a compaction, nor does its claim end one.
    let fence = lab.lake.claim(&crate::lake::tests::lab::pipeline("shop")).await.unwrap();
    assert_eq!(lab.lake.remove_orphans(&fence, &table.store).await.unwrap(), 0);
    assert!(table.store.exists(&path).await.unwrap());
    assert_eq!(other.pass(&request).await.unwrap().orphans_deleted, 1);
    assert!(!table.store.exists(&path).await.unwrap());
    // It was only asleep: it must not register a file that is gone.
    let outcome = dead.replace(known, slow).await.unwrap();
    assert!(matches!(outcome, Outcome::GivenUp(ref why) if why.contains("taken for dead")), "{outcome:?}");
}

/// A sort that exceeds its memory spills, and the result is in order.
async fn a_large_group_is_sorted_in_little_memory(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..4 {
        let ids = (0..40_000).map(|i: i64| (i * 7919 + round) % 160_000 * 4 + round);
        table.flush(&lab, &puts(ids, "some text that takes some space, or the memory would do")).await;
    }
    let mut compactor = compactor(&lab, "").await;
    compactor.resources.memory = 8 << 20;
    let report = pass(&compactor).await;
    assert!(report.tables[0].files_written >= 1 && report.tables[0].given_up.is_empty(), "{report:?}");
    let view = files(&lab).await;
    for file in &view.tables[0].files {
        let reader = DataFileReader::open(&table.store, &file.path).await.unwrap();
        let columns = lab.lake.compaction_schema(view.tables[0].table_id, file.begin_snapshot).await.unwrap();
        let batches: Vec<_> = reader.read(columns.schema, Rows::All).unwrap().try_collect().await.unwrap();
        let ids: Vec<i64> = batches
            .iter()
            .flat_map(|rows| rows.batch.column(0).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        assert!(ids.is_sorted() && !ids.is_empty());
    }
    let rows = table.rows.len().to_string();
    let name = format!("lake.public.{}", identifier("t"));
    lab.stock(|connection| {
        let counted = query(connection, &format!("SELECT count(*), count(DISTINCT rowid) FROM {name}"));
        assert_eq!(counted, [[rows.clone(), rows]]);
    })
    .await;
}

/// Maintenance repeats the pipeline's position.
async fn the_position_is_repeated(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..4 {
        table.flush(&lab, &puts(round * 10..round * 10 + 10, "new")).await;
    }
    pass(&compactor(&lab, "").await).await;
    lab.stock(|connection| {
        let sql = "SELECT commit_extra_info FROM ducklake_snapshots('lake') ORDER BY snapshot_id DESC LIMIT 2";
        let stamps = query(connection, sql);
        assert_eq!(stamps[0], stamps[1]);
        let changes =
            query(connection, "SELECT changes FROM ducklake_snapshots('lake') ORDER BY snapshot_id DESC LIMIT 1");
        assert!(changes[0][0].contains("merge_adjacent"), "{changes:?}");
    })
    .await;
}

/// Files of an older schema, whose columns the catalog has forgotten with the history that showed them, lose nothing.
async fn files_of_an_older_schema_keep_their_columns(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..4 {
        table.flush(&lab, &puts(round * 10..round * 10 + 10, "new")).await;
    }
    let read = "SELECT * FROM lake.public.t ORDER BY id";
    let before = lab
        .stock(|connection| {
            connection
                .execute_batch(
                    "ALTER TABLE lake.public.t ALTER v TYPE BIGINT; ALTER TABLE lake.public.t RENAME s TO text; \
                     ALTER TABLE lake.public.t ADD COLUMN later INTEGER; INSERT INTO lake.public.t VALUES (900, 'x', 1, 2)",
                )
                .unwrap();
            query(connection, read)
        })
        .await;
    for expired in [false, true] {
        if expired {
            let newest = lab.lake.latest_snapshot().await.unwrap();
            lab.lake.expire_snapshots(&(0..newest).collect::<Vec<_>>()).await.unwrap();
        }
        let report = pass(&compactor(&lab, "").await).await;
        assert_eq!(report.tables[0].files_rewritten, if expired { 0 } else { 4 }, "{report:?}");
        // One rewritten file alone is no reason to be rewritten again: it is made so.
        let view = files(&lab).await;
        let known = &view.tables[0];
        let (one, compactor) = (known.files[..1].to_vec(), compactor(&lab, "").await);
        let rewritten = compactor.rewrite(view.oldest, known, one).await.unwrap();
        assert!(matches!(compactor.replace(known, rewritten).await.unwrap(), Outcome::Replaced { rows: 40, .. }));
        lab.stock(|connection| assert_eq!(query(connection, read), before, "expired: {expired}")).await;
    }
}

/// The columns to sort by are those of now, which older files may know by another name, or not at all. A wrong name is told, and keeps no
/// other table from its due.
async fn an_order_by_columns_of_now(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..4 {
        table.flush(&lab, &puts(round * 10..round * 10 + 10, &format!("{}", 9 - round))).await;
    }
    let mut other = Table::new(&lab, "u").await;
    for round in 0..4 {
        other.flush(&lab, &puts(round * 10..round * 10 + 10, "new")).await;
    }
    let sorted = |by: &str| format!("[[tables]]\nsource = \"public.t\"\nsort_by = [\"{by}\"]\n");
    let wrong = compactor(&lab, &sorted("nothing")).await.pass(&Request::default()).await.unwrap_err();
    assert!(wrong.kind() == ErrorKind::Config && wrong.to_string().contains("public.t"), "{wrong}");
    let live = |view: CompactionView| view.tables.iter().map(|table| table.files.len()).collect::<Vec<_>>();
    assert_eq!(live(files(&lab).await), [4, 1]);
    let catalog = lab.stock_catalog();
    let scheduled = format!("SELECT count(*) FROM {catalog}.ducklake_files_scheduled_for_deletion");
    lab.stock(|connection| {
        assert_eq!(query(connection, &scheduled), [["0"]]);
        connection.execute_batch("ALTER TABLE lake.public.t RENAME s TO text").unwrap();
    })
    .await;
    let report = pass(&compactor(&lab, &sorted("text")).await).await;
    assert_eq!(report.tables[0].files_rewritten, 4, "{report:?}");
    let in_order = "SELECT string_agg(DISTINCT text, '' ORDER BY text) = string_agg(text, '') FROM \
                    (SELECT text, lag(text) OVER () AS before FROM lake.public.t) WHERE before IS DISTINCT FROM text";
    lab.stock(|connection| {
        assert_eq!(query(connection, in_order), [["true"]]);
        connection.execute_batch("ALTER TABLE lake.public.t ADD COLUMN later INTEGER").unwrap();
    })
    .await;
    // One file alone: what is asked of it is that it can be asked.
    let view = files(&lab).await;
    let compactor = compactor(&lab, &sorted("later")).await;
    compactor.rewrite(view.oldest, &view.tables[0], view.tables[0].files.clone()).await.unwrap();
}

/// A column that a file lacks and whose default it shows is not made NULL.
async fn a_default_that_a_file_shows_stays(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    for round in 0..4 {
        table.flush(&lab, &puts(round * 10..round * 10 + 10, "new")).await;
    }
    let read = "SELECT * FROM lake.public.t ORDER BY id";
    let before = lab
        .stock(|connection| {
            connection.execute_batch("ALTER TABLE lake.public.t ADD COLUMN later INTEGER DEFAULT 7").unwrap();
            query(connection, read)
        })
        .await;
    assert_eq!(before[0][3], "7");
    let newest = lab.lake.latest_snapshot().await.unwrap();
    lab.lake.expire_snapshots(&(0..newest).collect::<Vec<_>>()).await.unwrap();
    let report = pass(&compactor(&lab, "").await).await;
    assert_eq!(report.tables[0].files_rewritten, 4, "{report:?}");
    lab.stock(|connection| assert_eq!(query(connection, read), before)).await;
}

/// The change feed dates a DELETE of stock DuckDB's from a merged file, ours or one that DuckLake merged itself, by the inserts of
/// its rows, for as long as these deletes are the file's only ones. Ours it dates right, and theirs as soon as we add to them.
async fn a_foreign_delete_from_a_merged_file(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut table = Table::new(&lab, "t").await;
    let inserted = [table.flush(&lab, &puts(0..10, "new")).await, table.flush(&lab, &puts(10..20, "new")).await];
    assert_eq!(pass(&compactor(&lab, "").await).await.tables[0].files_written, 1);
    let dates = |name: &str, snapshot: i64| {
        format!(
            "SELECT snapshot_id::VARCHAR FROM ducklake_table_changes('lake', 'public', '{name}', {snapshot}, {snapshot}) \
             ORDER BY rowid"
        )
    };
    lab.stock(|connection| {
        table.native_delete(connection, &[3, 13]);
        assert_eq!(texts(connection, &dates("t", newest(connection))), inserted.map(|snapshot| [snapshot.to_string()]));
        let run = |sql: &str| {
            connection.execute_batch(sql).unwrap();
            newest(connection)
        };
        run("CREATE TABLE lake.public.theirs (id BIGINT)");
        run("CALL lake.set_option('data_inlining_row_limit', 0, schema => 'public', table_name => 'theirs')");
        let inserted =
            [0, 10].map(|first| run(&format!("INSERT INTO lake.public.theirs SELECT {first} + i FROM range(10) r(i)")));
        run("CALL ducklake_merge_adjacent_files('lake', 'theirs', schema => 'public')");
        let deleted = run("DELETE FROM lake.public.theirs WHERE id IN (3, 13)");
        assert_eq!(texts(connection, &dates("theirs", deleted)), inserted.map(|snapshot| [snapshot.to_string()]));
    })
    .await;
    judge(&mut lab, &mut table).await;
    table.flush(&lab, &removes([4, 14])).await;
    lab.stock(|connection| assert!(table.misdated(connection).is_empty())).await;
    judge(&mut lab, &mut table).await;
}

/// The records of a run are its own name's.
async fn an_upload_is_recorded_before_it_begins(kind: Kind) {
    let lab = Lab::new(kind).await;
    let log = MaintenanceLog { lake: lab.lake.clone(), run: Maintenance::new("shop") };
    log.starting(&["public/t/x.parquet".into()]).await.unwrap();
    assert!(log.starting(&["public/t/x.parquet".into()]).await.is_err(), "a name is used once");
    lab.lake.maintenance_lives(&log.run).await.unwrap();
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod in_a_file {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::Kind::File).await; })*
        }
        mod in_postgres {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name(super::Kind::Postgres).await; })*
        }
    };
}

on_both!(
    files_with_deletes_are_merged,
    deletes_that_land_meanwhile_are_carried_over,
    deletes_are_carried_over_under_the_lock,
    a_source_that_vanished_is_given_up,
    a_table_that_was_truncated_meanwhile_stays_empty,
    two_passes_at_once_agree,
    expired_history_is_dropped,
    replaced_files_stay_for_their_grace,
    what_a_dead_run_left_is_removed,
    a_large_group_is_sorted_in_little_memory,
    the_position_is_repeated,
    files_of_an_older_schema_keep_their_columns,
    a_default_that_a_file_shows_stays,
    an_order_by_columns_of_now,
    a_foreign_delete_from_a_merged_file,
    an_upload_is_recorded_before_it_begins,
);

//! Columns that change in a commit, beside DuckLake's own ALTER TABLE.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Float32Array, Float64Array, Int32Array, Int64Array, ListBuilder,
    StringArray, StringBuilder,
};
use arrow::datatypes::{DataType, Field, Int32Type};
use duckpipe_storage::DataFile;

use super::lab::{Kind, Lab, layout, new_table, query, table_commit, write_data};
use crate::batch::layout::{ColumnType, TableLayout};
use crate::error::{ErrorKind, Result};
use crate::lake::{Alteration, ColumnChange, Commit, Committed, FieldId, LakeColumn, LakeTable, TableCommit};
use crate::lsn::Lsn;

fn decimal(precision: u8) -> ColumnType {
    ColumnType::Decimal { precision, scale: 2 }
}

fn before() -> TableLayout {
    layout(&[
        ("id", ColumnType::Int8),
        ("a", ColumnType::Int4),
        ("tags", ColumnType::List(Box::new(ColumnType::Text))),
        ("d", decimal(10)),
        ("f", ColumnType::Float4),
        ("gone", ColumnType::Text),
    ])
}

fn after() -> TableLayout {
    layout(&[
        ("id", ColumnType::Int8),
        ("b", ColumnType::Int8),
        ("d", decimal(12)),
        ("f", ColumnType::Float8),
        ("note", ColumnType::Text),
        ("counts", ColumnType::List(Box::new(ColumnType::Int4))),
        ("tags", ColumnType::Bool),
    ])
}

/// From [`before`] to [`after`]: ids are given in the order of making, an element's behind its list's.
fn changes() -> Alteration {
    let mut next = 8;
    let mut add = |name: &str, column_type: ColumnType, shown: Option<&str>| ColumnChange::Add {
        id: FieldId::of_new(&column_type, &mut next),
        name: name.into(),
        column_type,
        shown: shown.map(str::to_owned),
        instead_of: None,
    };
    let changes = vec![
        add("note", ColumnType::Text, Some("it's")),
        ColumnChange::Drop { column_id: 3 },
        add("counts", ColumnType::List(Box::new(ColumnType::Int4)), None),
        ColumnChange::Rename { column_id: 2, name: "b".into() },
        ColumnChange::Widen { column_id: 2, column_type: ColumnType::Int8 },
        ColumnChange::Widen { column_id: 5, column_type: decimal(12) },
        ColumnChange::Widen { column_id: 6, column_type: ColumnType::Float8 },
        ColumnChange::Drop { column_id: 7 },
        // The name of one that goes.
        add("tags", ColumnType::Bool, Some("true")),
    ];
    let id = |column_id, element: Option<i64>| FieldId {
        column_id,
        element: element.map(|column_id| Box::new(FieldId { column_id, element: None })),
    };
    let ids = [id(1, None), id(2, None), id(5, None), id(6, None), id(8, None), id(9, Some(10)), id(11, None)];
    let column =
        |(index, id): (usize, FieldId)| LakeColumn { attnum: index as i16 + 1, key: (index == 0).then_some(0), id };
    Alteration { changes, columns: ids.into_iter().enumerate().map(column).collect(), name: None }
}

const NATIVE: &str = "BEGIN; ALTER TABLE lake.public.native ADD COLUMN note VARCHAR DEFAULT 'it''s'; \
     ALTER TABLE lake.public.native DROP COLUMN tags; ALTER TABLE lake.public.native ADD COLUMN counts INTEGER[]; \
     ALTER TABLE lake.public.native RENAME COLUMN a TO b; ALTER TABLE lake.public.native ALTER COLUMN b TYPE BIGINT; \
     ALTER TABLE lake.public.native ALTER COLUMN d TYPE DECIMAL(12,2); \
     ALTER TABLE lake.public.native ALTER COLUMN f TYPE DOUBLE; ALTER TABLE lake.public.native DROP COLUMN gone; \
     ALTER TABLE lake.public.native ADD COLUMN tags BOOLEAN DEFAULT 'true'; COMMIT";

fn old_rows(lab: &Lab, table: &LakeTable) -> DataFile {
    let mut tags = ListBuilder::new(StringBuilder::new()).with_field(element(table, 2, DataType::Utf8));
    for text in ["x", "y"] {
        tags.values().append_value(text);
        tags.append(true);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2])),
        Arc::new(Int32Array::from(vec![Some(10), None])),
        Arc::new(tags.finish()),
        Arc::new(Decimal128Array::from(vec![150, 250]).with_precision_and_scale(10, 2).unwrap()),
        Arc::new(Float32Array::from(vec![0.2, 0.1])),
        Arc::new(StringArray::from(vec!["p", "q"])),
    ];
    let mut file = write_data(&lab.data_path(), table, table.schema(&before()).unwrap(), columns);
    let narrow = &mut file.columns[4];
    (narrow.min, narrow.max, narrow.contains_nan) = (Some("0.1".into()), Some("0.2".into()), Some(false));
    file
}

fn new_rows(lab: &Lab, table: &LakeTable, first: i64) -> DataFile {
    let mut counts = arrow::array::ListBuilder::new(arrow::array::PrimitiveBuilder::<Int32Type>::new())
        .with_field(element(table, 5, DataType::Int32));
    for number in 0..2 {
        counts.values().append_value(number);
        counts.append(true);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![first, first + 1])),
        Arc::new(Int64Array::from(vec![1 << 40, 7])),
        Arc::new(Decimal128Array::from(vec![350, 99_999_999_999]).with_precision_and_scale(12, 2).unwrap()),
        Arc::new(Float64Array::from(vec![0.1, 1e300])),
        Arc::new(StringArray::from(vec![Some("new"), None])),
        Arc::new(counts.finish()),
        Arc::new(BooleanArray::from(vec![Some(false), None])),
    ];
    write_data(&lab.data_path(), table, table.schema(&after()).unwrap(), columns)
}

/// The element of the table's list column at `index`, with its id.
fn element(table: &LakeTable, index: usize, data_type: DataType) -> Arc<Field> {
    let id = table.columns[index].id.element.as_ref().unwrap().column_id;
    let metadata = [("PARQUET:field_id".to_owned(), id.to_string())];
    Arc::new(Field::new("element", data_type, true).with_metadata(metadata.into()))
}

async fn commit(lab: &Lab, lsn: u64, tables: Vec<TableCommit>) -> Result<Committed> {
    let base_snapshot = lab.lake.latest_snapshot().await.unwrap();
    let (follows, commit_ts, slot, pipeline_state) = (None, None, None, None);
    lab.lake
        .commit(&lab.fence, &Commit { base_snapshot, follows, lsn: Lsn(lsn), slot, commit_ts, tables, pipeline_state })
        .await
}

/// The columns of a table in the catalog, with snapshots counted from the table's own first.
async fn columns(lab: &Lab, table_id: i64) -> Vec<String> {
    let rows = lab.lake.run(move |session| {
        let sql = format!(
            "SELECT column_id, column_order, column_name, column_type, initial_default, default_value, nulls_allowed, \
             parent_column, default_value_type, default_value_dialect, end_snapshot IS NULL AS live, \
             begin_snapshot = (SELECT min(begin_snapshot) FROM {0}.ducklake_column WHERE table_id = {table_id}) AS first \
             FROM {0}.ducklake_column WHERE table_id = {table_id}",
            session.tables()
        );
        session.read(&sql, |row| {
            let texts: Vec<Option<String>> = [2, 3, 4, 5, 8, 9].into_iter().map(|i| row.get(i)).collect::<duckdb::Result<_>>()?;
            let numbers: (i64, i64, Option<i64>) = (row.get(0)?, row.get(1)?, row.get(7)?);
            let flags: (bool, bool, bool) = (row.get(6)?, row.get(10)?, row.get(11)?);
            Ok(format!("{numbers:?} {texts:?} {flags:?}"))
        })
    });
    let mut rows = rows.await.unwrap();
    rows.sort();
    rows
}

async fn an_alteration_is_what_ducklake_itself_would_make(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut made = Vec::new();
    for table in ["ours", "native"] {
        made.push(lab.lake.create_table(&lab.fence, &new_table(table, &before())).await.unwrap());
    }
    let [ours, native] = [&made[0], &made[1]];
    let first = |table: &LakeTable| TableCommit { data: vec![old_rows(&lab, table)], ..table_commit(table.table_id) };
    let old = commit(&lab, 1, vec![first(ours), first(native)]).await.unwrap().snapshot;

    // Ours with the rows that need it, in one snapshot; DuckLake's own without.
    let alteration = changes();
    let ours = LakeTable { columns: alteration.columns.clone(), ..ours.clone() };
    let with =
        |alteration| TableCommit { alteration, data: vec![new_rows(&lab, &ours, 3)], ..table_commit(ours.table_id) };
    let altered = commit(&lab, 2, vec![with(Some(alteration.clone()))]).await.unwrap().snapshot;
    assert_eq!(altered, old + 1);
    lab.stock(|connection| connection.execute_batch(NATIVE).unwrap()).await;
    let native = LakeTable { columns: alteration.columns.clone(), ..native.clone() };
    let row = TableCommit { data: vec![new_rows(&lab, &native, 3)], ..table_commit(native.table_id) };
    commit(&lab, 3, vec![row]).await.unwrap();

    assert_eq!(columns(&lab, ours.table_id).await, columns(&lab, native.table_id).await);
    let known = lab.lake.tables("shop").await.unwrap();
    let row = known.iter().find(|row| row.table_id == Some(ours.table_id)).unwrap();
    assert_eq!(row.columns, alteration.columns);
    assert_eq!(lab.lake.fitting_table(row, &after()).await.unwrap().columns, alteration.columns);

    lab.stock(|connection| {
        // Each writer goes on upon what the other made.
        for table in ["ours", "native"] {
            let insert = format!("INSERT INTO lake.public.{table} VALUES (9, 9, 9, 0.3, 'stock', [9], NULL)");
            connection.execute_batch(&insert).unwrap();
            connection.execute_batch(&format!("DELETE FROM lake.public.{table} WHERE id = 2")).unwrap();
        }
        let all = |table: &str, version: &str| {
            query(connection, &format!("SELECT * FROM lake.public.{table} {version} ORDER BY id"))
        };
        assert_eq!(all("ours", ""), all("native", ""));
        assert_eq!(all("ours", "")[0], ["1", "10", "1.50", "0.20000000298023224", "it's", "NULL", "true"]);
        assert_eq!(all("ours", "").len(), 4);
        let at = format!("AT (VERSION => {old})");
        assert_eq!(all("ours", &at), all("native", &at));
        assert_eq!(all("ours", &at)[0], ["1", "10", "[x]", "1.50", "0.2", "p"]);
        for filter in ["f > 0.2", "f > 0.1", "b > 5", "note = 'it''s'", "tags", "d < 2", "f < 0.11"] {
            let found =
                |table| query(connection, &format!("SELECT id FROM lake.public.{table} WHERE {filter} ORDER BY id"));
            // Without the table's statistics every row is looked at.
            let looked_at = |table| {
                let sql = format!(
                    "SELECT id FROM (SELECT id, {filter} AS found FROM lake.public.{table}) WHERE found ORDER BY id"
                );
                query(connection, &sql)
            };
            assert_eq!(found("ours"), looked_at("ours"), "{filter}");
            assert_eq!(looked_at("ours"), looked_at("native"), "{filter}");
        }
        let last = query(connection, "SELECT max(snapshot_id) FROM lake.snapshots()")[0][0].clone();
        let changes = |table: &str| {
            let sql = format!(
                "SELECT change_type, id, b, note FROM ducklake_table_changes('lake', 'public', '{table}', {old}, {last})"
            );
            let mut rows = query(connection, &sql);
            rows.sort();
            rows
        };
        assert_eq!(changes("ours"), changes("native"));
    })
    .await;
    let row = TableCommit { data: vec![new_rows(&lab, &ours, 20)], ..table_commit(ours.table_id) };
    commit(&lab, 4, vec![row]).await.unwrap();
    lab.stock(|connection| {
        assert_eq!(query(connection, "SELECT count(*), max(id) FROM lake.public.ours"), [["6", "21"]]);
    })
    .await;
}

async fn columns_alone_make_a_snapshot(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let table = lab.lake.create_table(&lab.fence, &new_table("t", &before())).await.unwrap();
    let before = lab.lake.latest_snapshot().await.unwrap();
    let alteration = TableCommit { alteration: Some(changes()), ..table_commit(table.table_id) };
    assert_eq!(commit(&lab, 1, vec![alteration]).await.unwrap().snapshot, before + 1);
    lab.stock(|connection| {
        let made = query(connection, "SELECT column_name, column_type FROM (DESCRIBE lake.public.t)");
        let wanted = [
            ["id", "BIGINT"],
            ["b", "BIGINT"],
            ["d", "DECIMAL(12,2)"],
            ["f", "DOUBLE"],
            ["note", "VARCHAR"],
            ["counts", "INTEGER[]"],
            ["tags", "BOOLEAN"],
        ];
        assert_eq!(made, wanted);
    })
    .await;
}

async fn what_does_not_fit_the_table_leaves_nothing(kind: Kind) {
    let lab = Lab::new(kind).await;
    let table = lab.lake.create_table(&lab.fence, &new_table("t", &before())).await.unwrap();
    let snapshot = lab.lake.latest_snapshot().await.unwrap();
    let columns_before = columns(&lab, table.table_id).await;
    let id = |column_id| FieldId { column_id, element: None };
    let add = |column_id, name: &str| ColumnChange::Add {
        id: id(column_id),
        name: name.into(),
        column_type: ColumnType::Int4,
        shown: None,
        instead_of: None,
    };
    let altered = async |change: &ColumnChange| {
        let alteration = Alteration { changes: vec![change.clone()], columns: table.columns.clone(), name: None };
        lab.lake.is_altered("shop", table.table_id, &alteration).await.unwrap()
    };
    let cases = [
        (add(7, "new"), ErrorKind::Table, "taken already"),
        (add(8, "GONE"), ErrorKind::Table, "two columns are called \"GONE\""),
        (ColumnChange::Drop { column_id: 99 }, ErrorKind::Table, "was dropped by somebody else"),
        (ColumnChange::Rename { column_id: 2, name: "D".into() }, ErrorKind::Table, "two columns"),
    ];
    for (change, kind, what) in cases {
        // A column that is not there is gone, whoever dropped it.
        assert_eq!(altered(&change).await, matches!(change, ColumnChange::Drop { .. }), "{change:?}");
        let alteration = Alteration { changes: vec![change], columns: table.columns.clone(), name: None };
        let table = TableCommit { alteration: Some(alteration), ..table_commit(table.table_id) };
        let error = commit(&lab, 1, vec![table]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    assert_eq!(lab.lake.latest_snapshot().await.unwrap(), snapshot);
    assert_eq!(columns(&lab, table.table_id).await, columns_before);
    assert_eq!(lab.lake.next_column_id(table.table_id).await.unwrap(), 8);
}

super::on_both_catalogs!(
    an_alteration_is_what_ducklake_itself_would_make,
    columns_alone_make_a_snapshot,
    what_does_not_fit_the_table_leaves_nothing,
);

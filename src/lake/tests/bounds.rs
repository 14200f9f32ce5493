//! Whole tables' statistics, type by type, as DuckDB itself would widen them.

use duckpipe_storage::{ColumnStats, DataFile};

use super::lab::{Kind, Lab, layout, new_table};
use crate::batch::layout::ColumnType;
use crate::lake::statistics::{Change, TableColumnStats, widen};
use crate::lake::table::catalog_columns;

fn file(field_id: i32, bounds: Option<(&str, &str)>, nan: Option<bool>) -> DataFile {
    let stats = ColumnStats {
        field_id,
        bytes: 1,
        values: 2,
        nulls: 0,
        min: bounds.map(|(min, _)| min.into()),
        max: bounds.map(|(_, max)| max.into()),
        contains_nan: nan,
    };
    DataFile { path: "p".into(), rows: 2, bytes: 1, footer_bytes: 1, columns: vec![stats] }
}

#[tokio::test]
async fn bounds_widen_in_the_order_of_their_type() {
    let lab = Lab::new(Kind::File).await;
    let decimal = ColumnType::Decimal { precision: 10, scale: 2 };
    type Bounds = (&'static str, &'static str);
    let cases: Vec<(ColumnType, Vec<Bounds>, Bounds)> = vec![
        (ColumnType::Int8, vec![("9", "10"), ("-11", "9")], ("-11", "10")),
        (ColumnType::Text, vec![("b", "é"), ("B", "z")], ("B", "é")),
        (ColumnType::Bool, vec![("true", "true"), ("false", "false")], ("false", "true")),
        (decimal, vec![("9.00", "10.50"), ("-0.05", "9.99")], ("-0.05", "10.50")),
        (ColumnType::Float8, vec![("-1.5e-10", "2.0"), ("-3.0", "1e300")], ("-3.0", "1e+300")),
        (
            ColumnType::Date,
            vec![("2020-01-01", "2020-12-31"), ("1969-07-20", "2020-02-02")],
            ("1969-07-20", "2020-12-31"),
        ),
        (
            ColumnType::Time,
            vec![("10:00:00", "23:59:59.999999"), ("09:00:00.5", "10:00:00")],
            ("09:00:00.5", "23:59:59.999999"),
        ),
        (
            ColumnType::TimestampTz,
            vec![
                ("2020-01-01 00:00:00+00", "2020-01-02 00:00:00.5+00"),
                ("2019-01-01 00:00:00+00", "2020-01-02 00:00:00+00"),
            ],
            ("2019-01-01 00:00:00+00", "2020-01-02 00:00:00.5+00"),
        ),
        (
            ColumnType::Uuid,
            vec![
                ("80000000-0000-0000-0000-000000000000", "ffffffff-0000-0000-0000-000000000000"),
                ("10000000-0000-0000-0000-000000000000", "90000000-0000-0000-0000-000000000000"),
            ],
            ("10000000-0000-0000-0000-000000000000", "ffffffff-0000-0000-0000-000000000000"),
        ),
    ];
    for (index, (column_type, files, (min, max))) in cases.into_iter().enumerate() {
        let floating = matches!(column_type, ColumnType::Float8).then_some(false);
        let layout = layout(&[("c", column_type.clone())]);
        let table = lab.lake.create_table(&lab.fence, &new_table(&format!("t{index}"), &layout)).await.unwrap();
        let files: Vec<DataFile> = files.into_iter().map(|bounds| file(1, Some(bounds), floating)).collect();
        let changes = lab
            .lake
            .run(move |session| {
                let columns = catalog_columns(session, table.table_id)?;
                widen(session, &columns, &Default::default(), false, &files)
            })
            .await
            .unwrap();
        let expected = TableColumnStats {
            contains_null: Some(false),
            contains_nan: floating,
            min: Some(min.into()),
            max: Some(max.into()),
        };
        assert_eq!(changes, [(1, Change::Write(expected))], "{column_type:?}");
    }
}

#[tokio::test]
async fn what_is_unknown_once_stays_unknown() {
    let lab = Lab::new(Kind::File).await;
    let layout = layout(&[("c", ColumnType::Float8)]);
    let table = lab.lake.create_table(&lab.fence, &new_table("t", &layout)).await.unwrap();
    let known = TableColumnStats {
        contains_null: Some(true),
        contains_nan: Some(false),
        min: Some("1.0".into()),
        max: Some("2.0".into()),
    };
    let lost = TableColumnStats { contains_nan: Some(true), min: None, max: None, ..known.clone() };
    let only_nulls = TableColumnStats { min: None, max: None, ..known.clone() };
    let mut nulls = file(1, None, Some(false));
    (nulls.columns[0].values, nulls.columns[0].nulls) = (0, 2);
    let within = file(1, Some(("1.5", "1.7")), Some(false));
    let cases = [
        // A missing row of a table that had data.
        (None, within.clone(), None),
        (Some(known.clone()), file(1, None, Some(false)), Some(Change::Remove)),
        (Some(known.clone()), file(1, Some(("1.0", "2.0")), None), Some(Change::Remove)),
        (Some(lost), within.clone(), Some(Change::Remove)),
        (Some(known.clone()), within.clone(), Some(Change::Keep)),
        (Some(known), nulls, Some(Change::Keep)),
        (
            Some(only_nulls.clone()),
            within,
            Some(Change::Write(TableColumnStats { min: Some("1.5".into()), max: Some("1.7".into()), ..only_nulls })),
        ),
    ];
    for (old, file, expected) in cases {
        let current = old.clone().map(|old| (1, old)).into_iter().collect();
        let changes = lab
            .lake
            .run(move |session| {
                let columns = catalog_columns(session, table.table_id)?;
                widen(session, &columns, &current, true, &[file])
            })
            .await
            .unwrap();
        assert_eq!(changes.into_iter().map(|(_, change)| change).next(), expected, "{old:?}");
    }
}

//! The lake's table for a fresh copy of a source table, whatever became of that since: what it kept stays, the rest goes or comes.

use std::collections::HashSet;

use super::Lake;
use super::alter::{Alteration, ColumnChange, next_column_id};
use super::table::{
    CatalogColumn, FieldId, LakeColumn, LakeTable, catalog_columns, field_id, initial_defaults, table_folder,
};
use super::table_row::TableRow;
use crate::batch::layout::TableLayout;
use crate::error::Result;

impl Lake {
    /// The table of a row as the commit of a fresh copy is to make it, which brings all its rows anew; and how its columns change with
    /// that commit. With `same_table` the row's source table is still the one that it was, and an attnum still the same column.
    ///
    /// `None`: the lake's table is gone, or was never made.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Table`] where its files lie elsewhere.
    pub async fn refit(
        &self,
        row: &TableRow,
        layout: &TableLayout,
        same_table: bool,
    ) -> Result<Option<(LakeTable, Option<Alteration>)>> {
        let Some(table_id) = row.table_id else { return Ok(None) };
        let (row, layout) = (row.clone(), layout.clone());
        self.run(move |session| {
            let Some((name, folder)) = table_folder(session, table_id)? else { return Ok(None) };
            let current = catalog_columns(session, table_id)?;
            let is_same = |column: &&LakeColumn| same_table || column.attnum < 0;
            let known: Vec<LakeColumn> = row.columns.iter().filter(is_same).cloned().collect();
            let (columns, changes) = refit(&layout, &known, &current, next_column_id(session, table_id)?);
            let shown = initial_defaults(session, table_id)?;
            let alteration = (!changes.is_empty() || columns != row.columns).then(|| Alteration {
                changes,
                columns: columns.clone(),
                name: None,
            });
            Ok(Some((LakeTable { table_id, name, folder, columns, shown }, alteration)))
        })
        .await
    }
}

/// From the lake's columns `current`, of which duckpipe fills `known`, to those of the layout.
fn refit(
    layout: &TableLayout,
    known: &[LakeColumn],
    current: &[CatalogColumn],
    mut next: i64,
) -> (Vec<LakeColumn>, Vec<ColumnChange>) {
    let (mut columns, mut later, mut kept) = (Vec::new(), Vec::new(), HashSet::new());
    for (index, (name, attnum, column_type)) in layout.lake_columns().enumerate() {
        let key = layout.key_place(index);
        let before = known.iter().find(|known| known.attnum == attnum);
        let before = before.and_then(|known| current.iter().find(|column| column.id == known.id.column_id));
        let fitting = before.and_then(|before| Some((before, field_id(column_type, before, current)?)));
        let id = match fitting {
            Some((before, id)) => {
                kept.insert(before.id);
                if before.name != name {
                    later.push(ColumnChange::Rename { column_id: before.id, name: name.to_owned() });
                }
                id
            }
            None => {
                let id = FieldId::of_new(column_type, &mut next);
                let (name, column_type) = (name.to_owned(), column_type.clone());
                let instead_of = before.map(|before| before.id);
                later.push(ColumnChange::Add { id: id.clone(), name, column_type, shown: None, instead_of });
                id
            }
        };
        columns.push(LakeColumn { attnum, key, id });
    }
    let gone = current.iter().filter(|column| column.parent.is_none() && !kept.contains(&column.id));
    let mut changes: Vec<ColumnChange> = gone.map(|column| ColumnChange::Drop { column_id: column.id }).collect();
    changes.append(&mut later);
    (columns, changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::testing::{layout, numbered_table as source};

    fn column(id: i64, name: &str, lake_type: &str, parent: Option<i64>) -> CatalogColumn {
        CatalogColumn { id, name: name.into(), lake_type: lake_type.into(), parent }
    }

    #[test]
    fn columns_that_are_the_same_keep_their_ids() {
        let current = [
            column(1, "id", "int32", None),
            column(2, "a", "varchar", None),
            column(3, "tags", "list", None),
            column(4, "element", "int32", Some(3)),
            column(5, "n", "int32", None),
        ];
        let id = |column_id| FieldId { column_id, element: None };
        let tags = FieldId { column_id: 3, element: Some(Box::new(id(4))) };
        let known = [(1, id(1)), (2, id(2)), (3, tags.clone()), (4, id(5))].map(|(attnum, id)| LakeColumn {
            attnum,
            key: None,
            id,
        });
        let after =
            source(&[(1, "id", "int4"), (2, "b", "text"), (3, "tags", "int4[]"), (4, "n", "int8"), (5, "a", "date")]);
        let layout = layout(&after);
        let (columns, changes) = refit(&layout, &known, &current, 6);
        let ids: Vec<FieldId> = columns.iter().map(|column| column.id.clone()).collect();
        assert_eq!(ids, [id(1), id(2), tags, id(6), id(7)]);
        assert_eq!((columns[0].key, columns[1].key), (Some(0), None));
        let names: Vec<String> = changes.iter().map(|change| format!("{change:?}")).collect();
        assert_eq!(changes.len(), 4, "{names:?}");
        assert_eq!(changes[0], ColumnChange::Drop { column_id: 5 });
        assert_eq!(changes[1], ColumnChange::Rename { column_id: 2, name: "b".into() });
        let instead_of = |change: &ColumnChange| match change {
            ColumnChange::Add { shown: None, instead_of, .. } => *instead_of,
            other => panic!("{other:?}"),
        };
        assert_eq!((instead_of(&changes[2]), instead_of(&changes[3])), (Some(5), None));

        // Another table of the same name has no column of the former one.
        let (columns, changes) = refit(&layout, &[], &current, 6);
        assert!(columns.iter().all(|column| column.id.column_id >= 6));
        assert_eq!(changes.iter().filter(|change| matches!(change, ColumnChange::Drop { .. })).count(), 4);
    }
}

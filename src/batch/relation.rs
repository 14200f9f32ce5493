//! A Relation message, matched with the definition that the lake's table was made from.

use super::layout::TableLayout;
use super::pgoutput::Relation;
use crate::error::{Error, ErrorKind, Result};
use crate::source::table::{ReplicaIdentity, SourceTable};

/// Where the values of a relation's tuples go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationMap {
    table: String,
    slots: Vec<Option<Slot>>,
    mapped: usize,
}

/// The layout's column that a value goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) column: usize,
    pub(crate) is_key: bool,
}

impl RelationMap {
    /// Matches a relation with its table's definition and layout. Columns that the layout leaves out get no slot.
    ///
    /// # Errors
    /// `Table` where the relation is not what `source` describes: its name, columns, types or replica identity changed.
    pub fn new(layout: &TableLayout, source: &SourceTable, relation: &Relation) -> Result<RelationMap> {
        let differences = differences(source, relation);
        if !differences.is_empty() {
            let what = format!("the source's table {} changed: {}", source.name, differences.join("; "));
            return Err(Error::new(ErrorKind::Table, what)
                .remedy("this change is not followed: copy the table anew by `duckpipe tables resync`")
                .mended_by_resync());
        }
        let slots: Vec<Option<Slot>> = relation
            .columns
            .iter()
            .map(|sent| {
                let attnum = source.columns.iter().find(|column| column.name == sent.name)?.attnum;
                let column = layout.columns.iter().position(|column| column.attnum == attnum)?;
                Some(Slot { column, is_key: layout.key.contains(&column) })
            })
            .collect();
        let mapped = slots.iter().flatten().count();
        if mapped != layout.columns.len() {
            let what = format!("the lake's table has {} columns, of which {mapped} are sent", layout.columns.len());
            return Err(Error::new(ErrorKind::Table, what)
                .remedy("copy the table anew: `duckpipe tables resync`")
                .mended_by_resync());
        }
        Ok(RelationMap { table: layout.table.clone(), slots, mapped })
    }

    /// The slots in the order of the relation's columns.
    pub(crate) fn slots(&self) -> &[Option<Slot>] {
        &self.slots
    }

    /// How many columns have a slot.
    pub(crate) fn mapped(&self) -> usize {
        self.mapped
    }

    /// The table's name, for messages.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }
}

/// What is no longer as `source` describes it, in words.
fn differences(source: &SourceTable, relation: &Relation) -> Vec<String> {
    let mut found = Vec::new();
    if source.oid != relation.oid {
        found.push(format!("it is another table (oid {} instead of {})", relation.oid, source.oid));
    }
    for column in &source.columns {
        match relation.columns.iter().find(|sent| sent.name == column.name) {
            None => found.push(format!("column {:?} is gone or no longer published", column.name)),
            Some(sent) if (sent.type_oid, sent.typmod) != (column.pg_type.oid, column.pg_type.typmod) => {
                found.push(format!(
                    "column {:?} is no longer {} (its type is now oid {}, modifier {})",
                    column.name, column.pg_type.display, sent.type_oid, sent.typmod
                ));
            }
            Some(_) => {}
        }
    }
    for sent in &relation.columns {
        if !source.columns.iter().any(|column| column.name == sent.name) {
            found.push(format!("column {:?} is new", sent.name));
        }
    }
    let known = source.columns.iter().map(|column| &column.name);
    if found.is_empty() && !known.eq(relation.columns.iter().map(|column| &column.name)) {
        // Columns are sent in the order of their attnums: names have changed places.
        found.push("columns have taken each other's names".into());
    }
    if source.replica_identity != relation.replica_identity {
        found.push(format!(
            "its replica identity is {} instead of {}",
            identity(relation.replica_identity),
            identity(source.replica_identity)
        ));
    } else if source.replica_identity != ReplicaIdentity::Full {
        // Under FULL every column is marked, and the key is the primary key of the catalog.
        let mut known: Vec<&str> = source.key.iter().map(|&index| source.columns[index].name.as_str()).collect();
        let mut sent: Vec<&str> = relation.columns.iter().filter(|c| c.key).map(|c| c.name.as_str()).collect();
        known.sort_unstable();
        sent.sort_unstable();
        if known != sent {
            found.push(format!("its key is ({}) instead of ({})", sent.join(", "), known.join(", ")));
        }
    }
    found
}

fn identity(identity: ReplicaIdentity) -> &'static str {
    match identity {
        ReplicaIdentity::Default => "the primary key",
        ReplicaIdentity::Index => "an index",
        ReplicaIdentity::Full => "FULL",
        ReplicaIdentity::Nothing => "NOTHING",
    }
}

#[cfg(test)]
mod tests {
    use super::super::mapping;
    use super::super::pgoutput::RelationColumn;
    use super::super::testing::{layout, relation, table};
    use super::*;

    const COLUMNS: [(&str, &str); 3] = [("id", "int4"), ("secret", "text"), ("n", "numeric(10,2)")];

    fn source(replica_identity: ReplicaIdentity) -> SourceTable {
        table(&COLUMNS, &["id"], replica_identity)
    }

    #[test]
    fn an_unchanged_table_matches_and_excluded_columns_get_no_slot() {
        for identity in [ReplicaIdentity::Default, ReplicaIdentity::Index, ReplicaIdentity::Full] {
            let source = source(identity);
            let layout = mapping::layout(&source, &["secret".to_owned()], |_| false).unwrap();
            let map = RelationMap::new(&layout, &source, &relation(&source)).unwrap();
            let slots = [Some(Slot { column: 0, is_key: true }), None, Some(Slot { column: 1, is_key: false })];
            assert_eq!(map.slots(), slots);
        }
    }

    #[test]
    fn each_change_is_told() {
        let source = source(ReplicaIdentity::Default);
        let layout = layout(&source);
        let told = |change: &dyn Fn(&mut Relation)| {
            let mut changed = relation(&source);
            change(&mut changed);
            let error = RelationMap::new(&layout, &source, &changed).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Table);
            assert!(error.remedy_text().is_some());
            error.to_string()
        };
        let added = RelationColumn { key: false, name: "added".into(), type_oid: 23, typmod: -1 };
        assert!(told(&|r| r.columns.push(added.clone())).contains("column \"added\" is new"));
        assert!(told(&|r| drop(r.columns.remove(2))).contains("column \"n\" is gone"));
        assert!(told(&|r| r.columns[1].type_oid = 1043).contains("column \"secret\" is no longer text"));
        assert!(told(&|r| r.columns[2].typmod += 1).contains("column \"n\" is no longer numeric(10,2)"));
        assert!(told(&|r| r.columns[1].key = true).contains("its key is (id, secret) instead of (id)"));
        assert!(told(&|r| r.replica_identity = ReplicaIdentity::Full).contains("replica identity is FULL"));
        assert!(told(&|r| r.oid = 1).contains("another table"));
        assert!(told(&|r| r.columns.swap(0, 1)).contains("each other's names"));
        let renamed = told(&|r| r.columns[1].name = "open".into());
        assert!(renamed.contains("\"secret\" is gone") && renamed.contains("\"open\" is new"));
        // A table is the same by whatever name.
        let mut called = relation(&source);
        called.name.table = "u".into();
        assert!(RelationMap::new(&layout, &source, &called).is_ok());
    }
}

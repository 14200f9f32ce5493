//! What a Relation message says of a table: that it is as it was, or how its columns changed.
//!
//! A message names columns and types, and is as old as the change of a row that it comes before. The source's catalog has attnums, which
//! identify a column for ever, but is as new as the question. Where the two do not tell one history the table stops: nothing is
//! guessed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use duckpipe_storage::value_text;
use hashbrown::HashMap;

use super::flush::SyncTable;
use super::history;
use super::prepare;
use crate::batch::layout::{ColumnType, LayoutColumn, TableLayout};
use crate::batch::mapping;
use crate::batch::pgoutput::{Relation, RelationColumn};
use crate::batch::relation::RelationMap;
use crate::batch::value_of_text;
use crate::config::{Config, SelectedTable, selection_of_any};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Alteration, ColumnChange, FieldId, Lake, LakeColumn, LakeTable};
use crate::source::session::Session;
use crate::source::table::{PgType, SourceColumn, SourceTable};
use crate::source::{catalog, partitions};

/// How long a transaction may take from its commit record to being seen.
const VISIBLE_WITHIN: Duration = Duration::from_secs(30);

/// Asks the source how its tables are defined.
pub struct Definitions<'a> {
    /// A session beside the stream.
    pub session: &'a Session,
    /// Which columns enter the lake, and how.
    pub config: &'a Config,
    /// Whether the stream sends values in binary: a column that needs their text can't come into it.
    pub binary: bool,
}

/// What a Relation message came to.
pub enum Described {
    /// The table is what it was, as the source describes it now.
    Same(RelationMap, Box<SourceTable>),
    /// It is another one from the next change on.
    Changed(Box<Changed>),
}

/// A table whose definition changed.
pub struct Changed {
    /// As the source describes it.
    pub source: SourceTable,
    /// On its way into the lake.
    pub table: SyncTable,
    /// Where values go, as a message says; `None`: the next one will.
    pub relation: Option<RelationMap>,
    /// How the lake's columns change with the first rows; `None`: they don't.
    pub alteration: Option<Alteration>,
}

impl Definitions<'_> {
    /// Holds the message, which is one of the transaction `xid`, against what is known of the table, and against the catalog. `None`: a
    /// transaction that has not committed. What the catalog has was there before it then, or came by itself.
    ///
    /// # Errors
    /// Kind `Table` where they do not tell how the table changed; kind `Transient` where the source does not show the transaction.
    pub async fn judge(
        &self,
        lake: &Lake,
        (table, known): (&SyncTable, &SourceTable),
        (relation, xid): (&Relation, Option<u32>),
    ) -> Result<Described> {
        if let Some(xid) = xid {
            self.wait_until_visible(xid).await?;
        }
        let as_known = || RelationMap::new(&table.layout, known, relation);
        let Some(now) = self.now(known).await? else { return Ok(Described::Same(as_known()?, known.clone().into())) };
        prepare::check_identity(&now)?;
        let source = history::at_message(known, &now, relation).map_err(|why| unclear(known, why))?;
        if is_same(&source, known) {
            // Where it changed since, that will be described in its turn.
            let source = if is_same(&now, known) {
                if let Some(why) = other_values(known, &now) {
                    return Err(unclear(known, why));
                }
                SourceTable { last_attnum: known.last_attnum, ..with_parts_of(now, known) }
            } else {
                known.clone()
            };
            return Ok(Described::Same(as_known()?, source.into()));
        }
        if xid.is_none() && !is_same(&source, &now) {
            return Err(unclear(known, "by a transaction that may yet be rolled back"));
        }
        let changed = self.changed(lake, (table, known), source, Some(relation)).await?;
        Ok(Described::Changed(Box::new(changed)))
    }

    /// A table that is another one now, as the source describes it, and as a message does where there is one.
    ///
    /// # Errors
    /// Kind `Table` where only a fresh copy can follow that.
    pub async fn changed(
        &self,
        lake: &Lake,
        (table, known): (&SyncTable, &SourceTable),
        source: SourceTable,
        relation: Option<&Relation>,
    ) -> Result<Changed> {
        prepare::check_identity(&source)?;
        if let Some(why) = other_values(known, &source) {
            return Err(unclear(known, why));
        }
        let selected = selection_of_any(&self.config.tables(), [&table.selected, &known.name]);
        let selected = selected.ok_or_else(|| unclear(known, "[[tables]] names it no longer"))?;
        let layout = layout_of(&selected, &source).map_err(|error| unclear(known, &error.to_string()))?;
        let relation = relation.map(|relation| RelationMap::new(&layout, &source, relation)).transpose()?;
        let next = lake.next_column_id(table.lake.table_id).await?;
        let mut changed = changes(table, known, (&source, &layout), next)?;
        if self.binary && !layout.reads_binary() {
            return Err(unclear(known, "a new column is read as text, and the stream is binary"));
        }
        let shown = std::mem::take(&mut changed.shown);
        let columns = changed.columns.clone();
        let lake = LakeTable {
            columns: columns.clone(),
            shown: table.lake.shown.clone().into_iter().chain(shown).collect(),
            ..table.lake.clone()
        };
        let alteration =
            (!changed.changes.is_empty()).then_some(Alteration { changes: changed.changes, columns, name: None });
        let progress = Arc::clone(&table.progress);
        let selected = table.selected.clone();
        let partitioned = source.partitions.is_some();
        let table = SyncTable { oid: table.oid, selected, partitioned, layout: Arc::new(layout), lake, progress };
        Ok(Changed { source: with_parts_of(source, known), table, relation, alteration })
    }

    /// A table that a transaction described as it was known is that still, or has changed since then.
    ///
    /// # Errors
    /// As [`Definitions::judge`].
    pub async fn verify(&self, known: &SourceTable, xid: u32) -> Result<()> {
        self.wait_until_visible(xid).await?;
        let Some(now) = self.now(known).await? else { return Ok(()) };
        let sent: Vec<RelationColumn> = known.columns.iter().map(sent).collect();
        history::columns(known, &now, &sent).map(drop).map_err(|why| unclear(known, why))
    }

    /// The WAL tells of a commit before other sessions see it. Whoever changed the table before held a lock on it until they did.
    async fn wait_until_visible(&self, xid: u32) -> Result<()> {
        let begun = Instant::now();
        while !self.session.is_visible(xid).await? {
            if begun.elapsed() > VISIBLE_WITHIN {
                let what = format!("transaction {xid} has committed, but is not visible at the source yet");
                return Err(Error::new(ErrorKind::Transient, what).remedy("does it wait for a synchronous standby?"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// A number for each of these tables that is another one once its definition is.
    ///
    /// # Errors
    /// Kind `Transient` where the source does not answer.
    pub async fn marks(&self, oids: &[u32]) -> Result<HashMap<u32, i64>> {
        catalog::definition_marks(self.session, oids).await
    }

    /// The table as the catalog has it; `None` where that is not the table any more.
    ///
    /// # Errors
    /// Kind `Transient` where the source does not answer.
    pub async fn now(&self, known: &SourceTable) -> Result<Option<SourceTable>> {
        let publication = &self.config.source.publication;
        catalog::describe_definition(self.session, known.oid, publication).await
    }
}

/// A column as a message sends it.
fn sent(column: &SourceColumn) -> RelationColumn {
    let PgType { oid, typmod, .. } = column.pg_type;
    RelationColumn { key: false, name: column.name.clone(), type_oid: oid, typmod }
}

/// A table's way into the lake as the configuration wants it.
///
/// # Errors
/// Kind `Table`, where it can't have one.
pub fn layout_of(selected: &SelectedTable, source: &SourceTable) -> Result<TableLayout> {
    let forced = |column: &str| selected.text_columns.contains(column);
    let layout = mapping::layout(source, &selected.exclude_columns, forced)?;
    let layout = TableLayout { mode: selected.mode, ..layout };
    prepare::refuse_keyless(&layout)?;
    Ok(layout)
}

/// Whether changes of the table are read alike: its columns, their types, its key and which of its rows are sent are the same.
pub fn is_same(one: &SourceTable, other: &SourceTable) -> bool {
    let others = |table: &SourceTable| (table.key.clone(), table.replica_identity, table.filter.clone());
    let columns = one.columns.len() == other.columns.len()
        && one.columns.iter().zip(&other.columns).all(|(one, other)| looks_like(one, other));
    columns && others(one) == others(other)
}

/// Whether a column is where it was, under its name, and read as before.
fn looks_like(one: &SourceColumn, other: &SourceColumn) -> bool {
    one.attnum == other.attnum && one.name == other.name && one.pg_type.is_read_as(&other.pg_type)
}

const RECAST: &str = "it was written anew, and a column of it was changed at that time: its values may be others now";
const PASSED_OVER: &str = "the publication does not send its changes any more, or did not for a while";
const RELABELLED: &str = "a value of an enum has another label, or a composite type other attributes";

/// Why the values of rows that are there may be others now, though the table looks as before and no message tells of it.
pub fn other_values(known: &SourceTable, now: &SourceTable) -> Option<&'static str> {
    if is_recast(known, now) {
        return Some(RECAST);
    }
    if known.published.is_some() && known.published != now.published {
        return Some(PASSED_OVER);
    }
    let relabelled = |column: &SourceColumn| {
        let before = known.columns.iter().find(|before| before.attnum == column.attnum);
        before.is_some_and(|before| {
            let mut parts = before.parts.iter();
            parts.any(|(part, look)| column.parts.get(part).is_some_and(|now| now != look))
        })
    };
    now.columns.iter().any(relabelled).then_some(RELABELLED)
}

/// Whether the table has another heap, and a column that was changed and looks as before: so it is after ALTER COLUMN … TYPE … USING with
/// the type that it has, which no message tells. VACUUM FULL and CLUSTER leave the columns alone, but for those that have a value for rows
/// which are older: these can't be told from a recast.
fn is_recast(known: &SourceTable, now: &SourceTable) -> bool {
    let recast = |column: &SourceColumn| {
        let mut before = known.columns.iter().filter(|before| before.changed_by != 0);
        before.any(|before| looks_like(before, column) && before.changed_by != column.changed_by)
    };
    known.file_node != now.file_node && now.columns.iter().any(recast)
}

/// The table with the name and the partitions that are known: what became of these is judged when everything before that is in the lake.
pub fn with_parts_of(table: SourceTable, known: &SourceTable) -> SourceTable {
    SourceTable { name: known.name.clone(), partitions: known.partitions.clone(), ..table }
}

/// A table that only a fresh copy can follow.
pub fn unclear(table: &SourceTable, why: &str) -> Error {
    Error::new(ErrorKind::Table, format!("the source's table {} changed: {why}", table.name))
        .remedy("what its rows are now can't be told from the WAL: copy the table anew by `duckpipe tables resync`")
        .mended_by_resync()
}

/// How a table's columns change.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    changes: Vec<ColumnChange>,
    /// All columns from then on.
    columns: Vec<LakeColumn>,
    /// What older rows show of those that are new.
    shown: Vec<(i64, String)>,
}

/// From what was known to what is now. `next` is the least id that no column of the lake's table ever had.
fn changes(
    table: &SyncTable,
    known: &SourceTable,
    (source, layout): (&SourceTable, &TableLayout),
    next: i64,
) -> Result<Changes> {
    let unclear = |why: &str| unclear(known, why);
    if source.filter != known.filter {
        return Err(unclear("the publication sends other rows of it"));
    }
    let rewritten = partitions::written_anew(known.partitions.as_deref(), source.partitions.as_deref());
    if source.file_node != known.file_node || rewritten {
        return Err(unclear("all its rows were written anew"));
    }
    let key = |layout: &TableLayout| layout.key.iter().map(|&index| layout.columns[index].attnum).collect::<Vec<_>>();
    if key(layout) != key(&table.layout) {
        return Err(unclear("it has another key"));
    }
    let before = || table.layout.columns.iter().zip(&table.lake.columns);
    let mut result = Changes::default();
    for (old, lake) in before() {
        let column_id = lake.id.column_id;
        match layout.columns.iter().find(|new| new.attnum == old.attnum) {
            None => result.changes.push(ColumnChange::Drop { column_id }),
            Some(new) => {
                if new.name != old.name {
                    result.changes.push(ColumnChange::Rename { column_id, name: new.name.clone() });
                }
                if widens(&old.column_type, &new.column_type) {
                    result.changes.push(ColumnChange::Widen { column_id, column_type: new.column_type.clone() });
                } else if !same_values(old, new) {
                    return Err(unclear(&format!("the column {:?} has another type", new.name)));
                }
            }
        }
    }
    let mut next = next;
    for (index, new) in layout.columns.iter().enumerate() {
        let place = layout.key_place(index);
        let id = match before().find(|(old, _)| old.attnum == new.attnum) {
            Some((_, lake)) => lake.id.clone(),
            None if known.columns.iter().any(|old| old.attnum == new.attnum) => {
                let what = format!("the column {:?}, which the lake leaves out, has another name", new.name);
                return Err(
                    unclear(&what).remedy("name it in `exclude_columns` as it is called now, and copy the table anew")
                );
            }
            None if new.attnum <= known.last_attnum => {
                return Err(unclear(&format!(
                    "it has rows with values of the column {:?}, which was not sent before",
                    new.name
                )));
            }
            None => {
                let id = FieldId::of_new(&new.column_type, &mut next);
                let (name, column_type) = (new.name.clone(), new.column_type.clone());
                let shown = shown(new, source.columns.iter().find(|column| column.attnum == new.attnum))
                    .map_err(|why| unclear(&why))?;
                result.shown.extend(shown.clone().map(|text| (id.column_id, text)));
                let instead_of = None;
                result.changes.push(ColumnChange::Add { id: id.clone(), name, column_type, shown, instead_of });
                id
            }
        };
        result.columns.push(LakeColumn { attnum: new.attnum, key: place, id });
    }
    // Those of changes stay as they are.
    result.columns.extend(table.lake.columns.iter().skip(table.layout.columns.len()).cloned());
    Ok(result)
}

/// Whether every value of the old type is one of the new, which no row had to be written anew for.
fn widens(old: &ColumnType, new: &ColumnType) -> bool {
    match (old, new) {
        (
            ColumnType::Decimal { precision: before, scale: old },
            ColumnType::Decimal { precision: after, scale: new },
        ) => old == new && before < after,
        _ => false,
    }
}

/// Whether the same value of the source is the same one in the lake.
fn same_values(old: &LayoutColumn, new: &LayoutColumn) -> bool {
    let sent = |column: &LayoutColumn| (column.cast_to_text, column.text_source, column.delimiter);
    old.column_type == new.column_type && sent(old) == sent(new)
}

/// What rows that are older than a column show of it, as DuckDB prints it; `None`: NULL.
fn shown(column: &LayoutColumn, source: Option<&SourceColumn>) -> std::result::Result<Option<String>, String> {
    let Some(text) = source.and_then(|source| source.missing.as_deref()) else { return Ok(None) };
    let cant = |why: &str| {
        format!("what older rows show of the new column {:?} can't be said in the lake: {why}", column.name)
    };
    if matches!(column.column_type, ColumnType::List(_)) {
        return Err(cant("DuckLake has no default of a list"));
    }
    let value = value_of_text(column, text).map_err(|error| cant(&error.to_string()))?;
    // DuckLake takes this word for NULL.
    let text = value_text(&value, 0).filter(|text| text != "NULL");
    text.map(Some).ok_or_else(|| cant("it has no text that a reader casts back"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::testing::{layout, numbered_table as source};
    use crate::source::table::TableName;
    use crate::sync::progress::Progress;

    fn known(source: &SourceTable) -> SyncTable {
        let layout = layout(source);
        let columns = layout.columns.iter().zip(1..).map(|(column, column_id)| LakeColumn {
            attnum: column.attnum,
            key: (column.name == "id").then_some(0),
            id: FieldId { column_id, element: None },
        });
        let name = TableName { schema: "public".into(), table: "t".into() };
        let lake = LakeTable {
            table_id: 1,
            folder: "public/t".into(),
            columns: columns.collect(),
            shown: std::collections::HashMap::new(),
            name: name.clone(),
        };
        let progress = Progress::new().table(&name, &name);
        SyncTable { oid: source.oid, selected: name, partitioned: false, layout, lake, progress }
    }

    fn from_to(before: &SourceTable, after: &SourceTable) -> Result<Changes> {
        changes(&known(before), before, (after, &layout(after)), 10)
    }

    #[test]
    fn attnums_tell_what_became_of_a_column() {
        let before = source(&[(1, "id", "int4"), (2, "a", "text"), (3, "b", "numeric(10,2)"), (4, "c", "text")]);
        let mut after = source(&[(1, "id", "int4"), (2, "c", "varchar"), (3, "b", "numeric(12,2)"), (6, "a", "int8")]);
        after.columns[3].missing = Some("7".into());
        let found = from_to(&before, &after).unwrap();
        let added = FieldId { column_id: 10, element: None };
        assert_eq!(
            found.changes,
            [
                ColumnChange::Rename { column_id: 2, name: "c".into() },
                ColumnChange::Widen { column_id: 3, column_type: ColumnType::Decimal { precision: 12, scale: 2 } },
                ColumnChange::Drop { column_id: 4 },
                ColumnChange::Add {
                    id: added.clone(),
                    name: "a".into(),
                    column_type: ColumnType::Int8,
                    shown: Some("7".into()),
                    instead_of: None,
                },
            ]
        );
        let columns: Vec<(i16, i64)> =
            found.columns.iter().map(|column| (column.attnum, column.id.column_id)).collect();
        assert_eq!(columns, [(1, 1), (2, 2), (3, 3), (6, 10)]);
        assert_eq!((found.columns[0].key, found.shown), (Some(0), vec![(10, "7".to_owned())]));
        assert_eq!(from_to(&before, &before).unwrap().changes, []);
    }

    #[test]
    fn what_is_not_told_is_not_guessed() {
        let before = source(&[(1, "id", "int4"), (2, "a", "int4"), (3, "b", "text")]);
        let refused = |change: &dyn Fn(&mut SourceTable)| {
            let mut after = before.clone();
            change(&mut after);
            let error = from_to(&before, &after).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Table);
            error.to_string()
        };
        assert!(refused(&|t| t.file_node = 2).contains("written anew"));
        assert!(refused(&|t| t.key = vec![0, 1]).contains("another key"));
        assert!(refused(&|t| t.columns[1].pg_type = crate::batch::testing::pg_type("int8")).contains("another type"));
        let column = |name: &str, pg_type: &str, missing: Option<&str>| {
            let mut column = source(&[(1, "id", "int4"), (9, name, pg_type)]).columns.remove(1);
            column.missing = missing.map(str::to_owned);
            column
        };
        let list = column("tags", "int4[]", Some("{1}"));
        assert!(refused(&|t| t.columns.push(list.clone())).contains("list"));
        let bytes = column("raw", "bytea", Some("\\x00"));
        assert!(refused(&|t| t.columns.push(bytes.clone())).contains("no text"));
        let word = column("word", "text", Some("NULL"));
        assert!(refused(&|t| t.columns.push(word.clone())).contains("no text"));
        let nan = column("n", "numeric(4,1)", Some("NaN"));
        assert!(refused(&|t| t.columns.push(nan.clone())).contains("NaN"));
    }

    /// Under its new name the configuration does not exclude it any more.
    #[test]
    fn a_column_that_was_left_out_does_not_come_in_by_another_name() {
        let before = source(&[(1, "id", "int4"), (2, "card", "text")]);
        let mut known = known(&before);
        let exclude = |name: &str, table: &SourceTable| mapping::layout(table, &[name.to_owned()], |_| false).unwrap();
        known.layout = Arc::new(exclude("card", &before));
        known.lake.columns.truncate(1);
        let after = source(&[(1, "id", "int4"), (2, "card_number", "text")]);
        let error = changes(&known, &before, (&after, &exclude("card", &after)), 10).unwrap_err();
        assert!(error.to_string().contains("leaves out"), "{error}");
    }
}

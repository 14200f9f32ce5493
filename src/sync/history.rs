//! What a table was like when a Relation message was written: after what is known of it, and before what the catalog has now.
//!
//! A message has the names and types of the columns, in the order of their attnums. Columns that are known and still there were there
//! all the time, whatever they were called. Of those that went since, each may have been there or not. Those that came since
//! came one after the other. Where only one reading has the message's types, the message tells the columns.

use crate::batch::pgoutput::{Relation, RelationColumn};
use crate::source::table::{ReplicaIdentity, SourceColumn, SourceTable};

/// What neither the WAL nor the catalog can tell apart from no change at all, by its looks.
pub const REPLACED: &str = "a column was dropped, and another one of its name and type added in its place";
const CHANGED_TWICE: &str =
    "its columns changed again before the first change was read, and what they were in between can't be told";
const OTHER_KEY: &str = "it has another key";

/// The table as the message describes it; or why that can't be told.
pub fn at_message(known: &SourceTable, now: &SourceTable, relation: &Relation) -> Result<SourceTable, &'static str> {
    let columns = columns(known, now, &relation.columns)?;
    let attnums = |table: &SourceTable| -> Vec<i16> { table.key.iter().map(|&at| table.columns[at].attnum).collect() };
    // Under FULL every column is marked: the key is that of the catalog.
    let mut sent = match relation.replica_identity {
        ReplicaIdentity::Full => attnums(now),
        _ => columns
            .iter()
            .zip(&relation.columns)
            .filter(|(_, sent)| sent.key)
            .map(|(column, _)| column.attnum)
            .collect(),
    };
    let key = attnums(known);
    let mut sorted = key.clone();
    sorted.sort_unstable();
    sent.sort_unstable();
    let place = |attnum: &i16| columns.iter().position(|column| column.attnum == *attnum);
    let key = key.iter().map(place).collect::<Option<Vec<_>>>().filter(|_| sent == sorted).ok_or(OTHER_KEY)?;
    let replica_identity = relation.replica_identity;
    // What the catalog has by now may have come after the message.
    let last_attnum = columns.iter().map(|column| column.attnum).fold(known.last_attnum, i16::max);
    Ok(SourceTable { name: known.name.clone(), columns, key, replica_identity, last_attnum, ..now.clone() })
}

/// The columns of a message.
///
/// # Errors
/// Why they can't be told.
pub fn columns(
    known: &SourceTable,
    now: &SourceTable,
    sent: &[RelationColumn],
) -> Result<Vec<SourceColumn>, &'static str> {
    let came: Vec<&SourceColumn> = now.columns.iter().filter(|column| find(known, column.attnum).is_none()).collect();
    let mut readings = Vec::new();
    for count in 0..=came.len().min(sent.len()) {
        let (old, new) = sent.split_at(sent.len() - count);
        if new.iter().zip(&came).all(|(sent, column)| is_of(sent, column)) {
            let own = |places: Vec<usize>| (places, count);
            readings.extend(embeddings(known, now, old).into_iter().map(own));
        }
    }
    let fits = |table: &SourceTable| {
        let alike = |(sent, column): (&RelationColumn, &SourceColumn)| sent.name == column.name && is_of(sent, column);
        sent.len() == table.columns.len() && sent.iter().zip(&table.columns).all(alike)
    };
    // One that came and went since may have had any name and type: what looks like one that came may be that.
    let passed = (known.last_attnum + 1..=now.last_attnum).any(|attnum| find(now, attnum).is_none());
    if let [(places, count)] = readings.as_slice()
        && (*count == 0 || !passed)
    {
        let old = places.iter().map(|&place| &known.columns[place]);
        let all: Vec<&SourceColumn> = old.chain(came.iter().copied().take(*count)).collect();
        // A column that came is one only by the name that it has.
        let stayed = |column: &SourceColumn| find(known, column.attnum).is_some() && find(now, column.attnum).is_some();
        if all.iter().zip(sent).all(|(column, sent)| stayed(column) || column.name == sent.name) {
            return Ok(all.iter().zip(sent).map(|(column, sent)| named(column, now, sent)).collect());
        }
    }
    match readings.len() {
        _ if fits(now) && !fits(known) && !passed => Ok(now.columns.clone()),
        0 | 1 => Err(CHANGED_TWICE),
        _ => Err(REPLACED),
    }
}

fn find(table: &SourceTable, attnum: i16) -> Option<&SourceColumn> {
    table.columns.iter().find(|column| column.attnum == attnum)
}

fn is_of(sent: &RelationColumn, column: &SourceColumn) -> bool {
    (sent.type_oid, sent.typmod) == (column.pg_type.oid, column.pg_type.typmod)
}

/// A column under the name that it had, with the type that it had of the two that are known.
fn named(column: &SourceColumn, now: &SourceTable, sent: &RelationColumn) -> SourceColumn {
    let later = find(now, column.attnum).unwrap_or(column);
    let pg_type = if is_of(sent, column) { &column.pg_type } else { &later.pg_type };
    SourceColumn { name: sent.name.clone(), pg_type: pg_type.clone(), ..later.clone() }
}

/// The ways in which `sent` are known columns, in their order, all those among them that are still there: at most two, each as
/// indices of known columns.
fn embeddings(known: &SourceTable, now: &SourceTable, sent: &[RelationColumn]) -> Vec<Vec<usize>> {
    let columns = &known.columns;
    let later: Vec<Option<&SourceColumn>> = columns.iter().map(|column| find(now, column.attnum)).collect();
    let may_be = |at: usize, sent: &RelationColumn| {
        is_of(sent, &columns[at]) || later[at].is_some_and(|column| is_of(sent, column))
    };
    // How many ways there are from a known column and a sent one on: none, one, or more.
    let width = sent.len() + 1;
    let mut ways = vec![0u8; (columns.len() + 1) * width];
    ways[columns.len() * width + sent.len()] = 1;
    for at in (0..columns.len()).rev() {
        for next in (0..=sent.len()).rev() {
            let skipped = if later[at].is_none() { ways[(at + 1) * width + next] } else { 0 };
            let taken = match sent.get(next) {
                Some(sent) if may_be(at, sent) => ways[(at + 1) * width + next + 1],
                _ => 0,
            };
            ways[at * width + next] = (skipped + taken).min(2);
        }
    }
    let mut found: Vec<Vec<usize>> = Vec::new();
    for skip_first in [true, false] {
        let (mut places, mut next) = (Vec::with_capacity(sent.len()), 0);
        for at in 0..columns.len() {
            let skips = later[at].is_none() && ways[(at + 1) * width + next] > 0;
            let takes = sent.get(next).is_some_and(|sent| may_be(at, sent)) && ways[(at + 1) * width + next + 1] > 0;
            if takes && !(skips && skip_first) {
                places.push(at);
                next += 1;
            }
        }
        if ways[0] > 0 && !found.contains(&places) {
            found.push(places);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::testing::{numbered_table as source, relation, table};

    const KNOWN: [(i16, &str, &str); 3] = [(1, "id", "int4"), (2, "a", "int4"), (3, "b", "text")];

    /// The attnums that a message's columns are read as.
    fn read(now: &[(i16, &str, &str)], message: &[(&str, &str)]) -> Result<Vec<i16>, &'static str> {
        let sent = relation(&table(message, &["id"], ReplicaIdentity::Default));
        let at = at_message(&source(&KNOWN), &source(now), &sent)?;
        let names: Vec<&str> = at.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, message.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "as they were called");
        Ok(at.columns.iter().map(|column| column.attnum).collect())
    }

    #[test]
    fn a_message_between_two_changes_is_read() {
        let both = [(1, "id", "int4"), (2, "a", "int4"), (3, "b", "text"), (4, "c", "int4"), (5, "d", "int4")];
        let known = [("id", "int4"), ("a", "int4"), ("b", "text")];
        assert_eq!(read(&both, &known), Ok(vec![1, 2, 3]));
        assert_eq!(read(&both, &[("id", "int4"), ("a", "int4"), ("b", "text"), ("c", "int4")]), Ok(vec![1, 2, 3, 4]));
        // The one that came is called as nobody knows.
        let other = [("id", "int4"), ("a", "int4"), ("b", "text"), ("x", "int4")];
        assert_eq!(read(&both, &other), Err(CHANGED_TWICE));
        // One that stayed may be called anything in between, and be of either type.
        let renamed = [(1, "id", "int4"), (2, "z", "int8"), (3, "b", "text")];
        assert_eq!(read(&renamed, &[("id", "int4"), ("y", "int4"), ("b", "text")]), Ok(vec![1, 2, 3]));
        assert_eq!(read(&renamed, &[("id", "int4"), ("y", "int8"), ("b", "text")]), Ok(vec![1, 2, 3]));
        assert_eq!(read(&renamed, &[("id", "int4"), ("y", "int2"), ("b", "text")]), Err(CHANGED_TWICE));
        // Both go, one after the other.
        let gone = [(1, "id", "int4")];
        assert_eq!(read(&gone, &[("id", "int4"), ("b", "text")]), Ok(vec![1, 3]));
        assert_eq!(read(&gone, &[("id", "int4"), ("a", "int4")]), Ok(vec![1, 2]));
        assert_eq!(read(&gone, &[("id", "int4")]), Ok(vec![1]));
    }

    #[test]
    fn what_looks_the_same_may_be_another_column() {
        let message = [("id", "int4"), ("a", "int4"), ("b", "text")];
        let as_known = |now: &[(i16, &str, &str)]| read(now, &message);
        assert_eq!(as_known(&KNOWN), Ok(vec![1, 2, 3]));
        assert_eq!(as_known(&[(1, "id", "int4"), (2, "a", "int4"), (4, "b", "text")]), Err(REPLACED));
        // It has another name since, and one more stands behind it.
        assert_eq!(as_known(&[(1, "id", "int4"), (2, "a", "int4"), (4, "c", "text"), (5, "d", "int4")]), Err(REPLACED));
        assert_eq!(as_known(&[(1, "id", "int4"), (4, "a", "int4"), (5, "b", "text")]), Err(REPLACED));
        // Another type; in the place of one that was not the last; only gone; only new.
        assert_eq!(as_known(&[(1, "id", "int4"), (2, "a", "int4"), (4, "b", "int4")]), Ok(vec![1, 2, 3]));
        assert_eq!(as_known(&[(1, "id", "int4"), (3, "b", "text"), (4, "a", "int4")]), Ok(vec![1, 2, 3]));
        assert_eq!(as_known(&[(1, "id", "int4"), (2, "a", "int4")]), Ok(vec![1, 2, 3]));
        // A new name tells it from the one that went.
        let now = [(1, "id", "int4"), (2, "a", "int4"), (4, "c", "text")];
        assert_eq!(read(&now, &[("id", "int4"), ("a", "int4"), ("c", "text")]), Ok(vec![1, 2, 4]));
    }

    #[test]
    fn what_a_message_says_nothing_of_may_still_have_come_and_gone() {
        let now = source(&[(1, "id", "int4"), (2, "z", "int4"), (3, "b", "text"), (5, "c", "int4")]);
        let message = |columns: &[(&str, &str)]| relation(&table(columns, &["id"], ReplicaIdentity::Default));
        let renamed = [("id", "int4"), ("z", "int4"), ("b", "text")];
        let before = at_message(&source(&KNOWN), &now, &message(&renamed)).unwrap();
        assert_eq!(before.last_attnum, 3);
        // Number 4 may have been called `c` too.
        let added = [&renamed[..], &[("c", "int4")]].concat();
        assert_eq!(at_message(&before, &now, &message(&added)), Err(CHANGED_TWICE));
    }

    #[test]
    fn what_came_and_went_may_look_like_what_came() {
        let message = [("id", "int4"), ("b", "text"), ("a", "int4")];
        assert_eq!(read(&[(1, "id", "int4"), (3, "b", "text"), (4, "a", "int4")], &message), Ok(vec![1, 3, 4]));
        assert_eq!(read(&[(1, "id", "int4"), (3, "b", "text"), (5, "a", "int4")], &message), Err(CHANGED_TWICE));
        // Where the message has none that came, it does not matter.
        let without = [("id", "int4"), ("b", "text")];
        assert_eq!(read(&[(1, "id", "int4"), (3, "b", "text"), (5, "a", "int4")], &without), Ok(vec![1, 3]));
    }

    #[test]
    fn another_key_is_told() {
        let known = source(&KNOWN);
        let mut sent = relation(&known);
        sent.columns[1].key = true;
        assert_eq!(at_message(&known, &known, &sent), Err(OTHER_KEY));
        sent.columns[1].key = false;
        assert_eq!(at_message(&known, &known, &sent), Ok(known.clone()));
        let mut now = source(&KNOWN);
        now.key = vec![1];
        sent.replica_identity = ReplicaIdentity::Full;
        assert_eq!(at_message(&known, &now, &sent), Err(OTHER_KEY));
    }
}

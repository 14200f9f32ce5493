//! What a partitioned table is made of.
//!
//! Its changes come as its own (`publish_via_partition_root`), and so does a TRUNCATE of the whole. What is done to one partition is told
//! by no message: one that is attached brings rows, one that is detached or dropped takes its rows away, as does a TRUNCATE of it
//! (`pgoutput_truncate` in `src/backend/replication/pgoutput/pgoutput.c`). The catalog tells it, by what is compared here.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::table::TableName;
use crate::error::{Because, Error, ErrorKind, Result};

/// A table below a partitioned one, at any depth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// `pg_class.oid`.
    pub oid: u32,
    /// The schema and the name.
    pub name: TableName,
    /// `pg_class.relfilenode`; 0 where it is partitioned itself.
    pub file_node: u32,
    /// The transaction that made it a partition of its parent (`pg_inherits.xmin`); 0 where only the stream has told of it.
    pub attached_by: u32,
    /// That transaction made the table too, as CREATE TABLE … PARTITION OF does: it had no rows.
    #[serde(skip)]
    pub born: bool,
    /// The last transaction that changed its row of `pg_class`: the one that truncated it, where nothing came after that.
    #[serde(skip)]
    pub changed_by: u32,
    /// Its changes are in the WAL: it is neither a foreign table nor an unlogged one.
    #[serde(skip)]
    pub logged: bool,
    /// The heap's size in pages of 8 KiB, where it was measured: see [`SIZE`].
    #[serde(skip)]
    pub pages: u32,
    /// The planner's estimate of the number of rows, not negative.
    #[serde(skip)]
    pub estimated_rows: i64,
}

impl Partition {
    /// One that has brought rows, as a message says that names it. It may be gone before the catalog is looked at.
    pub fn heard_of(oid: u32, name: TableName) -> Partition {
        Partition {
            oid,
            name,
            file_node: oid,
            attached_by: 0,
            born: false,
            changed_by: 0,
            logged: true,
            pages: 0,
            estimated_rows: 0,
        }
    }

    fn is_hearsay(&self) -> bool {
        self.attached_by == 0
    }
}

/// The size of `pg_class c` in pages. Whoever measures a table waits for whoever has it to himself (a TRUNCATE that is not committed, VACUUM
/// FULL for hours), and for whoever waits to have it: of such a table it is what VACUUM or ANALYZE last saw. Only who
/// comes between this look at the locks and the measuring is waited for after all.
pub(super) const SIZE: &str = "CASE WHEN c.oid IN (SELECT l.relation FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
         WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND d.datname = current_database()) \
    THEN greatest(c.relpages, 0) ELSE coalesce(pg_relation_size(c.oid) / current_setting('block_size')::int8, 0) END";

/// The tables below the table `oid`, which may be a parameter or a number, as rows of (oid, parent's link).
///
/// A partition that is being detached concurrently is none any more.
pub(super) fn tree(oid: &str) -> String {
    format!(
        "WITH RECURSIVE tree (oid, link) AS (\
         SELECT i.inhrelid, i.xmin FROM pg_inherits i WHERE i.inhparent = {oid} AND NOT i.inhdetachpending \
         UNION ALL SELECT i.inhrelid, i.xmin FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid WHERE NOT i.inhdetachpending)"
    )
}

/// The statement whose rows [`partition`] reads, one per partition of the table, by name. It shows them as its transaction's
/// snapshot does, but for their sizes.
///
/// A table that was made as a partition has columns which nobody has touched since the command that made it. ATTACH PARTITION writes
/// the columns of a table anew (`MergeAttributesIntoExisting` in `src/backend/commands/tablecmds.c`), also in the transaction that made
/// it, and may have filled it in between.
pub(super) fn statement(oid: u32, measured: bool) -> String {
    let pages = if measured { SIZE } else { "0" };
    format!(
        "{} SELECT c.oid, n.nspname, c.relname, c.relfilenode, t.link, \
         EXISTS (SELECT FROM pg_attribute made JOIN pg_attribute a ON a.attrelid = made.attrelid AND a.attnum > 0 \
                 WHERE made.attrelid = c.oid AND made.attnum = -1 AND made.xmin = t.link AND a.xmin = made.xmin \
                 AND a.cmin::text = made.cmin::text), \
         c.xmin, c.relpersistence = 'p' AND c.relkind IN ('r', 'p'), {pages}, greatest(c.reltuples, 0)::int8 \
         FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace \
         ORDER BY n.nspname, c.relname",
        tree(&oid.to_string())
    )
}

/// Reads a row of [`statement`], whose columns come as text.
pub(super) fn partition<'a>(column: impl Fn(usize) -> Option<&'a str>) -> Result<Partition> {
    let text = |index| {
        let missing = || Error::new(ErrorKind::Internal, "a partition is described incompletely");
        column(index).ok_or_else(missing)
    };
    let number = |index| {
        let text = text(index)?;
        text.parse::<i64>().because(ErrorKind::Internal, || format!("a partition is described by {text:?}"))
    };
    let narrow = |index| number(index).map(|number| u32::try_from(number).unwrap_or(u32::MAX));
    Ok(Partition {
        oid: narrow(0)?,
        name: TableName { schema: text(1)?.to_owned(), table: text(2)?.to_owned() },
        file_node: narrow(3)?,
        attached_by: narrow(4)?,
        born: text(5)? == "t",
        changed_by: narrow(6)?,
        logged: text(7)? == "t",
        pages: narrow(8)?,
        estimated_rows: number(9)?,
    })
}

/// What was done to partitions, between these two moments, that no message tells; `None`: nothing. `truncations` are the transactions that
/// truncated the whole table in between.
pub fn unsaid(known: &[Partition], now: &[Partition], truncations: &HashSet<u32>) -> Option<String> {
    for partition in known {
        let what = match find(now, partition.oid) {
            None => "was detached or dropped",
            Some(_) if partition.is_hearsay() => continue,
            Some(found) if found.attached_by != partition.attached_by => "was detached, and attached again",
            Some(found) if found.file_node != partition.file_node && !truncations.contains(&found.changed_by) => {
                TRUNCATED
            }
            Some(_) => continue,
        };
        return Some(format!("its partition {} {what}", partition.name));
    }
    let is_known = |partition: &Partition| find(known, partition.oid).is_some_and(|known| !known.is_hearsay());
    now.iter().filter(|partition| !is_known(partition)).find_map(|partition| {
        // A table's first file has the table's oid for its name (`heap_create` in `src/backend/catalog/heap.c`).
        let as_made = partition.file_node == partition.oid || partition.file_node == 0;
        let what = match (partition.born, partition.logged) {
            (true, true) if as_made || truncations.contains(&partition.changed_by) => return None,
            (true, true) => TRUNCATED,
            (false, true) => "was attached",
            (_, false) => "is not logged: it is a foreign table, or an unlogged one",
        };
        Some(format!("its partition {} {what}", partition.name))
    })
}

const TRUNCATED: &str = "was truncated by itself, or written anew";

/// Whether a table still is made of the same tables, with the same files, since the same time.
pub fn is_same(one: Option<&[Partition]>, other: Option<&[Partition]>) -> bool {
    let identity = |partition: &Partition| (partition.oid, partition.file_node, partition.attached_by);
    let all = |partitions: &[Partition]| partitions.iter().map(identity).collect::<HashSet<_>>();
    one.map(all) == other.map(all)
}

/// Whether a partition of both moments was written anew in between.
pub fn written_anew(known: Option<&[Partition]>, now: Option<&[Partition]>) -> bool {
    let same = |partition: &Partition| {
        find(known.unwrap_or_default(), partition.oid).is_none_or(|known| known.file_node == partition.file_node)
    };
    !now.unwrap_or_default().iter().all(same)
}

fn find(all: &[Partition], oid: u32) -> Option<&Partition> {
    all.iter().find(|partition| partition.oid == oid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(oid: u32) -> Partition {
        let name = TableName { schema: "s".into(), table: format!("p{oid}") };
        let (born, logged) = (true, true);
        Partition {
            oid,
            name,
            file_node: oid,
            attached_by: 7,
            born,
            changed_by: 7,
            logged,
            pages: 0,
            estimated_rows: 0,
        }
    }

    #[test]
    fn what_a_message_tells_is_nothing_new() {
        let known = [part(1), part(2)];
        let none = HashSet::new();
        assert_eq!(unsaid(&known, &known, &none), None);
        assert_eq!(unsaid(&known, &[part(1), part(2), part(3)], &none), None, "made as a partition");
        let truncated = Partition { file_node: 99, changed_by: 8, ..part(2) };
        assert_eq!(unsaid(&known, &[part(1), truncated], &HashSet::from([8])), None, "with the whole table");
    }

    #[test]
    fn what_only_the_stream_has_told_of() {
        let heard = |oid| Partition::heard_of(oid, part(oid).name);
        let known = [part(1), heard(2)];
        let said = |now: &[Partition]| unsaid(&known, now, &HashSet::from([8]));
        assert_eq!(said(&[part(1), part(2)]), None);
        assert_eq!(said(&[part(1)]).unwrap_or_default(), "its partition s.p2 was detached or dropped");
        let attached = Partition { born: false, ..part(2) };
        assert_eq!(said(&[part(1), attached]).unwrap_or_default(), "its partition s.p2 was attached");
        let truncated = Partition { file_node: 99, changed_by: 9, ..part(2) };
        assert!(said(&[part(1), truncated.clone()]).unwrap_or_default().contains("s.p2 was truncated by itself"));
        assert_eq!(said(&[part(1), Partition { changed_by: 8, ..truncated }]), None, "with the whole table");
        assert!(!is_same(Some(&known), Some(&[part(1), part(2)])), "the catalog has more to tell of it");
    }

    #[test]
    fn what_no_message_tells_is_said() {
        let known = [part(1), part(2)];
        let said = |now: &[Partition]| unsaid(&known, now, &HashSet::from([8])).unwrap_or_default();
        assert_eq!(said(&[part(1)]), "its partition s.p2 was detached or dropped");
        let truncated = Partition { file_node: 99, changed_by: 9, ..part(2) };
        assert_eq!(said(&[part(1), truncated]), "its partition s.p2 was truncated by itself, or written anew");
        let back = Partition { attached_by: 9, ..part(2) };
        assert_eq!(said(&[part(1), back]), "its partition s.p2 was detached, and attached again");
        let attached = Partition { born: false, ..part(3) };
        assert_eq!(said(&[part(1), part(2), attached]), "its partition s.p3 was attached");
        let foreign = Partition { logged: false, ..part(3) };
        assert!(said(&[part(1), part(2), foreign]).contains("not logged"));
    }
}

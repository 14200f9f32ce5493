//! Which rows of a data file are no more, and since when: millions of positions in little memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use roaring::RoaringTreemap;

/// Deleted positions of one data file, by the lake snapshot that deleted them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeletedRows(BTreeMap<i64, RoaringTreemap>);

impl DeletedRows {
    /// Adds positions that one snapshot deleted.
    pub fn add(&mut self, positions: RoaringTreemap, snapshot: i64) {
        *self.0.entry(snapshot).or_default() |= positions;
    }

    /// Adds one position.
    pub fn insert(&mut self, position: u64, snapshot: i64) {
        self.0.entry(snapshot).or_default().insert(position);
    }

    /// The number of positions.
    pub fn len(&self) -> u64 {
        self.0.values().map(RoaringTreemap::len).sum()
    }

    /// Whether nothing is deleted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The earliest snapshot that deleted a row.
    pub fn first_snapshot(&self) -> Option<i64> {
        self.0.iter().find(|(_, positions)| !positions.is_empty()).map(|(snapshot, _)| *snapshot)
    }

    /// Positions in ascending order, each with its snapshot. A position that two snapshots deleted comes twice.
    pub fn iter(&self) -> impl Iterator<Item = (u64, i64)> + '_ {
        let mut sources: Vec<_> = self.0.iter().map(|(snapshot, positions)| (*snapshot, positions.iter())).collect();
        let mut next: BinaryHeap<Reverse<(u64, usize)>> = sources
            .iter_mut()
            .enumerate()
            .filter_map(|(source, (_, positions))| Some(Reverse((positions.next()?, source))))
            .collect();
        std::iter::from_fn(move || {
            let Reverse((position, source)) = next.pop()?;
            let (snapshot, positions) = &mut sources[source];
            next.extend(positions.next().map(|position| Reverse((position, source))));
            Some((position, *snapshot))
        })
    }
}

impl FromIterator<(u64, i64)> for DeletedRows {
    fn from_iter<T: IntoIterator<Item = (u64, i64)>>(rows: T) -> Self {
        let mut deleted = DeletedRows::default();
        for (position, snapshot) in rows {
            deleted.insert(position, snapshot);
        }
        deleted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_order_with_their_snapshots() {
        let mut rows: DeletedRows = [(9, 4), (1, 7), (u64::MAX, 4)].into_iter().collect();
        assert_eq!((rows.len(), rows.first_snapshot()), (3, Some(4)));
        rows.add((2..4).collect(), 3);
        rows.add(RoaringTreemap::new(), 1);
        assert_eq!(rows.iter().collect::<Vec<_>>(), [(1, 7), (2, 3), (3, 3), (9, 4), (u64::MAX, 4)]);
        assert_eq!(rows.first_snapshot(), Some(3));
        rows.insert(9, 5);
        assert_eq!(rows.iter().filter(|(position, _)| *position == 9).count(), 2, "a row that was deleted twice shows");
        assert!(DeletedRows::default().is_empty() && DeletedRows::default().first_snapshot().is_none());
    }
}

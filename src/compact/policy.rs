//! Which files to rewrite together. Pure: numbers in, groups out.
//!
//! Two things make a table slow to read: many small files, and files that hold mostly dead rows.
//!
//! Small files are merged in ascending order of size, as long as the next one is not larger than all before it together. So each
//! merge at least doubles what a row lies in, a row is rewritten a logarithmic number of times, and what stays unmerged is a
//! logarithmic number of files.

/// What is small, what is laden, and how much goes into one rewrite.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The size that files shall have.
    pub target_bytes: u64,
    /// Small files that are worth a rewrite.
    pub min_files: usize,
    /// The part of a file's rows, of those that nobody can read any more, that is worth a rewrite.
    pub delete_ratio: f64,
    /// The most that one rewrite keeps in memory per row: see [`Candidate::weight`].
    pub max_weight: u64,
}

/// The most files of one rewrite.
const MOST_FILES: usize = 1_000;
/// Files up to this part of the target are merged whatever their sizes.
const TINY: u64 = 64;
/// A file from this part of the target on is large enough.
const LARGE_ENOUGH: (u64, u64) = (3, 4);

/// One live data file.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// DuckLake's `data_file_id`.
    pub id: i64,
    /// Its size.
    pub bytes: u64,
    /// Its rows, dead ones included.
    pub rows: u64,
    /// Its dead rows.
    pub dead: u64,
    /// Its dead rows that no readable snapshot shows.
    pub droppable: u64,
    /// Files of two schemas are never merged.
    pub schema: usize,
}

impl Candidate {
    /// About the size that it would have without what can be dropped.
    fn live_bytes(&self) -> u64 {
        let kept = self.rows.saturating_sub(self.droppable);
        (u128::from(self.bytes) * u128::from(kept) / u128::from(self.rows.max(1))) as u64
    }

    /// What a rewrite remembers of it, in rows' worth of 4 bytes: a place for each row that stays, twice 16 bytes for each dead one
    /// of them, and of those that go no more than a bit for each row. So a file that is laden becomes light in the end, whatever
    /// its rows.
    pub fn weight(&self) -> u64 {
        self.rows.saturating_sub(self.droppable) + 8 * self.dead.saturating_sub(self.droppable) + self.rows / 32
    }
}

/// Files that are rewritten together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Their ids, oldest first.
    pub files: Vec<i64>,
    /// Why.
    pub reason: Reason,
}

/// Why files are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// They are small.
    Small,
    /// They hold rows that nobody can read any more.
    Dead,
}

/// A group in the making.
#[derive(Default)]
struct Open<'a> {
    files: Vec<&'a Candidate>,
    bytes: u64,
    weight: u64,
}

impl<'a> Open<'a> {
    fn fits(&self, file: &Candidate, policy: &Policy) -> bool {
        self.files.len() < MOST_FILES
            && self.bytes + file.live_bytes() <= policy.target_bytes
            && self.weight + file.weight() <= policy.max_weight
    }

    fn push(&mut self, file: &'a Candidate) {
        self.files.push(file);
        self.bytes += file.live_bytes();
        self.weight += file.weight();
    }

    fn close(&mut self, reason: Reason) -> Group {
        let mut files: Vec<i64> = std::mem::take(self).files.into_iter().map(|file| file.id).collect();
        files.sort_unstable();
        Group { files, reason }
    }
}

/// The groups that are worth a rewrite now. No file is in two.
pub fn choose(policy: &Policy, files: &[Candidate]) -> Vec<Group> {
    let mut schemas: Vec<usize> = files.iter().map(|file| file.schema).collect();
    schemas.sort_unstable();
    schemas.dedup();
    let mut groups = Vec::new();
    for schema in schemas {
        let mut of_schema: Vec<&Candidate> = files.iter().filter(|file| file.schema == schema).collect();
        of_schema.sort_by_key(|file| (file.live_bytes(), file.id));
        small(policy, &of_schema, &mut groups);
        laden(policy, &of_schema, &mut groups);
    }
    groups
}

fn is_large(policy: &Policy, bytes: u64) -> bool {
    let (part, of) = LARGE_ENOUGH;
    bytes >= policy.target_bytes / of * part
}

fn small(policy: &Policy, files: &[&Candidate], groups: &mut Vec<Group>) {
    let small = files.iter().filter(|file| !is_large(policy, file.live_bytes()));
    let mut open = Open::default();
    for file in small.filter(|file| file.weight() <= policy.max_weight) {
        let comparable = open.files.is_empty() || file.live_bytes() <= open.bytes.max(policy.target_bytes / TINY);
        if !comparable || !open.fits(file, policy) {
            keep(policy, &mut open, groups);
        }
        open.push(file);
    }
    keep(policy, &mut open, groups);
}

/// Ends a group of small files; too few of them stay as they are, unless they make a file that is never merged again.
fn keep(policy: &Policy, open: &mut Open<'_>, groups: &mut Vec<Group>) {
    let wanted = if is_large(policy, open.bytes) { 2 } else { policy.min_files.max(2) };
    if open.files.len() >= wanted {
        groups.push(open.close(Reason::Small));
    } else {
        *open = Open::default();
    }
}

fn laden(policy: &Policy, files: &[&Candidate], groups: &mut Vec<Group>) {
    let taken: std::collections::HashSet<i64> = groups.iter().flat_map(|group| group.files.iter().copied()).collect();
    let mut open = Open::default();
    for file in files.iter().filter(|file| !taken.contains(&file.id) && file.weight() <= policy.max_weight) {
        if file.droppable == 0 || (file.droppable as f64) < policy.delete_ratio * file.rows as f64 {
            continue;
        }
        if !open.files.is_empty() && !open.fits(file, policy) {
            groups.push(open.close(Reason::Dead));
        }
        open.push(file);
    }
    if !open.files.is_empty() {
        groups.push(open.close(Reason::Dead));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> Policy {
        Policy { target_bytes: 1_000_000, min_files: 4, delete_ratio: 0.2, max_weight: 1_000_000 }
    }

    fn file(id: i64, bytes: u64, rows: u64, droppable: u64) -> Candidate {
        Candidate { id, bytes, rows, dead: droppable, droppable, schema: 0 }
    }

    #[test]
    fn small_files_of_like_size_are_merged_once_there_are_enough() {
        let three: Vec<_> = (0..3).map(|id| file(id, 5_000, 10, 0)).collect();
        assert_eq!(choose(&policy(), &three), []);
        let five: Vec<_> = (0..5).map(|id| file(id, 5_000, 10, 0)).collect();
        assert_eq!(choose(&policy(), &five), [Group { files: vec![0, 1, 2, 3, 4], reason: Reason::Small }]);
    }

    #[test]
    fn a_large_file_is_not_rewritten_for_a_few_small_ones() {
        let mut files: Vec<_> = (0..4).map(|id| file(id, 5_000, 10, 0)).collect();
        files.push(file(9, 500_000, 1_000, 0));
        assert_eq!(choose(&policy(), &files), [Group { files: vec![0, 1, 2, 3], reason: Reason::Small }]);
    }

    #[test]
    fn a_group_ends_at_the_target() {
        let files: Vec<_> = (0..20).map(|id| file(id, 200_000, 10, 0)).collect();
        let groups = choose(&policy(), &files);
        assert_eq!(groups.iter().map(|group| group.files.len()).collect::<Vec<_>>(), [5, 5, 5, 5]);
    }

    #[test]
    fn files_of_two_schemas_stay_apart() {
        let mut files: Vec<_> = (0..8).map(|id| file(id, 5_000, 10, 0)).collect();
        files.iter_mut().skip(4).for_each(|file| file.schema = 1);
        let groups = choose(&policy(), &files);
        assert_eq!(groups.iter().map(|group| group.files.clone()).collect::<Vec<_>>(), [[0, 1, 2, 3], [4, 5, 6, 7]]);
    }

    #[test]
    fn dead_rows_that_are_still_readable_are_no_reason() {
        let mut laden = file(1, 900_000, 100, 30);
        assert_eq!(choose(&policy(), &[laden.clone()]), [Group { files: vec![1], reason: Reason::Dead }]);
        laden.droppable = 10;
        assert_eq!(choose(&policy(), &[laden]), []);
        let empty = file(2, 900_000, 100, 100);
        assert_eq!(choose(&policy(), &[empty]).len(), 1);
    }

    #[test]
    fn what_does_not_fit_the_memory_is_left_alone() {
        assert_eq!(choose(&policy(), &[file(1, 900_000, 2_000_000, 500_000)]), []);
    }

    #[test]
    fn rows_that_go_weigh_next_to_nothing() {
        let file = file(1, 900_000, 2_000_000, 1_500_000);
        assert_eq!(choose(&policy(), &[file]), [Group { files: vec![1], reason: Reason::Dead }]);
    }

    proptest! {
        /// Flushes of any size, each followed by what the policy asks for: the number of files stays small, and so does the
        /// number of times that a row is rewritten.
        #[test]
        fn files_and_rewrites_stay_few(sizes in proptest::collection::vec(1_000u64..20_000, 1..600)) {
            let policy = policy();
            let (mut files, mut next, mut written, mut rewritten) = (Vec::new(), 0, 0, 0);
            for size in sizes {
                files.push(file(next, size, size / 10, 0));
                next += 1;
                written += size;
                for group in choose(&policy, &files) {
                    let (gone, left): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| group.files.contains(&file.id));
                    let bytes: u64 = gone.iter().map(|file| file.bytes).sum();
                    prop_assert!(bytes <= policy.target_bytes);
                    prop_assert!(gone.len() >= policy.min_files || is_large(&policy, bytes) && gone.len() > 1);
                    rewritten += bytes;
                    files = left;
                    files.push(file(next, bytes, bytes / 10, 0));
                    next += 1;
                }
            }
            let large = (written / (policy.target_bytes / 2)) as usize;
            prop_assert!(files.len() <= 2 * large + 6 * policy.min_files, "{} files", files.len());
            prop_assert!(rewritten <= 10 * written, "{rewritten} of {written}");
        }
    }
}

//! Whether a lake grew: the maxima of the second half beside those of the first.

use std::fmt;

use super::{Plan, Sample};

/// How much larger the second half's maximum may be.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// So many times the first half's.
    pub factor: f64,
    /// And so many more: the moment of the look, where numbers are small.
    pub handful: f64,
}

/// The maxima of one measure.
#[derive(Clone, Debug)]
pub struct Growth {
    /// What was measured.
    pub name: String,
    /// In the first half.
    pub first: f64,
    /// In the second.
    pub second: f64,
    /// Whether it must stay within the tolerance; else it is shown to those who look for a reason.
    pub judged: bool,
}

impl Growth {
    /// Whether the second maximum is no larger than it may be.
    pub fn within(&self, tolerance: Tolerance) -> bool {
        self.second <= self.first * tolerance.factor + tolerance.handful
    }

    /// The second maximum by the first.
    pub fn ratio(&self) -> f64 {
        self.second / self.first.max(1.0)
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.0}, then {:.0} ({:.2} times)", self.name, self.first, self.second, self.ratio())
    }
}

/// All measures; those of single tables of the catalog after the sums, so that one that grows has a name.
pub fn growth(samples: &[Sample], plan: &Plan) -> Vec<Growth> {
    let end = samples.last().map_or(plan.warm_up, |sample| sample.at.max(plan.warm_up));
    let middle = (plan.warm_up + end) / 2;
    let (first, second): (Vec<&Sample>, Vec<&Sample>) =
        samples.iter().filter(|sample| sample.at >= plan.warm_up).partition(|sample| sample.at < middle);
    assert!(first.len() > 3 && second.len() > 3, "too few samples: {} and {}", first.len(), second.len());
    let of = |name: &str, judged: bool, measure: &dyn Fn(&Sample) -> f64| {
        let max = |samples: &[&Sample]| samples.iter().map(|sample| measure(sample)).fold(0.0, f64::max);
        Growth { name: name.to_owned(), first: max(&first), second: max(&second), judged }
    };
    let scan = |sample: &Sample| sample.scan.map_or(0.0, |scan| scan.wall.as_secs_f64() * 1e3);
    let scan_cpu = |sample: &Sample| sample.scan.map_or(0.0, |scan| scan.cpu.as_secs_f64() * 1e3);
    let mut all = vec![
        of("live data files", true, &|sample| sample.data_files as f64),
        of("live files", true, &|sample| (sample.data_files + sample.delete_files) as f64),
        of("files in the store", plan.stored, &|sample| sample.stored_files as f64),
        // A large file that was just replaced stays for the grace: whether two such times meet is chance.
        of("bytes in the store", false, &|sample| sample.stored_bytes as f64),
        of("rows of the catalog", true, &|sample| sample.catalog_rows(plan.left_out) as f64),
        of("scan, ms", true, &scan),
        of("scan, ms of a processor", false, &scan_cpu),
        of("bytes of the catalog", false, &|sample| sample.catalog_bytes as f64),
        of("lag, s", false, &|sample| sample.lag_seconds.unwrap_or_default()),
        of("memory of sync, bytes", false, &|sample| sample.memory as f64),
    ];
    let tables = samples.last().into_iter().flat_map(|sample| sample.catalog.keys());
    for table in tables {
        let growth = of(&format!("rows of {table}"), false, &|sample| {
            sample.catalog.get(table).copied().unwrap_or_default() as f64
        });
        if growth.second > 0.0 {
            all.push(growth);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::compaction::SHORT_SOAK;
    use crate::soak::the_whole;

    /// Samples whose numbers follow the time: `share` of them grows.
    fn samples(plan: &Plan, share: f64) -> Vec<Sample> {
        let end = plan.warm_up + plan.duration;
        let at = (0..).map(|number| number * plan.interval).take_while(|at| *at < end);
        at.map(|at| {
            let grown = 1000.0 * (1.0 - share) + 1000.0 * share * at.div_duration_f64(end);
            let number = grown as i64;
            Sample {
                at,
                data_files: number,
                delete_files: number,
                stored_files: number as u64,
                stored_bytes: number as u64,
                catalog: BTreeMap::from([("ducklake_snapshot".to_owned(), number)]),
                catalog_bytes: 0,
                scan: None,
                lag_seconds: None,
                memory: 0,
                peak_memory: 0,
                written: 0,
            }
        })
        .collect()
    }

    #[test]
    fn what_grows_all_the_time_is_found_and_what_stays_is_not() {
        for plan in [SHORT_SOAK, the_whole()] {
            let judge = |share: f64| -> Vec<bool> {
                let growth = growth(&samples(&plan, share), &plan);
                let judged = growth.iter().filter(|growth| growth.judged && growth.first > 0.0);
                judged.map(|growth| growth.within(plan.tolerance)).collect()
            };
            assert!(judge(1.0).len() >= 3 && judge(1.0).iter().all(|within| !within), "{plan:?}");
            assert!(judge(0.0).iter().all(|within| *within), "{plan:?}");
        }
    }
}

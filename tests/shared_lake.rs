//! Others write to the lake too: what they do to tables of their own only delays a flush.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::lab::{CatalogKind, Combination, StoreKind};
use crate::scenario::Scenario;

const POSTGRES: Combination = Combination { catalog: CatalogKind::Postgres, store: StoreKind::Local };
const MINUTE: Duration = Duration::from_secs(60);

/// A flush whose rows take longer to look up than the others take from one commit to the next.
#[test]
fn somebody_commits_all_the_time() {
    let scenario = Scenario::new("shared_lake", POSTGRES, "[[tables]]\nsource = \"public.*\"\n");
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, v text); \
         INSERT INTO t SELECT i, 0, md5(i::text) FROM generate_series(1, 300000) i",
    );
    scenario.converge(&["public.t"]);
    let native = scenario.lake.open_native_writable();
    native.execute("SET ducklake_max_retry_count = 1000; CREATE TABLE lake.main.mine (i INTEGER)");
    let (stop, stopped) = mpsc::channel::<()>();
    let commits = std::thread::scope(|scope| {
        let stop = stop;
        let others = scope.spawn(move || {
            let mut commits = 0;
            // Ten times a second, at the most.
            while stopped.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
                native.execute("INSERT INTO lake.main.mine VALUES (1)");
                commits += 1;
            }
            commits
        });
        let mut sync = scenario.duckpipe.sync();
        scenario.source.execute("UPDATE t SET n = n + 1 WHERE id % 2 = 0");
        sync.wait_for_lsn(scenario.source.lsn(), 2 * MINUTE);
        sync.terminate().expect(0);
        // A panic before drops it as well: the others end in any case.
        drop(stop);
        others.join().unwrap()
    });
    println!("{commits} commits of somebody else");
    assert!(commits > 3, "{commits}");
    scenario.assert_equal(&["public.t"]);
}

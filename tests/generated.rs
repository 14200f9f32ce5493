//! Generated columns: stored ones, which the WAL brings from version 18 on, and virtual ones, which it never does.

use std::time::Duration;

use crate::lab::Combination;
use crate::scenario::Scenario;

const MINUTE: Duration = Duration::from_secs(60);

/// From version 18 on the server refuses UPDATEs of a table whose REPLICA IDENTITY FULL has a generated column that a publication does
/// not send. duckpipe's own publication sends it; somebody else's that does not is refused before the source suffers.
#[test]
fn stored_with_a_full_identity() {
    let scenario = Scenario::new("generated_stored", Combination::EMBEDDED, "[[tables]]\nsource = \"public.t\"\n");
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, d int GENERATED ALWAYS AS (n + 1) STORED); \
         ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT i, i FROM generate_series(1, 100) i",
    );
    if scenario.source.number("SELECT current_setting('server_version_num')::int / 10000") >= 18 {
        scenario.source.execute("CREATE PUBLICATION duckpipe_generated_stored FOR TABLE t");
        let finished = scenario.duckpipe.sync_once().expect(1);
        assert!(finished.stderr.contains("publish_generated_columns = stored"), "{}", finished.stderr);
        scenario.source.execute("DROP PUBLICATION duckpipe_generated_stored");
    }
    scenario.converge(&["public.t"]);
    scenario.source.execute("UPDATE t SET n = -n WHERE id <= 50; DELETE FROM t WHERE id > 90");
    scenario.converge(&["public.t"]);
}

/// A virtual generated column (version 18) is computed when it is read, and never sent: it does not enter the lake. With REPLICA IDENTITY
/// FULL the server would refuse the UPDATEs of a published table that has one: such a table waits.
#[test]
fn virtual_ones() {
    let mut scenario = Scenario::new("generated_virtual", Combination::EMBEDDED, "[[tables]]\nsource = \"public.*\"\n");
    // A column that came beside one that is not sent may have been another one in between.
    scenario.duckpipe.set("DUCKPIPE_SYNC__RESYNC", "auto");
    if scenario.source.number("SELECT current_setting('server_version_num')::int / 10000") < 18 {
        return;
    }
    scenario.source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, n int, d int GENERATED ALWAYS AS (n + 1) VIRTUAL); \
         INSERT INTO t SELECT i, i FROM generate_series(1, 100) i",
    );
    scenario.converge(&["public.t"]);
    scenario.source.execute(
        "ALTER TABLE t ADD e int GENERATED ALWAYS AS (n * 2) VIRTUAL; UPDATE t SET n = -n WHERE id <= 50; \
         CREATE TABLE whole (id int, n int, d int GENERATED ALWAYS AS (n + 1) VIRTUAL); ALTER TABLE whole REPLICA IDENTITY FULL; \
         INSERT INTO whole VALUES (1, 1)",
    );
    let mut sync = scenario.duckpipe.sync();
    sync.wait_for_output("a virtual column can't be published", MINUTE);
    scenario.wait_for_state(&mut sync, "public.whole", "pending");
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.t"]);
    let columns = scenario.lake.open_native().columns("public.t", None);
    assert_eq!(columns.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["id", "n"]);
    scenario.source.execute("ALTER TABLE t ADD late int DEFAULT 7; UPDATE t SET late = 8, n = 0 WHERE id > 50");
    scenario.source.execute("UPDATE whole SET n = 2; ALTER TABLE whole DROP d");
    let mut sync = scenario.duckpipe.sync();
    scenario.wait_for_state(&mut sync, "public.whole", "streaming");
    scenario.source.execute("UPDATE whole SET n = 3");
    sync.wait_for_lsn(scenario.source.lsn(), MINUTE);
    sync.terminate().expect(0);
    scenario.assert_equal(&["public.t", "public.whole"]);
}

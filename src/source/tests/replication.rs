use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::lsn::Lsn;
use crate::source::lab::{Cluster, cluster};
use crate::source::replication::{ReplicationConnection, StreamOptions};
use crate::source::session::Session;
use crate::source::settings::SourceSettings;
use crate::source::slot;
use crate::source::wal_stream::{WalMessage, WalStream};

fn options(name: &str, from: Lsn) -> StreamOptions {
    StreamOptions { slot: name.into(), publication: name.into(), from, binary: true, streaming: false }
}

/// A database with a table, a publication and a slot, all of this name; the position of the slot.
async fn prepare(cluster: &Cluster, name: &str) -> (SourceSettings, Session, Lsn) {
    let (settings, session) = cluster.database(name).await;
    let sql =
        format!("CREATE TABLE public.t (id int PRIMARY KEY, x text); CREATE PUBLICATION {name} FOR TABLE public.t");
    session.client().batch_execute(&sql).await.unwrap();
    let mut connection = ReplicationConnection::connect(&settings).await.unwrap();
    let created = connection.create_slot(name).await.unwrap();
    (settings, session, created.consistent_point)
}

async fn start(settings: &SourceSettings, options: &StreamOptions) -> Result<WalStream, Error> {
    ReplicationConnection::connect(settings).await.unwrap().start(options).await
}

/// Reads until `commits` transactions have arrived: the number of inserts, and the last end position.
async fn read_commits(stream: &mut WalStream, commits: usize) -> (usize, Lsn) {
    let (mut inserts, mut seen, mut end) = (0, 0, Lsn::ZERO);
    while seen < commits {
        let chunk = stream.next().await.unwrap().expect("the stream goes on");
        for message in chunk.messages() {
            let WalMessage::Data { payload, .. } = message.unwrap() else { continue };
            match payload[0] {
                b'I' => inserts += 1,
                // "Commit": flags, commit position, end position.
                b'C' => {
                    seen += 1;
                    end = Lsn(u64::from_be_bytes(payload[10..18].try_into().unwrap()));
                }
                _ => {}
            }
        }
    }
    assert_eq!(seen, commits);
    (inserts, end)
}

async fn until_keepalive_at(stream: &mut WalStream, position: Lsn) {
    let wait = async {
        stream.request_keepalive();
        loop {
            let chunk = stream.next().await.unwrap().expect("the stream goes on");
            for message in chunk.messages() {
                if matches!(message.unwrap(), WalMessage::Keepalive { wal_end, .. } if wal_end >= position) {
                    return;
                }
            }
            stream.request_keepalive();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("no keepalive reached the position");
}

async fn confirmed(session: &Session, name: &str) -> Lsn {
    slot::find(session, name).await.unwrap().unwrap().confirmed_flush.unwrap()
}

#[tokio::test]
async fn changes_arrive_and_confirmed_positions_reach_the_slot() {
    let cluster = cluster();
    let (settings, session, from) = prepare(&cluster, "t_stream").await;
    let mut stream = start(&settings, &options("t_stream", from)).await.unwrap();
    session.client().batch_execute("INSERT INTO public.t SELECT i, 'x' FROM generate_series(1, 1000) i").await.unwrap();
    let (inserts, end) = read_commits(&mut stream, 1).await;
    assert_eq!(inserts, 1000);
    // Nothing was confirmed, and feedback has been sent since.
    until_keepalive_at(&mut stream, end).await;
    assert!(confirmed(&session, "t_stream").await <= from);

    stream.confirmer().confirm(end);
    stream.confirm(from);
    let begun = Instant::now();
    while confirmed(&session, "t_stream").await < end {
        assert!(begun.elapsed() < Duration::from_secs(5), "the confirmed position did not arrive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "a confirmation waits for the next regular feedback");

    // The last one arrives by close(), which also frees the slot.
    session.client().batch_execute("INSERT INTO public.t VALUES (-1, NULL)").await.unwrap();
    let (_, end) = read_commits(&mut stream, 1).await;
    stream.confirm(end);
    stream.close().await.unwrap();
    let after = slot::find(&session, "t_stream").await.unwrap().unwrap();
    assert_eq!((after.confirmed_flush, after.active_pid), (Some(end), None));
    assert_eq!((after.plugin.as_deref(), after.database.as_deref()), (Some("pgoutput"), Some("t_stream")));

    // It goes on from there: nothing comes twice.
    session.client().batch_execute("INSERT INTO public.t VALUES (-2, NULL)").await.unwrap();
    let mut stream = start(&settings, &options("t_stream", end)).await.unwrap();
    let (inserts, next) = read_commits(&mut stream, 1).await;
    assert_eq!(inserts, 1);
    assert!(next > end);
    stream.close().await.unwrap();
    slot::drop(&session, "t_stream").await.unwrap();
}

#[tokio::test]
async fn a_keepalive_reaches_the_position_that_a_run_must_reach() {
    let cluster = cluster();
    let (settings, session, from) = prepare(&cluster, "t_position").await;
    let mut stream = start(&settings, &options("t_position", from)).await.unwrap();
    for round in 0..40 {
        // Positions all over a page, behind its header too, with commits that are flushed and commits that are not; then idle.
        let sql = format!(
            "SET synchronous_commit = {}; SELECT pg_logical_emit_message(false, 'x', repeat('y', {})); INSERT INTO public.t VALUES ({round}, 'x')",
            if round % 2 == 0 { "on" } else { "off" },
            round * 211
        );
        session.client().batch_execute(&sql).await.unwrap();
        let position = session.wal_position().await.unwrap();
        until_keepalive_at(&mut stream, position).await;
    }
    // Behind a page's header: what an idle server names when the last record ended with its page.
    session.client().batch_execute("SELECT pg_switch_wal()").await.unwrap();
    let position = session.wal_position().await.unwrap();
    until_keepalive_at(&mut stream, position).await;
    stream.close().await.unwrap();
    slot::drop(&session, "t_position").await.unwrap();
}

#[tokio::test]
async fn feedback_goes_on_while_nobody_reads() {
    let cluster = cluster();
    let (_, session, from) = prepare(&cluster, "t_quiet").await;
    session
        .client()
        .batch_execute(
            "DROP ROLE IF EXISTS quiet; CREATE ROLE quiet LOGIN REPLICATION PASSWORD 'x'; ALTER ROLE quiet SET wal_sender_timeout = '2s'",
        )
        .await
        .unwrap();
    let settings = crate::source::lab::settings(&format!("postgres://quiet:x@localhost:{}/t_quiet", cluster.port));
    let mut stream = start(&settings, &options("t_quiet", from)).await.unwrap();
    let begun = Instant::now();
    let mut transactions = 0;
    // Far more than the queue and the socket's buffers hold.
    while begun.elapsed() < Duration::from_secs(6) {
        let sql = format!(
            "INSERT INTO public.t SELECT i, repeat('z', 1000) FROM generate_series({0}, {0} + 4999) i",
            transactions * 5000
        );
        session.client().batch_execute(&sql).await.unwrap();
        transactions += 1;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(transactions >= 4);
    let (inserts, end) = read_commits(&mut stream, transactions).await;
    assert_eq!(inserts, transactions * 5000);
    stream.confirm(end);
    stream.close().await.unwrap();
    assert_eq!(confirmed(&session, "t_quiet").await, end);
    slot::drop(&session, "t_quiet").await.unwrap();
}

#[tokio::test]
async fn slots_that_cannot_serve_are_told_apart() {
    let cluster = cluster();
    let (settings, session, from) = prepare(&cluster, "t_slots").await;
    let error = start(&settings, &options("absent", from)).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResyncNeeded, "{error}");
    assert!(error.remedy_text().unwrap().contains("--resnapshot"));

    let stream = start(&settings, &options("t_slots", from)).await.unwrap();
    let pid = slot::find(&session, "t_slots").await.unwrap().unwrap().active_pid.unwrap();
    let error = start(&settings, &options("t_slots", from)).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains(&pid.to_string()), "{error}");
    // Dropped without close(): the slot's drop waits for the server to notice.
    drop(stream);
    slot::drop(&session, "t_slots").await.unwrap();
    slot::drop(&session, "t_slots").await.unwrap();

    let mut connection = ReplicationConnection::connect(&settings).await.unwrap();
    connection.create_slot("t_slots").await.unwrap();
    let error = connection.create_slot("t_slots").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");

    // The same slot from another database, and a slot of another plugin.
    cluster.psql("postgres", "SELECT pg_create_logical_replication_slot('t_slots_other', 'test_decoding')");
    let in_postgres = cluster.settings("postgres");
    for slot in ["t_slots", "t_slots_other"] {
        let error = start(&in_postgres, &options(slot, from)).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");
    }
    slot::drop(&session, "t_slots_other").await.unwrap();

    // The publication is dropped under the stream.
    let mut stream = start(&settings, &options("t_slots", from)).await.unwrap();
    session.client().batch_execute("DROP PUBLICATION t_slots; INSERT INTO public.t VALUES (1, 'x')").await.unwrap();
    let error = loop {
        match stream.next().await {
            Ok(chunk) => assert!(chunk.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::ResyncNeeded, "{error}");
    drop(stream);

    // A walsender that is ended by force.
    session.client().batch_execute("CREATE PUBLICATION t_slots FOR TABLE public.t").await.unwrap();
    slot::drop(&session, "t_slots").await.unwrap();
    let from =
        ReplicationConnection::connect(&settings).await.unwrap().create_slot("t_slots").await.unwrap().consistent_point;
    let mut stream = start(&settings, &options("t_slots", from)).await.unwrap();
    session
        .client()
        .execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 't_slots'", &[])
        .await
        .unwrap();
    let error = loop {
        match stream.next().await {
            Ok(chunk) => assert!(chunk.is_some()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(stream.close().await.is_err());
    slot::drop(&session, "t_slots").await.unwrap();
}

#[tokio::test]
async fn identity_and_history() {
    let cluster = cluster();
    let settings = cluster.settings("postgres");
    let mut connection = ReplicationConnection::connect(&settings).await.unwrap();
    let identity = connection.identify_system().await.unwrap();
    let session = Session::connect(&settings).await.unwrap();
    let row = session.client().query_one("SELECT system_identifier::text FROM pg_control_system()", &[]).await.unwrap();
    assert_eq!(identity.system_id, row.get::<_, String>(0));
    assert_eq!(identity.timeline, 1);
    assert!(identity.position > Lsn::ZERO);
    assert!(connection.timeline_history(1).await.unwrap().is_empty());
    // A timeline that never was; the connection goes on.
    assert!(connection.timeline_history(7).await.is_err());
    assert_eq!(connection.identify_system().await.unwrap().timeline, 1);
}

#[tokio::test]
async fn a_message_larger_than_the_queue() {
    let cluster = cluster();
    let (settings, session, from) = prepare(&cluster, "t_large").await;
    let mut stream = start(&settings, &options("t_large", from)).await.unwrap();
    let bytes = 40 * 1024 * 1024;
    let sql = format!("INSERT INTO public.t SELECT i, repeat('z', {bytes}) FROM generate_series(1, 2) i");
    session.client().batch_execute(&sql).await.unwrap();
    let mut lengths = Vec::new();
    'stream: while let Some(chunk) = stream.next().await.unwrap() {
        for message in chunk.messages() {
            match message.unwrap() {
                WalMessage::Data { payload, .. } if payload[0] == b'I' => lengths.push(payload.len()),
                WalMessage::Data { payload, .. } if payload[0] == b'C' => break 'stream,
                _ => {}
            }
        }
    }
    // Tag, relation, 'N', column count, a four-byte integer and the text with their headers.
    assert_eq!(lengths, [bytes + 1 + 4 + 1 + 2 + (5 + 4) + 5; 2]);
    stream.close().await.unwrap();
    slot::drop(&session, "t_large").await.unwrap();
}

#[tokio::test]
async fn an_open_transaction_delays_the_slot_and_giving_up_leaves_none() {
    let cluster = cluster();
    let (settings, session) = cluster.database("t_open").await;
    let other = Session::connect(&settings).await.unwrap();
    other.client().batch_execute("BEGIN; CREATE TABLE public.t (id int)").await.unwrap();
    let mut connection = ReplicationConnection::connect(&settings).await.unwrap();
    let created = tokio::time::timeout(Duration::from_secs(1), connection.create_slot("t_open")).await;
    assert!(created.is_err(), "the slot did not wait");
    drop(connection);
    let begun = Instant::now();
    while slot::find(&session, "t_open").await.unwrap().is_some() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the slot is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    other.client().batch_execute("COMMIT").await.unwrap();
}

#[tokio::test]
async fn an_invalidated_slot_a_server_that_stops_and_a_promoted_one() {
    let cluster = std::sync::Arc::new(Cluster::start());
    let stopping = cluster.clone();
    let (settings, session, from) = prepare(&cluster, "t_lost").await;
    for sql in [
        "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'",
        "ALTER SYSTEM SET max_wal_size = '32MB'",
        "SELECT pg_reload_conf()",
    ] {
        session.client().batch_execute(sql).await.unwrap();
    }
    for _ in 0..4 {
        session.client().batch_execute("SELECT pg_logical_emit_message(false, 'x', 'y')").await.unwrap();
        session.client().batch_execute("SELECT pg_switch_wal()").await.unwrap();
    }
    session.client().batch_execute("CHECKPOINT").await.unwrap();
    let lost = slot::find(&session, "t_lost").await.unwrap().unwrap();
    assert_eq!((lost.wal_status.as_deref(), lost.invalidation.as_deref()), (Some("lost"), Some("wal_removed")));
    let error = start(&settings, &options("t_lost", from)).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResyncNeeded, "{error}");
    slot::drop(&session, "t_lost").await.unwrap();

    // A server that shuts down waits until what it has sent is confirmed, and then ends the stream in order.
    let from =
        ReplicationConnection::connect(&settings).await.unwrap().create_slot("t_lost").await.unwrap().consistent_point;
    let mut stream = start(&settings, &options("t_lost", from)).await.unwrap();
    session.client().batch_execute("INSERT INTO public.t VALUES (1, 'x')").await.unwrap();
    read_commits(&mut stream, 1).await;
    drop(session);
    let stopped = async {
        while let Some(chunk) = stream.next().await? {
            for message in chunk.messages() {
                if let WalMessage::Keepalive { wal_end, .. } = message? {
                    stream.confirm(wal_end);
                }
            }
        }
        Ok::<(), Error>(())
    };
    let ((), stopped) = tokio::join!(
        async { tokio::task::spawn_blocking(move || stopping.control(&["stop", "-m", "fast", "-w"])).await.unwrap() },
        stopped
    );
    stopped.unwrap();
    let error = Session::connect(&settings).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");

    std::fs::write(cluster.path("data/standby.signal"), "").unwrap();
    cluster.control(&["start", "-w", "-l", &cluster.path("log").display().to_string()]);
    let session = Session::connect(&settings).await.unwrap();
    assert!(session.wal_position().await.unwrap() > from);
    cluster.control(&["promote", "-w"]);
    let mut connection = ReplicationConnection::connect(&settings).await.unwrap();
    let identity = connection.identify_system().await.unwrap();
    assert_eq!(identity.timeline, 2);
    let history = connection.timeline_history(2).await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].timeline, 1);
    assert!(history[0].at > from && history[0].at <= identity.position, "{history:?} {identity:?}");
}

/// Prints what reading and cutting costs, unencrypted. (TLS doubles it: every message is a record of its own.) The floor
/// is set low enough for a debug build on a busy machine.
#[tokio::test]
async fn a_backlog_of_transactions_is_read_fast() {
    const TRANSACTIONS: usize = 200_000;
    let cluster = cluster();
    let (_, session, from) = prepare(&cluster, "t_backlog").await;
    let settings = crate::source::lab::settings(&format!("{}?sslmode=disable", cluster.url("t_backlog")));
    session.client().batch_execute("SET synchronous_commit = off").await.unwrap();
    session
        .client()
        .batch_execute(&format!(
            "DO $$ BEGIN FOR i IN 1..{TRANSACTIONS} LOOP INSERT INTO public.t VALUES (i, 'some text'); COMMIT; END LOOP; END $$"
        ))
        .await
        .unwrap();
    let begun = Instant::now();
    let mut stream = start(&settings, &options("t_backlog", from)).await.unwrap();
    let (inserts, end) = read_commits(&mut stream, TRANSACTIONS).await;
    let took = begun.elapsed();
    println!("{inserts} transactions in {took:?}: {:.0}/s", inserts as f64 / took.as_secs_f64());
    assert_eq!(inserts, TRANSACTIONS);
    assert!(took < Duration::from_secs(60));
    stream.confirm(end);
    stream.close().await.unwrap();
    slot::drop(&session, "t_backlog").await.unwrap();
}

use bytes::BytesMut;

use crate::error::ErrorKind;
use crate::source::catalog::describe_table;
use crate::source::lab::cluster;
use crate::source::replication::ReplicationConnection;
use crate::source::session::Session;
use crate::source::snapshot::{CopyColumn, SnapshotHolder, SnapshotReader};
use crate::source::table::TableName;
use crate::source::{slot, table::SourceTable};

async fn copy(
    reader: &mut SnapshotReader,
    table: &SourceTable,
    columns: &[CopyColumn],
    pages: Option<std::ops::Range<u32>>,
) -> Vec<u8> {
    let mut stream = reader.copy(&table.heaps()[0], columns, pages).await.unwrap();
    let mut all = BytesMut::new();
    while let Some(data) = stream.next().await.unwrap() {
        assert!(!data.is_empty());
        all.extend_from_slice(&data);
    }
    assert!(stream.next().await.unwrap().is_none());
    all.to_vec()
}

/// Header, rows, trailer of COPY's binary format: the rows.
fn rows(copied: &[u8]) -> &[u8] {
    assert_eq!(&copied[..11], b"PGCOPY\n\xff\r\n\0");
    assert_eq!(&copied[copied.len() - 2..], [0xff, 0xff]);
    &copied[19..copied.len() - 2]
}

#[tokio::test]
async fn ranges_of_pages_at_a_held_snapshot_are_the_table() {
    let cluster = cluster();
    let (settings, session) = cluster.database("t_snapshot").await;
    session
        .client()
        .batch_execute(
            "CREATE TABLE public.t (id int PRIMARY KEY, payload text, tags text[]); \
             CREATE TABLE public.child () INHERITS (public.t); \
             INSERT INTO public.t SELECT i, repeat('x', i % 300), ARRAY['a', i::text] FROM generate_series(1, 20000) i; \
             INSERT INTO public.t VALUES (0, (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 30000) i), NULL); \
             INSERT INTO public.child VALUES (-1, 'child', NULL)",
        )
        .await
        .unwrap();
    let mut replication = ReplicationConnection::connect(&settings).await.unwrap();
    let created = replication.create_slot("t_snapshot").await.unwrap();
    let holder = SnapshotHolder::import(&settings, &created.snapshot).await.unwrap();
    // The holder makes the snapshot outlive the connection that exported it, and changes do not show.
    drop(replication);
    session.client().batch_execute("DELETE FROM public.t WHERE id % 2 = 0").await.unwrap();
    let table = describe_table(&session, &TableName { schema: "public".into(), table: "t".into() }, None)
        .await
        .unwrap()
        .unwrap();
    let columns = [
        CopyColumn { name: "id".into(), cast: None },
        CopyColumn { name: "payload".into(), cast: None },
        CopyColumn { name: "tags".into(), cast: Some("text") },
    ];
    let mut reader = SnapshotReader::open(&settings, holder.snapshot()).await.unwrap();
    let whole = copy(&mut reader, &table, &columns, None).await;
    let mut pieces = Vec::new();
    let step = table.pages / 5 + 1;
    for start in (0..table.pages).step_by(step as usize) {
        let end = if start + step >= table.pages { u32::MAX } else { start + step };
        // Each range by a reader of its own, as workers do.
        let mut worker = SnapshotReader::open(&settings, holder.snapshot()).await.unwrap();
        pieces.extend_from_slice(rows(&copy(&mut worker, &table, &columns, Some(start..end)).await));
    }
    assert!(rows(&whole) == pieces, "the ranges together are not the table");
    assert!(whole.len() > 30000 * 32 + 20000 * 150);
    // The same rows by SQL, in the same snapshot: the column of ids is enough to count and to sum.
    let mut rest = rows(&whole);
    let (mut count, mut sum) = (0, 0i64);
    while !rest.is_empty() {
        let take = |rest: &mut &[u8], n: usize| {
            let (head, tail) = rest.split_at(n);
            *rest = tail;
            head.to_vec()
        };
        assert_eq!(take(&mut rest, 2), [0, 3]);
        for column in 0..3 {
            let length = i32::from_be_bytes(take(&mut rest, 4).try_into().unwrap());
            let value = take(&mut rest, length.max(0) as usize);
            if column == 0 {
                count += 1;
                sum += i64::from(i32::from_be_bytes(value.try_into().unwrap()));
            }
        }
    }
    assert_eq!((count, sum), (20001, 20000 * 20001 / 2));

    // A server error in the midst of a copy is said, and the reader's next use fails cleanly (its transaction is over).
    holder.check().await.unwrap();
    let missing = [CopyColumn { name: "absent".into(), cast: None }];
    let error = reader.copy(&table.heaps()[0], &missing, None).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Table);
    assert!(error.to_string().contains("public.t"), "{error}");

    let name = holder.snapshot().to_owned();
    holder.release().await;
    let error = SnapshotReader::open(&settings, &name).await.map(drop).unwrap_err();
    assert!(error.remedy_text().unwrap().contains("anew"), "{error}");
    slot::drop(&session, "t_snapshot").await.unwrap();
}

#[tokio::test]
async fn a_copy_that_was_given_up_and_a_holder_that_was_killed_are_noticed() {
    let cluster = cluster();
    let (settings, session) = cluster.database("t_holder").await;
    session.client().batch_execute("CREATE TABLE public.t AS SELECT generate_series(1, 100000) AS id").await.unwrap();
    let table = describe_table(&session, &TableName { schema: "public".into(), table: "t".into() }, None)
        .await
        .unwrap()
        .unwrap();
    session.client().batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let exported: String = session.client().query_one("SELECT pg_export_snapshot()", &[]).await.unwrap().get(0);
    let holder = SnapshotHolder::import(&settings, &exported).await.unwrap();
    session.client().batch_execute("COMMIT").await.unwrap();
    holder.check().await.unwrap();
    let mut reader = SnapshotReader::open(&settings, holder.snapshot()).await.unwrap();
    let columns = [CopyColumn { name: "id".into(), cast: None }];
    let mut stream = reader.copy(&table.heaps()[0], &columns, None).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    assert_eq!(reader.copy(&table.heaps()[0], &columns, None).await.map(drop).unwrap_err().kind(), ErrorKind::Internal);

    session
        .client()
        .execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 't_holder' AND state = 'idle in transaction'", &[])
        .await
        .unwrap();
    assert_eq!(holder.check().await.unwrap_err().kind(), ErrorKind::Transient);
}

/// To a snapshot from before it, a truncated table is empty: the reader says that instead.
#[tokio::test]
async fn a_table_that_was_truncated_since_is_not_read_as_empty() {
    let cluster = cluster();
    let (settings, session) = cluster.database("t_truncated").await;
    let tables = "CREATE TABLE public.t AS SELECT generate_series(1, 100) AS id; CREATE TABLE public.kept AS SELECT * FROM public.t";
    session.client().batch_execute(tables).await.unwrap();
    let mut described = Vec::new();
    for table in ["t", "kept"] {
        let name = TableName { schema: "public".into(), table: table.into() };
        described.push(describe_table(&session, &name, None).await.unwrap().unwrap());
    }
    session.client().batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let exported: String = session.client().query_one("SELECT pg_export_snapshot()", &[]).await.unwrap().get(0);
    let holder = SnapshotHolder::import(&settings, &exported).await.unwrap();
    session.client().batch_execute("COMMIT").await.unwrap();
    session.client().batch_execute("TRUNCATE public.t; DELETE FROM public.kept").await.unwrap();
    session.client().batch_execute("INSERT INTO public.t VALUES (1)").await.unwrap();

    let mut reader = SnapshotReader::open(&settings, holder.snapshot()).await.unwrap();
    let columns = [CopyColumn { name: "id".into(), cast: None }];
    let whole = copy(&mut reader, &described[1], &columns, None).await;
    assert_eq!(rows(&whole).len(), 100 * 10, "a DELETE follows snapshots");
    for pages in [None, Some(0..1)] {
        let mut stream = reader.copy(&described[0].heaps()[0], &columns, pages).await.unwrap();
        let error = loop {
            match stream.next().await {
                Ok(data) => assert!(data.is_some(), "the end of an empty table"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Table);
        assert!(error.to_string().contains("public.t") && error.to_string().contains("truncated"), "{error}");
    }
    // The connection can go on with other tables.
    assert_eq!(copy(&mut reader, &described[1], &columns, None).await, whole);
}

/// Who alters tables while these are read waits for one of them, and is never waited for while it waits: Postgres would end one of the two.
#[tokio::test]
async fn a_reader_and_who_alters_tables_do_not_wait_for_each_other() {
    let cluster = cluster();
    let (settings, session) = cluster.database("t_locks").await;
    let tables = "CREATE TABLE public.p (id int) PARTITION BY LIST (id); \
         CREATE TABLE public.a PARTITION OF public.p FOR VALUES IN (1); CREATE TABLE public.b PARTITION OF public.p FOR VALUES IN (2); \
         CREATE TABLE public.t AS SELECT generate_series(1, 10) AS id; INSERT INTO public.p VALUES (1), (2)";
    session.client().batch_execute(tables).await.unwrap();
    let mut heaps = Vec::new();
    for table in ["p", "t"] {
        let name = TableName { schema: "public".into(), table: table.into() };
        heaps.extend(describe_table(&session, &name, None).await.unwrap().unwrap().heaps());
    }
    session.client().batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let exported: String = session.client().query_one("SELECT pg_export_snapshot()", &[]).await.unwrap().get(0);
    let holder = SnapshotHolder::import(&settings, &exported).await.unwrap();
    session.client().batch_execute("COMMIT").await.unwrap();
    let columns = [CopyColumn { name: "id".into(), cast: None }];
    let mut reader = SnapshotReader::open(&settings, holder.snapshot()).await.unwrap();

    // The partition that is locked last is read first, and the table that is locked first last.
    let altering = Session::connect(&settings).await.unwrap();
    let alter = "BEGIN; ALTER TABLE public.t ADD more int; ALTER TABLE public.p ADD more int; COMMIT";
    let mut altered = None;
    for name in ["b", "a", "t"] {
        let heap = heaps.iter().find(|heap| heap.name.table == name).unwrap();
        let mut stream = reader.copy(heap, &columns, None).await.unwrap();
        while stream.next().await.unwrap().is_some() {}
        if altered.is_none() {
            let client = altering.client();
            let mut running = Box::pin(client.batch_execute(alter));
            let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database \
                 WHERE datname = current_database())";
            loop {
                let look = tokio::select! {
                    ended = &mut running => panic!("it did not wait: {ended:?}"),
                    look = session.client().query_one(waits, &[]) => look,
                };
                if look.unwrap().get::<_, i64>(0) > 0 {
                    break;
                }
            }
            altered = Some(running);
        }
    }
    altered.unwrap().await.unwrap();
}

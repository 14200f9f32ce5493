//! What goes wrong around a lake: addresses, locks, lost connections, other writers.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use duckpipe_storage::{S3Credentials, S3Settings, SecretText};

use super::lab::{Kind, Lab, PASSWORD, Server, pipeline, query};
use super::model::{Change, Model};
use crate::error::ErrorKind;
use crate::lake::{CatalogLocation, Lake, LakeSettings};
use crate::lsn::Lsn;
use crate::secret::Secret;

fn put(id: i64) -> (i64, Change) {
    (id, Change::Put((format!("row {id}"), id as i32)))
}

fn settings(catalog: CatalogLocation) -> LakeSettings {
    LakeSettings { catalog, data_path: "/tmp/duckpipe-nowhere".into(), s3: None, memory: 128 << 20, read_only: false }
}

#[tokio::test]
async fn a_catalog_that_is_not_there_is_named_without_its_password() {
    let server = Server::shared();
    let port = server.port;
    let secret = "geheim%27s";
    for (address, kind, says) in [
        (format!("postgres://app:{secret}@127.0.0.1:1/shop"), ErrorKind::Transient, ["127.0.0.1:1/shop", "refused"]),
        (format!("postgres://app:{secret}@nowhere.invalid/shop"), ErrorKind::Transient, ["nowhere.invalid", "shop"]),
        (
            format!("postgres://app:{secret}@127.0.0.1:{port}/shop"),
            ErrorKind::Precondition,
            ["shop", "authentication failed"],
        ),
        (server.url("missing").expose().to_owned(), ErrorKind::Precondition, ["missing", "does not exist"]),
    ] {
        let error = Lake::open(&settings(CatalogLocation::Postgres { url: Secret::new(address), schema: None }))
            .await
            .unwrap_err();
        let text = format!("{error} {error:?}");
        assert_eq!(error.kind(), kind, "{text}");
        assert!(says.iter().all(|word| text.contains(word)), "{text}");
        assert!(!text.contains("geheim") && !text.contains(PASSWORD) && !text.contains("gehe"), "{text}");
    }
}

#[tokio::test]
async fn s3_keys_are_not_in_errors() {
    let lab = Lab::new(Kind::File).await;
    lab.lake.clone().shutdown().await;
    let mut settings = lab.settings.clone();
    settings.data_path = "s3://bucket/prefix".into();
    if let CatalogLocation::File(path) = &mut settings.catalog {
        path.set_file_name("s3.ducklake");
    }
    settings.s3 = Some(S3Settings {
        endpoint: Some("http://127.0.0.1:1".into()),
        access_key_id: Some("AKIA".into()),
        secret_access_key: Some(SecretText::new("first-secret")),
        path_style: true,
        ..S3Settings::default()
    });
    let lake = Lake::open(&settings).await.unwrap();
    let fresh = S3Credentials {
        key_id: "AKIB".into(),
        secret: SecretText::new("second'secret"),
        session_token: Some(SecretText::new("a-token")),
        expires: None,
    };
    lake.refresh_s3(&fresh).await.unwrap();
    let held = lake
        .run(|session| {
            session.rows("SELECT secret_string FROM duckdb_secrets(redact => true)", |row| row.get::<_, String>(0))
        })
        .await
        .unwrap();
    assert!(held.len() == 1 && held[0].contains("AKIB"), "{held:?}");
    let error = lake
        .run(|session| session.batch("SELECT 'first-secret', 'second''secret', 'a-token', * FROM nowhere"))
        .await
        .unwrap_err()
        .to_string();
    for secret in ["first-secret", "second'", "a-token"] {
        assert!(!error.contains(secret), "{error}");
    }
}

/// Another process for `a_held_file_says_who_holds_it`: holds the file until its input ends.
#[test]
#[ignore = "the other process of a test"]
fn holds_a_file() {
    let Ok(path) = std::env::var("DUCKPIPE_TEST_HOLD") else { return };
    let connection = duckdb::Connection::open(path).unwrap();
    println!("\nheld");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().lines().next();
    drop(connection);
}

#[tokio::test]
async fn a_held_file_says_who_holds_it_and_a_short_hold_is_waited_for() {
    let lab = Lab::new(Kind::File).await;
    lab.lake.clone().shutdown().await;
    let CatalogLocation::File(path) = lab.settings.catalog.clone() else { panic!() };
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lake::tests::failures::holds_a_file", "--ignored", "--nocapture"])
        .env("DUCKPIPE_TEST_HOLD", &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("held")));
    let error = Lake::open(&lab.settings).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(error.to_string().contains(&format!("PID {}", other.id())), "{error}");
    assert!(error.remedy_text().is_some());
    let opening = {
        let settings = lab.settings.clone();
        tokio::spawn(async move { Lake::open(&settings).await })
    };
    // Opening takes longer than a turn of the scheduler; the other one ends while it is under way.
    tokio::task::yield_now().await;
    drop(other.stdin.take());
    opening.await.unwrap().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn a_copy_of_the_catalog_reads_as_the_lake() {
    let lab = Lab::new(Kind::File).await;
    let mut model = Model::new(&lab, "t").await;
    model.apply(&lab, &[put(1), put(2)], 1, false).await.unwrap();
    model.apply(&lab, &[(1, Change::Remove)], 1, false).await.unwrap();
    let copy: PathBuf = lab.folder.path().join("copy.ducklake");
    lab.lake.copy_catalog(&copy).await.unwrap();
    model.apply(&lab, &[put(3)], 1, false).await.unwrap();
    let settings = LakeSettings { catalog: CatalogLocation::File(copy), read_only: true, ..lab.settings.clone() };
    let lake = Lake::open(&settings).await.unwrap();
    assert_eq!(lake.catalog_id(), lab.lake.catalog_id());
    let read = lake.run(|session| Ok(query(&session.connection, "SELECT id FROM lake.public.t"))).await.unwrap();
    assert_eq!(read, [["2"]]);
    assert!(lake.claim(&pipeline("shop")).await.is_err());
    assert_eq!(lake.tables("shop").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_missing_lake_is_not_made_by_a_reader() {
    let mut lab = Lab::new(Kind::File).await;
    lab.settings.read_only = true;
    if let CatalogLocation::File(path) = &mut lab.settings.catalog {
        path.set_file_name("none.ducklake");
    }
    let error = Lake::open(&lab.settings).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing);
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[tokio::test]
async fn a_connection_lost_before_commit_leaves_nothing() {
    let lab = Lab::new(Kind::Postgres).await;
    let mut model = Model::new(&lab, "t").await;
    model.apply(&lab, &[put(1)], 1, false).await.unwrap();
    let (server, database) = (lab.server.clone().unwrap(), lab.database.clone());
    let fence = lab.fence.clone();
    let error = lab
        .lake
        .run(move |session| {
            session.locked_transaction(|session| {
                // One write through each of the two ways: they must be one transaction in Postgres.
                session.write(&format!("DELETE FROM {}.duckpipe_table", session.tables()))?;
                crate::lake::pipeline::update(session, &fence, "lsn = 'F/F'")?;
                let backends = server.sql(
                    &database,
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() \
                     AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
                );
                assert_ne!(backends, "0");
                Ok(())
            })
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    assert!(error.to_string().contains("COMMIT"), "{error}");
    // The state tells that it did not take place; the connection comes back by itself.
    let row = lab.lake.pipeline("shop").await.unwrap().unwrap();
    assert_eq!(row.lsn, Some(Lsn(model.lsn)));
    assert_eq!(lab.lake.tables("shop").await.unwrap().len(), 1);
    model.apply(&lab, &[put(2)], 1, false).await.unwrap();
}

#[tokio::test]
async fn two_pipelines_share_a_postgres_catalog() {
    let lab = Arc::new(Lab::new(Kind::Postgres).await);
    let other_lake = Lake::open(&lab.settings).await.unwrap();
    let other_fence = other_lake.claim(&pipeline("other")).await.unwrap();
    let mine = Model::new(&lab, "mine").await;
    let theirs = {
        let view = Lab {
            folder: tempfile::tempdir().unwrap(),
            settings: lab.settings.clone(),
            kind: lab.kind,
            server: lab.server.clone(),
            database: lab.database.clone(),
            lake: other_lake.clone(),
            fence: other_fence.clone(),
        };
        Model::new(&view, "theirs").await
    };
    let work = |model: Model, lake: Lake, fence: crate::lake::Fence, lab: Arc<Lab>| async move {
        let (mut model, mut conflicts, mut snapshots) = (model, 0, Vec::new());
        for id in 0..20 {
            loop {
                model.base = lake.latest_snapshot().await.unwrap();
                let (commit, _) = model.prepare(&lab, &[put(id)], 1, false);
                match lake.commit(&fence, &commit).await {
                    Ok(committed) => break snapshots.push(committed.snapshot),
                    Err(error) if error.kind() == ErrorKind::Conflict => conflicts += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            model.lsn += 1;
        }
        (conflicts, snapshots)
    };
    let first = tokio::spawn(work(mine, lab.lake.clone(), lab.fence.clone(), lab.clone()));
    let second = tokio::spawn(work(theirs, other_lake, other_fence, lab.clone()));
    let ((_, mut first), (_, second)) = (first.await.unwrap(), second.await.unwrap());
    first.extend(second);
    first.sort_unstable();
    first.dedup();
    assert_eq!(first.len(), 40, "each commit has a snapshot of its own");
    let mut lab = Arc::into_inner(lab).unwrap();
    lab.stock(|connection| {
        let read = query(connection, "SELECT (SELECT count(DISTINCT id) FROM lake.public.mine), (SELECT count(DISTINCT id) FROM lake.public.theirs)");
        assert_eq!(read, [["20", "20"]]);
        let order = query(connection, "SELECT count(*) FROM (SELECT snapshot_time < lag(snapshot_time) OVER (ORDER BY snapshot_id) AS back FROM lake.snapshots()) WHERE back");
        assert_eq!(order, [["0"]]);
    })
    .await;
}

#[tokio::test]
async fn first_starts_at_one_moment_share_one_lake() {
    let server = Server::shared();
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut settings =
            settings(CatalogLocation::Postgres { url: server.url(&server.database()), schema: Some("new".into()) });
        settings.data_path = folder.path().to_string_lossy().into_owned();
        let lakes = futures::future::join_all((0..4).map(|_| Lake::open(&settings))).await;
        let lakes: Vec<Lake> = lakes.into_iter().collect::<Result<_, _>>().unwrap();
        assert!(lakes.iter().all(|lake| lake.catalog_id() == lakes[0].catalog_id()));
    }
}

#[tokio::test]
async fn a_postgres_catalog_lies_in_the_schema_that_its_address_names() {
    let server = Server::shared();
    let database = server.database();
    let folder = tempfile::tempdir().unwrap();
    for (suffix, schema) in [("?sslmode=prefer", "public"), ("?schema=other%20one&connect_timeout=5", "other one")] {
        let url = Secret::new(format!("{}{suffix}", server.url(&database).expose()));
        let mut settings = settings(CatalogLocation::Postgres { url, schema: None });
        settings.data_path = folder.path().join(schema).to_string_lossy().into_owned();
        let lake = Lake::open(&settings).await.unwrap();
        lake.claim(&pipeline("shop")).await.unwrap();
        let count = server
            .sql(&database, &format!("SELECT count(*) FROM {}.duckpipe_pipeline", crate::sql::identifier(schema)));
        assert_eq!(count, "1");
        // A reader that may not write sees the same.
        settings.read_only = true;
        let reader = Lake::open(&settings).await.unwrap();
        assert_eq!(reader.catalog_id(), lake.catalog_id());
        assert_eq!(reader.pipeline("shop").await.unwrap(), lake.pipeline("shop").await.unwrap());
        assert!(reader.claim(&pipeline("shop")).await.is_err());
    }
}

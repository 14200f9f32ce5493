use crate::error::ErrorKind;
use crate::source::lab::{PASSWORD, PASSWORD_ENCODED, cluster, settings};
use crate::source::replication::ReplicationConnection;
use crate::source::session::Session;

/// Both kinds of connection, because they log in by different code.
async fn login(url: &str) -> Result<(), crate::error::Error> {
    let settings = settings(url);
    let by_session = Session::connect(&settings).await.map(drop);
    let by_wire = crate::source::wire::Wire::connect(&settings, false).await.map(drop);
    assert_eq!(
        by_session.as_ref().err().map(|e| e.kind()),
        by_wire.as_ref().err().map(|e| e.kind()),
        "{by_session:?} {by_wire:?}"
    );
    for error in by_session.as_ref().err().into_iter().chain(by_wire.as_ref().err()) {
        let text = format!("{error} {error:?}");
        assert!(!text.contains(PASSWORD) && !text.contains(PASSWORD_ENCODED) && !text.contains("wrong-one"), "{text}");
    }
    by_session.and(by_wire)
}

#[tokio::test]
async fn logs_in_by_scram_md5_and_text_over_tcp_and_sockets() {
    let cluster = cluster();
    let port = cluster.port;
    login(&cluster.url("postgres")).await.unwrap();
    login(&format!("postgres://by_md5:x@localhost:{port}/postgres")).await.unwrap();
    login(&format!("postgres://by_text:x@localhost:{port}/postgres")).await.unwrap();
    let folder = cluster.path("");
    login(&format!("postgres:///postgres?user=by_text&port={port}&host={}", folder.display())).await.unwrap();
    // The first host is not there; the next one is.
    login(&format!("postgres://by_text:x@127.0.0.1:1,localhost:{port}/postgres")).await.unwrap();
}

#[tokio::test]
async fn refused_logins_say_why() {
    let cluster = cluster();
    let port = cluster.port;
    for (url, kind, text) in [
        (format!("postgres://postgres:wrong-one@localhost:{port}/postgres"), ErrorKind::Precondition, "28P01"),
        (format!("postgres://by_md5:wrong-one@localhost:{port}/postgres"), ErrorKind::Precondition, "28P01"),
        (format!("postgres://postgres@localhost:{port}/postgres"), ErrorKind::Precondition, "password"),
        (cluster.url("absent"), ErrorKind::Precondition, "3D000"),
        ("postgres://a:b@127.0.0.1:1/d".into(), ErrorKind::Transient, "refused"),
        ("postgres://a:b@name.invalid:1/d".into(), ErrorKind::Transient, "name.invalid"),
    ] {
        let error = login(&url).await.expect_err(&url);
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(error.remedy_text().is_some(), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_never_answers_or_speaks_otherwise() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let error =
        login(&format!("postgres://a:b@127.0.0.1:{port}/d?connect_timeout=1&sslmode=disable")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(error.to_string().contains("no answer within 1 s"), "{error}");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = crate::source::wire::Wire::connect(
        &settings(&format!("postgres://a:b@127.0.0.1:{port}/d?sslmode=disable")),
        false,
    )
    .await
    .map(drop)
    .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition);
    assert!(error.to_string().contains("does not speak as Postgres"), "{error}");
}

#[tokio::test]
async fn encryption_follows_sslmode() {
    let cluster = cluster();
    let port = cluster.port;
    let encrypted = async |user: &str, parameters: &str| {
        let url = format!("postgres://{user}:x@localhost:{port}/postgres?{parameters}");
        login(&url).await?;
        let session = Session::connect(&settings(&url)).await?;
        let row =
            session.client().query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap();
        Ok::<bool, crate::error::Error>(row.get(0))
    };
    assert!(!encrypted("by_text", "sslmode=disable").await.unwrap());
    assert!(!encrypted("by_text", "sslmode=allow").await.unwrap());
    assert!(encrypted("by_text", "").await.unwrap());
    assert!(encrypted("by_text", "sslmode=require").await.unwrap());
    // pg_hba.conf lets them in with one kind only: allow and prefer try both.
    assert!(encrypted("only_tls", "sslmode=allow").await.unwrap());
    assert!(!encrypted("only_plain", "sslmode=prefer").await.unwrap());
    assert_eq!(encrypted("only_tls", "sslmode=disable").await.unwrap_err().kind(), ErrorKind::Precondition);
    assert_eq!(encrypted("only_plain", "sslmode=require").await.unwrap_err().kind(), ErrorKind::Precondition);

    let root = |name: &str| format!("sslrootcert={}", cluster.path(name).display());
    for mode in ["require", "verify-ca", "verify-full"] {
        assert!(encrypted("by_text", &format!("sslmode={mode}&{}", root("ca.crt"))).await.unwrap());
        let error = encrypted("by_text", &format!("sslmode={mode}&{}", root("other-ca.crt"))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    }
    // The server's own certificate as the root.
    assert!(encrypted("by_text", &format!("sslmode=verify-full&{}", root("server.crt"))).await.unwrap());
    // The system's authorities did not sign it.
    assert!(encrypted("by_text", "sslmode=verify-full").await.is_err());
    let error = encrypted("by_text", "sslmode=verify-ca&sslrootcert=/absent").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");

    // A certificate instead of a password.
    let certificate = |certificate: &str, key: &str| {
        let (crt, key) = (cluster.path(certificate), cluster.path(key));
        format!("sslmode=verify-full&{}&sslcert={}&sslkey={}", root("ca.crt"), crt.display(), key.display())
    };
    assert!(encrypted("by_certificate", &certificate("client.crt", "client.key")).await.unwrap());
    assert!(encrypted("by_certificate", &certificate("client-v1.crt", "client.key")).await.unwrap());
    let error = encrypted("by_certificate", &certificate("client.crt", "ca.key")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    let error = encrypted("by_certificate", "sslmode=require").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");

    // Another name for the same host: fine for verify-ca, not for verify-full.
    let by_address =
        |mode: &str| format!("postgres://by_text:x@127.0.0.1:{port}/postgres?sslmode={mode}&{}", root("ca.crt"));
    login(&by_address("verify-ca")).await.unwrap();
    let error = login(&by_address("verify-full")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition);
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn every_connection_pins_its_parameters() {
    let cluster = cluster();
    let (_, admin) = cluster.database("t_pins").await;
    admin
        .client()
        .batch_execute(
            "DROP ROLE IF EXISTS odd; CREATE ROLE odd LOGIN REPLICATION PASSWORD 'x'; ALTER ROLE odd SET datestyle = 'German, DMY'; \
             ALTER ROLE odd SET timezone = 'Asia/Kolkata'; ALTER ROLE odd SET intervalstyle = 'iso_8601'; \
             ALTER ROLE odd SET extra_float_digits = -5; ALTER ROLE odd SET bytea_output = 'escape'; \
             ALTER ROLE odd SET statement_timeout = '9s'; ALTER ROLE odd SET search_path = 'public'; \
             ALTER ROLE odd SET quote_all_identifiers = on",
        )
        .await
        .unwrap();
    let query = "SELECT concat_ws('|', '2024-03-01'::date, '2024-03-01 12:00:00.5'::timestamptz, '1 day'::interval, 0.1::float8, \
                 '\\x01'::bytea, 12.5::money, current_setting('statement_timeout'), current_setting('row_security'), \
                 current_setting('search_path'), format_type('text'::regtype, NULL))";
    let expected = "2024-03-01|2024-03-01 12:00:00.5+00|1 day|0.1|\\x01|$12.50|0|off|\"\"|text";
    let settings = settings(&format!("postgres://odd:x@localhost:{}/t_pins", cluster.port));
    let session = Session::connect(&settings).await.unwrap();
    let row = session.client().query_one(query, &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), expected);
    for replication in [false, true] {
        let mut wire = crate::source::wire::Wire::connect(&settings, replication).await.unwrap();
        let rows = wire.query(query).await.unwrap();
        assert_eq!(crate::source::wire::text(&rows[0], 0).unwrap(), expected);
    }
    assert_eq!(session.server_version().await.unwrap() / 10000, session.major_version());
}

#[tokio::test]
async fn a_role_without_replication_is_told_so() {
    let cluster = cluster();
    let settings = settings(&format!("postgres://by_text:x@localhost:{}/postgres", cluster.port));
    let error = ReplicationConnection::connect(&settings).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");
    assert!(error.remedy_text().unwrap().contains("REPLICATION"), "{error}");
}

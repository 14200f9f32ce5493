use crate::source::lab::{cluster, settings};
use crate::source::preflight::examine;
use crate::source::session::Session;
use crate::source::table::TableName;

#[tokio::test]
async fn what_a_role_lacks_and_the_statements_that_help() {
    let cluster = cluster();
    let (_, admin) = cluster.database("t_preflight").await;
    admin
        .client()
        .batch_execute(
            "DROP ROLE IF EXISTS \"New one\"; CREATE ROLE \"New one\" LOGIN PASSWORD 'x'; \
             CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY); CREATE TABLE shop.items (id int PRIMARY KEY, x int); \
             GRANT SELECT (id, x) ON shop.items TO \"New one\"; \
             CREATE TABLE public.guarded (id int PRIMARY KEY); ALTER TABLE public.guarded ENABLE ROW LEVEL SECURITY; \
             GRANT SELECT ON public.guarded TO \"New one\"",
        )
        .await
        .unwrap();
    let tables: Vec<_> = [("shop", "orders"), ("shop", "items"), ("public", "guarded"), ("public", "absent")]
        .map(|(schema, table)| TableName { schema: schema.into(), table: table.into() })
        .into();
    let settings = settings(&format!("postgres://New%20one:x@localhost:{}/t_preflight", cluster.port));
    let session = Session::connect(&settings).await.unwrap();
    let facts = examine(&session, &settings, &tables).await.unwrap();
    assert_eq!(facts.version / 10_000, session.major_version());
    assert_eq!((facts.wal_level.as_str(), facts.max_slots, facts.max_senders), ("logical", 20, 20));
    assert_eq!((facts.max_slot_wal_keep_mib, facts.in_recovery, facts.superuser), (-1, false, false));
    assert!(!facts.may_replicate && !facts.may_create);
    assert!(facts.identity.as_ref().unwrap_err().remedy_text().is_some());
    let access: Vec<_> = facts
        .tables
        .iter()
        .map(|t| (t.name.table.as_str(), t.may_use_schema, t.may_select, t.owned, t.row_security))
        .collect();
    assert_eq!(
        access,
        [
            ("orders", false, false, false, false),
            ("items", false, true, false, false),
            ("guarded", true, true, false, true),
        ]
    );
    assert_eq!(
        facts.grants,
        [
            "ALTER ROLE \"New one\" REPLICATION;",
            "GRANT USAGE ON SCHEMA \"shop\" TO \"New one\";",
            "GRANT SELECT ON TABLE \"shop\".\"orders\" TO \"New one\";",
            "ALTER ROLE \"New one\" BYPASSRLS;",
        ]
    );

    // The statements are enough.
    admin.client().batch_execute(&facts.grants.concat()).await.unwrap();
    let session = Session::connect(&settings).await.unwrap();
    let facts = examine(&session, &settings, &tables).await.unwrap();
    assert!(facts.grants.is_empty(), "{:?}", facts.grants);
    assert!(facts.may_replicate);
    assert_eq!(facts.identity.unwrap().timeline, 1);
    drop(session);
    admin.client().batch_execute("DROP OWNED BY \"New one\"; DROP ROLE \"New one\"").await.unwrap();
}

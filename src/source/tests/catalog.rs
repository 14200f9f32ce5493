use crate::error::ErrorKind;
use crate::source::catalog::{describe_table, list_tables};
use crate::source::lab::cluster;
use crate::source::pattern::TablePattern;
use crate::source::publication::{self, Sent};
use crate::source::row_filter;
use crate::source::session::Session;
use crate::source::table::{PgTypeKind, ReplicaIdentity, SourceTable, TableName};

fn name(table: &str) -> TableName {
    TableName { schema: "public".into(), table: table.into() }
}

async fn describe(session: &Session, table: &str) -> SourceTable {
    describe_table(session, &name(table), None).await.unwrap().unwrap()
}

fn names(table: &SourceTable) -> Vec<&str> {
    table.columns.iter().map(|column| column.name.as_str()).collect()
}

#[tokio::test]
async fn lists_what_patterns_name() {
    let cluster = cluster();
    let (_, session) = cluster.database("t_list").await;
    session
        .client()
        .batch_execute(
            "CREATE SCHEMA \"Odd.One\"; CREATE TABLE public.orders (id int); CREATE TABLE public.order_1 (id int); \
             CREATE TABLE public.order_12 (id int); CREATE TABLE \"Odd.One\".\"T*\" (id int); CREATE TABLE public.ducklake_x (id int); \
             CREATE TABLE public.duckpipe_x (id int); CREATE VIEW public.v AS SELECT 1 AS x; CREATE UNLOGGED TABLE public.u (id int); \
             CREATE TABLE public.parent (id int) PARTITION BY RANGE (id); \
             CREATE TABLE public.part PARTITION OF public.parent FOR VALUES FROM (0) TO (9)",
        )
        .await
        .unwrap();
    let list = async |patterns: &[&str]| {
        let patterns: Vec<_> = patterns.iter().map(|text| TablePattern::parse(text).unwrap()).collect();
        list_tables(&session, &patterns).await.unwrap().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    // A partitioned table is one; a partition must be named.
    assert_eq!(list(&["public.*"]).await, ["public.order_1", "public.order_12", "public.orders", "public.parent"]);
    assert_eq!(list(&["public.part"]).await, ["public.part"]);
    assert_eq!(list(&["public.order_?", "*.orders", "public.orders"]).await, ["public.order_1", "public.orders"]);
    assert_eq!(list(&["\"Odd.One\".*"]).await, ["Odd.One.T*"]);
    assert_eq!(list(&["*.*"]).await.len(), 5);
    assert!(list(&["public.absent", "public.v", "pg_catalog.pg_class", "public.ducklake_x"]).await.is_empty());
}

#[tokio::test]
async fn columns_keys_and_types() {
    let cluster = cluster();
    let (_, session) = cluster.database("t_describe").await;
    session
        .client()
        .batch_execute(
            "CREATE TYPE public.mood AS ENUM ('a'); CREATE TYPE public.pair AS (x int, y text); \
             CREATE DOMAIN public.short AS varchar(7); CREATE DOMAIN public.shorter AS public.short CHECK (length(value) < 5); \
             CREATE DOMAIN public.grid AS numeric(6,2)[][]; CREATE DOMAIN public.shorts AS public.shorter[]; \
             CREATE TABLE public.t (b text, a int, gone int, n numeric(10,2) NOT NULL, s public.shorter, v varchar(3)[], g public.grid, \
               ss public.shorts, bx box[], m public.mood, p public.pair, r int4range, mr int4multirange, iv int2vector, \
               pt point, \"A b\" timestamptz(3), d2 int[][], am public.mood[], gen int GENERATED ALWAYS AS (a + 1) STORED, \
               PRIMARY KEY (b, a)); \
             ALTER TABLE public.t DROP COLUMN gone; INSERT INTO public.t (b, a, n) SELECT 'x', i, 1 FROM generate_series(1, 5000) i; \
             ANALYZE public.t",
        )
        .await
        .unwrap();
    let table = describe(&session, "t").await;
    assert_eq!(
        names(&table),
        ["b", "a", "n", "s", "v", "g", "ss", "bx", "m", "p", "r", "mr", "iv", "pt", "A b", "d2", "am"]
    );
    let attnums: Vec<_> = table.columns.iter().map(|column| column.attnum).collect();
    assert_eq!(attnums[..4], [1, 2, 4, 5]);
    assert_eq!(table.key, [0, 1]);
    assert_eq!(table.replica_identity, ReplicaIdentity::Default);
    assert_eq!(table.estimated_rows, 5000);
    assert!((20..60).contains(&table.pages), "{}", table.pages);
    let column = |name: &str| table.columns.iter().find(|column| column.name == name).unwrap();
    assert!(column("n").not_null && column("a").not_null && !column("s").not_null);

    let n = &column("n").pg_type;
    assert_eq!((n.oid, n.base_oid, n.typmod, n.base_typmod), (1700, 1700, (10 << 16 | 2) + 4, (10 << 16 | 2) + 4));
    assert_eq!(n.display, "numeric(10,2)");
    let s = &column("s").pg_type;
    assert_eq!((s.base_oid, s.typmod, s.base_typmod), (1043, -1, 11));
    assert_eq!((s.display.as_str(), s.base_name.as_str()), ("public.shorter", "varchar"));
    let v = column("v").pg_type.element.as_ref().unwrap();
    assert_eq!((v.pg_type.oid, v.pg_type.base_typmod, v.dimensions, v.delimiter), (1043, 7, 1, ','));
    assert_eq!(v.pg_type.display, "character varying(3)");
    let g = &column("g").pg_type;
    assert_eq!((g.display.as_str(), g.base_name.as_str()), ("public.grid", "_numeric"));
    let g = g.element.as_ref().unwrap();
    assert_eq!((g.pg_type.base_oid, g.pg_type.base_typmod, g.dimensions), (1700, (6 << 16 | 2) + 4, 2));
    let ss = column("ss").pg_type.element.as_ref().unwrap();
    assert_eq!((ss.pg_type.base_oid, ss.pg_type.base_typmod, ss.dimensions), (1043, 11, 1));
    assert_eq!(ss.pg_type.display, "public.shorter");
    assert_eq!(column("bx").pg_type.element.as_ref().unwrap().delimiter, ';');
    assert_eq!(column("d2").pg_type.element.as_ref().unwrap().dimensions, 2);
    for (name, kind) in [
        ("m", PgTypeKind::Enum),
        ("p", PgTypeKind::Composite),
        ("r", PgTypeKind::Range),
        ("mr", PgTypeKind::Multirange),
        ("iv", PgTypeKind::Base),
        ("pt", PgTypeKind::Base),
    ] {
        assert_eq!(column(name).pg_type.kind, kind, "{name}");
        // A point has elements of its own and an int2vector is stored as an array, but neither is one.
        assert!(column(name).pg_type.element.is_none(), "{name}");
    }
    assert_eq!(column("am").pg_type.element.as_ref().unwrap().pg_type.kind, PgTypeKind::Enum);
    assert_eq!(column("A b").pg_type.display, "timestamp(3) with time zone");

    assert!(describe_table(&session, &name("absent"), None).await.unwrap().is_none());
    assert!(describe_table(&session, &name("mood"), None).await.unwrap().is_none());
}

#[tokio::test]
async fn keys_follow_the_replica_identity() {
    let cluster = cluster();
    let (_, session) = cluster.database("t_keys").await;
    session
        .client()
        .batch_execute(
            "CREATE TABLE public.none (a int, b int); \
             CREATE TABLE public.full_pk (a int, b int PRIMARY KEY); ALTER TABLE public.full_pk REPLICA IDENTITY FULL; \
             CREATE TABLE public.idx (id int PRIMARY KEY, a int NOT NULL, b int NOT NULL, c int); \
             CREATE UNIQUE INDEX i ON public.idx (b, a) INCLUDE (c); ALTER TABLE public.idx REPLICA IDENTITY USING INDEX i; \
             CREATE TABLE public.nothing (a int PRIMARY KEY); ALTER TABLE public.nothing REPLICA IDENTITY NOTHING; \
             CREATE TABLE public.deferrable (a int PRIMARY KEY DEFERRABLE)",
        )
        .await
        .unwrap();
    for (table, identity, key) in [
        ("none", ReplicaIdentity::Default, vec![]),
        ("full_pk", ReplicaIdentity::Full, vec![1]),
        ("idx", ReplicaIdentity::Index, vec![2, 1]),
        ("nothing", ReplicaIdentity::Nothing, vec![]),
        ("deferrable", ReplicaIdentity::Default, vec![]),
    ] {
        let described = describe(&session, table).await;
        assert_eq!((described.replica_identity, described.key), (identity, key), "{table}");
    }
}

/// The server's own view is the judge.
#[tokio::test]
async fn what_a_publication_sends() {
    let cluster = cluster();
    let (_, session) = cluster.database("t_sent").await;
    let client = session.client();
    let tables = "CREATE SCHEMA s; CREATE TABLE public.t (id int); CREATE TABLE s.x (id int); \
        CREATE TABLE s.p (id int) PARTITION BY RANGE (id); \
        CREATE TABLE s.p1 PARTITION OF s.p FOR VALUES FROM (0) TO (9) PARTITION BY RANGE (id); \
        CREATE TABLE s.p11 PARTITION OF s.p1 FOR VALUES FROM (0) TO (5); \
        CREATE TABLE public.outside PARTITION OF s.p FOR VALUES FROM (9) TO (20); \
        CREATE UNLOGGED TABLE s.u (id int); CREATE VIEW s.v AS SELECT 1; CREATE TABLE public.q (id int) PARTITION BY RANGE (id)";
    client.batch_execute(tables).await.unwrap();
    let forms = ["", "FOR ALL TABLES", "FOR TABLE public.t, s.p, s.p11", "FOR TABLE s.p1, public.q"];
    let of_schemas = ["FOR TABLES IN SCHEMA s", "FOR TABLE public.q, TABLES IN SCHEMA s"];
    let of_schemas = of_schemas.iter().filter(|_| session.major_version() >= 15);
    let mut most = 0;
    for (number, form) in forms.iter().chain(of_schemas).enumerate() {
        for via_root in [true, false] {
            let name = format!("sent_{number}_{via_root}");
            let create = format!("CREATE PUBLICATION {name} {form} WITH (publish_via_partition_root = {via_root})");
            client.batch_execute(&create).await.unwrap();
            // Version 14 lists a partition twice which is published by itself too.
            let view =
                "SELECT DISTINCT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1 ORDER BY 1, 2";
            let rows = client.query(view, &[&name]).await.unwrap();
            let shown: Vec<_> = rows.iter().map(|row| TableName { schema: row.get(0), table: row.get(1) }).collect();
            let found = publication::find(&session, &name).await.unwrap().unwrap();
            assert_eq!(found.tables, shown, "{form}, {via_root}");
            most = most.max(shown.len());
        }
    }
    assert_eq!(most, 4);
}

#[tokio::test]
async fn publications() {
    let cluster = cluster();
    let (_, session) = cluster.database("t_publication").await;
    session
        .client()
        .batch_execute(
            "CREATE TABLE public.a (id int PRIMARY KEY, x int, secret int); CREATE TABLE public.\"B c\" (id int PRIMARY KEY); \
             CREATE TABLE public.filtered (id int PRIMARY KEY); \
             CREATE PUBLICATION lists FOR TABLE public.a (id, x), public.filtered WHERE (id > 3) WITH (publish = 'insert, delete')",
        )
        .await
        .unwrap();
    let lists = publication::find(&session, "lists").await.unwrap().unwrap();
    assert_eq!(lists.tables, [name("a"), name("filtered")]);
    assert_eq!(lists.row_filters, [name("filtered")]);
    assert_eq!((lists.insert, lists.update, lists.delete, lists.truncate), (true, false, true, false));
    assert_eq!(lists.owner, "postgres");
    let a = describe_table(&session, &name("a"), Some("lists")).await.unwrap().unwrap();
    assert_eq!(names(&a), ["id", "x"]);
    let a = describe_table(&session, &name("a"), Some("absent")).await.unwrap().unwrap();
    assert_eq!(names(&a), ["id", "x", "secret"]);

    let tables = [name("B c"), name("a")];
    let sent = |table: &TableName| Sent { name: table.clone(), filter: (table.table == "a").then(|| "id<7".into()) };
    let sent = tables.each_ref().map(sent);
    publication::create(&session, "it's \"mine\"", &sent).await.unwrap();
    let own = publication::find(&session, "it's \"mine\"").await.unwrap().unwrap();
    assert_eq!(own.tables, tables);
    assert!(own.insert && own.update && own.delete && own.truncate && !own.all_tables && own.via_root);
    let a = describe_table(&session, &name("a"), Some("it's \"mine\"")).await.unwrap().unwrap();
    assert_eq!(a.filter.as_deref(), Some("(id < 7)"));
    let understood = |filter: &'static str| row_filter::understood(&session, &a.name, filter, None);
    let found = understood("x is null or ID <7").await.unwrap();
    assert_eq!((found.text.as_str(), found.columns), ("((x IS NULL) OR (id < 7))", vec![1, 2]));
    assert!(understood("y = 1").await.unwrap_err().to_string().contains("column \"y\" does not exist"));
    let sends = async || publication::membership(&session, "it's \"mine\"", a.oid).await.unwrap();
    let before = sends().await;
    assert!(before.is_some() && before == a.published);
    let a_table = crate::sql::qualified(&a.name.schema, &a.name.table);
    let taken_out = format!("ALTER PUBLICATION \"it's \"\"mine\"\"\" DROP TABLE {a_table}");
    session.client().batch_execute(&taken_out).await.unwrap();
    assert_eq!(sends().await, None);
    publication::add_table(&session, "it's \"mine\"", &sent[1]).await.unwrap();
    assert!(sends().await.is_some_and(|now| Some(now) != before));
    let error = publication::create(&session, "it's \"mine\"", &sent).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition, "{error}");
    publication::drop(&session, "it's \"mine\"").await.unwrap();
    publication::drop(&session, "it's \"mine\"").await.unwrap();
    assert!(publication::find(&session, "it's \"mine\"").await.unwrap().is_none());

    assert_eq!(publication::may_create(&session, &tables).await.unwrap(), None);
    let settings =
        crate::source::lab::settings(&format!("postgres://by_text:x@localhost:{}/t_publication", cluster.port));
    let session_of_user = Session::connect(&settings).await.unwrap();
    let why = publication::may_create(&session_of_user, &tables).await.unwrap().unwrap();
    assert_eq!(why, "role by_text may not CREATE in database t_publication");
    session
        .client()
        .batch_execute("GRANT CREATE ON DATABASE t_publication TO by_text; ALTER TABLE public.a OWNER TO by_text")
        .await
        .unwrap();
    let why = publication::may_create(&session_of_user, &tables).await.unwrap().unwrap();
    assert_eq!(why, "role by_text does not own public.B c (role postgres does)");
    assert_eq!(publication::may_create(&session_of_user, &tables[1..]).await.unwrap(), None);
}

//! What the configuration accepts, and what each mistake says.

use super::*;

const GOOD: &str = r#"
name = "shop"
[source]
url = "postgres://app:secret@db:5432/shop?sslmode=verify-full"
[lake]
catalog = "lake/catalog.ducklake"
data_path = "lake/data"
[[tables]]
source = "public.orders"
"#;

fn load(text: &str, environment: &[(&str, &str)], settings: &[(&'static str, &'static str, &str)]) -> Result<Config> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("duckpipe.toml"), text).unwrap();
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let settings =
        settings.iter().map(|(key, flag, value)| Override { key, flag, value: (*value).to_owned() }).collect();
    Config::load_from(&CliOverrides { config: None, settings }, &environment, folder.path())
}

/// What a person reads of the mistake, with the file's folder taken away.
fn mistake(text: &str, environment: &[(&str, &str)]) -> String {
    let error = load(text, environment, &[]).expect_err("this configuration must be refused");
    assert_eq!(error.kind(), ErrorKind::Config);
    let mut said = error.to_string();
    while let (Some(start), Some(end)) = (said.find("/tmp/"), said.find("duckpipe.toml")) {
        if start > end {
            break;
        }
        said.replace_range(start..end, "");
    }
    match error.remedy_text() {
        Some(remedy) => format!("{said} | {remedy}"),
        None => said,
    }
}

#[test]
fn reads_the_smallest_file() {
    let config = load(GOOD, &[], &[]).unwrap();
    assert_eq!(config.name, "shop");
    assert_eq!(config.source.slot, "duckpipe_shop");
    assert_eq!(config.source.publication, "duckpipe_shop");
    assert_eq!(config.sync, SyncConfig::default());
    let folder = config.path.parent().unwrap();
    assert_eq!(config.lake.catalog, CatalogLocation::File(folder.join("lake/catalog.ducklake")));
    assert_eq!(config.lake.data_path, folder.join("lake/data").to_str().unwrap());
    assert_eq!(config.tables()[0].source.exact().unwrap().to_string(), "public.orders");
    assert!(!format!("{config:?}").contains("secret"), "a debug print shows the password");
}

#[test]
fn reads_every_key() {
    let text = r#"
        name = "shop"
        [source]
        url = "postgres://db/shop"
        slot = "s"
        publication = "Pub"
        sslrootcert = "ca.pem"
        [lake]
        catalog = "postgres://u:p@h/d?schema=lake"
        data_path = "s3://bucket/prefix/"
        [s3]
        endpoint = "http://127.0.0.1:9000/"
        region = "eu"
        access_key_id = "id"
        secret_access_key = "${KEY}"
        session_token = "t"
        path_style = true
        [sync]
        flush_interval = "250ms"
        flush_bytes = "1MiB"
        memory_limit = 256_000_000
        snapshot_workers = 4
        on_unrepresentable = "null"
        [[tables]]
        source = "public.orders"
        target = "shop.Orders"
        exclude_columns = ["card"]
        types = { payload = "text" }
        [[tables]]
        source = "public.*"
    "#;
    let config = load(text, &[("KEY", "very secret")], &[]).unwrap();
    let folder = config.path.parent().unwrap().to_str().unwrap();
    assert_eq!(config.source.url.expose(), format!("postgres://db/shop?sslrootcert={folder}/ca.pem"));
    let s3 = config.s3.clone().unwrap();
    assert_eq!(s3.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    assert_eq!(s3.secret_access_key.unwrap().expose(), "very secret");
    assert!(s3.path_style);
    assert_eq!(config.lake.data_path, "s3://bucket/prefix");
    assert_eq!(config.sync.flush_interval, Duration::from_millis(250));
    assert_eq!((config.sync.flush_bytes, config.sync.memory_limit), (1 << 20, 256_000_000));
    assert_eq!(config.sync.on_unrepresentable, OnUnrepresentable::Null);
    assert_eq!(config.tables()[0].target.as_ref().unwrap().to_string(), "shop.Orders");
    assert!(config.tables()[0].is_text("payload"));
    assert!(!format!("{config:?}").contains("very secret"));
}

#[test]
fn reads_how_files_are_compacted() {
    let text = GOOD.replace("[[tables]]", "[compact]\nenabled = false\nretain = \"forever\"\n[[tables]]");
    let config = load(&format!("{text}sort_by = [\"placed\"]\n[[tables]]\nsource = \"public.*\""), &[], &[]).unwrap();
    assert!(!config.compact.enabled && config.compact.retain.is_none());
    let sort_by = |name: &str| {
        let table = TableName { schema: "public".into(), table: name.into() };
        selection_of(&config.tables(), &table).and_then(|selected| selected.sort_by)
    };
    assert_eq!(sort_by("orders"), Some(vec!["placed".to_owned()]));
    assert_eq!(sort_by("items"), None);
    let environment = [
        ("DUCKPIPE_COMPACT__INTERVAL", "5m"),
        ("DUCKPIPE_COMPACT__TARGET_FILE_SIZE", "64MB"),
        ("DUCKPIPE_COMPACT__MIN_FILES", "3"),
        ("DUCKPIPE_COMPACT__DELETE_RATIO", "12.5%"),
        ("DUCKPIPE_COMPACT__RETAIN", "30d"),
        ("DUCKPIPE_COMPACT__DELETE_GRACE", "2h"),
        ("DUCKPIPE_COMPACT__MEMORY_LIMIT", "1GB"),
        ("DUCKPIPE_COMPACT__THREADS", "2"),
    ];
    let expected = CompactConfig {
        enabled: false,
        interval: Duration::from_secs(300),
        target_file_size: 64_000_000,
        min_files: 3,
        delete_ratio: 0.125,
        retain: Some(Duration::from_secs(30 * 86_400)),
        delete_grace: Duration::from_secs(7200),
        memory_limit: 1_000_000_000,
        threads: 2,
    };
    assert_eq!(load(&text, &environment, &[]).unwrap().compact, expected);
    for (key, wrong) in [
        ("interval", "0s"),
        ("target_file_size", "1KB"),
        ("min_files", "1"),
        ("delete_ratio", "0.2"),
        ("delete_ratio", "120%"),
        ("retain", "always"),
        ("delete_grace", "1s"),
        ("memory_limit", "1MB"),
        ("threads", "0"),
    ] {
        let variable = format!("DUCKPIPE_COMPACT__{}", key.to_uppercase());
        let said = mistake(GOOD, &[(&variable, wrong)]);
        assert!(said.contains(&variable) && said.contains(&format!("compact.{key}")), "{said}");
    }
}

#[test]
fn flag_over_environment_over_file() {
    let text = format!("{GOOD}\n[sync]\nflush_bytes = \"1MB\"\nsnapshot_workers = 3\n");
    let environment = [("DUCKPIPE_SYNC__FLUSH_BYTES", "2MB"), ("DUCKPIPE_NAME", "other")];
    let config = load(&text, &environment, &[]).unwrap();
    assert_eq!((config.sync.flush_bytes, config.sync.snapshot_workers), (2_000_000, 3));
    assert_eq!(config.source.slot, "duckpipe_other");
    let config = load(&text, &environment, &[("sync.flush_bytes", "--flush-bytes", "3MB")]).unwrap();
    assert_eq!(config.sync.flush_bytes, 3_000_000);
}

#[test]
fn the_environment_alone_can_be_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let environment = [
        ("DUCKPIPE_NAME", "shop"),
        ("DUCKPIPE_SOURCE__URL", "postgres://db/shop"),
        ("DUCKPIPE_LAKE__CATALOG", "c.ducklake"),
        ("DUCKPIPE_LAKE__DATA_PATH", "s3://b"),
        ("DUCKPIPE_S3__PATH_STYLE", "true"),
        ("DUCKPIPE_TABLES__0__SOURCE", "public.orders"),
        ("DUCKPIPE_TABLES__0__EXCLUDE_COLUMNS", "a, b"),
        ("DUCKPIPE_TABLES__0__TYPES", "payload=text"),
        ("DUCKPIPE_TABLES__1__SOURCE", "public.*"),
        ("DUCKPIPE_EXTENSIONS", "/somewhere"),
    ];
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let config = Config::load_from(&CliOverrides::default(), &environment, folder.path()).unwrap();
    assert_eq!(config.lake.catalog, CatalogLocation::File(folder.path().join("c.ducklake")));
    assert!(config.s3.as_ref().unwrap().path_style);
    assert_eq!(config.tables()[0].exclude_columns, ["a", "b"]);
    assert!(config.tables()[0].is_text("payload"));
    assert_eq!(config.tables().len(), 2);
}

#[test]
fn a_dollar_brace_can_be_literal() {
    let text = GOOD.replace("secret", "$${x}");
    let config = load(&text, &[], &[]).unwrap();
    assert!(config.source.url.expose().contains("app:${x}@db"));
}

#[test]
fn a_missing_file_is_said_with_its_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let error = Config::load_from(&CliOverrides::default(), &BTreeMap::new(), folder.path()).unwrap_err();
    assert!(error.to_string().starts_with("there is no configuration file /"), "{error}");
    assert!(error.remedy_text().unwrap().contains("duckpipe init"));
    let overrides = CliOverrides { config: Some("nowhere.toml".into()), settings: Vec::new() };
    let error = Config::load_from(&overrides, &BTreeMap::new(), folder.path()).unwrap_err();
    assert!(error.to_string().contains("named by --config, does not exist"), "{error}");
}

#[test]
fn what_init_writes_is_read() {
    for tables in [vec![], vec!["public.a\"b".replace('"', ""), "x.*".to_owned()]] {
        for data_path in [None, Some("s3://b/p")] {
            let known = Known { tables: &tables, data_path, ..Known::default() };
            let text = template("shop", &known);
            let config = load(&text, &[("PGPASSWORD", "p")], &[]).unwrap();
            assert_eq!(config.sync, SyncConfig::default());
            // Every commented line of a key, taken in, is valid too.
            let full: String = text
                .lines()
                .map(|line| match line.strip_prefix("# ") {
                    Some(rest) if rest.split_whitespace().nth(1) == Some("=") => {
                        format!(
                            "{}\n",
                            if ["target", "where"].iter().any(|key| rest.starts_with(key)) { "" } else { rest }
                        )
                    }
                    _ => format!("{line}\n"),
                })
                .collect();
            let full = if data_path.is_none() { full.replace("# [s3]", "[s3]") } else { full };
            let environment = [("PGPASSWORD", "p"), ("S3_KEY", "k"), ("S3_SECRET", "s")];
            match (data_path, load(&full, &environment, &[])) {
                (Some(_), Ok(config)) => {
                    assert_eq!(config.sync, SyncConfig::default(), "{full}");
                    assert_eq!(config.compact, CompactConfig::default(), "{full}");
                    assert_eq!(config.source.slot, "duckpipe_shop");
                }
                (None, Err(error)) => assert!(error.to_string().contains("[s3] is given"), "{error}"),
                (_, other) => panic!("{other:?}\n{full}"),
            }
        }
    }
    assert_eq!(name_from("Shop-2.db"), "shop_2_db");
    assert_eq!(name_from("-"), "main");
}

#[test]
fn mistakes_say_what_where_and_what_to_do() {
    let with = |more: &str| format!("{GOOD}{more}");
    let cases: Vec<(String, &[(&str, &str)])> = vec![
        (with("[sync]\nflush_intervall = \"1s\""), &[]),
        (with("[synk]\nflush_bytes = 1"), &[]),
        (format!("nam = \"x\"\n{GOOD}"), &[]),
        (format!("flush_bytes = \"1MB\"\n{GOOD}"), &[]),
        (GOOD.replace("source = \"public.orders\"", "sources = \"public.orders\""), &[]),
        (with(""), &[("DUCKPIPE_SYNC__FLUSH_BITES", "1MB")]),
        (with(""), &[("DUCKPIPE_SYNK__FLUSH_BYTES", "1MB")]),
        (with(""), &[("DUCKPIPE_TABLES__3__SOURCE", "a.b")]),
        (GOOD.replace("\"shop\"", "\"Shop!\""), &[]),
        (GOOD.replace("name = \"shop\"", ""), &[]),
        (GOOD.replace("secret", "${NO_SUCH}"), &[]),
        (GOOD.replace("secret", "${NO_SUCH"), &[]),
        (GOOD.replace("postgres:", "mysql:"), &[]),
        (GOOD.replace("shop?sslmode=verify-full\"", "shop"), &[]),
        (with("[sync]\nflush_interval = 1"), &[]),
        (with("[sync]\nflush_interval = \"1\""), &[]),
        (with("[sync]\nflush_bytes = \"64 bananas\""), &[]),
        (with("[sync]\nmemory_limit = \"1MB\""), &[]),
        (with("[sync]\nflush_bytes = \"1TB\""), &[]),
        (with("[sync]\nsnapshot_workers = -1"), &[]),
        (with("[sync]\nsnapshot_workers = 1.5"), &[]),
        (with("[sync]\non_unrepresentable = \"skip\""), &[]),
        (with("[s3]\nregion = \"x\""), &[]),
        (GOOD.replace("lake/data", "s3://b") + "[s3]\naccess_key_id = \"x\"", &[]),
        (with("[[tables]]\nsource = \"orders\""), &[]),
        (with("[[tables]]\nsource = \"public.orders\""), &[]),
        (with("[[tables]]\nsource = \"public.o2\"\ntarget = \"public.Orders\""), &[]),
        (with("[[tables]]\nsource = \"public.o2\"\ntarget = \"public.orders\""), &[]),
        (with("[[tables]]\nsource = \"Public.o2\""), &[]),
        (with("[[tables]]\nsource = \"a.*\"\ntarget = \"public.b\""), &[]),
        (with("[[tables]]\nsource = \"a.b\"\ntarget = \"x.ducklake_b\""), &[]),
        (with("[[tables]]\nsource = \"a.b\"\ntypes = { x = \"int\" }"), &[]),
        (with("[[tables]]\nsource = \"a.b\"\ntypes = { x = 1 }"), &[]),
        (with("[[tables]]\ntarget = \"a.b\""), &[]),
        (GOOD.replace("[[tables]]\nsource = \"public.orders\"", ""), &[]),
        (with("[tables]\nsource = \"a.b\""), &[]),
    ];
    let said: Vec<String> = cases.iter().map(|(text, environment)| mistake(text, environment)).collect();
    assert!(!said.iter().any(|line| line.contains(":secret")), "{said:#?}");
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn patterns_become_tables() {
    let name = |text: &str| TablePattern::parse(text).unwrap().exact().unwrap();
    let entries = |pairs: &[(&str, Option<&str>)]| -> Vec<TableConfig> {
        let entry = |(source, target): &(&str, Option<&str>)| TableConfig {
            source: TablePattern::parse(source).unwrap(),
            target: target.map(name),
            fan_in: None,
            exclude_columns: Vec::new(),
            types: BTreeMap::new(),
            sort_by: None,
            mode: Mode::Mirror,
            filter: None,
        };
        pairs.iter().map(entry).collect()
    };
    let found: Vec<TableName> =
        ["public.orders", "public.items", "public.Items", "shop.orders", "public.ducklake_x"].map(name).into();

    let got = select(&entries(&[("public.o*", None), ("public.orders", Some("a.b"))]), &found).unwrap();
    assert_eq!(got.len(), 1);
    assert_eq!((got[0].target.to_string().as_str(), got[0].by_pattern), ("a.b", false));

    let error = select(&entries(&[("public.*", None)]), &found).unwrap_err();
    assert!(error.to_string().contains("public.Items and public.items"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Config);

    let error = select(&entries(&[("public.order", None)]), &found).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition);
    assert!(error.remedy_text().unwrap().contains("public.orders"));

    let error = select(&entries(&[("nothing.*", None)]), &found).unwrap_err();
    assert!(error.to_string().contains("nothing.*"), "{error}");

    let error = select(&entries(&[("shop.orders", Some("public.orders")), ("public.o*", None)]), &found).unwrap_err();
    assert!(error.to_string().contains("have one target, public.orders"), "{error}");
}

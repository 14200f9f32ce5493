use super::*;

/// Statements that must never run, for these tests and for the one that runs them against a lake.
pub(crate) const HOSTILE: &[&str] = &[
    "",
    ";",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE public.orders",
    "INSERT INTO public.orders VALUES (1, 'x')",
    "UPDATE public.orders SET id = 1",
    "DELETE FROM public.orders",
    "TRUNCATE public.orders",
    "DROP TABLE public.orders",
    "DROP SCHEMA public CASCADE",
    "ALTER TABLE public.orders ADD COLUMN x INT",
    "CREATE TABLE public.evil AS SELECT 1",
    "CREATE OR REPLACE TEMP VIEW x AS SELECT 1",
    "CREATE MACRO lower(x) AS x",
    "CREATE SECRET s (TYPE s3)",
    "MERGE INTO public.orders USING (SELECT 1 AS id) s ON true WHEN MATCHED THEN DELETE",
    "WITH x AS (DELETE FROM public.orders RETURNING *) SELECT * FROM x",
    "COPY (SELECT 1) TO '/tmp/duckpipe-hostile.csv'",
    "COPY public.orders FROM '/etc/passwd'",
    "EXPORT DATABASE '/tmp/duckpipe-hostile'",
    "IMPORT DATABASE '/tmp/duckpipe-hostile'",
    "ATTACH '/tmp/duckpipe-hostile.db' AS x",
    "DETACH lake",
    "USE memory",
    "SET memory_limit = '1TB'",
    "RESET memory_limit",
    "SET VARIABLE x = 1",
    "PRAGMA enable_profiling",
    "PRAGMA force_checkpoint",
    "PRAGMA json_execute_serialized_sql('{}')",
    "LOAD httpfs",
    "INSTALL httpfs",
    "CHECKPOINT lake",
    "VACUUM",
    "ANALYZE",
    "BEGIN",
    "COMMIT",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "EXPLAIN ANALYZE SELECT 1",
    "CALL lake.merge_adjacent_files()",
    "CALL ducklake_expire_snapshots('lake', older_than => now())",
    "CALL lake.set_option('auto_compact', true)",
    "COMMENT ON TABLE public.orders IS 'x'",
    "SELECT * FROM ducklake_expire_snapshots('lake', older_than => now())",
    "SELECT * FROM ducklake_cleanup_old_files('lake', cleanup_all => true)",
    "SELECT * FROM ducklake_delete_orphaned_files('lake', cleanup_all => true)",
    "SELECT * FROM ducklake_merge_adjacent_files('lake')",
    "SELECT * FROM ducklake_rewrite_data_files('lake')",
    "SELECT * FROM ducklake_flush_inlined_data('lake')",
    "SELECT * FROM ducklake_add_data_files('lake', 'orders', '/tmp/x.parquet', schema => 'public')",
    "SELECT * FROM ducklake_set_option('lake', 'auto_compact', 'true')",
    "SELECT * FROM ducklake_set_commit_message('lake', 'a', 'b')",
    "SELECT * FROM ducklake_commit('__ducklake_metadata_lake', 1)",
    "SELECT * FROM lake.expire_snapshots(older_than => now())",
    "SELECT * FROM lake.main.cleanup_old_files(cleanup_all => true)",
    "SELECT (SELECT count(*) FROM ducklake_expire_snapshots('lake', older_than => now()))",
    "WITH x AS (SELECT * FROM lake.expire_snapshots(older_than => now())) SELECT 1",
    "SELECT 1 WHERE EXISTS (FROM ducklake_cleanup_old_files('lake'))",
    "DESCRIBE SELECT * FROM postgres_execute('lake', 'DROP TABLE x')",
    "SELECT * FROM postgres_execute('__ducklake_metadata_lake', 'DROP TABLE ducklake_snapshot')",
    "SELECT * FROM postgres_query('__ducklake_metadata_lake', 'DROP TABLE ducklake_snapshot')",
    "SELECT * FROM postgres_scan('host=localhost', 'public', 'x')",
    "CALL postgres_attach('host=localhost')",
    "SELECT * FROM pg_clear_cache()",
    "SELECT * FROM query('DELETE FROM public.orders')",
    "SELECT * FROM query_table('orders')",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT nextval('s')",
    "SELECT list_transform([1], lambda x: nextval('s'))",
    "SELECT 1 ORDER BY nextval('s')",
    "SELECT s.nextval()",
    "SELECT write_log('x')",
    "SELECT sleep_ms(10000)",
    "SELECT pg_sleep(10)",
    "SELECT my_macro(1)",
    "SELECT no_such_function(1)",
    "FROM checkpoint('lake')",
    "FROM force_checkpoint('lake')",
    "FROM enable_logging()",
    "FROM truncate_duckdb_logs()",
    "FROM duckdb_secrets()",
    "FROM duckdb_databases",
    "FROM duckdb_settings()",
    "FROM pg_catalog.pg_settings",
    "FROM which_secret('s3://x', 's3')",
    "FROM '/etc/passwd'",
    "FROM \"/etc/passwd\"",
    "FROM 'x.parquet'",
    "FROM x.parquet",
    "FROM 's3://bucket/*.parquet'",
    "FROM \"https://example.com/x.csv\"",
    "DESCRIBE '/etc/passwd'",
    "SUMMARIZE 'x.csv'",
    "SELECT * FROM \"/etc/passwd\", (WITH \"/etc/passwd\" AS (SELECT 1) SELECT 1)",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_parquet('x.parquet')",
    "SELECT * FROM read_json('x.json')",
    "SELECT * FROM read_duckdb('x.db')",
    "SELECT * FROM parquet_metadata('x.parquet')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "FROM __ducklake_metadata_lake.ducklake_snapshot",
    "FROM __ducklake_metadata_lake.main.ducklake_snapshot",
    "FROM memory.main.x",
    "FROM public.evil",
    "FROM public.nothing",
    "SHOW DATABASES",
    "SHOW VARIABLES",
    "SELECT $1",
    "SELECT ?",
];

fn lake() -> LakeNames {
    LakeNames {
        catalog: "lake".into(),
        tables: vec![
            ("public".into(), "orders".into()),
            ("public".into(), "Weird.name".into()),
            ("main".into(), "m".into()),
        ],
        refused_views: vec![("public".into(), "evil".into(), "it reads a file".into())],
        search_path: vec!["public".into(), "main".into()],
        functions: HashSet::from(["my_macro".to_owned()]),
    }
}

#[test]
fn harmless_selects_pass() {
    let guard = Guard::open().unwrap();
    let good = [
        "SELECT 1",
        "SELECT 1;",
        "SELECT ';' -- a comment; with a semicolon",
        "  select count(*), sum(id) filter (where id > 3) from public.orders o where o.id between 1 and 2 group by all having count(*) > 1 order by 1 desc nulls last limit 5 offset 1",
        "WITH a AS (SELECT * FROM orders), b AS MATERIALIZED (SELECT * FROM a) SELECT * FROM a JOIN b USING (id)",
        "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r",
        "VALUES (1, 'a'), (2, 'b')",
        "TABLE public.orders",
        "FROM public.orders SELECT id LIMIT 1",
        "FROM lake.public.orders",
        "FROM lake.m",
        "SELECT * FROM public.\"Weird.name\"",
        "SELECT * EXCLUDE (id) REPLACE (1 AS x) FROM public.orders",
        "SELECT columns('i.*') FROM public.orders",
        "SELECT id, row_number() OVER (PARTITION BY id ORDER BY t) FROM public.orders QUALIFY row_number() OVER () < 3",
        "SELECT list_transform([1, 2], lambda x: x + 1), {'a': 1}.a, [y * 2 FOR y IN [1, 2]], 'a' COLLATE NOCASE, CASE WHEN true THEN 1 END",
        "SELECT a::DECIMAL(10, 2), b::VARCHAR[], CAST('x' AS BLOB), INTERVAL 1 DAY, DATE '2026-01-01' FROM (VALUES (1, 2)) t(a, b)",
        "SELECT random() IS NOT NULL, now() < now() + INTERVAL 1 DAY, uuid() IS NULL, setseed(0.5)",
        "SELECT * FROM public.orders AT (VERSION => 3)",
        "SELECT * FROM public.orders AT (TIMESTAMP => now())",
        "SELECT * FROM range(3), generate_series(1, 2), unnest([1, 2])",
        "SELECT unnest([1, 2])",
        "SELECT * FROM lake.snapshots()",
        "SELECT * FROM lake.table_changes('orders', 0, 1)",
        "SELECT * FROM ducklake_table_insertions('lake', 'public', 'orders', 0, 1)",
        "DESCRIBE public.orders",
        "SUMMARIZE public.orders",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "SELECT * FROM information_schema.columns",
        "SELECT * FROM duckdb_tables",
        "SELECT EXISTS (SELECT 1), (SELECT 2), 1 IN (SELECT 3), 1 = ANY (SELECT 1)",
        "SELECT * FROM public.orders UNION ALL BY NAME SELECT * FROM public.orders",
        "SELECT * FROM public.orders PIVOT (count(*) FOR t IN ('a', 'b'))",
        "SELECT * FROM public.orders TABLESAMPLE 10 PERCENT",
        "SELECT * FROM public.orders a ASOF JOIN public.orders b ON a.id >= b.id",
        "SELECT DISTINCT ON (id) id FROM public.orders LIMIT 10%",
        "SELECT id FROM public.orders GROUP BY GROUPING SETS ((id), ())",
        "SELECT GROUPING(id), TRY(id / 0), TRY_CAST(t AS INTEGER), EXTRACT(year FROM now()), POSITION('a' IN t), t LIKE 'a!%' ESCAPE '!' FROM public.orders GROUP BY ROLLUP (id, t)",
        "SELECT ARRAY[1, 2], ARRAY(SELECT 1), MAP {'a': 1}, MAP(['a'], [1])['a'], ROW(1, 2), [1, 2, 3][1:2], '{\"a\": 1}'::JSON -> 'a' ->> 'b', j.a.b FROM (SELECT {'a': {'b': 1}} AS j)",
        "SELECT current_date, CURRENT_TIMESTAMP, approx_quantile(id, 0.5), string_agg(t, ',' ORDER BY id), list(DISTINCT id), max_by(t, id), id IS DISTINCT FROM 3, id NOT IN (1, 2), t IS NOT NULL FROM public.orders GROUP BY ALL ORDER BY ALL",
        "SELECT o.*, x.n FROM public.orders o, LATERAL (SELECT o.id + 1 AS n) x",
        "SELECT * FROM public.orders o SEMI JOIN public.orders p USING (id) ANTI JOIN public.orders q ON o.id = q.id CROSS JOIN public.orders NATURAL JOIN public.orders r",
        "SELECT id FROM public.orders INTERSECT SELECT id FROM public.orders EXCEPT ALL SELECT 1 ORDER BY 1 LIMIT 1",
        "SELECT sum(id) OVER w, lag(id, 1, 0 IGNORE NULLS) OVER (ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW EXCLUDE TIES) FROM public.orders WINDOW w AS (PARTITION BY t)",
        "SELECT [x * 2 FOR x IN [1, 2, 3] IF x > 1], list_reduce([1, 2], lambda a, b: a + b), struct_pack(a := 1), coalesce(NULL, 1), nullif(1, 2), if(true, 1, 2), greatest(1, 2), date_trunc('day', now()), strftime(now(), '%Y'), md5('x'), hash(1), typeof(1)",
        "SELECT #1 FROM public.orders ORDER BY 1",
        "UNPIVOT public.orders ON id INTO NAME n VALUE v",
        "SELECT id, count(*) c FROM public.orders WHERE id > ALL (SELECT 1) AND (id, t) IN (SELECT id, t FROM public.orders) GROUP BY CUBE (id) HAVING c > 1 OR NOT EXISTS (SELECT 1)",
        "SELECT EXTRACT(EPOCH FROM TIMESTAMP '2026-01-01'), INTERVAL '1 month' * 2, TIMESTAMPTZ '2026-01-01' AT TIME ZONE 'UTC', x'ff', 1e10, 0xff, 1_000, $$text$$, E'\\n'",
        "SELECT regexp_matches(t, '^x'), t LIKE 'a%', t ILIKE 'b', t SIMILAR TO 'c', t GLOB 'd*', NOT true, -id, id % 2 FROM public.orders",
    ];
    let judge = |sql: &&str| {
        guard.inspect(sql).and_then(|select| select.check(&lake())).err().map(|error| format!("{sql}: {error}"))
    };
    let refused: Vec<String> = good.iter().filter_map(judge).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!(guard.inspect(" SELECT ';' ; -- x; y\n").unwrap().text, "SELECT ';'");
    // Within a comment a cut does no harm.
    assert_eq!(guard.inspect("SELECT ';' -- x; y").unwrap().text, "SELECT ';' -- x");
}

#[test]
fn everything_else_is_refused() {
    let guard = Guard::open().unwrap();
    for sql in HOSTILE {
        let judged = guard.inspect(sql).and_then(|select| select.check(&lake()));
        let error = judged.expect_err(&format!("{sql} must be refused"));
        assert_eq!(error.kind(), ErrorKind::Config, "{sql}: {error}");
    }
    assert!(HOSTILE.len() >= 40);
}

#[test]
fn a_deep_statement_is_judged_without_a_deep_stack() {
    let guard = Guard::open().unwrap();
    let sum = format!("SELECT 1{}", " + 1".repeat(800));
    guard.inspect(&sum).unwrap();
    let too_deep = format!("SELECT {}1{}", "(".repeat(5000), ")".repeat(5000));
    let _ = guard.inspect(&too_deep);
    let hidden = format!("SELECT 1{} + nextval('s')", " + 1".repeat(800));
    assert!(guard.inspect(&hidden).unwrap_err().to_string().contains("nextval"));
}

#[test]
fn a_misspelt_table_finds_its_neighbour() {
    let guard = Guard::open().unwrap();
    let error = guard.inspect("FROM public.order").unwrap().check(&lake()).unwrap_err();
    assert_eq!(error.remedy_text(), Some("did you mean public.orders?"));
    let error = guard.inspect("SELEC 1").unwrap_err();
    assert!(error.to_string().contains("syntax error"), "{error}");
}

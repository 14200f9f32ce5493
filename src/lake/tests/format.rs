//! duckpipe's own tables in catalogs of other versions.

use super::lab::{Kind, Lab, name};
use super::model::Model;
use crate::error::ErrorKind;
use crate::lake::{Lake, LakeSettings};

super::on_both_catalogs!(an_older_format_is_brought_up_to_date, a_newer_format_is_refused,);

async fn an_older_format_is_brought_up_to_date(kind: Kind) {
    let lab = Lab::new(kind).await;
    Model::new(&lab, "t").await;
    let older = "ALTER TABLE {m}.duckpipe_table DROP COLUMN slot; ALTER TABLE {m}.duckpipe_table DROP COLUMN wanted; \
                 ALTER TABLE {m}.duckpipe_table DROP COLUMN selected_schema; ALTER TABLE {m}.duckpipe_table DROP COLUMN selected_table; \
                 ALTER TABLE {m}.duckpipe_table DROP COLUMN fan_in; DROP TABLE {m}.duckpipe_part; \
                 DROP TABLE {m}.duckpipe_definition; DROP TABLE {m}.duckpipe_request; UPDATE {m}.duckpipe_format SET version = 1";
    lab.lake.run(move |session| session.write(&older.replace("{m}", &session.tables()))).await.unwrap();
    lab.lake.clone().shutdown().await;
    let reading = LakeSettings { read_only: true, ..lab.settings.clone() };
    let error = Lake::open(&reading).await.unwrap_err();
    assert!(error.to_string().contains("older duckpipe"), "{error}");
    Lake::open(&lab.settings).await.unwrap().shutdown().await;
    let lake = Lake::open(&reading).await.unwrap();
    let row = lake.tables("shop").await.unwrap().remove(0);
    assert_eq!((row.source, row.slot, row.wanted), (name("t"), None, None));
    assert!(lake.definitions("shop").await.unwrap().is_empty());
    lake.shutdown().await;
}

async fn a_newer_format_is_refused(kind: Kind) {
    let lab = Lab::new(kind).await;
    let statement = |sql: &'static str| {
        let lake = lab.lake.clone();
        async move { lake.run(move |session| session.write(&sql.replace("{m}", &session.tables()))).await.unwrap() }
    };
    statement("UPDATE {m}.duckpipe_format SET version = 5").await;
    lab.lake.clone().shutdown().await;
    let error = Lake::open(&lab.settings).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Precondition);
    assert!(error.to_string().contains("newer duckpipe"), "{error}");
}

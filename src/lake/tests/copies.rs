//! Tables that a copy beside the stream brings on: their own position, and their way back to the stream.

use super::lab::{Kind, Lab, name, query, table_commit};
use super::model::{Change, Model};
use crate::error::ErrorKind;
use crate::lake::{CopiedTable, TableRow, TableState, Wanted};
use crate::lsn::Lsn;

super::on_both_catalogs!(a_copy_beside_the_stream_has_a_position_of_its_own, what_is_wanted_is_taken_back,);

fn put(id: i64, text: &str) -> (i64, Change) {
    (id, Change::Put((text.into(), id as i32)))
}

/// The position of the newest snapshot, and the tables that are behind it.
async fn stamp(lab: &mut Lab) -> (serde_json::Value, serde_json::Value) {
    let mut stamps = Vec::new();
    lab.stock(|connection| {
        let last = "SELECT commit_extra_info FROM lake.snapshots() ORDER BY snapshot_id DESC LIMIT 1";
        stamps = query(connection, last);
    })
    .await;
    let info: serde_json::Value = serde_json::from_str(&stamps[0][0]).unwrap();
    (info["lsn"].clone(), info["behind"].clone())
}

async fn a_copy_beside_the_stream_has_a_position_of_its_own(kind: Kind) {
    let mut lab = Lab::new(kind).await;
    let mut model = Model::new(&lab, "t").await;
    let other = Model::new(&lab, "other").await;
    model.base = other.base;
    model.apply(&lab, &[put(1, "a"), put(2, "b")], 1, false).await.unwrap();
    let (table_id, at) = (model.table.table_id, Lsn(model.lsn));
    let copied = CopiedTable { table_id, source_oid: 77, source: name("t") };
    lab.lake.leave_stream(&lab.fence, &[table_id]).await.unwrap();
    lab.lake.begin_copy_beside(&lab.fence, &[copied], "second").await.unwrap();
    let row = |rows: Vec<TableRow>| rows.into_iter().find(|row| row.table_id == Some(table_id)).unwrap();
    let begun = row(lab.lake.tables("shop").await.unwrap());
    assert_eq!((begun.state, begun.lsn, begun.source_oid), (TableState::Snapshot, Some(at), 77));
    assert_eq!(lab.lake.position("shop", Some("second")).await.unwrap(), None, "nothing is copied yet");

    // What the stream still brings of it is refused; the pipeline goes on without it.
    let mut commit = model.commit_of(vec![table_commit(table_id)]);
    commit.follows = Some(at);
    assert_eq!(lab.lake.commit(&lab.fence, &commit).await.unwrap_err().kind(), ErrorKind::Table);
    let mut commit = model.commit_of(vec![table_commit(other.table.table_id)]);
    (commit.lsn, commit.tables[0].replace) = (Lsn(at.0 + 10), true);
    model.base = lab.lake.commit(&lab.fence, &commit).await.unwrap().snapshot;
    assert_eq!(
        stamp(&mut lab).await,
        (Lsn(at.0 + 10).to_string().into(), serde_json::json!({"public.t": at.to_string()}))
    );

    // The copy's rows come at a position of its own, which the pipeline's does not follow.
    let (mut commit, _) = model.prepare(&lab, &[put(5, "fresh")], 1, true);
    (commit.slot, commit.lsn) = (Some("second".into()), Lsn(at.0 + 30));
    commit.tables[0].state = TableState::Catchup;
    model.base = lab.lake.commit(&lab.fence, &commit).await.unwrap().snapshot;
    let behind = serde_json::json!({"public.t": Lsn(at.0 + 30).to_string()});
    assert_eq!(stamp(&mut lab).await, (Lsn(at.0 + 10).to_string().into(), behind));
    assert_eq!(lab.lake.position("shop", Some("second")).await.unwrap(), Some(Lsn(at.0 + 30)));
    assert_eq!(lab.lake.pipeline("shop").await.unwrap().unwrap().lsn, Some(Lsn(at.0 + 10)));
    (commit.follows, commit.base_snapshot) = (Some(at), model.base);
    let refused = lab.lake.commit(&lab.fence, &commit).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Transient, "{refused}");
    assert!(lab.lake.advance(&lab.fence, Some("second"), Lsn(at.0 + 20)).await.is_err(), "backwards");
    lab.lake.advance(&lab.fence, Some("second"), Lsn(at.0 + 40)).await.unwrap();

    // It joins where both are at one position, and only there.
    assert!(lab.lake.join(&lab.fence, "second", Lsn(at.0 + 40)).await.is_err());
    lab.lake.advance(&lab.fence, None, Lsn(at.0 + 40)).await.unwrap();
    lab.lake.join(&lab.fence, "second", Lsn(at.0 + 40)).await.unwrap();
    let joined = row(lab.lake.tables("shop").await.unwrap());
    assert_eq!((joined.state, joined.lsn, joined.slot), (TableState::Streaming, Some(Lsn(at.0 + 40)), None));
    lab.stock(|connection| assert_eq!(query(connection, "SELECT id FROM lake.public.t"), [["5"]])).await;
}

async fn what_is_wanted_is_taken_back(kind: Kind) {
    let lab = Lab::new(kind).await;
    Model::new(&lab, "t").await;
    let wanted = async || lab.lake.settled_tables("shop").await.unwrap()[0].wanted;
    lab.lake.want("shop", &[name("t")], Wanted::Drop).await.unwrap();
    assert_eq!(wanted().await, Some(Wanted::Drop));
    lab.lake.want_nothing("shop", &[name("t")]).await.unwrap();
    assert_eq!(wanted().await, None);
}

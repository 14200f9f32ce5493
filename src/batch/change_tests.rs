//! Every replica identity, with and without a change of the key, with and without values that were not sent.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int32Type;
use proptest::prelude::*;

use super::change::{ChangeBatch, ChangeBuilder, Op};
use super::layout::{Mode, TableLayout};
use super::mapping;
use super::pgoutput::{Message, Value, parse};
use super::relation::RelationMap;
use super::testing::{relation, row_message, table};
use super::value_error::OnUnrepresentable;
use crate::error::{ErrorKind, Result};
use crate::source::table::{ReplicaIdentity, SourceTable};

/// `secret` is not copied; the key is (region, id), in this order.
const COLUMNS: [(&str, &str); 5] =
    [("id", "int4"), ("secret", "text"), ("body", "text"), ("region", "text"), ("n", "numeric(10,2)")];
const ID: usize = 0;
const BODY: usize = 1;
const REGION: usize = 2;
const NUMBER: usize = 3;

struct Fixture {
    map: RelationMap,
    builder: ChangeBuilder,
}

impl Fixture {
    fn new(identity: ReplicaIdentity) -> Self {
        Fixture::with(identity, OnUnrepresentable::Error)
    }

    fn of(identity: ReplicaIdentity, mode: Mode) -> Self {
        let Fixture { map, builder } = Fixture::new(identity);
        let layout = TableLayout { mode, ..builder.layout().clone() };
        Fixture { map, builder: ChangeBuilder::new(Arc::new(layout), OnUnrepresentable::Error) }
    }

    fn with(identity: ReplicaIdentity, policy: OnUnrepresentable) -> Self {
        let source: SourceTable = table(&COLUMNS, &["region", "id"], identity);
        let layout: TableLayout = mapping::layout(&source, &["secret".to_owned()], |_| false).unwrap();
        assert_eq!(layout.key, [REGION, ID]);
        let map = RelationMap::new(&layout, &source, &relation(&source)).unwrap();
        Fixture { map, builder: ChangeBuilder::new(Arc::new(layout), policy) }
    }

    fn apply(&mut self, message: &[u8]) -> Result<()> {
        match parse(message)? {
            Message::Insert { new, .. } => self.builder.insert(&self.map, &new),
            Message::Update { old, new, .. } => self.builder.update(&self.map, old.as_ref(), &new),
            Message::Delete { old, .. } => self.builder.delete(&self.map, &old),
            other => panic!("no row message: {other:?}"),
        }
    }

    fn insert(&mut self, new: &[Value<'_>]) -> Result<()> {
        self.apply(&row_message(b'I', 1, &[(b'N', new)]))
    }

    fn update(&mut self, old: Option<(u8, &[Value<'_>])>, new: &[Value<'_>]) -> Result<()> {
        let tuples: Vec<_> = old.into_iter().chain([(b'N', new)]).collect();
        self.apply(&row_message(b'U', 1, &tuples))
    }

    fn delete(&mut self, old: (u8, &[Value<'_>])) -> Result<()> {
        self.apply(&row_message(b'D', 1, &[old]))
    }

    fn finish(&mut self) -> Vec<Row> {
        rows(&self.builder.finish().unwrap())
    }
}

/// One row of a batch: operation, id, body, region, n, and the columns that were not sent.
type Row = (Op, Option<i32>, Option<String>, Option<String>, Option<String>, Vec<usize>);

fn rows(batch: &ChangeBatch) -> Vec<Row> {
    let text = |column: usize, row: usize| {
        let texts = batch.rows.column(column).as_string::<i32>();
        texts.is_valid(row).then(|| texts.value(row).to_owned())
    };
    let number = |row: usize| {
        let numbers = batch.rows.column(NUMBER).as_primitive::<arrow::datatypes::Decimal128Type>();
        numbers.is_valid(row).then(|| numbers.value_as_string(row))
    };
    let unsent = |row: usize| match &batch.unchanged {
        Some(masks) if masks.is_valid(row) => {
            let mask = masks.value(row);
            (0..8 * mask.len()).filter(|bit| mask[bit / 8] >> (bit % 8) & 1 == 1).collect()
        }
        _ => vec![],
    };
    assert_eq!(batch.ops.len(), batch.rows.num_rows());
    if let Some(unchanged) = &batch.unchanged {
        assert_eq!(unchanged.len(), batch.rows.num_rows());
    }
    let ids = batch.rows.column(ID).as_primitive::<Int32Type>();
    (0..batch.rows.num_rows())
        .map(|row| {
            let op = Op::from_u8(batch.ops.value(row)).unwrap();
            (
                op,
                ids.is_valid(row).then(|| ids.value(row)),
                text(BODY, row),
                text(REGION, row),
                number(row),
                unsent(row),
            )
        })
        .collect()
}

fn text(text: &str) -> Value<'_> {
    Value::Text(text.as_bytes())
}

/// A tuple in the relation's order.
fn tuple<'a>(id: &'a str, body: Value<'a>, region: Value<'a>) -> [Value<'a>; 5] {
    [text(id), text("hidden"), body, region, text("1.50")]
}

/// An old tuple of kind Key: placeholders for everything else.
fn key<'a>(id: &'a str, region: &'a str) -> [Value<'a>; 5] {
    [text(id), Value::Null, Value::Null, text(region), Value::Null]
}

fn whole(op: Op, id: i32, body: &str, region: &str) -> Row {
    (op, Some(id), Some(body.to_owned()), Some(region.to_owned()), Some("1.50".to_owned()), vec![])
}

fn only_key(op: Op, id: i32, region: &str) -> Row {
    (op, Some(id), None, Some(region.to_owned()), None, vec![])
}

fn unsent(op: Op, id: i32, region: &str) -> Row {
    (op, Some(id), None, Some(region.to_owned()), Some("1.50".to_owned()), vec![BODY])
}

const KEYED: [ReplicaIdentity; 2] = [ReplicaIdentity::Default, ReplicaIdentity::Index];

#[test]
fn an_insert_carries_its_row_without_excluded_columns() {
    let mut changes = Fixture::new(ReplicaIdentity::Default);
    changes.insert(&tuple("1", text("a"), text("eu"))).unwrap();
    changes.insert(&tuple("2", Value::Null, text("us"))).unwrap();
    assert_eq!(changes.builder.rows(), 2);
    assert!(changes.builder.bytes() > 0);
    let null_body = (Op::Insert, Some(2), None, Some("us".to_owned()), Some("1.50".to_owned()), vec![]);
    assert_eq!(changes.finish(), [whole(Op::Insert, 1, "a", "eu"), null_body]);
    assert_eq!((changes.builder.rows(), changes.builder.bytes()), (0, 0));
    assert_eq!(changes.finish(), []);
}

#[test]
fn an_update_of_other_columns_is_one_row() {
    for identity in KEYED {
        let mut changes = Fixture::new(identity);
        changes.update(None, &tuple("1", text("b"), text("eu"))).unwrap();
        // An old key is also sent where it did not change, but is stored out of line.
        changes.update(Some((b'K', &key("1", "eu"))), &tuple("1", text("c"), text("eu"))).unwrap();
        changes.update(Some((b'K', &key("1", "eu"))), &tuple("1", text("d"), Value::Unchanged)).unwrap();
        let expected = [("b", "eu"), ("c", "eu"), ("d", "eu")].map(|(body, region)| whole(Op::Update, 1, body, region));
        assert_eq!(changes.finish(), expected, "{identity:?}");
    }
    let mut changes = Fixture::new(ReplicaIdentity::Full);
    let old = tuple("1", text("a"), text("eu"));
    changes.update(Some((b'O', &old)), &tuple("1", text("b"), text("eu"))).unwrap();
    changes.update(Some((b'O', &old)), &tuple("1", text("b"), Value::Unchanged)).unwrap();
    assert_eq!(changes.finish(), [whole(Op::Update, 1, "b", "eu"), whole(Op::Update, 1, "b", "eu")]);
}

#[test]
fn an_update_of_the_key_moves_the_row() {
    let expected = [only_key(Op::MoveOut, 1, "eu"), whole(Op::MoveIn, 2, "b", "eu")];
    for identity in KEYED {
        let mut changes = Fixture::new(identity);
        changes.update(Some((b'K', &key("1", "eu"))), &tuple("2", text("b"), text("eu"))).unwrap();
        assert_eq!(changes.finish(), expected, "{identity:?}");
        changes.update(Some((b'K', &key("1", "eu"))), &tuple("2", text("b"), Value::Unchanged)).unwrap();
        assert_eq!(changes.finish(), expected, "{identity:?}, a part of the key was not sent");
    }
    let mut changes = Fixture::new(ReplicaIdentity::Full);
    let old = tuple("1", text("a"), text("eu"));
    changes.update(Some((b'O', &old)), &tuple("2", text("b"), text("eu"))).unwrap();
    assert_eq!(changes.finish(), expected);
    changes.update(Some((b'O', &old)), &tuple("2", text("b"), Value::Unchanged)).unwrap();
    assert_eq!(changes.finish(), expected);
}

#[test]
fn values_that_were_not_sent_are_marked_or_taken_from_the_whole_old_row() {
    for identity in KEYED {
        let mut changes = Fixture::new(identity);
        changes.insert(&tuple("9", text("x"), text("eu"))).unwrap();
        changes.update(None, &tuple("1", Value::Unchanged, text("eu"))).unwrap();
        changes.update(Some((b'K', &key("1", "eu"))), &tuple("2", Value::Unchanged, text("eu"))).unwrap();
        assert_eq!(
            changes.finish(),
            [
                whole(Op::Insert, 9, "x", "eu"),
                unsent(Op::Update, 1, "eu"),
                only_key(Op::MoveOut, 1, "eu"),
                unsent(Op::MoveIn, 2, "eu"),
            ],
            "{identity:?}"
        );
        changes.insert(&tuple("9", text("x"), text("eu"))).unwrap();
        assert!(changes.builder.finish().unwrap().unchanged.is_none(), "no mask outlives its batch");
    }
    let mut changes = Fixture::new(ReplicaIdentity::Full);
    let old = tuple("1", text("a"), text("eu"));
    changes.update(Some((b'O', &old)), &tuple("1", Value::Unchanged, text("eu"))).unwrap();
    changes.update(Some((b'O', &old)), &tuple("2", Value::Unchanged, text("eu"))).unwrap();
    let null = tuple("1", Value::Null, text("eu"));
    changes.update(Some((b'O', &null)), &tuple("1", Value::Unchanged, text("eu"))).unwrap();
    let null_body = (Op::Update, Some(1), None, Some("eu".to_owned()), Some("1.50".to_owned()), vec![]);
    assert_eq!(
        changes.finish(),
        [whole(Op::Update, 1, "a", "eu"), only_key(Op::MoveOut, 1, "eu"), whole(Op::MoveIn, 2, "a", "eu"), null_body]
    );
}

#[test]
fn an_excluded_value_that_was_not_sent_is_nobodys_concern() {
    let mut changes = Fixture::new(ReplicaIdentity::Default);
    let mut new = tuple("1", text("b"), text("eu"));
    new[1] = Value::Unchanged;
    changes.update(None, &new).unwrap();
    assert_eq!(changes.finish(), [whole(Op::Update, 1, "b", "eu")]);
}

#[test]
fn a_delete_carries_the_key_only() {
    for identity in KEYED {
        let mut changes = Fixture::new(identity);
        changes.delete((b'K', &key("1", "eu"))).unwrap();
        assert_eq!(changes.finish(), [only_key(Op::Delete, 1, "eu")], "{identity:?}");
    }
    let mut changes = Fixture::new(ReplicaIdentity::Full);
    changes.delete((b'O', &tuple("1", text("a"), text("eu")))).unwrap();
    assert_eq!(changes.finish(), [only_key(Op::Delete, 1, "eu")]);
}

#[test]
fn a_history_has_the_old_row_as_it_is_sent() {
    let mut changes = Fixture::of(ReplicaIdentity::Full, Mode::History);
    let old = tuple("1", text("a"), text("eu"));
    changes.update(Some((b'O', &old)), &tuple("1", Value::Unchanged, text("eu"))).unwrap();
    changes.update(Some((b'O', &old)), &tuple("2", text("b"), text("eu"))).unwrap();
    changes.delete((b'O', &old)).unwrap();
    assert_eq!(
        changes.finish(),
        [
            whole(Op::Before, 1, "a", "eu"),
            whole(Op::Update, 1, "a", "eu"),
            whole(Op::MoveOut, 1, "a", "eu"),
            whole(Op::MoveIn, 2, "b", "eu"),
            whole(Op::Delete, 1, "a", "eu"),
        ]
    );
    let mut changes = Fixture::of(ReplicaIdentity::Default, Mode::History);
    changes.update(None, &tuple("1", text("b"), text("eu"))).unwrap();
    changes.delete((b'K', &key("1", "eu"))).unwrap();
    assert_eq!(changes.finish(), [whole(Op::Update, 1, "b", "eu"), only_key(Op::Delete, 1, "eu")]);
}

#[test]
fn a_deleted_row_that_is_kept_is_as_it_was() {
    let kept = |op| (op, Some(1), None, Some("eu".to_owned()), None, vec![BODY, NUMBER]);
    let mut changes = Fixture::of(ReplicaIdentity::Default, Mode::SoftDelete);
    changes.delete((b'K', &key("1", "eu"))).unwrap();
    changes.update(Some((b'K', &key("1", "eu"))), &tuple("2", text("b"), text("eu"))).unwrap();
    assert_eq!(changes.finish(), [kept(Op::Delete), kept(Op::MoveOut), whole(Op::MoveIn, 2, "b", "eu")]);
    let mut changes = Fixture::of(ReplicaIdentity::Full, Mode::SoftDelete);
    let old = tuple("1", text("a"), text("eu"));
    changes.delete((b'O', &old)).unwrap();
    changes.update(Some((b'O', &old)), &tuple("1", text("b"), text("eu"))).unwrap();
    assert_eq!(changes.finish(), [whole(Op::Delete, 1, "a", "eu"), whole(Op::Update, 1, "b", "eu")]);
}

#[test]
fn a_failing_move_leaves_nothing_of_the_kept_row_behind() {
    let mut changes = Fixture::of(ReplicaIdentity::Default, Mode::SoftDelete);
    changes.insert(&tuple("1", text("a"), text("eu"))).unwrap();
    let mut nan = tuple("7", text("b"), text("eu"));
    nan[4] = text("NaN");
    assert!(changes.update(Some((b'K', &key("1", "eu"))), &nan).is_err());
    assert_eq!(changes.finish(), [whole(Op::Insert, 1, "a", "eu")]);
}

#[test]
fn an_insert_without_all_its_values_stops_the_table() {
    let mut changes = Fixture::new(ReplicaIdentity::Default);
    changes.insert(&tuple("1", text("a"), text("eu"))).unwrap();
    let error = changes.insert(&tuple("2", Value::Unchanged, text("eu"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Table);
    assert!(error.is_mended_by_resync() && error.to_string().contains("row filter"), "{error}");
    changes.update(None, &tuple("3", Value::Unchanged, text("eu"))).unwrap();
    assert_eq!(changes.finish(), [whole(Op::Insert, 1, "a", "eu"), unsent(Op::Update, 3, "eu")]);
}

#[test]
fn a_failing_change_leaves_nothing_behind() {
    let mut changes = Fixture::new(ReplicaIdentity::Default);
    changes.insert(&tuple("1", text("a"), text("eu"))).unwrap();
    let bytes = changes.builder.bytes();
    let mut nan = tuple("7", Value::Unchanged, text("eu"));
    nan[4] = text("NaN");

    let error = changes.update(None, &nan).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Table);
    let expected = "public.t: column \"n\" of the row with region=eu, id=7: NaN does not fit";
    assert!(error.to_string().starts_with(expected), "{error}");
    assert!(changes.update(Some((b'K', &key("1", "eu"))), &nan).is_err());
    let mut wrong_key = key("1", "eu");
    wrong_key[0] = text("one");
    assert!(changes.delete((b'K', &wrong_key)).is_err());
    assert_eq!(changes.update(None, &tuple("1", text("b"), Value::Unchanged)).unwrap_err().kind(), ErrorKind::Table);
    assert_eq!(changes.insert(&[text("1")]).unwrap_err().kind(), ErrorKind::Internal);

    assert_eq!((changes.builder.rows(), changes.builder.bytes()), (1, bytes));
    changes.insert(&tuple("2", text("b"), text("eu"))).unwrap();
    assert_eq!(changes.finish(), [whole(Op::Insert, 1, "a", "eu"), whole(Op::Insert, 2, "b", "eu")]);
}

#[test]
fn by_policy_a_value_that_does_not_fit_becomes_null_and_is_counted() {
    let mut changes = Fixture::with(ReplicaIdentity::Default, OnUnrepresentable::Null);
    let mut nan = tuple("7", text("a"), text("eu"));
    nan[4] = text("NaN");
    changes.insert(&nan).unwrap();
    assert_eq!(changes.builder.nulled(), 1);
    let mut malformed = nan;
    malformed[4] = text("1.2.3");
    assert!(changes.insert(&malformed).is_err(), "the policy is for values that are right");
    assert_eq!(changes.finish(), [(Op::Insert, Some(7), Some("a".into()), Some("eu".into()), None, vec![])]);
    assert_eq!(changes.builder.nulled(), 1);
}

fn value() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let content = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..12),
        Just(b"1".to_vec()),
        Just(b"NaN".to_vec()),
        Just(b"1.50".to_vec()),
        Just(vec![0, 0, 0, 1]),
    ];
    (proptest::sample::select(b"nutb".to_vec()), content)
}

fn as_value((tag, content): &(u8, Vec<u8>)) -> Value<'_> {
    match tag {
        b'n' => Value::Null,
        b'u' => Value::Unchanged,
        b't' => Value::Text(content),
        _ => Value::Binary(content),
    }
}

proptest! {
    #[test]
    fn any_changes_leave_a_whole_batch(
        identity in proptest::sample::select(vec![ReplicaIdentity::Default, ReplicaIdentity::Full]),
        policy in proptest::sample::select(vec![OnUnrepresentable::Error, OnUnrepresentable::Null]),
        changes in proptest::collection::vec(
            (
                proptest::sample::select(b"IUuD".to_vec()),
                proptest::collection::vec(value(), 5),
                proptest::collection::vec(value(), 5),
            ),
            0..12,
        ),
    ) {
        let mut fixture = Fixture::with(identity, policy);
        let kind = if identity == ReplicaIdentity::Full { b'O' } else { b'K' };
        let mut expected = Vec::new();
        for (tag, old, new) in &changes {
            let old: Vec<_> = old.iter().map(as_value).collect();
            let new: Vec<_> = new.iter().map(as_value).collect();
            let before = fixture.builder.rows();
            let done = match tag {
                b'I' => fixture.insert(&new),
                b'U' => fixture.update(Some((kind, &old)), &new),
                b'u' => fixture.update(None, &new),
                _ => fixture.delete((kind, &old)),
            };
            match (done.is_ok(), fixture.builder.rows() - before) {
                (false, 0) => {}
                (true, 1) => expected.push(1),
                (true, 2) if *tag == b'U' => expected.push(2),
                other => prop_assert!(false, "{other:?}"),
            }
        }
        let batch = fixture.builder.finish().unwrap();
        prop_assert_eq!(batch.rows.num_rows(), expected.iter().sum::<usize>());
        rows(&batch);
    }
}

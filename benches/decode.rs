//! Rows per second of the decoders, on one core, for the four columns of sysbench's `sbtest1`: two integers and two
//! texts, ~190 bytes.
//!
//! `cargo bench --bench decode`

// criterion_group! makes a function that nobody can document; a benchmark that can't go on may as well panic.
#![allow(missing_docs, clippy::expect_used)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use duckpipe::batch::change::ChangeBuilder;
use duckpipe::batch::copy::CopyDecoder;
use duckpipe::batch::layout::TableLayout;
use duckpipe::batch::mapping;
use duckpipe::batch::pgoutput::{Message, Relation, RelationColumn, parse};
use duckpipe::batch::relation::RelationMap;
use duckpipe::batch::value_error::OnUnrepresentable;
use duckpipe::source::table::{PgType, PgTypeKind, ReplicaIdentity, SourceColumn, SourceTable, TableName};

const ROWS: usize = 20_000;
/// As large as the chunks that a socket gives.
const CHUNK: usize = 256 * 1024;

fn pg_type(oid: u32, name: &str, typmod: i32) -> PgType {
    PgType {
        oid,
        typmod,
        display: name.into(),
        base_oid: oid,
        base_typmod: typmod,
        base_name: name.into(),
        kind: PgTypeKind::Base,
        element: None,
    }
}

fn sbtest1() -> SourceTable {
    let columns = [
        ("id", pg_type(23, "int4", -1)),
        ("k", pg_type(23, "int4", -1)),
        ("c", pg_type(1042, "bpchar", 124)),
        ("pad", pg_type(1042, "bpchar", 64)),
    ];
    SourceTable {
        oid: 16_384,
        name: TableName { schema: "public".into(), table: "sbtest1".into() },
        columns: columns
            .into_iter()
            .zip(1..)
            .map(|((name, pg_type), attnum)| SourceColumn {
                attnum,
                name: name.into(),
                pg_type,
                not_null: true,
                missing: None,
                changed_by: 0,
                parts: Default::default(),
            })
            .collect(),
        last_attnum: 4,
        replica_identity: ReplicaIdentity::Default,
        key: vec![0],
        estimated_rows: 0,
        pages: 0,
        file_node: 1,
        published: None,
        filter: None,
        partitions: None,
    }
}

/// The values of a row, in binary.
fn row(id: i32) -> [Vec<u8>; 4] {
    let c = format!("{id:011}-").repeat(10);
    let pad = format!("{id:011}-").repeat(5);
    [id.to_be_bytes().to_vec(), (id / 2).to_be_bytes().to_vec(), c.into_bytes(), pad.into_bytes()]
}

fn copy_data() -> Vec<u8> {
    let mut data = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for id in 0..ROWS as i32 {
        data.extend(4i16.to_be_bytes());
        for field in row(id) {
            data.extend((field.len() as i32).to_be_bytes());
            data.extend(field);
        }
    }
    data.extend((-1i16).to_be_bytes());
    data
}

/// One message per row: inserts or updates that keep the key.
fn messages(tag: u8, binary: bool) -> Vec<Vec<u8>> {
    let message = |id: i32| {
        let mut message = vec![tag];
        message.extend(16_384u32.to_be_bytes());
        message.push(b'N');
        message.extend(4u16.to_be_bytes());
        for (column, field) in row(id).into_iter().enumerate() {
            let field = match column {
                0 if !binary => id.to_string().into_bytes(),
                1 if !binary => (id / 2).to_string().into_bytes(),
                _ => field,
            };
            message.push(if binary { b'b' } else { b't' });
            message.extend((field.len() as i32).to_be_bytes());
            message.extend(field);
        }
        message
    };
    (0..ROWS as i32).map(message).collect()
}

fn relation(table: &SourceTable) -> Relation {
    let columns = table.columns.iter().enumerate().map(|(index, column)| RelationColumn {
        key: table.key.contains(&index),
        name: column.name.clone(),
        type_oid: column.pg_type.oid,
        typmod: column.pg_type.typmod,
    });
    Relation {
        oid: table.oid,
        name: table.name.clone(),
        replica_identity: table.replica_identity,
        columns: columns.collect(),
    }
}

fn decode_copy(layout: &Arc<TableLayout>, data: &[u8]) {
    let mut decoder = CopyDecoder::new(layout.clone(), OnUnrepresentable::Error);
    for chunk in data.chunks(CHUNK) {
        decoder.push(chunk).expect("the data is well-formed");
    }
    black_box(decoder.take().expect("the columns make a batch"));
    decoder.finish().expect("the data is complete");
}

fn decode_messages(layout: &Arc<TableLayout>, map: &RelationMap, messages: &[Vec<u8>]) {
    let mut builder = ChangeBuilder::new(layout.clone(), OnUnrepresentable::Error);
    for message in messages {
        match parse(message).expect("the message is well-formed") {
            Message::Insert { new, .. } => builder.insert(map, &new),
            Message::Update { old, new, .. } => builder.update(map, old.as_ref(), &new),
            _ => Ok(()),
        }
        .expect("the values fit");
    }
    black_box(builder.finish().expect("the columns make a batch"));
}

fn decode(criterion: &mut Criterion) {
    let table = sbtest1();
    let layout = Arc::new(mapping::layout(&table, &[], |_| false).expect("the table has a key"));
    let map = RelationMap::new(&layout, &table, &relation(&table)).expect("the relation is the table's");
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(ROWS as u64));
    let data = copy_data();
    group.bench_function("copy binary", |b| b.iter(|| decode_copy(&layout, &data)));
    for (name, tag, binary) in [
        ("pgoutput insert, binary", b'I', true),
        ("pgoutput insert, text", b'I', false),
        ("pgoutput update, binary", b'U', true),
    ] {
        let messages = messages(tag, binary);
        group.bench_function(name, |b| {
            b.iter_batched(|| (), |()| decode_messages(&layout, &map, &messages), BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);

//! What tests need: types by name, and COPY and pgoutput bytes made by hand.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};

use super::layout::TableLayout;
use super::mapping;
use super::pgoutput::{Relation, RelationColumn, Value};
use super::row_builder::{Origin, RowBuilder};
use super::value_error::OnUnrepresentable;
use crate::source::table::{ArrayElement, PgType, PgTypeKind, ReplicaIdentity, SourceColumn, SourceTable, TableName};

/// A type as the catalog describes it. Types that are not built in get a made-up oid.
pub(crate) fn pg_type(name: &str) -> PgType {
    if let Some(element) = name.strip_suffix("[]") {
        let element = pg_type(element);
        let typmod = element.typmod;
        return PgType {
            oid: 100_000 + element.oid,
            typmod,
            display: name.to_owned(),
            base_oid: 100_000 + element.oid,
            base_typmod: typmod,
            base_name: format!("_{}", element.base_name),
            kind: PgTypeKind::Base,
            element: Some(Box::new(ArrayElement {
                delimiter: if element.base_name == "box" { ';' } else { ',' },
                pg_type: PgType { typmod: -1, base_typmod: -1, ..element },
                dimensions: 1,
            })),
        };
    }
    let (bare, modifiers) = match name.split_once('(') {
        Some((bare, modifiers)) => (bare, modifiers.trim_end_matches(')')),
        None => (name, ""),
    };
    let modifiers: Vec<i32> = modifiers.split(',').filter_map(|modifier| modifier.trim().parse().ok()).collect();
    let (oid, kind) = match bare {
        "bool" => (16, PgTypeKind::Base),
        "bytea" => (17, PgTypeKind::Base),
        "\"char\"" => (18, PgTypeKind::Base),
        "name" => (19, PgTypeKind::Base),
        "int8" => (20, PgTypeKind::Base),
        "int2" => (21, PgTypeKind::Base),
        "int2vector" => (22, PgTypeKind::Base),
        "int4" | "posint" => (23, PgTypeKind::Base),
        "text" => (25, PgTypeKind::Base),
        "oid" => (26, PgTypeKind::Base),
        "oidvector" => (30, PgTypeKind::Base),
        "json" => (114, PgTypeKind::Base),
        "xml" => (142, PgTypeKind::Base),
        "cidr" => (650, PgTypeKind::Base),
        "float4" => (700, PgTypeKind::Base),
        "float8" => (701, PgTypeKind::Base),
        "macaddr8" => (774, PgTypeKind::Base),
        "macaddr" => (829, PgTypeKind::Base),
        "inet" => (869, PgTypeKind::Base),
        "char" => (1042, PgTypeKind::Base),
        "varchar" => (1043, PgTypeKind::Base),
        "date" => (1082, PgTypeKind::Base),
        "time" => (1083, PgTypeKind::Base),
        "timestamp" => (1114, PgTypeKind::Base),
        "timestamptz" => (1184, PgTypeKind::Base),
        "interval" => (1186, PgTypeKind::Base),
        "timetz" => (1266, PgTypeKind::Base),
        "bit" => (1560, PgTypeKind::Base),
        "bit varying" => (1562, PgTypeKind::Base),
        "numeric" => (1700, PgTypeKind::Base),
        "uuid" => (2950, PgTypeKind::Base),
        "jsonb" => (3802, PgTypeKind::Base),
        "mood" => (50_001, PgTypeKind::Enum),
        "pair" => (50_002, PgTypeKind::Composite),
        _ => (50_000, PgTypeKind::Base),
    };
    let typmod = match (bare, modifiers.as_slice()) {
        ("numeric", [precision, scale]) => (precision << 16 | scale & 0x7ff) + 4,
        (_, [length]) => length + 4,
        _ => -1,
    };
    PgType {
        oid: if bare == "posint" { 50_003 } else { oid },
        typmod,
        display: name.to_owned(),
        base_oid: oid,
        base_typmod: typmod,
        base_name: bare.to_owned(),
        kind,
        element: None,
    }
}

/// A table with the key `id`, of columns with these attnums.
pub(crate) fn numbered_table(columns: &[(i16, &str, &str)]) -> SourceTable {
    let named: Vec<(&str, &str)> = columns.iter().map(|(_, name, pg_type)| (*name, *pg_type)).collect();
    let mut source = table(&named, &["id"], ReplicaIdentity::Default);
    for (column, (attnum, ..)) in source.columns.iter_mut().zip(columns) {
        column.attnum = *attnum;
        source.last_attnum = source.last_attnum.max(*attnum);
    }
    source
}

/// A table `public.t` of columns given as (name, type), whose key is the named columns.
pub(crate) fn table(columns: &[(&str, &str)], key: &[&str], replica_identity: ReplicaIdentity) -> SourceTable {
    let columns: Vec<SourceColumn> = columns
        .iter()
        .zip(1..)
        .map(|((name, pg), attnum)| SourceColumn {
            attnum,
            name: (*name).to_owned(),
            pg_type: pg_type(pg),
            not_null: false,
            missing: None,
            changed_by: 0,
            parts: Default::default(),
        })
        .collect();
    let last_attnum = columns.last().map_or(0, |column| column.attnum);
    let key = key.iter().map(|key| columns.iter().position(|column| column.name == *key).unwrap()).collect();
    SourceTable {
        oid: 16_384,
        name: TableName { schema: "public".into(), table: "t".into() },
        columns,
        replica_identity,
        key,
        estimated_rows: 0,
        pages: 0,
        file_node: 1,
        last_attnum,
        published: None,
        filter: None,
        partitions: None,
    }
}

/// The layout of such a table.
pub(crate) fn layout(table: &SourceTable) -> Arc<TableLayout> {
    Arc::new(mapping::layout(table, &[], |_| false).unwrap())
}

/// The Relation message of a table.
pub(crate) fn relation(table: &SourceTable) -> Relation {
    let full = table.replica_identity == ReplicaIdentity::Full;
    let columns = table.columns.iter().enumerate().map(|(index, column)| RelationColumn {
        key: full || table.key.contains(&index),
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

/// One value of a type, decoded; the error's text where it can't be.
pub(crate) fn decode(type_name: &str, origin: Origin, value: Value<'_>) -> Result<ArrayRef, String> {
    let table = table(&[("id", "int4"), ("v", type_name)], &["id"], ReplicaIdentity::Default);
    let mut rows = RowBuilder::new(layout(&table), OnUnrepresentable::Error, origin);
    rows.append(0, Value::Text(b"1")).map_err(|fault| fault.into_reason())?;
    rows.append(1, value).map_err(|fault| fault.into_reason())?;
    rows.end_row(0);
    let array = rows.finish().unwrap().column(1).clone();
    assert_eq!(array.len(), 1);
    Ok(array)
}

/// COPY binary data of rows of fields.
pub(crate) fn copy_data(rows: &[Vec<Option<Vec<u8>>>]) -> Vec<u8> {
    let mut data = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for row in rows {
        data.extend((row.len() as i16).to_be_bytes());
        for field in row {
            match field {
                None => data.extend((-1i32).to_be_bytes()),
                Some(bytes) => {
                    data.extend((bytes.len() as i32).to_be_bytes());
                    data.extend(bytes);
                }
            }
        }
    }
    data.extend((-1i16).to_be_bytes());
    data
}

/// A tuple's bytes as they stand in a message.
pub(crate) fn tuple(values: &[Value<'_>]) -> Vec<u8> {
    let mut bytes = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        let (tag, content) = match value {
            Value::Null => (b'n', None),
            Value::Unchanged => (b'u', None),
            Value::Text(text) => (b't', Some(text)),
            Value::Binary(binary) => (b'b', Some(binary)),
        };
        bytes.push(tag);
        if let Some(content) = content {
            bytes.extend((content.len() as i32).to_be_bytes());
            bytes.extend(*content);
        }
    }
    bytes
}

/// The bytes of an Insert, Update or Delete message, whose tuples follow each other as (kind, values).
pub(crate) fn row_message(tag: u8, oid: u32, tuples: &[(u8, &[Value<'_>])]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(oid.to_be_bytes());
    for (kind, values) in tuples {
        bytes.push(*kind);
        bytes.extend(tuple(values));
    }
    bytes
}

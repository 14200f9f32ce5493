//! The messages of logical replication's pgoutput plugin, protocol version 2.
//!
//! A large transaction comes in blocks before it commits: between a StreamStart and a StreamStop each message names the
//! (sub)transaction that it belongs to.
//!
//! Format: Postgres' documentation, "Logical Replication Message Formats". A message borrows from the bytes it was
//! parsed from.

use super::datetime;
use super::reader::{Reader, Truncated};
use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::source::table::{ReplicaIdentity, TableName};

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message<'a> {
    /// A transaction begins. Its changes follow, then its Commit.
    Begin {
        /// The start of the transaction's commit record.
        final_lsn: Lsn,
        /// When it committed, in microseconds since 1970-01-01 UTC.
        commit_ts: i64,
        /// The transaction's id.
        xid: u32,
    },
    /// The transaction is complete.
    Commit {
        /// The start of the commit record.
        commit_lsn: Lsn,
        /// The position behind it: what is stored and confirmed once the transaction is applied.
        end_lsn: Lsn,
        /// When it committed, in microseconds since 1970-01-01 UTC.
        commit_ts: i64,
    },
    /// The transaction was itself replicated to the source.
    Origin,
    /// The name of a type that is not built in.
    Type,
    /// What `pg_logical_emit_message` wrote.
    Logical(LogicalMessage<'a>),
    /// How a table looks from here on.
    Relation(Relation),
    /// A new row.
    Insert {
        /// The table.
        oid: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// The table.
        oid: u32,
        /// What identifies the row before the change; absent where the key is as it was and the identity is not FULL.
        old: Option<OldTuple<'a>>,
        /// The row after the change.
        new: Tuple<'a>,
    },
    /// A removed row.
    Delete {
        /// The table.
        oid: u32,
        /// What identifies it.
        old: OldTuple<'a>,
    },
    /// Tables that were emptied.
    Truncate {
        /// The tables.
        oids: Vec<u32>,
        /// TRUNCATE … CASCADE.
        cascade: bool,
        /// TRUNCATE … RESTART IDENTITY.
        restart: bool,
    },
    /// A block of changes of a transaction that has not committed yet.
    StreamStart {
        /// The transaction.
        xid: u32,
        /// Whether it is the transaction's first block.
        first: bool,
    },
    /// The block ends.
    StreamStop,
    /// A transaction that came in blocks is complete.
    StreamCommit {
        /// The transaction.
        xid: u32,
        /// The start of the commit record.
        commit_lsn: Lsn,
        /// The position behind it.
        end_lsn: Lsn,
        /// When it committed, in microseconds since 1970-01-01 UTC.
        commit_ts: i64,
    },
    /// A transaction that came in blocks, or a subtransaction of it, rolled back.
    StreamAbort {
        /// The transaction.
        xid: u32,
        /// The subtransaction; the transaction itself where all of it rolled back.
        subxid: u32,
    },
}

/// A message of `pg_logical_emit_message`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogicalMessage<'a> {
    /// Whether it is part of a transaction.
    pub transactional: bool,
    /// Its position.
    pub lsn: Lsn,
    /// Who it is for.
    pub prefix: &'a [u8],
    /// What it says.
    pub content: &'a [u8],
}

/// A table as it looked when the following changes were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its name at that time.
    pub name: TableName,
    /// How old rows are identified.
    pub replica_identity: ReplicaIdentity,
    /// The published columns.
    pub columns: Vec<RelationColumn>,
}

/// A published column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity; every column under FULL.
    pub key: bool,
    /// The name.
    pub name: String,
    /// The declared type.
    pub type_oid: u32,
    /// `atttypmod`.
    pub typmod: i32,
}

/// What identifies a row before its change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OldTuple<'a> {
    /// How much of the row it is.
    pub kind: OldKind,
    /// The values; under [`OldKind::Key`] those of other columns are NULL placeholders.
    pub tuple: Tuple<'a>,
}

/// How much of a row an [`OldTuple`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldKind {
    /// The columns of the replica identity.
    Key,
    /// The whole row.
    Full,
}

/// The values of a row, one for each column of its relation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuple<'a> {
    count: u16,
    /// The values as sent; `parse` has walked them.
    values: &'a [u8],
}

/// One value of a [`Tuple`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// NULL.
    Null,
    /// An unchanged value that is stored out of line and was not sent.
    Unchanged,
    /// What the type's output function printed.
    Text(&'a [u8]),
    /// What the type's send function wrote.
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// How many values there are.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether the relation has no columns.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The values' size on the wire, in bytes.
    pub fn bytes(&self) -> usize {
        self.values.len()
    }

    /// The values in the relation's order.
    #[inline]
    pub fn values(&self) -> Values<'a> {
        Values { rest: Reader::new(self.values), left: self.count }
    }

    fn read(reader: &mut Reader<'a>) -> std::result::Result<Tuple<'a>, Malformed> {
        let count = reader.u16()?;
        let start = reader.rest();
        for _ in 0..count {
            read_value(reader)?;
        }
        let values = &start[..start.len() - reader.rest().len()];
        Ok(Tuple { count, values })
    }
}

/// Iterates a [`Tuple`]'s values without allocating.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    rest: Reader<'a>,
    left: u16,
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        read_value(&mut self.rest).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error(transparent)]
    Truncated(#[from] Truncated),
    #[error("unknown {what} {byte:#04x}")]
    Unknown { what: &'static str, byte: u8 },
    #[error("a negative length")]
    NegativeLength,
    #[error("a commit time out of range")]
    Time,
    #[error("a name that is not UTF-8")]
    Name,
    #[error("{0} bytes too many")]
    TooLong(usize),
}

#[inline]
fn read_value<'a>(reader: &mut Reader<'a>) -> std::result::Result<Value<'a>, Malformed> {
    let tag = reader.u8()?;
    match tag {
        b'b' | b't' => {
            let length = usize::try_from(reader.i32()?).map_err(|_| Malformed::NegativeLength)?;
            let bytes = reader.take(length)?;
            Ok(if tag == b'b' { Value::Binary(bytes) } else { Value::Text(bytes) })
        }
        b'n' => Ok(Value::Null),
        b'u' => Ok(Value::Unchanged),
        byte => Err(Malformed::Unknown { what: "kind of value", byte }),
    }
}

/// Parses one message outside of a block.
///
/// # Errors
/// `Internal` where the bytes do not follow the format, or are a message that only later protocol versions send.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Message<'_>> {
    read_message(bytes, false).map(|(_, message)| message).map_err(|malformed| refused(bytes, malformed))
}

/// Parses one message of a block, with the (sub)transaction that it belongs to; 0 where the message names none.
///
/// # Errors
/// As [`parse`].
#[inline]
pub fn parse_in_block(bytes: &[u8]) -> Result<(u32, Message<'_>)> {
    read_message(bytes, true).map_err(|malformed| refused(bytes, malformed))
}

fn refused(bytes: &[u8], malformed: Malformed) -> Error {
    let kind = bytes.first().map_or_else(|| "empty".to_owned(), |tag| format!("{:?}", char::from(*tag)));
    Error::new(ErrorKind::Internal, format!("malformed pgoutput message {kind}")).caused_by(malformed)
}

fn read_message(bytes: &[u8], in_block: bool) -> std::result::Result<(u32, Message<'_>), Malformed> {
    let mut reader = Reader::new(bytes);
    let tag = reader.u8()?;
    let xid = if in_block && b"IUDTRYM".contains(&tag) { reader.u32()? } else { 0 };
    let message = match tag {
        b'I' => {
            let oid = reader.u32()?;
            expect_new(reader.u8()?)?;
            Message::Insert { oid, new: Tuple::read(&mut reader)? }
        }
        b'U' => {
            let oid = reader.u32()?;
            let kind = reader.u8()?;
            if kind == b'N' {
                Message::Update { oid, old: None, new: Tuple::read(&mut reader)? }
            } else {
                let old = OldTuple { kind: old_kind(kind)?, tuple: Tuple::read(&mut reader)? };
                expect_new(reader.u8()?)?;
                Message::Update { oid, old: Some(old), new: Tuple::read(&mut reader)? }
            }
        }
        b'D' => {
            let oid = reader.u32()?;
            let kind = old_kind(reader.u8()?)?;
            Message::Delete { oid, old: OldTuple { kind, tuple: Tuple::read(&mut reader)? } }
        }
        b'B' => Message::Begin { final_lsn: Lsn(reader.u64()?), commit_ts: time(reader.i64()?)?, xid: reader.u32()? },
        b'C' => {
            let _flags = reader.u8()?;
            Message::Commit {
                commit_lsn: Lsn(reader.u64()?),
                end_lsn: Lsn(reader.u64()?),
                commit_ts: time(reader.i64()?)?,
            }
        }
        b'R' => Message::Relation(relation(&mut reader)?),
        b'T' => {
            let count = reader.u32()?;
            let flags = reader.u8()?;
            let mut oids = Vec::new();
            for _ in 0..count {
                oids.push(reader.u32()?);
            }
            Message::Truncate { oids, cascade: flags & 1 != 0, restart: flags & 2 != 0 }
        }
        b'O' => {
            let _commit_lsn = reader.u64()?;
            let _name = reader.c_string()?;
            Message::Origin
        }
        b'Y' => {
            let _oid = reader.u32()?;
            let _schema = reader.c_string()?;
            let _name = reader.c_string()?;
            Message::Type
        }
        b'M' => {
            let transactional = reader.u8()? & 1 != 0;
            let lsn = Lsn(reader.u64()?);
            let prefix = reader.c_string()?;
            let length = usize::try_from(reader.i32()?).map_err(|_| Malformed::NegativeLength)?;
            Message::Logical(LogicalMessage { transactional, lsn, prefix, content: reader.take(length)? })
        }
        b'S' => Message::StreamStart { xid: reader.u32()?, first: reader.u8()? == 1 },
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = reader.u32()?;
            let _flags = reader.u8()?;
            let (commit_lsn, end_lsn) = (Lsn(reader.u64()?), Lsn(reader.u64()?));
            Message::StreamCommit { xid, commit_lsn, end_lsn, commit_ts: time(reader.i64()?)? }
        }
        b'A' => Message::StreamAbort { xid: reader.u32()?, subxid: reader.u32()? },
        byte => return Err(Malformed::Unknown { what: "kind of message", byte }),
    };
    match reader.rest().len() {
        0 => Ok((xid, message)),
        left => Err(Malformed::TooLong(left)),
    }
}

fn expect_new(byte: u8) -> std::result::Result<(), Malformed> {
    if byte == b'N' { Ok(()) } else { Err(Malformed::Unknown { what: "kind of new row", byte }) }
}

fn old_kind(byte: u8) -> std::result::Result<OldKind, Malformed> {
    match byte {
        b'K' => Ok(OldKind::Key),
        b'O' => Ok(OldKind::Full),
        byte => Err(Malformed::Unknown { what: "kind of old row", byte }),
    }
}

fn time(postgres_micros: i64) -> std::result::Result<i64, Malformed> {
    datetime::unix_micros(postgres_micros).ok_or(Malformed::Time)
}

fn relation(reader: &mut Reader<'_>) -> std::result::Result<Relation, Malformed> {
    let oid = reader.u32()?;
    let schema = match name(reader)? {
        // What the protocol says instead of pg_catalog.
        schema if schema.is_empty() => "pg_catalog".to_owned(),
        schema => schema,
    };
    let table = name(reader)?;
    let replica_identity = match reader.u8()? {
        b'd' => ReplicaIdentity::Default,
        b'i' => ReplicaIdentity::Index,
        b'f' => ReplicaIdentity::Full,
        b'n' => ReplicaIdentity::Nothing,
        byte => return Err(Malformed::Unknown { what: "replica identity", byte }),
    };
    let mut columns = Vec::new();
    for _ in 0..reader.u16()? {
        columns.push(RelationColumn {
            key: reader.u8()? & 1 != 0,
            name: name(reader)?,
            type_oid: reader.u32()?,
            typmod: reader.i32()?,
        });
    }
    Ok(Relation { oid, name: TableName { schema, table }, replica_identity, columns })
}

fn name(reader: &mut Reader<'_>) -> std::result::Result<String, Malformed> {
    String::from_utf8(reader.c_string()?.to_vec()).map_err(|_| Malformed::Name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::row_message;
    use super::*;

    /// Bytes put together from numbers in network order and texts.
    fn bytes(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn begin_and_commit() {
        let begin = bytes(&[b"B", &0x10u64.to_be_bytes(), &1i64.to_be_bytes(), &7u32.to_be_bytes()]);
        assert_eq!(
            parse(&begin).unwrap(),
            Message::Begin { final_lsn: Lsn(0x10), commit_ts: 946_684_800_000_001, xid: 7 }
        );
        let commit = bytes(&[b"C\0", &0x10u64.to_be_bytes(), &0x20u64.to_be_bytes(), &0i64.to_be_bytes()]);
        assert_eq!(
            parse(&commit).unwrap(),
            Message::Commit { commit_lsn: Lsn(0x10), end_lsn: Lsn(0x20), commit_ts: 946_684_800_000_000 }
        );
        let far = bytes(&[b"B", &0x10u64.to_be_bytes(), &i64::MAX.to_be_bytes(), &7u32.to_be_bytes()]);
        assert_eq!(parse(&far).unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn relation() {
        let message = bytes(&[
            b"R",
            &5u32.to_be_bytes(),
            b"shop\0orders\0d",
            &2u16.to_be_bytes(),
            b"\x01id\0",
            &23u32.to_be_bytes(),
            &(-1i32).to_be_bytes(),
            b"\x00name\0",
            &1043u32.to_be_bytes(),
            &14i32.to_be_bytes(),
        ]);
        let Message::Relation(relation) = parse(&message).unwrap() else { panic!("no relation") };
        assert_eq!(relation.name.to_string(), "shop.orders");
        assert_eq!(relation.replica_identity, ReplicaIdentity::Default);
        assert_eq!(
            relation.columns,
            [
                RelationColumn { key: true, name: "id".into(), type_oid: 23, typmod: -1 },
                RelationColumn { key: false, name: "name".into(), type_oid: 1043, typmod: 14 },
            ]
        );
        let builtin = bytes(&[b"R", &5u32.to_be_bytes(), b"\0pg_x\0f", &0u16.to_be_bytes()]);
        let Message::Relation(relation) = parse(&builtin).unwrap() else { panic!("no relation") };
        assert_eq!(relation.name.schema, "pg_catalog");
    }

    #[test]
    fn rows() {
        let values = [Value::Text(b"1"), Value::Binary(b"\0\x01"), Value::Null, Value::Unchanged];
        let message = row_message(b'I', 5, &[(b'N', &values)]);
        let Message::Insert { oid: 5, new } = parse(&message).unwrap() else { panic!("no insert") };
        assert_eq!(new.len(), 4);
        assert_eq!(new.values().collect::<Vec<_>>(), values);

        let message = row_message(b'U', 5, &[(b'K', &values), (b'N', &values)]);
        let Message::Update { oid: 5, old: Some(old), new } = parse(&message).unwrap() else { panic!("no update") };
        assert_eq!(old.kind, OldKind::Key);
        assert_eq!(old.tuple.values().collect::<Vec<_>>(), new.values().collect::<Vec<_>>());

        let message = row_message(b'U', 5, &[(b'N', &values)]);
        assert!(matches!(parse(&message).unwrap(), Message::Update { old: None, .. }));

        let message = row_message(b'D', 5, &[(b'O', &values)]);
        let Message::Delete { oid: 5, old } = parse(&message).unwrap() else { panic!("no delete") };
        assert_eq!(old.kind, OldKind::Full);
    }

    #[test]
    fn the_other_messages() {
        let message = bytes(&[b"T", &2u32.to_be_bytes(), &[3], &5u32.to_be_bytes(), &6u32.to_be_bytes()]);
        assert_eq!(parse(&message).unwrap(), Message::Truncate { oids: vec![5, 6], cascade: true, restart: true });
        assert_eq!(parse(&bytes(&[b"O", &1u64.to_be_bytes(), b"node\0"])).unwrap(), Message::Origin);
        assert_eq!(parse(&bytes(&[b"Y", &1u32.to_be_bytes(), b"public\0mood\0"])).unwrap(), Message::Type);
        let message = bytes(&[b"M\x01", &9u64.to_be_bytes(), b"app\0", &2u32.to_be_bytes(), b"hi"]);
        let Message::Logical(logical) = parse(&message).unwrap() else { panic!("no message") };
        assert_eq!(
            (logical.transactional, logical.lsn, logical.prefix, logical.content),
            (true, Lsn(9), &b"app"[..], &b"hi"[..])
        );
    }

    #[test]
    fn blocks() {
        let start = bytes(&[b"S", &7u32.to_be_bytes(), &[1]]);
        assert_eq!(parse(&start).unwrap(), Message::StreamStart { xid: 7, first: true });
        let truncate = bytes(&[b"T", &9u32.to_be_bytes(), &1u32.to_be_bytes(), &[0], &5u32.to_be_bytes()]);
        let expected = Message::Truncate { oids: vec![5], cascade: false, restart: false };
        assert_eq!(parse_in_block(&truncate).unwrap(), (9, expected));
        assert!(parse(&truncate).is_err());
        assert_eq!(parse_in_block(b"E").unwrap(), (0, Message::StreamStop));
        let commit =
            bytes(&[b"c", &7u32.to_be_bytes(), &[0], &1u64.to_be_bytes(), &2u64.to_be_bytes(), &0i64.to_be_bytes()]);
        let (commit_lsn, end_lsn, commit_ts) = (Lsn(1), Lsn(2), 946_684_800_000_000);
        assert_eq!(parse(&commit).unwrap(), Message::StreamCommit { xid: 7, commit_lsn, end_lsn, commit_ts });
        let abort = bytes(&[b"A", &7u32.to_be_bytes(), &9u32.to_be_bytes()]);
        assert_eq!(parse(&abort).unwrap(), Message::StreamAbort { xid: 7, subxid: 9 });
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let insert = row_message(b'I', 5, &[(b'N', &[Value::Text(b"abc")])]);
        for end in 0..insert.len() {
            assert_eq!(parse(&insert[..end]).unwrap_err().kind(), ErrorKind::Internal);
        }
        let mut longer = insert.clone();
        longer.push(0);
        for wrong in [&longer[..], b"", b"?", b"I\0\0\0\x05K\0\0", b"D\0\0\0\x05N\0\0", b"I\0\0\0\x05N\0\x01x"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        let negative = b"I\0\0\0\x05N\0\x01t\xff\xff\xff\xff";
        assert!(parse(negative).unwrap_err().to_string().contains("negative length"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            tag in proptest::sample::select(b"BCOYMRIUDTSEcA".to_vec()),
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let _ = parse(&bytes);
            bytes.insert(0, tag);
            let _ = parse(&bytes);
            let _ = parse_in_block(&bytes);
        }

        #[test]
        fn arbitrary_tuples_never_panic(
            tag in proptest::sample::select(b"IUD".to_vec()),
            kind in proptest::sample::select(b"NKO".to_vec()),
            bytes in proptest::collection::vec(proptest::sample::select(b"\0\0\0\x01\x02nutbNKO".to_vec()), 0..60),
        ) {
            let message = [&[tag, 0, 0, 0, 5, kind][..], &bytes].concat();
            let _ = parse(&message);
        }
    }
}

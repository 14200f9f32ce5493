//! A source table as the catalog describes it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::partitions::Partition;

/// A table of the source, with the columns that its publication sends, in `attnum` order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTable {
    /// `pg_class.oid`: the identity of the table for as long as it lives.
    pub oid: u32,
    /// The schema and the name.
    pub name: TableName,
    /// The published columns. Generated columns are among them only where the publication sends them.
    pub columns: Vec<SourceColumn>,
    /// `pg_class.relnatts`: the `attnum` of the youngest column, whether it is still there or not. 0: not known.
    #[serde(default)]
    pub last_attnum: i16,
    /// How the WAL identifies an old row.
    pub replica_identity: ReplicaIdentity,
    /// The key, as indices into `columns`, in the order of the key's index. Empty: the table has no usable key.
    pub key: Vec<usize>,
    /// The planner's estimate of the number of rows; negative where the table was never analysed.
    #[serde(skip)]
    pub estimated_rows: i64,
    /// The heap's size in pages of 8 KiB, measured, for cutting it into ctid ranges. An estimate where somebody had the table to himself.
    #[serde(skip)]
    pub pages: u32,
    /// `pg_class.relfilenode`: another one after all that writes the table anew (a change of type, VACUUM FULL, TRUNCATE). A
    /// partitioned table has none: 0.
    pub file_node: u32,
    /// What says that the publication sends the table's changes: see [`publication::membership`]. `None`: nothing does, or it is not known.
    ///
    /// [`publication::membership`]: super::publication::membership
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
    /// Which rows the publication sends, as SQL; `None`: all. What it sends of others is as if they were not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The tables that a partitioned one is made of, by name; `None`: an ordinary table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<Vec<Partition>>,
}

/// A table whose rows lie in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heap {
    /// `pg_class.oid`.
    pub oid: u32,
    /// The schema and the name.
    pub name: TableName,
    /// The partitioned table that it is a part of.
    pub root: Option<TableName>,
    /// The size in pages of 8 KiB, as it was measured.
    pub pages: u32,
    /// Which rows are the table's, as SQL; `None`: all.
    pub filter: Option<String>,
}

impl SourceTable {
    /// Where its rows lie: in the table itself, or in those of its partitions that are not partitioned themselves.
    pub fn heaps(&self) -> Vec<Heap> {
        let Some(partitions) = &self.partitions else {
            let (name, filter) = (self.name.clone(), self.filter.clone());
            return vec![Heap { oid: self.oid, name, root: None, pages: self.pages, filter }];
        };
        let filter = &self.filter;
        let leaves = partitions.iter().filter(|partition| partition.file_node != 0);
        let heap = |leaf: &Partition| {
            let (name, filter) = (leaf.name.clone(), filter.clone());
            Heap { oid: leaf.oid, name, root: Some(self.name.clone()), pages: leaf.pages, filter }
        };
        leaves.map(heap).collect()
    }
}

/// A schema-qualified name, unquoted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub table: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// A published column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceColumn {
    /// `pg_attribute.attnum`: the identity of the column for as long as it lives.
    pub attnum: i16,
    /// The name, unquoted.
    pub name: String,
    /// The type.
    pub pg_type: PgType,
    /// Declared NOT NULL.
    pub not_null: bool,
    /// `pg_attribute.attmissingval`, as text: what rows show that are older than the column. `None`: NULL.
    pub missing: Option<String>,
    /// `pg_attribute.xmin`: the transaction that changed the column last. 0: not known.
    #[serde(default)]
    pub changed_by: u32,
    /// What the texts of its values depend on: the labels of enums by their oids (`pg_enum`), the attributes of composites by
    /// `composite` and their oids (`pg_type`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", alias = "labels")]
    pub parts: BTreeMap<String, String>,
}

/// `pg_class.relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// The columns of a chosen unique index.
    Index,
    /// The whole old row.
    Full,
    /// Nothing: updates and deletes can't be published.
    Nothing,
}

/// A type as `pg_type` and `pg_attribute` describe it, with domains seen through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgType {
    /// The declared type's oid (what a Relation message shows).
    pub oid: u32,
    /// `atttypmod` as declared (what a Relation message shows), -1 where there is none.
    pub typmod: i32,
    /// What `format_type(oid, typmod)` prints, for messages.
    pub display: String,
    /// The oid of the innermost base type: differs from `oid` for domains only.
    pub base_oid: u32,
    /// The type modifier that holds for the base type: the domain's own where the column has none.
    pub base_typmod: i32,
    /// `pg_type.typname` of the base type, unquoted.
    pub base_name: String,
    /// `pg_type.typtype` of the base type.
    pub kind: PgTypeKind,
    /// For an array type: its element.
    pub element: Option<Box<ArrayElement>>,
}

impl PgType {
    /// Whether values of both are read alike, whatever the types are called and wherever they lie.
    pub fn is_read_as(&self, other: &PgType) -> bool {
        let by_ids = |one: &PgType| (one.oid, one.typmod, one.base_oid, one.base_typmod, one.kind);
        let elements = match (&self.element, &other.element) {
            (Some(one), Some(other)) => {
                (one.dimensions, one.delimiter) == (other.dimensions, other.delimiter)
                    && one.pg_type.is_read_as(&other.pg_type)
            }
            (one, other) => one.is_none() && other.is_none(),
        };
        // What comes with an extension is known by its name; an array's own is made of its element's.
        let named = self.kind == PgTypeKind::Base && self.element.is_none();
        by_ids(self) == by_ids(other) && elements && (self.base_name == other.base_name || !named)
    }
}

/// What an array holds and how many dimensions it was declared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArrayElement {
    /// The element's type. Its typmods are those of the array column.
    pub pg_type: PgType,
    /// `pg_attribute.attndims`, for a domain `pg_type.typndims`; 0 where nothing was declared (CREATE TABLE AS).
    pub dimensions: i16,
    /// `pg_type.typdelim` of the element: `,` for all built-in types but `box`.
    pub delimiter: char,
}

/// `pg_type.typtype` of a base type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PgTypeKind {
    /// A base type, arrays included.
    Base,
    /// A composite type.
    Composite,
    /// An enumeration.
    Enum,
    /// A range.
    Range,
    /// A multirange.
    Multirange,
    /// Anything else.
    Other,
}

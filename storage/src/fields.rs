//! Lake column ids in Arrow schemas.
//!
//! A reader of the lake finds a column by its id, `field_id` in the Parquet schema, never by its name. In Arrow the id travels in
//! the field's metadata under the key that the Parquet library knows.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use crate::error::{Result, StorageError};

/// The id of a column and of what is nested in it: a list has one child, its element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldId {
    /// The lake's column id.
    pub id: i32,
    /// The ids of the nested columns, in order.
    pub children: Vec<FieldId>,
}

impl FieldId {
    /// The id of a column with nothing nested in it.
    pub fn leaf(id: i32) -> Self {
        FieldId { id, children: Vec::new() }
    }

    /// The id of a list and of its element.
    pub fn list(id: i32, element: FieldId) -> Self {
        FieldId { id, children: vec![element] }
    }
}

/// The schema with each field marked with its id. Fails where the shapes differ.
pub fn with_field_ids(schema: &Schema, ids: &[FieldId]) -> Result<SchemaRef> {
    if schema.fields().len() != ids.len() {
        let reason = format!("{} columns, but {} column ids", schema.fields().len(), ids.len());
        return Err(StorageError::invalid("schema", reason));
    }
    let fields = schema.fields().iter().zip(ids).map(|(field, id)| mark(field, id)).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone())))
}

/// The id that a field carries.
pub fn field_id(field: &Field) -> Option<i32> {
    field.metadata().get(PARQUET_FIELD_ID_META_KEY)?.parse().ok()
}

/// The id that a field carries, or an error that names the field.
pub(crate) fn require_field_id(field: &Field) -> Result<i32> {
    field_id(field).ok_or_else(|| StorageError::invalid(field.name().as_str(), "the column has no column id"))
}

fn mark(field: &FieldRef, id: &FieldId) -> Result<FieldRef> {
    let data_type = match (field.data_type(), id.children.as_slice()) {
        (DataType::List(element), [child]) => DataType::List(mark(element, child)?),
        (DataType::List(_), children) => {
            let reason = format!("a list has one element column, not {}", children.len());
            return Err(StorageError::invalid(field.name().as_str(), reason));
        }
        (other, []) => other.clone(),
        (_, children) => {
            let reason = format!("{} nested column ids for a column without nesting", children.len());
            return Err(StorageError::invalid(field.name().as_str(), reason));
        }
    };
    let mut metadata: HashMap<String, String> = field.metadata().clone();
    metadata.insert(PARQUET_FIELD_ID_META_KEY.to_string(), id.id.to_string());
    Ok(Arc::new(Field::new(field.name(), data_type, field.is_nullable()).with_metadata(metadata)))
}

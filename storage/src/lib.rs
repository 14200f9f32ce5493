//! Object stores, credentials and the Parquet sink of duckpipe.
//!
//! In: record batches whose fields carry their lake column ids. Out: Parquet files in a folder or a bucket, with everything that a
//! catalog wants to know about them. Nothing here knows of Postgres or of DuckDB.
//!
//! * [`Store`] is the place: `/an/absolute/folder` or `s3://bucket/prefix`. All paths are relative to it, `/`-separated.
//! * [`DataFileWriter`] turns one table's batches into files of a sensible size, streaming, and computes their statistics.
//! * [`write_delete_files`] writes the positions of rows that are no more, in a form that DuckLake and Iceberg both read.
//! * [`DataFileReader`] reads columns by their id, whole or at chosen positions, with each row's position.
//!
//! # What is durable when
//!
//! A file that a call returned is durable: in a bucket because the store said so; in a folder because file and folders were
//! synced. A file under its final name is whole: a bucket shows an object only when its upload was completed, and a local file is
//! written under another name and renamed. Whatever happens in between leaves nothing but a name that the [`UploadLog`] was told.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod credentials;
mod data_file;
mod delete_file;
mod deleted_rows;
mod encoder;
mod error;
mod fields;
mod local;
mod missing;
mod reader;
mod row_group;
mod settings;
mod stats;
mod stats_text;
mod store;
#[cfg(test)]
mod tests;
mod upload;

pub use credentials::S3Credentials;
pub use data_file::{DataFile, DataFileOptions, DataFileWriter, UploadLog, new_file_path};
pub use delete_file::{
    DeleteFile, Deletes, new_delete_file_path, read_delete_file, read_deleted_positions, read_deleted_rows,
    visit_delete_file, write_announced_delete_file, write_delete_file, write_delete_files,
};
pub use deleted_rows::DeletedRows;
pub use encoder::batch_bytes;
pub use error::{BoxError, Result, StorageError};
pub use fields::{FieldId, field_id, with_field_ids};
pub use missing::INITIAL_DEFAULT;
pub use reader::{DataFileReader, PositionedBatch, PositionedStream, Rows};
pub use settings::{S3Settings, SecretText};
pub use stats::{ColumnStats, StatsCollector};
pub use stats_text::value_text;
pub use store::{Store, StoredObject};

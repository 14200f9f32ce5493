//! The black-box tests: one binary, so that linking is paid once; one module per promise.

// A test that can't go on should say so at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod lab;
mod scenario;
mod workload;

mod bad_input;
mod changes;
mod compaction;
mod compaction_fuzz;
mod dependencies;
mod differential;
mod direct_commit;
mod exactly_once;
mod fan_in;
mod generated;
mod history;
mod keyless;
mod laboratory;
mod lifecycle;
mod memory;
mod newcomers;
mod partitions;
mod prefix_consistency;
mod rare_changes;
mod renames;
mod repair;
mod resumed_copy;
mod resync;
mod row_filters;
mod schema_changes;
mod shared_lake;
mod slot_progress;
mod soak;
mod soft_delete;
mod standby;
mod stopped_table;
mod streamed;
mod tables;
mod truncate;
mod types;
mod upheaval;
mod validation;
mod values;

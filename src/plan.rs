//! DataFusion plans over rows that we read ourselves: partitions side by side, one stream out of them, sorted in bounded memory.
//!
//! Plans are built from DataFusion's operators directly, without its SQL, its optimizer and its file formats.

mod pool;

use std::path::PathBuf;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::SchemaRef;
use datafusion_common::DataFusionError;
use datafusion_execution::config::SessionConfig;
use datafusion_execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion_execution::runtime_env::RuntimeEnvBuilder;
use datafusion_execution::{SendableRecordBatchStream, TaskContext};
use datafusion_physical_expr::expressions::Column;
use datafusion_physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion_physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion_physical_plan::sorts::sort::SortExec;
use datafusion_physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion_physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion_physical_plan::{ExecutionPlan, execute_stream};
use pool::Pool;

/// What a plan may use.
#[derive(Clone, Debug)]
pub struct Room {
    /// Bytes of memory; sorts spill beyond it.
    pub memory: usize,
    /// Rows of a batch. A batch of each partition, and of each spilled run that is being merged, must fit the memory.
    pub batch_rows: usize,
    /// Where sorts go that exceed the memory.
    pub spill_directory: PathBuf,
}

/// The rows of all partitions as one stream: in ascending order of the columns of `sort`, NULL last; in any order where there are none.
///
/// # Errors
/// Those of DataFusion; those of the partitions come with the stream.
pub fn rows_of(
    partitions: Vec<Arc<dyn PartitionStream>>,
    schema: &SchemaRef,
    sort: &[usize],
    room: &Room,
) -> Result<SendableRecordBatchStream, DataFusionError> {
    let count = partitions.len();
    let input: Arc<dyn ExecutionPlan> =
        Arc::new(StreamingTableExec::try_new(Arc::clone(schema), partitions, None, None, false, None)?);
    let order = sort.iter().map(|column| {
        let column = Column::new(schema.field(*column).name(), *column);
        PhysicalSortExpr::new(Arc::new(column), SortOptions { descending: false, nulls_first: false })
    });
    let plan: Arc<dyn ExecutionPlan> = match LexOrdering::new(order) {
        None if count == 1 => input,
        None => Arc::new(CoalescePartitionsExec::new(input)),
        Some(order) if count == 1 => Arc::new(SortExec::new(order, input)),
        Some(order) => {
            let sorted = SortExec::new(order.clone(), input).with_preserve_partitioning(true);
            Arc::new(SortPreservingMergeExec::new(order, Arc::new(sorted)))
        }
    };
    execute_stream(plan, context(room, count)?)
}

fn context(room: &Room, partitions: usize) -> Result<Arc<TaskContext>, DataFusionError> {
    let disk =
        DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![room.spill_directory.clone()]));
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(Pool::new(room.memory)))
        .with_disk_manager_builder(disk)
        .build_arc()?;
    let config = SessionConfig::new()
        .with_batch_size(room.batch_rows)
        .with_target_partitions(partitions)
        .with_sort_spill_reservation_bytes(room.memory / 8 / partitions.max(1));
    Ok(Arc::new(TaskContext::default().with_session_config(config).with_runtime(runtime)))
}

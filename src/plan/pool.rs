//! The memory of a plan.

use std::fmt;

use datafusion_common::{DataFusionError, Result};
use datafusion_execution::memory_pool::{FairSpillPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

/// DataFusion's fair pool, of whose memory the consumers that can spill leave an eighth to those that can't.
///
/// In the pool alone, two sorts that both hold their whole share leave nothing to the merge that one of them begins: it can't spill, and fails
/// for a few KB, though the other sort would give them up.
#[derive(Debug)]
pub(super) struct Pool {
    fair: FairSpillPool,
    size: usize,
}

impl Pool {
    /// Of so many bytes.
    pub(super) fn new(size: usize) -> Pool {
        Pool { fair: FairSpillPool::new(size), size }
    }
}

impl MemoryPool for Pool {
    fn name(&self) -> &str {
        "fair, with slack"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.fair.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.fair.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.fair.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.fair.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let left = (self.size - self.size / 8).saturating_sub(self.fair.reserved());
        if reservation.consumer().can_spill() && additional > left {
            let name = reservation.consumer().name();
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{name} can't have {additional} bytes more: {left} of {self} are left to what can spill"
            )));
        }
        self.fair.try_grow(reservation, additional)
    }

    fn reserved(&self) -> usize {
        self.fair.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.size)
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.name(), self.size)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_can_spill_leaves_room_for_what_cannot() {
        let pool: Arc<dyn MemoryPool> = Arc::new(Pool::new(800));
        let sorts = ["one", "two"].map(|name| MemoryConsumer::new(name).with_can_spill(true).register(&pool));
        let merge = MemoryConsumer::new("merge").register(&pool);
        sorts[0].try_grow(400).unwrap();
        sorts[1].try_grow(300).unwrap();
        assert!(matches!(sorts[1].try_grow(1), Err(DataFusionError::ResourcesExhausted(_))));
        merge.try_grow(100).unwrap();
        assert!(merge.try_grow(1).is_err());
        sorts[0].shrink(400);
        merge.try_grow(300).unwrap();
        assert_eq!(pool.reserved(), 700);
    }
}

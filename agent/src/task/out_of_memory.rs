//! How many of a container's processes the kernel has ended for want of memory.

use std::sync::{Arc, Mutex, PoisonError};

use container::{Container, OutOfMemoryWatch, ProcessError};

/// The count of one container, from its creation on; clones share it.
#[derive(Clone, Default)]
pub(super) struct OutOfMemoryKills(Arc<Mutex<Count>>);

#[derive(Default)]
struct Count {
    /// None where nothing limits memory.
    watch: Option<OutOfMemoryWatch>,
    kills: u64,
}

impl OutOfMemoryKills {
    /// Begins to count for a container that was just created.
    ///
    /// # Errors
    /// When its cgroup cannot be read.
    pub(super) fn of(container: &Container) -> Result<Self, ProcessError> {
        let count = Count {
            watch: container.watch_memory()?,
            kills: 0,
        };
        Ok(Self(Arc::new(Mutex::new(count))))
    }

    /// How many there are by now. Once the container's cgroup is gone the number stays.
    pub(super) fn count(&self) -> u64 {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match count.watch.as_mut().map(OutOfMemoryWatch::take) {
            Some(Ok(more)) => count.kills = count.kills.saturating_add(more),
            Some(Err(error)) => eprintln!(
                "bulkhead-agent: counting kills for want of memory: {:#}",
                anyhow::Error::new(error)
            ),
            None => {}
        }
        count.kills
    }
}

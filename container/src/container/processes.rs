//! The processes of a container and what they use.

use super::Container;
use crate::cgroup::{CgroupError, OutOfMemoryWatch, Statistics};

/// Why a container's processes could not be listed or measured.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Its cgroup could not be read.
    #[error("cannot read the container's cgroup")]
    Cgroup(#[from] CgroupError),
}

impl Container {
    /// The container's processes, by the caller's numbers.
    pub fn processes(&self) -> Result<Vec<i32>, ProcessError> {
        match &self.record.cgroup {
            Some(cgroup) => Ok(cgroup.processes()?),
            None => Ok(Vec::new()),
        }
    }

    /// What the container uses of CPU, memory, processes and devices.
    pub fn statistics(&self) -> Result<Statistics, ProcessError> {
        match &self.record.cgroup {
            Some(cgroup) => Ok(cgroup.statistics()?),
            None => Ok(Statistics::default()),
        }
    }

    /// Watches for the kernel killing the container's processes for want of memory; none where nothing limits memory.
    pub fn watch_memory(&self) -> Result<Option<OutOfMemoryWatch>, ProcessError> {
        match &self.record.cgroup {
            Some(cgroup) => Ok(cgroup.watch_memory()?),
            None => Ok(None),
        }
    }
}

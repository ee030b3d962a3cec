//! Making a process that runs on certain CPUs from its first moment on.

use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this process runs on, and so its next children, changed for as long as one is made.
pub(super) struct AffinityOfChildren {
    own: CpuSet,
}

impl AffinityOfChildren {
    pub(super) fn set(cpus: &CpuSet) -> Result<AffinityOfChildren, Errno> {
        let own = sched_getaffinity(None)?;
        sched_setaffinity(None, cpus)?;
        Ok(AffinityOfChildren { own })
    }
}

impl Drop for AffinityOfChildren {
    fn drop(&mut self) {
        // The set came from the kernel a moment ago. Should its CPUs all have gone, any others are right.
        let _ = sched_setaffinity(None, &self.own);
    }
}

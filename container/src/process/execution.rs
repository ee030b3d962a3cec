//! What a process executes under: its personality, its memory and when it runs.

use rustix::io::Errno;

use super::SetUpError;
use crate::kernel::scheduling::{set_io_priority, set_scheduler};
use crate::plan::{ExecutionPlan, SchedulingPlan};

/// Where the process is in its cgroups, for those bound the nodes it may have.
pub(crate) fn execute_under(plan: &ExecutionPlan) -> Result<(), SetUpError> {
    if let Some(personality) = plan.personality {
        // SAFETY: takes an integer and changes what the kernel tells this process.
        if unsafe { libc::personality(personality) } < 0 {
            let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
            return Err(SetUpError::field("linux.personality", "set it")(errno));
        }
    }
    if let Some(policy) = &plan.memory_policy {
        policy.set().map_err(|errno| {
            let doing = match errno {
                Errno::NOSYS => "set it, because this kernel was built without NUMA (CONFIG_NUMA)",
                Errno::INVAL => {
                    "set it: is every node there, within the container's cpuset, and the mode known to this kernel?"
                }
                _ => "set it",
            };
            SetUpError::field("linux.memoryPolicy", doing)(errno)
        })?;
    }
    Ok(())
}

/// While there is the privilege to run before others.
pub(super) fn schedule(plan: &SchedulingPlan) -> Result<(), SetUpError> {
    if let Some(attributes) = &plan.scheduler {
        set_scheduler(attributes).map_err(|errno| {
            let doing = match errno {
                Errno::PERM => {
                    "set it: policies that go before others need CAP_SYS_NICE, and real-time ones \
                     linux.resources.cpu.realtimeRuntime where the cpu controller shares that out"
                }
                _ => "set it",
            };
            SetUpError::field("process.scheduler", doing)(errno)
        })?;
    }
    if let Some(priority) = plan.io_priority {
        set_io_priority(priority).map_err(SetUpError::field("process.ioPriority", "set it"))?;
    }
    Ok(())
}

//! What a process executes under: its personality, its memory and when it runs.

use rustix::io::Errno;
use rustix::process::Pid;

use super::SetUpError;
use crate::kernel::scheduling::{SchedulingAttributes, set_io_priority, set_scheduler};
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
    set_attributes(None, plan.scheduler.as_ref())?;
    set_priority_of_io(plan)
}

/// The same in a process that is yet to make the one that is to be scheduled so, as far as that inherits it.
pub(super) fn schedule_for_child(plan: &SchedulingPlan) -> Result<(), SetUpError> {
    let inherited = |attributes: &&SchedulingAttributes| attributes.are_inherited();
    set_attributes(None, plan.scheduler.as_ref().filter(inherited))?;
    set_priority_of_io(plan)
}

/// The rest, for the process that was made.
pub(crate) fn schedule_made(process: Pid, plan: &SchedulingPlan) -> Result<(), SetUpError> {
    let not_inherited = |attributes: &&SchedulingAttributes| !attributes.are_inherited();
    set_attributes(Some(process), plan.scheduler.as_ref().filter(not_inherited))
}

fn set_attributes(process: Option<Pid>, attributes: Option<&SchedulingAttributes>) -> Result<(), SetUpError> {
    let Some(attributes) = attributes else {
        return Ok(());
    };
    set_scheduler(process, attributes).map_err(|errno| {
        let doing = match errno {
            Errno::PERM => {
                "set it: policies that go before others need CAP_SYS_NICE, and real-time ones \
                 linux.resources.cpu.realtimeRuntime where the cpu controller shares that out"
            }
            _ => "set it",
        };
        SetUpError::field("process.scheduler", doing)(errno)
    })
}

fn set_priority_of_io(plan: &SchedulingPlan) -> Result<(), SetUpError> {
    match plan.io_priority {
        Some(priority) => {
            set_io_priority(priority).map_err(SetUpError::field("process.ioPriority", "set it"))
        }
        None => Ok(()),
    }
}

//! `sched_setattr(2)` and `ioprio_set(2)`.

use std::mem::size_of;

use rustix::io::Errno;
use rustix::process::Pid;

use super::checked;

/// What a scheduler goes by; fields that its policy does not have are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SchedulingAttributes {
    /// `SCHED_*`.
    pub(crate) policy: u32,
    /// `SCHED_FLAG_*`.
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    /// Nanoseconds, like the two below.
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

impl SchedulingAttributes {
    /// Whether a process has them from the one that made it. One with a deadline makes none at all.
    pub(crate) fn are_inherited(&self) -> bool {
        let resets = self.flags & libc::SCHED_FLAG_RESET_ON_FORK as u64 != 0;
        !resets && self.policy != libc::SCHED_DEADLINE as u32
    }
}

/// `struct sched_attr` (`<linux/sched/types.h>`).
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    lowest_utilization: u32,
    highest_utilization: u32,
}

/// Sets what the process, or with none the calling thread, is scheduled by.
pub(crate) fn set_scheduler(process: Option<Pid>, attributes: &SchedulingAttributes) -> Result<(), Errno> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: attributes.policy,
        flags: attributes.flags,
        nice: attributes.nice,
        priority: attributes.priority,
        runtime: attributes.runtime,
        deadline: attributes.deadline,
        period: attributes.period,
        lowest_utilization: 0,
        highest_utilization: 0,
    };
    // SAFETY: the kernel reads the structure, which says its size; it writes only its own size, on failure, and the
    // structure is not used after that.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_sched_setattr,
            Pid::as_raw(process),
            &raw const attributes,
            0,
        )
    };
    checked(returned).map(|_| ())
}

/// Sets the I/O priority of the calling thread.
pub(crate) fn set_io_priority(priority: u16) -> Result<(), Errno> {
    /// `IOPRIO_WHO_PROCESS` of `<linux/ioprio.h>`.
    const PROCESS: libc::c_int = 1;
    // SAFETY: takes integers only.
    checked(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, libc::c_int::from(priority)) })
        .map(|_| ())
}

//! `sched_setattr(2)` and `ioprio_set(2)`.

use std::mem::size_of;

use rustix::io::Errno;

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

/// Sets what the calling thread is scheduled by.
pub(crate) fn set_scheduler(attributes: &SchedulingAttributes) -> Result<(), Errno> {
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
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(|_| ())
}

/// Sets the I/O priority of the calling thread.
pub(crate) fn set_io_priority(priority: u16) -> Result<(), Errno> {
    /// `IOPRIO_WHO_PROCESS` of `<linux/ioprio.h>`.
    const PROCESS: libc::c_int = 1;
    // SAFETY: takes integers only.
    checked(unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0, libc::c_int::from(priority)) })
        .map(|_| ())
}

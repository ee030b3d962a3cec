//! `clone3(2)`: the processes the engine makes.

use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::checked;

// Values of <linux/sched.h>; they do not fit the c_int that libc's CLONE_ constants have.
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Which side of the fork returned.
pub(crate) enum Forked {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Forks into the namespaces of `namespace_flags` and, on the cgroup2 hierarchy, into `cgroup`. The child starts
/// with every handled signal back at its default action and tells its parent of its end with SIGCHLD.
///
/// # Safety
/// The calling process has one thread, so that no lock of the allocator is held by a thread the child does not
/// have; and the child never returns into, nor unwinds through, its caller's frames, whose destructors belong to the
/// parent.
pub(crate) unsafe fn clone3(namespace_flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked, Errno> {
    // SAFETY: the same promise.
    unsafe { clone3_with(namespace_flags, libc::SIGCHLD as u64, cgroup) }
}

/// The same, but the child becomes one of this process's own parent, told of its end as of this process's.
///
/// # Safety
/// As for [`clone3`].
pub(crate) unsafe fn clone3_for_parent(namespace_flags: u64) -> Result<Forked, Errno> {
    // SAFETY: the same promise.
    unsafe { clone3_with(namespace_flags | libc::CLONE_PARENT as u64, 0, None) }
}

unsafe fn clone3_with(flags: u64, exit_signal: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers, for which zero means "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags | CLONE_PIDFD | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = exit_signal;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the arguments are valid for the size given, and without CLONE_VM the child runs on its own copy of this
    // stack.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    let pid = checked(returned)?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel stored a fresh descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent {
        pid: pid as i32,
        pidfd,
    })
}

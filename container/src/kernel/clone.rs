//! `clone(2)`, for where a filter of system calls may be in force: many forbid clone3(2), whose flags they cannot see.

use rustix::io::Errno;

use super::checked;
use super::pid_slot::PidSlot;

/// What the call is given, for a filter to judge.
pub(crate) const FLAGS: libc::c_int = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::SIGCHLD;

/// Which side of the fork returned.
pub(crate) enum Side {
    Child,
    Maker,
}

/// Forks a child of this process's own parent, told of its end as of this process's. Before it runs its pid, as this
/// process counts, is in `slot`.
///
/// # Safety
/// The calling process has one thread, so that no lock of the allocator is held by a thread the child does not have; and
/// the child never returns into, nor unwinds through, its caller's frames, whose destructors belong to others.
pub(crate) unsafe fn clone_for_parent(slot: &PidSlot) -> Result<Side, Errno> {
    let none: libc::c_ulong = 0;
    // SAFETY: without CLONE_VM the child runs on its own copy of this stack. The kernel writes a pid to the slot, which
    // is alive.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(FLAGS),
            none,
            slot.as_ptr(),
            none,
            none,
        )
    };
    Ok(match checked(returned)? {
        0 => Side::Child,
        _ => Side::Maker,
    })
}

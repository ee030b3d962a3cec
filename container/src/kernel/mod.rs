//! System calls that `rustix` does not wrap, one file each. Nothing here decides anything.

pub(crate) mod calls;
pub(crate) mod clone;
pub(crate) mod clone3;
pub(crate) mod close_range;
pub(crate) mod execve;
pub(crate) mod keyring;
pub(crate) mod label;
mod loopback;
pub(crate) mod memory_policy;
pub(crate) mod mount_setattr;
pub(crate) mod namespace_kind;
pub(crate) mod own_environment;
pub(crate) mod pid_slot;
pub(crate) mod pidfd;
pub(crate) mod scheduling;
pub(crate) mod seccomp;
pub(crate) mod signal_disposition;
pub(crate) mod threads;

pub use close_range::close_on_exec_all_but_stdio_and;
pub use loopback::bring_loopback_up;
pub use mount_setattr::{make_mounts_inert, make_mounts_private, set_read_only, set_read_only_recursively};

use rustix::io::Errno;

/// The result of a raw system call through `libc::syscall`, which reports failure as -1 and `errno`.
pub(crate) fn checked(returned: libc::c_long) -> Result<libc::c_long, Errno> {
    if returned >= 0 {
        return Ok(returned);
    }
    let code = std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO);
    Err(Errno::from_raw_os_error(code))
}

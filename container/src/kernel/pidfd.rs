//! Signals through a process descriptor, with any signal number.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Errno;

use super::checked;

/// Sends signal `number` to the process of `pidfd`; `ESRCH` when it is gone.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    // SAFETY: integers and a null siginfo, for which the kernel fills in what kill(2) would.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    checked(returned).map(|_| ())
}

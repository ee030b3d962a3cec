//! Process descriptors: signals with any number, and other processes' descriptors.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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

/// A copy of descriptor `number` of the process of `pidfd`; `EBADF` when it has none of that number.
pub(crate) fn get_descriptor(pidfd: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: takes integers only.
    let returned = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) };
    // SAFETY: the kernel returned a fresh descriptor, closed on execution, that nothing else owns.
    checked(returned).map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

/// Waits for the end of the process of `pidfd`, which becomes readable then, whoever its parent is. `ETIMEDOUT` when it
/// lives on for longer than `patience`.
pub(crate) fn wait_for_end(pidfd: BorrowedFd<'_>, patience: Duration) -> Result<(), Errno> {
    let deadline = Instant::now().checked_add(patience);
    loop {
        // A moment beyond all clocks is none to wait for.
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(
            &mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)],
            left.as_ref(),
        ) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

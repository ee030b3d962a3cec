//! Getting the listener of a filter that notifies out of the process that loads it.
//!
//! The listener comes into being in the filtered process, and somebody else has to have it before the filter can ask
//! about a call. That process cannot send it: sending is a system call, and the profile may hand on or forbid that very
//! call. So it says beforehand which number the listener will get, which is the lowest free one, and loads the filter;
//! the one at the other end of its socket takes the listener out of it with `pidfd_getfd(2)` as soon as it is there.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::kernel::pidfd::get_descriptor;

/// Between two looks at a process that is about to load its filter.
const PAUSE: Duration = Duration::from_micros(100);

/// The number that the next descriptor of this process will get, which has one thread.
pub(crate) fn lowest_free_descriptor() -> Result<RawFd, Errno> {
    let probe = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok(probe.as_raw_fd())
}

/// Takes the descriptor `number` out of a process that is about to have it.
///
/// # Errors
/// `ESRCH` when the process ends first; `EPERM` without CAP_SYS_PTRACE over it.
pub(crate) fn take_listener(process: BorrowedFd<'_>, number: RawFd) -> Result<OwnedFd, Errno> {
    let pause = Timespec::try_from(PAUSE).map_err(|_| Errno::INVAL)?;
    loop {
        match get_descriptor(process, number) {
            Err(Errno::BADF) => {}
            result => return result,
        }
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut ended, Some(&pause)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Err(Errno::SRCH),
            Err(errno) => return Err(errno),
        }
    }
}

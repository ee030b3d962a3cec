//! `close_range(2)`: everything a container must not inherit.

use std::os::fd::RawFd;

use rustix::io::Errno;

use super::checked;

/// Closes every descriptor from 3 on, save those in `kept`.
///
/// # Safety
/// Nothing in this process uses, or drops the owner of, a descriptor that is not kept.
pub(crate) unsafe fn close_all_but_stdio_and(kept: &mut [RawFd]) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut first: u32 = 3;
    for &fd in kept.iter() {
        let fd = fd as u32;
        if fd > first {
            close(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close(first, u32::MAX)
}

fn close(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: takes integers only; what it closes is the caller's promise.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(|_| ())
}

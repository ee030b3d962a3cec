//! `close_range(2)`: everything a container must not inherit.

use std::os::fd::RawFd;

use rustix::io::Errno;

use super::checked;

/// How far descriptors are closed one by one where a filter of system calls knows no ranges.
const CLOSED_SINGLY: u32 = 1 << 10;

/// Closes every descriptor from 3 on, save those in `kept`. Where a filter in force forbids the call, those with high
/// numbers stay open.
///
/// # Safety
/// Nothing in this process uses, or drops the owner of, a descriptor that is not kept.
pub(crate) unsafe fn close_all_but_stdio_and(kept: &mut [RawFd]) -> Result<(), Errno> {
    for_all_but_stdio_and(kept, |first, last| match close_range(first, last, 0) {
        Err(Errno::PERM | Errno::NOSYS) => {
            for descriptor in first..last.min(CLOSED_SINGLY) + 1 {
                // SAFETY: takes an integer only; what it closes is the caller's promise.
                unsafe { libc::close(descriptor as RawFd) };
            }
            Ok(())
        }
        result => result,
    })
}

/// Has every descriptor from 3 on, save those in `kept`, close when a program is executed.
///
/// # Errors
/// When a filter of system calls forbids it.
pub fn close_on_exec_all_but_stdio_and(kept: &mut [RawFd]) -> Result<(), Errno> {
    for_all_but_stdio_and(kept, |first, last| {
        close_range(first, last, libc::CLOSE_RANGE_CLOEXEC as libc::c_int)
    })
}

fn for_all_but_stdio_and(
    kept: &mut [RawFd],
    change: impl Fn(u32, u32) -> Result<(), Errno>,
) -> Result<(), Errno> {
    kept.sort_unstable();
    let mut first: u32 = 3;
    for &fd in kept.iter() {
        let fd = fd as u32;
        if fd > first {
            change(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    change(first, u32::MAX)
}

fn close_range(first: u32, last: u32, flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: takes integers only; what it closes is the caller's promise.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(|_| ())
}

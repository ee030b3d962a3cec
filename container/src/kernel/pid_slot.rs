//! A pid in memory that a process shares with the one that made it, and with nobody else.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;
use rustix::process::Pid;

use super::checked;

/// Where the kernel writes the pid of a process that is made by a child.
///
/// A descriptor would be inherited by the process that is made, and whoever can look into that could tell any number.
pub(crate) struct PidSlot(NonNull<AtomicI32>);

const SIZE: usize = size_of::<AtomicI32>();

impl PidSlot {
    /// An empty one, shared with the children that are made from now on.
    pub(crate) fn new() -> Result<PidSlot, Errno> {
        // SAFETY: a new mapping, of which the kernel chooses the place, touches no memory in use.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOMEM));
        }
        NonNull::new(address.cast()).map(PidSlot).ok_or(Errno::NOMEM)
    }

    /// Keeps it from the children that the calling process makes from now on.
    pub(crate) fn keep_from_children(&self) -> Result<(), Errno> {
        // SAFETY: changes what children get of a mapping that is this value's own.
        let returned = unsafe { libc::madvise(self.0.as_ptr().cast(), SIZE, libc::MADV_DONTFORK) };
        checked(returned.into()).map(|_| ())
    }

    /// What was written; none before.
    pub(crate) fn read(&self) -> Option<Pid> {
        // SAFETY: the mapping is aligned, begins as zeros and lives as long as this value.
        Pid::from_raw(unsafe { self.0.as_ref() }.load(Ordering::SeqCst))
    }

    /// For the kernel to write to.
    pub(super) fn as_ptr(&self) -> *mut libc::pid_t {
        self.0.as_ptr().cast()
    }
}

impl Drop for PidSlot {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), SIZE) };
    }
}

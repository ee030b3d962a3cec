//! Following a process that makes the one the caller wants, as another child of the caller.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, waitid};

use crate::kernel::pid_slot::PidSlot;
use crate::kernel::pidfd::{send_signal, wait_for_end};
use crate::process::channel::PATIENCE;

/// A process that makes another one and ends.
pub(super) struct Maker<'a> {
    pub(super) pidfd: OwnedFd,
    /// Where it has the other's pid written.
    pub(super) made: &'a PidSlot,
}

impl Maker<'_> {
    /// Waits for its end. Returns the process that it made, if it did.
    pub(super) fn see_it_end(&self) -> Result<Option<(Pid, OwnedFd)>, Errno> {
        wait_for_end(self.pidfd.as_fd(), PATIENCE)?;
        wait_for(&self.pidfd)?;
        self.find_made()
    }

    fn find_made(&self) -> Result<Option<(Pid, OwnedFd)>, Errno> {
        let Some(pid) = self.made.read() else {
            return Ok(None);
        };
        // A child of this process: it keeps its number until this process has waited for it.
        Ok(Some((pid, pidfd_open(pid, PidfdFlags::empty())?)))
    }

    /// Ends it, and then what it made.
    pub(super) fn undo(&self) {
        end(&self.pidfd);
        if let Ok(Some((_, pidfd))) = self.find_made() {
            end(&pidfd);
        }
    }
}

/// Kills a child and waits for its end.
pub(super) fn end(pidfd: &OwnedFd) {
    // It may have ended already; nothing but its end is waited for.
    let _ = send_signal(pidfd.as_fd(), libc::SIGKILL);
    let _ = wait_for(pidfd);
}

/// Waits for a child. None when somebody else waited for it first.
pub(super) fn wait_for(pidfd: &OwnedFd) -> Result<Option<WaitIdStatus>, Errno> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

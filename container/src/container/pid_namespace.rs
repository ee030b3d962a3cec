//! Joining a pid namespace, which a process can only do for its children.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::CreateError;

/// The pid namespace for this process's next children, changed for as long as one is made.
pub(super) struct PidNamespaceOfChildren {
    own: OwnedFd,
    restored: bool,
}

impl PidNamespaceOfChildren {
    pub(super) fn set(namespace: BorrowedFd<'_>) -> Result<PidNamespaceOfChildren, CreateError> {
        let set = || -> Result<OwnedFd, Errno> {
            let path = "/proc/self/ns/pid";
            let own = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            move_into_link_name_space(namespace, Some(LinkNameSpaceType::ProcessID))?;
            Ok(own)
        };
        Ok(PidNamespaceOfChildren {
            own: set().map_err(CreateError::step("join the pid namespace"))?,
            restored: false,
        })
    }

    pub(super) fn restore(mut self) -> Result<(), CreateError> {
        self.restored = true;
        move_into_link_name_space(self.own.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .map_err(CreateError::step("return to the caller's pid namespace"))
    }
}

impl Drop for PidNamespaceOfChildren {
    fn drop(&mut self) {
        if !self.restored {
            // On the way out with another error; a process may always return to its own namespace.
            let _ = move_into_link_name_space(self.own.as_fd(), Some(LinkNameSpaceType::ProcessID));
        }
    }
}

//! The mount that a container without a mount namespace leaves in its caller's.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};

/// How to know the mount again at the root's folder. Others may mount there too, or unmount it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootMount {
    /// What was there before.
    over: u64,
    /// None until creation is complete.
    own: Option<u64>,
}

impl RootMount {
    /// Looks at the folder before anything is mounted there.
    pub(crate) fn expected_at(path: &Path) -> Result<RootMount, Errno> {
        let (over, _) = look(path)?;
        Ok(RootMount { over, own: None })
    }

    /// The same when it is there.
    pub(crate) fn found_at(self, path: &Path) -> Result<RootMount, Errno> {
        let (own, _) = look(path)?;
        Ok(RootMount {
            own: Some(own),
            ..self
        })
    }

    /// Unmounts it with all below it, if it is still there.
    pub(crate) fn remove(self, path: &Path) -> Result<(), Errno> {
        let (found, is_mount) = match look(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            found => found?,
        };
        let is_own = match self.own {
            Some(own) => found == own,
            None => found != self.over,
        };
        if is_own && is_mount {
            unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        } else {
            Ok(())
        }
    }
}

/// The number of the topmost mount at the path, and whether the path is where it begins.
fn look(path: &Path) -> Result<(u64, bool), Errno> {
    let statx = statx(CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID)?;
    Ok((
        statx.stx_mnt_id,
        statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    ))
}

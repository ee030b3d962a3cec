//! Removing a container's cgroups: exactly what was made.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

use super::{Cgroup, CgroupError, tree};

/// A cgroup can stay busy for a moment after its last process died.
const PATIENCE: Duration = Duration::from_secs(5);

impl Cgroup {
    /// Removes the cgroups, what the container made below them, and the parents that were made for them and are
    /// empty. Done twice, the second time does nothing.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        // Usually nobody is left; killing is only for when somebody is.
        let vacant = |member: &super::Member| matches!(fs::rmdir(&member.path), Ok(()) | Err(Errno::NOENT));
        if !self.members.first().is_some_and(vacant) {
            self.kill()?;
        }
        for member in &self.members {
            remove_with_children(&member.path)?;
        }
        for parent in &self.made_parents {
            remove_if_empty(parent)?;
        }
        Ok(())
    }
}

fn remove_with_children(folder: &Path) -> Result<(), CgroupError> {
    // Usually there is nothing below.
    match fs::rmdir(folder) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(_) => {}
    }
    tree::visit(folder, |node| match node.above {
        Some((parent, name)) => remove_patiently(folder, || fs::unlinkat(parent, name, AtFlags::REMOVEDIR)),
        None => remove_patiently(folder, || fs::rmdir(folder)),
    })
}

fn remove_patiently(folder: &Path, remove: impl Fn() -> Result<(), Errno>) -> Result<(), CgroupError> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(100);
    loop {
        match remove() {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < deadline => {}
            Err(errno) => return Err(CgroupError::io("remove the cgroup", folder, errno)),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn remove_if_empty(folder: &Path) -> Result<(), CgroupError> {
    match fs::rmdir(folder) {
        Ok(()) | Err(Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => Ok(()),
        Err(errno) => Err(CgroupError::io("remove the cgroup", folder, errno)),
    }
}

//! Being told when the kernel kills for want of memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Cgroup, CgroupError, write};

/// A descriptor that polls ready when a container runs out of memory.
#[derive(Debug)]
pub struct OutOfMemoryWatch {
    descriptor: OwnedFd,
    folder: PathBuf,
    /// In version 2, how many kills were seen; version 1 counts for us.
    seen: Option<u64>,
}

impl Cgroup {
    /// Watches the container's memory; none where no controller does.
    pub(crate) fn watch_memory(&self) -> Result<Option<OutOfMemoryWatch>, CgroupError> {
        match (self.version1("memory"), self.unified()) {
            (Some(folder), _) => watch_version1(folder.to_owned()).map(Some),
            (None, Some(member)) => watch_version2(member.path.clone()),
            (None, None) => Ok(None),
        }
    }
}

fn watch_version1(folder: PathBuf) -> Result<OutOfMemoryWatch, CgroupError> {
    let control = folder.join("memory.oom_control");
    let failed = |errno| CgroupError::io("watch", &control, errno);
    let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
    let event =
        rustix::fs::open(&control, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let registration = format!("{} {}", descriptor.as_raw_fd(), event.as_raw_fd());
    write(&folder.join("cgroup.event_control"), &registration).map_err(failed)?;
    Ok(OutOfMemoryWatch {
        descriptor,
        folder,
        seen: None,
    })
}

fn watch_version2(folder: PathBuf) -> Result<Option<OutOfMemoryWatch>, CgroupError> {
    let file = folder.join("memory.events");
    let descriptor = match rustix::fs::open(&file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(descriptor) => descriptor,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(CgroupError::io("watch", &file, errno)),
    };
    let mut watch = OutOfMemoryWatch {
        descriptor,
        folder,
        seen: Some(0),
    };
    watch.take()?;
    Ok(Some(watch))
}

impl OutOfMemoryWatch {
    /// What to poll the descriptor for.
    pub fn poll_flags(&self) -> PollFlags {
        match self.seen {
            None => PollFlags::IN,
            Some(_) => PollFlags::PRI,
        }
    }

    /// How often the container ran out of memory since this was last asked. It does not wait.
    pub fn take(&mut self) -> Result<u64, CgroupError> {
        let failed = |errno| CgroupError::io("read the events of", &self.folder, errno);
        let Some(seen) = self.seen else {
            let mut count = [0; 8];
            return match rustix::io::read(&self.descriptor, &mut count) {
                // The kernel also tells of the cgroup's removal this way.
                Ok(_) if !self.folder.exists() => Ok(0),
                Ok(_) => Ok(u64::from_ne_bytes(count)),
                Err(Errno::AGAIN) => Ok(0),
                Err(errno) => Err(failed(errno)),
            };
        };
        let mut text = [0; 512];
        let length = match rustix::io::pread(&self.descriptor, &mut text, 0) {
            Ok(length) => length,
            Err(Errno::NODEV) => return Ok(0),
            Err(errno) => return Err(failed(errno)),
        };
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
        let kills = text
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
            .unwrap_or(seen);
        self.seen = Some(kills);
        Ok(kills.saturating_sub(seen))
    }
}

impl AsFd for OutOfMemoryWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

//! Waiting for what `cgroup.events` of cgroup2 tells.

use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Waits until the file holds a line, as in `frozen 1`. False when it does not by the deadline.
pub(super) fn wait_for_line(folder: &Path, line: &str, deadline: Instant) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let events = rustix::fs::open(folder.join("cgroup.events"), flags, Mode::empty())?;
    loop {
        // Reading also arms the next notice of a change.
        let mut text = [0; 256];
        let length = rustix::io::pread(&events, &mut text, 0)?;
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
        if text.lines().any(|found| found == line) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

//! A process that can be told from a later one with the same number.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

/// A process number with the moment its process began, in clock ticks since boot: together they name one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: i32,
    start_time: u64,
}

impl ProcessIdentity {
    /// The identity of the living process `pid`.
    ///
    /// # Errors
    /// ESRCH when there is none; another when `/proc` cannot be read.
    pub fn of(pid: i32) -> Result<ProcessIdentity, Errno> {
        let found = Stat::read(pid)?.ok_or(Errno::SRCH)?;
        Ok(ProcessIdentity {
            pid,
            start_time: found.start_time,
        })
    }

    /// Whether the process still runs; one that ended and was not waited for yet does not.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn is_alive(&self) -> Result<bool, Errno> {
        let found = Stat::read(self.pid)?;
        Ok(found.is_some_and(|stat| stat.start_time == self.start_time && !b"ZXx".contains(&stat.state)))
    }

    /// A descriptor of the process; none when it ended and was waited for. The start time is compared after the
    /// descriptor is open, so that it cannot be another's.
    ///
    /// # Errors
    /// When there are no descriptors left, or `/proc` cannot be read.
    pub fn open(&self) -> Result<Option<OwnedFd>, Errno> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // EINVAL: the number now belongs to a thread that leads no process.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let is_it = Stat::read(self.pid)?.is_some_and(|stat| stat.start_time == self.start_time);
        Ok(is_it.then_some(pidfd))
    }
}

/// What is needed of `/proc/<pid>/stat` (proc(5)).
struct Stat {
    state: u8,
    start_time: u64,
}

impl Stat {
    /// None when there is no such process.
    fn read(pid: i32) -> Result<Option<Stat>, Errno> {
        let opened = rustix::fs::open(
            format!("/proc/{pid}/stat"),
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let file = match opened {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let mut buffer = [0; 1024];
        let length = match rustix::io::read(file.as_fd(), &mut buffer) {
            Ok(length) => length,
            Err(Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        Stat::parse(buffer.get(..length).unwrap_or_default())
            .map(Some)
            .ok_or(Errno::BADMSG)
    }

    /// The second field is the command's name in parentheses, which may itself hold spaces and parentheses: the
    /// last one closes it. The state is field 3, the start time field 22.
    fn parse(line: &[u8]) -> Option<Stat> {
        let after_name = line.iter().rposition(|&byte| byte == b')')? + 1;
        let mut fields = line
            .get(after_name..)?
            .split(|&byte| byte == b' ')
            .filter(|field| !field.is_empty());
        let state = *fields.next()?.first()?;
        let start_time = std::str::from_utf8(fields.nth(18)?).ok()?.trim().parse().ok()?;
        Some(Stat { state, start_time })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = b"7 (a) Z 1 (b) S 1 7 7 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 98765 1 2 3";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.state, stat.start_time), (b'S', 98765));
    }

    #[test]
    fn a_cut_line_is_not_parsed() {
        assert!(Stat::parse(b"7 (a) S 1 7").is_none());
        assert!(Stat::parse(b"").is_none());
    }

    #[test]
    fn this_process_is_alive_and_one_with_its_number_but_another_start_is_not() {
        let me = ProcessIdentity::of(std::process::id() as i32).unwrap();
        assert!(me.is_alive().unwrap());
        assert!(me.open().unwrap().is_some());
        let earlier = ProcessIdentity {
            start_time: me.start_time - 1,
            ..me
        };
        assert!(!earlier.is_alive().unwrap());
        assert!(earlier.open().unwrap().is_none());
    }

    #[test]
    fn a_process_that_ended_is_not_alive_even_before_it_is_waited_for() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id() as i32).unwrap();
        let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut ended, None).unwrap();
        assert!(!identity.is_alive().unwrap());
        assert!(identity.open().unwrap().is_some());
        child.wait().unwrap();
        assert!(!identity.is_alive().unwrap());
        assert!(identity.open().unwrap().is_none());
    }
}

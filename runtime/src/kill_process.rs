//! Ending a process that is known by what was written down of it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use container::ProcessIdentity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};

/// Kills the process, if it still is the same one, and waits until it has ended.
///
/// # Errors
/// When it cannot be killed, or still lives after `patience`.
pub fn kill_and_wait(process: ProcessIdentity, patience: Duration) -> io::Result<()> {
    let Some(pidfd) = process.open()? else {
        return Ok(());
    };
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        // It has ended, and its parent has not asked how yet.
        Err(Errno::SRCH) => return Ok(()),
        sent => sent?,
    }
    if has_ended_within(&pidfd, patience)? {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!(
            "process {} still lives {} s after SIGKILL",
            process.pid,
            patience.as_secs()
        ),
    ))
}

/// Whether the process ends by itself within this time, or has ended.
///
/// # Errors
/// When it cannot be looked at.
pub fn ends_within(process: ProcessIdentity, patience: Duration) -> io::Result<bool> {
    match process.open()? {
        Some(pidfd) => has_ended_within(&pidfd, patience),
        None => Ok(true),
    }
}

fn has_ended_within(pidfd: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let deadline = Timespec::try_from(patience).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    });
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&deadline)) {
            Err(Errno::INTR) => {}
            ended => return Ok(ended? != 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_ended_and_one_that_is_gone_is_none_to_end() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = ProcessIdentity::of(child.id().cast_signed()).unwrap();
        assert!(!ends_within(process, Duration::ZERO).unwrap());
        kill_and_wait(process, Duration::from_secs(10)).unwrap();
        // Ended, and not waited for.
        kill_and_wait(process, Duration::from_secs(10)).unwrap();
        assert!(ends_within(process, Duration::ZERO).unwrap());
        child.wait().unwrap();
        assert!(ends_within(process, Duration::ZERO).unwrap());
        kill_and_wait(process, Duration::from_secs(10)).unwrap();
    }
}

//! Waiting to be started.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use crate::process::channel::InitChannel;
use crate::process::{Ready, SETUP_FAILED, close_everything_but};

/// Reports, waits for a starter, and becomes the program. Returns the exit code if it cannot.
pub(super) fn report_wait_and_become(ready: &Ready, channel: &InitChannel, start: &OwnedFd) -> i32 {
    if !channel.report(&ready.report(), ready.terminal.as_ref()) {
        return SETUP_FAILED;
    }
    // The wait can be long, and the caller's descriptors are the caller's: a pipe must end when the caller closes it.
    // SAFETY: the start socket alone is used from here on, and everything here ends in execve or _exit.
    if unsafe { close_everything_but(&mut [start.as_raw_fd()]) }.is_err() {
        return SETUP_FAILED;
    }
    let Ok(starter) = wait_for_starter(start) else {
        return SETUP_FAILED;
    };
    // On success the starter's socket closes with the exec, and that is what it waits for.
    let (code, report) = ready.become_program();
    // A starter that died meanwhile needs no answer; the exit code says the same.
    let _ = send(&starter, &report.encode(), SendFlags::NOSIGNAL);
    code
}

/// Waits until somebody connects and says go. One who dies before that does not start the container.
fn wait_for_starter(start: &OwnedFd) -> Result<OwnedFd, Errno> {
    loop {
        let starter = match accept_with(start, SocketFlags::CLOEXEC) {
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            result => result?,
        };
        let mut go = [0];
        if let Ok((1, _)) = recv(&starter, &mut go, RecvFlags::empty()) {
            return Ok(starter);
        }
    }
}

//! Waiting to be started, and becoming the program.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use super::channel::{InitChannel, Report};
use super::command::{CommandError, CommandFailure};
use super::{SETUP_FAILED, close_everything_but};
use crate::kernel::execve::{StringArray, execve};

/// What is left to do.
pub(super) struct Ready {
    pub(super) path: CString,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    /// The caller's end of the terminal.
    pub(super) terminal: Option<OwnedFd>,
    pub(super) warnings: Vec<String>,
}

/// Reports, waits for a starter, and becomes the program. Returns the exit code if it cannot.
pub(super) fn report_wait_and_become(ready: &Ready, channel: &InitChannel, start: &OwnedFd) -> i32 {
    let report = Report::Ready {
        warnings: ready.warnings.clone(),
    };
    if !channel.report(&report, ready.terminal.as_ref()) {
        return SETUP_FAILED;
    }
    // The wait can be long, and the caller's descriptors are the caller's: a pipe must end when the caller closes it.
    if close_everything_but(&mut [start.as_raw_fd()]).is_err() {
        return SETUP_FAILED;
    }
    let arguments = StringArray::new(ready.arguments.iter().map(CString::as_c_str));
    let environment = StringArray::new(ready.environment.iter().map(CString::as_c_str));
    let Ok(starter) = wait_for_starter(start) else {
        return SETUP_FAILED;
    };
    // On success the starter's socket closes with the exec, and that is what it waits for.
    let errno = execve(&ready.path, &arguments, &environment);
    let failure = CommandFailure::of(errno);
    let error = CommandError::execute(&ready.path, errno);
    let messages = super::messages(&error);
    let packet = Report::Failed {
        failure: Some(failure),
        messages,
    };
    // A starter that died meanwhile needs no answer; the exit code says the same.
    let _ = send(&starter, &packet.encode(), SendFlags::NOSIGNAL);
    failure.exit_code()
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

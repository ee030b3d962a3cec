//! Waiting to be started.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use super::Init;
use crate::hook::{self, DefaultEnvironment};
use crate::process::channel::Report;
use crate::process::{self, Ready, SETUP_FAILED, close_everything_but};
use crate::state::Status;

/// Where the process waits to be started.
pub(crate) enum StartSocket {
    /// For anyone who connects.
    Listening(OwnedFd),
    /// For the one at the other end.
    Connected(OwnedFd),
}

impl AsFd for StartSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            StartSocket::Listening(socket) | StartSocket::Connected(socket) => socket.as_fd(),
        }
    }
}

impl Init<'_> {
    /// Reports, waits for a starter, and becomes the program. Returns the exit code if it cannot.
    pub(super) fn report_wait_and_become(&self, ready: &Ready<'_>) -> i32 {
        // The agent is told by the creator, and has what it asked for before anybody can start the program.
        if ready.asks_an_agent()
            && let Err(error) = ready.load_filter(self.channel.as_fd())
        {
            self.channel.report(&error.report(), None);
            return SETUP_FAILED;
        }
        if !self.channel.report(&ready.report(), ready.terminal.as_ref()) {
            return SETUP_FAILED;
        }
        // The wait can be long, and the caller's descriptors are the caller's: a pipe must end when the caller closes
        // it.
        let mut kept = process::preserved_and(&self.preserved, self.start.as_fd().as_raw_fd());
        // SAFETY: the start socket alone is used from here on, and everything here ends in execve or _exit.
        if unsafe { close_everything_but(&mut kept) }.is_err() {
            return SETUP_FAILED;
        }
        if !self.plan.process.is_set() {
            return self.refuse_starters();
        }
        let Ok(starter) = wait_for_starter(&self.start) else {
            return SETUP_FAILED;
        };
        let (code, report) = self.become_program(ready, starter.as_fd());
        // A starter that died meanwhile needs no answer; the exit code says the same.
        let _ = send(&starter, &report.encode(), SendFlags::NOSIGNAL);
        code
    }

    /// The container stays what it is, as if nobody had tried.
    fn refuse_starters(&self) -> i32 {
        while let Ok(starter) = wait_for_starter(&self.start) {
            // One that died meanwhile needs no answer.
            let _ = send(&starter, &Report::NoProcess.encode(), SendFlags::NOSIGNAL);
        }
        SETUP_FAILED
    }

    /// On success the starter's socket closes with the execution, and that is what it waits for.
    fn become_program(&self, ready: &Ready<'_>, starter: BorrowedFd<'_>) -> (i32, Report) {
        // The hooks' programs are the image's, so they are filtered like any other.
        let loaded = match ready.asks_an_agent() {
            true => Ok(()),
            false => ready.load_filter(starter),
        };
        let prepared = loaded.and_then(|()| {
            let state = self.state_for_hooks(Status::Created);
            let environment = DefaultEnvironment::These(&ready.environment);
            Ok(hook::run_all(
                &self.plan.hooks.start_container,
                &state,
                environment,
            )?)
        });
        match prepared {
            Ok(()) => ready.become_program(),
            Err(error) => (SETUP_FAILED, error.report()),
        }
    }
}

/// Waits until somebody says go. One of many who dies before that does not start the container.
fn wait_for_starter(start: &StartSocket) -> Result<OwnedFd, Errno> {
    let says_go = |starter: &OwnedFd| matches!(recv(starter, &mut [0], RecvFlags::empty()), Ok((1, _)));
    let listener = match start {
        StartSocket::Connected(starter) if says_go(starter) => {
            return rustix::io::fcntl_dupfd_cloexec(starter, 3);
        }
        StartSocket::Connected(_) => return Err(Errno::PIPE),
        StartSocket::Listening(listener) => listener,
    };
    loop {
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            result => {
                let starter = result?;
                if says_go(&starter) {
                    return Ok(starter);
                }
            }
        }
    }
}

//! `start`: the program runs.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::{Container, InitFailure};
use crate::hook::{self, DefaultEnvironment, HookError};
use crate::kernel::pidfd::{send_signal, wait_for_end};
use crate::process::CommandFailure;
use crate::process::channel::Report;
use crate::state::{StateError, Status};

/// How long a process that failed may take to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Only a created container can be started.
    #[error("container `{id}` is {status} and not created, so it cannot be started")]
    NotCreated {
        /// The container.
        id: String,
        /// What it is instead.
        status: Status,
    },
    /// There is nothing to start. The container remains created.
    #[error("container `{id}` cannot be started: its configuration has no process")]
    NoProcess {
        /// The container.
        id: String,
    },
    /// The kernel refused to execute the program. The container is stopped.
    #[error("cannot start the container's program")]
    Program(#[source] InitFailure),
    /// The container's process could not be spoken to.
    #[error("cannot reach the process of container `{id}`")]
    Unreachable {
        /// The container.
        id: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A hook failed once the program ran. The program was killed; the container can be deleted.
    #[error("the container was stopped again")]
    Hook(#[from] HookError),
    /// The program ran, a hook failed, and the program could not be killed.
    #[error("{hook}, and then the container's process could not be killed")]
    NotStopped {
        /// The hook.
        hook: HookError,
        /// Why it still runs.
        #[source]
        source: io::Error,
    },
    /// The state could not be read or changed.
    #[error(transparent)]
    State(#[from] StateError),
}

impl StartError {
    /// Whether the program is what is wrong, and how: 127 or 126 to a shell.
    pub fn command_failure(&self) -> Option<CommandFailure> {
        match self {
            StartError::Program(failure) => failure.command_failure(),
            _ => None,
        }
    }
}

impl Container {
    /// Lets the container's process become its program. Returns when the kernel has executed it, or refused to.
    pub fn start(&self) -> Result<(), StartError> {
        let _lock = self.directory.lock()?;
        if self.status_but_for_start()? == Status::Paused {
            // It would never answer.
            return Err(StartError::NotCreated {
                id: self.id.to_string(),
                status: Status::Paused,
            });
        }
        let unreachable = |errno: Errno| StartError::Unreachable {
            id: self.id.to_string(),
            source: errno.into(),
        };
        let Some(socket) = self.say_go()? else {
            // Also where a starter died right after its work: what it did not remove would tell of a container that
            // still waits.
            self.directory.forget_start()?;
            return Err(StartError::NotCreated {
                id: self.id.to_string(),
                status: self.status()?,
            });
        };
        let report = receive(&socket).map_err(unreachable)?;
        if let Some(Report::NoProcess) = report {
            return Err(StartError::NoProcess {
                id: self.id.to_string(),
            });
        }
        self.directory.forget_start()?;
        match report {
            // The socket was closed by the execution, and nothing was said before.
            None => self.run_poststart_hooks(),
            Some(Report::Failed { failure, messages }) => {
                self.see_it_end();
                Err(StartError::Program(InitFailure::new(failure, messages)))
            }
            Some(_) => Err(unreachable(Errno::BADMSG)),
        }
    }

    /// Tells the process that waits to be started; none when it does not. It answers by the connection that is returned.
    fn say_go(&self) -> Result<Option<OwnedFd>, StartError> {
        let unreachable = |source| StartError::Unreachable {
            id: self.id.to_string(),
            source,
        };
        let socket = match &self.starter {
            Some(starter) => starter.try_clone().map_err(unreachable)?,
            None => match self.directory.connect_to_start()? {
                Some(socket) => socket,
                None => return Ok(None),
            },
        };
        match send(&socket, &[1], SendFlags::NOSIGNAL) {
            Ok(_) => Ok(Some(socket)),
            // It was started, or it died.
            Err(Errno::PIPE) if self.starter.is_some() => Ok(None),
            Err(errno) => Err(unreachable(errno.into())),
        }
    }

    /// A process that has told its failure ends next, and then the container is stopped, as the caller expects. Should it
    /// not, that shows in the state.
    fn see_it_end(&self) {
        if let Ok(Some(process)) = self.pidfd() {
            let _ = wait_for_end(process.as_fd(), PATIENCE);
        }
    }

    fn run_poststart_hooks(&self) -> Result<(), StartError> {
        if self.record.poststart_hooks.is_empty() {
            return Ok(());
        }
        let Err(hook) = hook::run_all(
            &self.record.poststart_hooks,
            &self.state()?,
            DefaultEnvironment::Inherited,
        ) else {
            return Ok(());
        };
        let kill = || match self.pidfd()? {
            Some(pidfd) => send_signal(pidfd.as_fd(), libc::SIGKILL).map_err(io::Error::from),
            None => Ok(()),
        };
        match kill() {
            Ok(()) => Err(StartError::Hook(hook)),
            // It ended by itself.
            Err(source) if source.raw_os_error() == Some(libc::ESRCH) => Err(StartError::Hook(hook)),
            Err(source) => Err(StartError::NotStopped { hook, source }),
        }
    }
}

/// What the container's process says; none when it executed its program.
fn receive(socket: &OwnedFd) -> Result<Option<Report>, Errno> {
    let mut packet = vec![0; 32 << 10];
    loop {
        match recv(socket, &mut packet, RecvFlags::empty()) {
            // The latter is told once, before the last words of a process that did not hear ours.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            result => return Ok(Report::decode(packet.get(..result?.0).unwrap_or_default())),
        }
    }
}

//! `kill`: a signal to the container's first process, or to all. It takes no lock, so nothing that hangs can hold it up.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::Container;
use crate::cgroup::CgroupError;
use crate::kernel::pidfd::send_signal;
use crate::signal::Signal;
use crate::state::Status;

/// Why a signal could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// There is nobody to send it to. containerd knows that case by the words `container not running`.
    #[error("container not running: `{id}` is {status}")]
    NotRunning {
        /// The container.
        id: String,
        /// What it is.
        status: Status,
    },
    /// The kernel refused.
    #[error("cannot send {signal} to container `{id}`")]
    Send {
        /// The signal.
        signal: Signal,
        /// The container.
        id: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The container's processes could not be found, or not be let die.
    #[error("cannot send the signal to the processes of the container's cgroup")]
    Cgroup(#[source] CgroupError),
}

impl Container {
    /// Sends `signal` to the container's first process. What it does there is the program's choice, save for KILL and
    /// STOP. A paused container goes on when it is sent KILL, for else it would not die.
    pub fn kill(&self, signal: Signal) -> Result<(), KillError> {
        let not_running = |status| KillError::NotRunning {
            id: self.id.to_string(),
            status,
        };
        let failed = |source| KillError::Send {
            signal,
            id: self.id.to_string(),
            source,
        };
        // Without a process it is being created, or was, or has ended.
        let pidfd = self.pidfd().map_err(failed)?;
        let pidfd = pidfd.ok_or_else(|| {
            not_running(match self.record.init {
                None => Status::Creating,
                Some(_) => Status::Stopped,
            })
        })?;
        // A process that ended takes signals until it is waited for, and does nothing with them.
        match self.status() {
            Ok(Status::Stopped) => return Err(not_running(Status::Stopped)),
            Ok(_) => {}
            Err(error) => return Err(failed(io::Error::other(error))),
        }
        match send_signal(pidfd.as_fd(), signal.number()) {
            Ok(()) if signal == Signal::KILL => self.thaw_to_die().map_err(KillError::Cgroup),
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(not_running(Status::Stopped)),
            Err(errno) => Err(failed(errno.into())),
        }
    }

    /// Sends `signal` to every process in the container's cgroup, once, its first process among them or dead already.
    /// Nobody is missed, not even what is being forked, wherever there is a freezer.
    pub fn kill_all(&self, signal: Signal) -> Result<(), KillError> {
        match &self.record.cgroup {
            Some(cgroup) => cgroup.signal_all(signal.number()).map_err(KillError::Cgroup),
            None => Err(KillError::NotRunning {
                id: self.id.to_string(),
                status: Status::Creating,
            }),
        }
    }
}

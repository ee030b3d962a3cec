//! `delete`: nothing is left.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

use super::Container;
use crate::cgroup::CgroupError;
use crate::hook;
use crate::kernel::pidfd::{send_signal, wait_for_end};
use crate::process::messages;
use crate::state::{OciState, StateError, Status};

/// How long somebody else may work on a container before what they wait for is killed.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// How long a killed process may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a container is given to end by itself: callers delete one once they have killed it, or seen its last sign
/// of life, which comes before its end.
const LAST_MOMENTS: Duration = Duration::from_millis(100);

/// Why a container could not be deleted. It can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Its program still runs, or waits to.
    #[error("container `{id}` is {status}: stop it first, or delete it by force")]
    NotStopped {
        /// The container.
        id: String,
        /// What it is.
        status: Status,
    },
    /// Its process did not die.
    #[error("cannot end the process of container `{id}`")]
    Kill {
        /// The container.
        id: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Its cgroups could not be removed.
    #[error("cannot remove the container's cgroups")]
    Cgroup(#[from] CgroupError),
    /// Its root file system, which it had in the caller's mount namespace, could not be unmounted.
    #[error("cannot unmount {}", path.display())]
    RootMount {
        /// Where it is.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Its state could not be read or removed.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Container {
    /// Removes the container: its remaining processes, its cgroups and its state. With `force` one that is created or
    /// running is killed first. A poststop hook that fails leaves a [warning](Container::take_warnings). Done again, or
    /// after another's attempt that was cut short, it finishes what is left.
    pub fn delete(&mut self, force: bool) -> Result<(), DeleteError> {
        self.remove(force)?;
        self.run_poststop_hooks();
        Ok(())
    }

    fn remove(&mut self, force: bool) -> Result<(), DeleteError> {
        // Whoever held the lock has finished or died: what is still being created now will never be.
        let _lock = match self.directory.lock_within(IMPATIENCE) {
            Err(StateError::Busy { .. }) => {
                if force {
                    self.end_what_is_waited_for()?;
                }
                self.directory.lock()?
            }
            lock => lock?,
        };
        let record = self.directory.read()?;
        self.record = record.unwrap_or_else(|| self.record.clone());
        self.remove_recorded(force)
    }

    /// Removes what the record tells of, and the state. The caller holds the lock.
    pub(super) fn remove_recorded(&self, force: bool) -> Result<(), DeleteError> {
        match self.status()? {
            Status::Stopped | Status::Creating => {}
            Status::Created | Status::Running if !force && self.ends_by_itself()? => {}
            status if !force => {
                return Err(DeleteError::NotStopped {
                    id: self.id.to_string(),
                    status,
                });
            }
            _ => self.kill_and_wait()?,
        }
        if let Some(cgroup) = &self.record.cgroup {
            cgroup.remove()?;
        }
        if let Some(mount) = self.record.root_mount {
            let path = &self.record.rootfs;
            mount.remove(path).map_err(|errno| DeleteError::RootMount {
                path: path.clone(),
                source: errno.into(),
            })?;
        }
        Ok(self.directory.remove()?)
    }

    /// Kills the container's processes without the lock: its holder may be waiting for one of them, and lets go when it
    /// has ended.
    fn end_what_is_waited_for(&self) -> Result<(), DeleteError> {
        let record = self.directory.read()?.unwrap_or_default();
        match &record.cgroup {
            Some(cgroup) => Ok(cgroup.kill()?),
            None => Ok(()),
        }
    }

    /// The container is gone by now; a hook that fails is worth a warning (runtime specification, "Lifecycle").
    fn run_poststop_hooks(&mut self) {
        let state = OciState {
            status: Status::Stopped,
            pid: None,
            oci_version: self.record.oci_version.clone(),
            id: self.id.to_string(),
            bundle: self.record.bundle.clone(),
            annotations: self.record.annotations.clone(),
        };
        let failures = hook::run_each(&self.record.poststop_hooks, &state);
        self.warnings
            .extend(failures.iter().map(|failure| messages(failure).join(": ")));
    }

    fn ends_by_itself(&self) -> Result<bool, DeleteError> {
        let failed = |source: io::Error| DeleteError::Kill {
            id: self.id.to_string(),
            source,
        };
        match self.pidfd().map_err(failed)? {
            Some(pidfd) => match wait_for_end(pidfd.as_fd(), LAST_MOMENTS) {
                Ok(()) => Ok(true),
                Err(Errno::TIMEDOUT) => Ok(false),
                Err(errno) => Err(failed(errno.into())),
            },
            None => Ok(true),
        }
    }

    fn kill_and_wait(&self) -> Result<(), DeleteError> {
        let failed = |source: io::Error| DeleteError::Kill {
            id: self.id.to_string(),
            source,
        };
        let Some(pidfd) = self.pidfd().map_err(failed)? else {
            return Ok(());
        };
        match send_signal(pidfd.as_fd(), libc::SIGKILL) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(()),
            Err(errno) => return Err(failed(errno.into())),
        }
        self.thaw_to_die()?;
        wait_for_end(pidfd.as_fd(), PATIENCE).map_err(|errno| failed(errno.into()))
    }
}

//! `pause` and `resume`: all processes stand still, and go on.

use super::Container;
use crate::cgroup::CgroupError;
use crate::state::{StateError, Status};

/// Why a container could not be paused or resumed.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// It is not where that can follow.
    #[error("container `{id}` is {status}, so it cannot be {verb}")]
    WrongStatus {
        /// The container.
        id: String,
        /// What it is.
        status: Status,
        /// What was asked for: `paused` or `resumed`.
        verb: &'static str,
    },
    /// Its processes could not be stopped or let go on.
    #[error("cannot freeze or thaw container `{id}`")]
    Cgroup {
        /// The container.
        id: String,
        /// Why it failed.
        #[source]
        source: CgroupError,
    },
    /// The state could not be read.
    #[error(transparent)]
    State(#[from] StateError),
}

impl Container {
    /// Stops every process of a container that is created or running, and returns when they stand still. When some do
    /// not, all go on, and it is an error.
    pub fn pause(&self) -> Result<(), PauseError> {
        let _lock = self.directory.lock()?;
        match (self.status()?, &self.record.cgroup) {
            (Status::Created | Status::Running, Some(cgroup)) => {
                cgroup.freeze().map_err(|source| self.not_changed(source))
            }
            (status, _) => Err(self.wrong_status(status, "paused")),
        }
    }

    /// Lets the processes of a paused container go on.
    pub fn resume(&self) -> Result<(), PauseError> {
        let _lock = self.directory.lock()?;
        match (self.status()?, &self.record.cgroup) {
            (Status::Paused, Some(cgroup)) => cgroup.thaw().map_err(|source| self.not_changed(source)),
            (status, _) => Err(self.wrong_status(status, "resumed")),
        }
    }

    /// Whether its processes stand still, whoever stopped them.
    pub(super) fn is_frozen(&self) -> Result<bool, CgroupError> {
        self.record
            .cgroup
            .as_ref()
            .map_or(Ok(false), |cgroup| cgroup.is_frozen())
    }

    /// Lets processes that were sent KILL die of it.
    pub(super) fn thaw_to_die(&self) -> Result<(), CgroupError> {
        self.record
            .cgroup
            .as_ref()
            .map_or(Ok(()), |cgroup| cgroup.thaw_to_die())
    }

    fn wrong_status(&self, status: Status, verb: &'static str) -> PauseError {
        PauseError::WrongStatus {
            id: self.id.to_string(),
            status,
            verb,
        }
    }

    fn not_changed(&self, source: CgroupError) -> PauseError {
        PauseError::Cgroup {
            id: self.id.to_string(),
            source,
        }
    }
}

//! `update`: other limits for a container in use.

use oci_spec::runtime::LinuxResources;

use super::Container;
use crate::cgroup::{CgroupError, LimitChange};
use crate::plan::SpecError;
use crate::state::{StateError, Status};

/// Why a container's limits could not be changed. They are as they were, unless the error says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// It has no processes to limit.
    #[error("container `{id}` is {status}, so its limits cannot be changed")]
    WrongStatus {
        /// The container.
        id: String,
        /// What it is.
        status: Status,
    },
    /// A value makes no sense, by itself or with the limits that stay.
    #[error("{field}: {problem}")]
    Invalid {
        /// The JSON path, as in a configuration.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// The kernel cannot, or would not.
    #[error("cannot change the limits of container `{id}`")]
    Cgroup {
        /// The container.
        id: String,
        /// Why it failed.
        #[source]
        source: CgroupError,
    },
    /// The state could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<SpecError> for UpdateError {
    fn from(error: SpecError) -> UpdateError {
        match error {
            SpecError::Invalid { field, problem } => UpdateError::Invalid { field, problem },
            SpecError::Unsupported { field } => UpdateError::Invalid {
                field,
                problem: "is not supported".to_owned(),
            },
        }
    }
}

impl Container {
    /// Sets those limits that `changes` names, all or none; 0 and the empty word leave a limit as it is. Device rules
    /// do not change. What has no effect leaves a [warning](Container::take_warnings).
    pub fn update(&mut self, changes: &LinuxResources) -> Result<(), UpdateError> {
        let _lock = self.directory.lock()?;
        if let Some(record) = self.directory.read()? {
            self.record = record;
        }
        let status = self.status()?;
        let cgroup = match (status, &self.record.cgroup) {
            (Status::Created | Status::Running | Status::Paused, Some(cgroup)) => cgroup,
            _ => {
                return Err(UpdateError::WrongStatus {
                    id: self.id.to_string(),
                    status,
                });
            }
        };
        let change = LimitChange::new(&self.record.resources, changes)?;
        cgroup.update(&change).map_err(|source| UpdateError::Cgroup {
            id: self.id.to_string(),
            source,
        })?;
        self.record.resources = change.recorded;
        self.warnings.extend(change.warnings);
        Ok(self.directory.write(&self.record)?)
    }
}

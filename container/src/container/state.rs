//! `state`: where the container is in its life.

use super::Container;
use crate::state::{OciState, StateError, Status};

impl Container {
    /// Where the container is in its life, right now.
    pub fn status(&self) -> Result<Status, StateError> {
        Ok(match self.status_but_for_start()? {
            Status::Running if self.directory.waits_for_start()? => Status::Created,
            status => status,
        })
    }

    /// The same without asking whether it was started: one that was not is running.
    pub(super) fn status_but_for_start(&self) -> Result<Status, StateError> {
        let Some(init) = &self.record.init else {
            return Ok(Status::Creating);
        };
        let alive = init.is_alive().map_err(|errno| StateError::Io {
            doing: "look at the process of",
            path: self.directory.path().to_owned(),
            source: errno.into(),
        })?;
        if !alive {
            return Ok(Status::Stopped);
        }
        let frozen = self.is_frozen().map_err(|error| StateError::Io {
            doing: "look at the freezer of",
            path: self.directory.path().to_owned(),
            source: std::io::Error::other(error),
        })?;
        Ok(match frozen {
            true => Status::Paused,
            false => Status::Running,
        })
    }

    /// The state as the runtime specification defines it.
    pub fn state(&self) -> Result<OciState, StateError> {
        let status = self.status()?;
        Ok(OciState {
            oci_version: self.record.oci_version.clone(),
            id: self.id.to_string(),
            status,
            pid: self.pid().filter(|_| status != Status::Stopped),
            bundle: self.record.bundle.clone(),
            annotations: self.record.annotations.clone(),
        })
    }
}

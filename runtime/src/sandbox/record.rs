//! What is written down about a sandbox, enough to show it and to clean up after whoever made it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use container::ProcessIdentity;
use serde::{Deserialize, Serialize};

use crate::isolation::Isolation;
use crate::start_record::StartRecord;

/// The file within a sandbox's directory.
const FILE: &str = "record.json";

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxRecord {
    /// Its id, which is also that of its only container.
    pub id: String,
    /// Its wall.
    pub isolation: Isolation,
    /// The image as the user named it.
    pub image: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Seconds since the epoch.
    pub created_at: u64,
    /// The process that made it and waits for it.
    pub supervisor: ProcessIdentity,
    /// The virtual machine's process, behind the microVM wall.
    pub vmm: Option<ProcessIdentity>,
    /// How the virtual machine was started.
    pub start: Option<StartRecord>,
    /// The container's init process on the host, behind the shared-kernel wall.
    pub init: Option<ProcessIdentity>,
    /// How the command ended, once it has.
    pub exit_status: Option<u8>,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file could not be read.
    #[error("reading {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file could not be written.
    #[error("writing {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is no record.
    #[error("parsing {}", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

impl SandboxRecord {
    /// Reads the record of the sandbox in `directory`.
    ///
    /// # Errors
    /// When there is none or it is broken.
    pub fn read(directory: &Path) -> Result<Self, RecordError> {
        let path = directory.join(FILE);
        let bytes = fs::read(&path).map_err(|source| RecordError::Read {
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&bytes).map_err(|source| RecordError::Parse { path, source })
    }

    /// Notes that a part of the container's life took from `begun` until now, where there is a machine whose times are
    /// kept.
    pub fn phase(&mut self, name: &str, begun: Instant) {
        if let Some(start) = &mut self.start {
            start.phase(name, begun);
        }
    }

    /// Replaces the record of the sandbox in `directory` at once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), RecordError> {
        let path = directory.join(FILE);
        let temporary = directory.join(".record.json");
        let written = serde_json::to_vec_pretty(self)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&temporary, bytes))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| RecordError::Write { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let record = SandboxRecord {
            id: "a".into(),
            isolation: Isolation::MicroVm,
            image: "oci:x".into(),
            command: vec!["true".into()],
            created_at: 7,
            supervisor: ProcessIdentity::of(std::process::id() as i32).unwrap(),
            vmm: None,
            start: None,
            init: None,
            exit_status: Some(3),
        };
        record.write(directory.path()).unwrap();
        assert_eq!(SandboxRecord::read(directory.path()).unwrap(), record);
    }

    #[test]
    fn a_broken_record_names_its_file() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "{").unwrap();
        let error = SandboxRecord::read(directory.path()).unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}

//! What is written down about a sandbox, enough to show it and to clean up after whoever made it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::isolation::Isolation;
use crate::micro_vm::start::StartRecord;

/// The file within a sandbox's directory.
const FILE: &str = "record.json";

/// A process that is still the same one when its number is seen again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot (proc(5), `/proc/pid/stat`, field 22).
    pub start_time: u64,
}

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

impl ProcessIdentity {
    /// The identity of a living process; `None` when there is none of that number.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name may hold spaces and parentheses; the fields proper follow its last one. The first of
        // them is field 3.
        let (_, fields) = stat.rsplit_once(')')?;
        let start_time = fields.split_whitespace().nth(22 - 3)?.parse().ok()?;
        Some(Self { pid, start_time })
    }

    /// Whether the very process still lives.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
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
    fn this_process_is_alive_and_its_successor_is_not() {
        let own = ProcessIdentity::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        assert!(
            !ProcessIdentity {
                start_time: own.start_time + 1,
                ..own
            }
            .is_alive()
        );
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let record = SandboxRecord {
            id: "a".into(),
            isolation: Isolation::MicroVm,
            image: "oci:x".into(),
            command: vec!["true".into()],
            created_at: 7,
            supervisor: ProcessIdentity {
                pid: 1,
                start_time: 2,
            },
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

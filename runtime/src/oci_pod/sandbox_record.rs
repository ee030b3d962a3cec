//! What is written down of a pod's virtual machine, in the folder of the pod's first container.

use container::ProcessIdentity;
use serde::{Deserialize, Serialize};

use super::folder::{Folder, FolderError};
use crate::start_record::StartRecord;

/// The record's file in the first container's folder.
pub const RECORD: &str = "sandbox.json";

/// A pod's virtual machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSandbox {
    /// Its VMM.
    pub machine: ProcessIdentity,
    /// Whether it waits for other containers when its first one has ended.
    pub of_a_pod: bool,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// Its virtual processors.
    pub vcpus: u8,
    /// How it was started.
    pub start: StartRecord,
}

impl PodSandbox {
    /// The sandbox whose first container has this folder; `None` where there is none.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub fn read(folder: &Folder) -> Result<Option<Self>, FolderError> {
        folder.read(RECORD)
    }
}

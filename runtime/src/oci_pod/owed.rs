//! What is owed to a guest that did not answer: containers that are gone from the host, and that the guest still has with
//! their disks. They are written down with the pod's first container, and removed when the guest is next spoken to.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::disks::{self, DiskError};
use super::folder::{Folder, FolderError};
use crate::micro_vm::MicroVm;
use crate::sandbox::SandboxError;

/// What the names of the records begin with.
const PREFIX: &str = "owed-";

/// A container that a guest is to be rid of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owed {
    /// Its id.
    pub id: String,
    /// The name of its folder among what the guest sees of the host.
    pub shared_folder: String,
}

/// Why a container could not be removed from a guest.
#[derive(Debug, thiserror::Error)]
pub enum OwedError {
    /// The agent cannot.
    #[error(transparent)]
    Call(#[from] SandboxError),
    /// Its disks could not be taken out.
    #[error("taking the disks of container {id} from the microVM")]
    Disks {
        /// The container.
        id: String,
        /// Why.
        #[source]
        source: DiskError,
    },
    /// What is owed could not be read or written.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

impl Owed {
    /// Writes down that the guest of the pod whose first container has this folder is to be rid of this one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_down(&self, sandbox: &Folder) -> Result<(), FolderError> {
        sandbox.write(&self.record(), self)
    }

    /// Removes the container from its guest, if that has it, with its files and disks.
    ///
    /// # Errors
    /// When the guest cannot.
    pub async fn remove(&self, machine: &MicroVm, sandbox: &Folder) -> Result<(), OwedError> {
        if machine.has_container(&self.id).await? {
            let deleted = machine.delete_container(&self.id, &self.shared_folder).await;
            // Another command may have done the same meanwhile.
            if deleted.is_err() && machine.has_container(&self.id).await? {
                deleted?;
            }
        }
        let released = disks::release(machine, sandbox, &self.id).await;
        released.map_err(|source| OwedError::Disks {
            id: self.id.clone(),
            source,
        })
    }

    fn record(&self) -> String {
        format!("{PREFIX}{}", self.id)
    }
}

/// Removes from a guest what is owed to it.
///
/// # Errors
/// When it cannot: it is owed still.
pub async fn settle(machine: &MicroVm, sandbox: &Folder) -> Result<(), OwedError> {
    for owed in list(sandbox)? {
        owed.remove(machine, sandbox).await?;
        sandbox.forget(&owed.record())?;
    }
    Ok(())
}

fn list(sandbox: &Folder) -> Result<Vec<Owed>, FolderError> {
    let failed = |source: io::Error| FolderError::Io {
        doing: "list",
        path: sandbox.path().to_owned(),
        source,
    };
    let mut list = Vec::new();
    for entry in fs::read_dir(sandbox.path()).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) {
            list.extend(sandbox.read(name)?);
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_is_listed_until_it_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let sandbox = Folder::create(root.path(), &"pod".parse().unwrap()).unwrap();
        assert_eq!(list(&sandbox).unwrap(), []);
        let owed = Owed {
            id: "web".into(),
            shared_folder: "0".into(),
        };
        owed.write_down(&sandbox).unwrap();
        owed.write_down(&sandbox).unwrap();
        sandbox.write("other", &1).unwrap();
        let record = owed.record();
        assert_eq!(list(&sandbox).unwrap(), [owed]);
        sandbox.forget(&record).unwrap();
        sandbox.forget(&record).unwrap();
        assert_eq!(list(&sandbox).unwrap(), []);
    }
}

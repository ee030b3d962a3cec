//! Why a pod's virtual machine ended before its time: written down by the first attendant that notices, in the folder of the
//! pod's first container, and told by `state`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::folder::{Folder, FolderError};

/// The record's file in the first container's folder.
const RECORD: &str = "end.json";

/// How a machine ended that was not ended by us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndedMachine {
    /// Why, in words.
    pub reason: String,
    /// Whether it was for want of memory, the guest's or what the host lets it use.
    pub out_of_memory: bool,
    /// The last lines of the guest's console.
    pub console: Vec<String>,
}

impl EndedMachine {
    /// What is written down; `None` where nothing is.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(sandbox: &Folder) -> Result<Option<Self>, FolderError> {
        sandbox.read(RECORD)
    }

    /// Writes it down, unless somebody has. Who does so holds the folder's lock.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_down(&self, sandbox: &Folder) -> Result<(), FolderError> {
        match Self::read(sandbox)? {
            Some(_) => Ok(()),
            None => sandbox.write(RECORD, self),
        }
    }
}

impl fmt::Display for EndedMachine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the microVM has ended: {}", self.reason)?;
        if !self.console.is_empty() {
            write!(formatter, "\nthe guest's console ends with:")?;
        }
        self.console
            .iter()
            .try_for_each(|line| write!(formatter, "\n  | {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_about_an_end_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let sandbox = Folder::create(root.path(), &"pod".parse().unwrap()).unwrap();
        assert_eq!(EndedMachine::read(&sandbox).unwrap(), None);
        let end = |reason: &str| EndedMachine {
            reason: reason.into(),
            out_of_memory: false,
            console: vec![],
        };
        end("first").write_down(&sandbox).unwrap();
        end("second").write_down(&sandbox).unwrap();
        assert_eq!(EndedMachine::read(&sandbox).unwrap(), Some(end("first")));
    }
}

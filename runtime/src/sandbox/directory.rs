//! A sandbox's folder under the run root:
//!
//! ```text
//! sandboxes/<id>/
//!     lock            held by the process that made the sandbox, for as long as it lives
//!     record.json     what is known of it
//!     bundle/         the container's OCI bundle
//!     containers/     the engine's state, behind the shared-kernel wall
//!     rootfs/         where the container's root is mounted, behind the shared-kernel wall
//!     vm/             everything the virtual machine's process may see
//! ```

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::remove_tree::remove_tree;

/// The folder of one sandbox, with its lock.
#[derive(Debug)]
pub struct SandboxDirectory {
    path: PathBuf,
    // Released by the kernel when the last of us is gone, however we go.
    _lock: File,
}

/// Why a sandbox's folder could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The id is taken.
    #[error("a sandbox named {id} exists already; `bulkhead rm {id}` removes it once it has ended")]
    Exists {
        /// The id.
        id: String,
    },
    /// There is no such sandbox.
    #[error("no sandbox is named {id}; `bulkhead ps` lists them")]
    Missing {
        /// The id.
        id: String,
    },
    /// The sandbox's supervisor still runs.
    #[error("sandbox {id} is still running; `bulkhead rm --force {id}` ends it first")]
    Running {
        /// The id.
        id: String,
    },
    /// The folder could not be made, opened, locked or removed.
    #[error("{action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl SandboxDirectory {
    /// Makes the folder of a new sandbox and locks it.
    ///
    /// # Errors
    /// When the id is taken or the folder cannot be made.
    pub fn create(run_root: &Path, id: &str) -> Result<Self, DirectoryError> {
        let path = path_of(run_root, id);
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| DirectoryError::Io { action, path, source }
        };
        let parent = run_root.join("sandboxes");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&parent)
            .map_err(failed("creating", &parent))?;
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(DirectoryError::Exists { id: id.to_owned() });
            }
            result => result.map_err(failed("creating", &path))?,
        }
        Ok(Self {
            _lock: lock(&path, id)?,
            path,
        })
    }

    /// Takes over the folder of a sandbox whose supervisor has gone.
    ///
    /// # Errors
    /// When there is none, or its supervisor still runs.
    pub fn take_over(run_root: &Path, id: &str) -> Result<Self, DirectoryError> {
        let path = path_of(run_root, id);
        if !path.is_dir() {
            return Err(DirectoryError::Missing { id: id.to_owned() });
        }
        Ok(Self {
            _lock: lock(&path, id)?,
            path,
        })
    }

    /// The ids of every sandbox under the run root.
    ///
    /// # Errors
    /// When the run root cannot be read; one that does not exist has no sandboxes.
    pub fn list(run_root: &Path) -> Result<Vec<String>, DirectoryError> {
        let path = run_root.join("sandboxes");
        let failed = |source| DirectoryError::Io {
            action: "listing",
            path: path.clone(),
            source,
        };
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            ids.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        ids.sort();
        Ok(ids)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that is the whole world of the virtual machine's process.
    pub fn machine(&self) -> PathBuf {
        self.path.join("vm")
    }

    /// The OCI bundle of its container.
    pub fn bundle(&self) -> PathBuf {
        self.path.join("bundle")
    }

    /// The engine's state.
    pub fn containers(&self) -> PathBuf {
        self.path.join("containers")
    }

    /// Where the container's root is mounted behind the shared-kernel wall.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Removes all it holds but the record, for a sandbox that has ended and is kept to be looked at.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn reduce_to_record(self) -> Result<(), DirectoryError> {
        for path in [self.machine(), self.bundle(), self.containers(), self.rootfs()] {
            match remove_tree(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => {
                    result.map_err(|source| DirectoryError::Io {
                        action: "removing",
                        path,
                        source,
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Removes the folder with all it holds. Mounts below it are of our own mount namespace and must be gone.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(self) -> Result<(), DirectoryError> {
        remove_tree(&self.path).map_err(|source| DirectoryError::Io {
            action: "removing",
            path: self.path.clone(),
            source,
        })
    }
}

/// Where the folder of sandbox `id` is.
pub fn path_of(run_root: &Path, id: &str) -> PathBuf {
    run_root.join("sandboxes").join(id)
}

fn lock(directory: &Path, id: &str) -> Result<File, DirectoryError> {
    let path = directory.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| DirectoryError::Io {
            action: "opening",
            path: path.clone(),
            source,
        })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(DirectoryError::Running { id: id.to_owned() }),
        Err(error) => Err(DirectoryError::Io {
            action: "locking",
            path,
            source: error.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_sandbox_of_one_name_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let _first = SandboxDirectory::create(root.path(), "a").unwrap();
        let second = SandboxDirectory::create(root.path(), "a");
        assert!(matches!(second, Err(DirectoryError::Exists { .. })));
    }

    #[test]
    fn a_running_sandbox_cannot_be_taken_over_and_a_dead_one_can() {
        let root = tempfile::tempdir().unwrap();
        let first = SandboxDirectory::create(root.path(), "a").unwrap();
        assert!(matches!(
            SandboxDirectory::take_over(root.path(), "a"),
            Err(DirectoryError::Running { .. })
        ));
        drop(first);
        SandboxDirectory::take_over(root.path(), "a")
            .unwrap()
            .remove()
            .unwrap();
        assert!(SandboxDirectory::list(root.path()).unwrap().is_empty());
    }

    #[test]
    fn a_sandbox_that_never_was_is_missing() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            SandboxDirectory::take_over(root.path(), "a"),
            Err(DirectoryError::Missing { .. })
        ));
        assert!(SandboxDirectory::list(root.path()).unwrap().is_empty());
    }
}

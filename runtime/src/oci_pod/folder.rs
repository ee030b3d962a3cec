//! A container's folder below the root of states.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use container::ContainerId;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, open, stat};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::RECORD;

/// How long a command waits for another that works on the same container. Its creation may boot a guest.
const LOCK_PATIENCE: Duration = Duration::from_secs(180);

/// How often it looks.
const LOCK_STEP: Duration = Duration::from_millis(5);
/// How long something may still appear in a folder that is removed.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(2);

/// Why something that is written down of a container could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The id is taken.
    #[error("container `{id}` already exists in {}: choose another id, or delete it", root.display())]
    AlreadyExists {
        /// The id.
        id: ContainerId,
        /// The folder of states.
        root: PathBuf,
    },
    /// Another command does not finish.
    #[error("another process has been working on the container for {} seconds: {}", LOCK_PATIENCE.as_secs(), path.display())]
    Busy {
        /// The container's folder.
        path: PathBuf,
    },
    /// A record is not what this version writes.
    #[error("{} is damaged or of another version", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// A file could not be used.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The folder of one container.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

/// The exclusive right to change what is written down; given back by the kernel when its holder dies.
#[derive(Debug)]
pub struct FolderLock {
    _folder: OwnedFd,
}

impl Folder {
    /// The folder of container `id`, which need not exist.
    pub fn of(root: &Path, id: &ContainerId) -> Self {
        Self { path: root.join(id) }
    }

    /// The folder of a container that is at this place.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The folder of a container whose id was written down.
    pub fn of_named(root: &Path, id: &str) -> Self {
        Self { path: root.join(id) }
    }

    /// Makes the folder, for us alone.
    ///
    /// # Errors
    /// When the id is taken or the folder cannot be made.
    pub fn create(root: &Path, id: &ContainerId) -> Result<Self, FolderError> {
        let folder = Self::of(root, id);
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(root)
            .map_err(failed("create", root))?;
        match DirBuilder::new().mode(0o700).create(&folder.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(FolderError::AlreadyExists {
                id: id.clone(),
                root: root.to_owned(),
            }),
            created => created
                .map(|()| folder.clone())
                .map_err(failed("create", &folder.path)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for whoever works on the container, but not for ever.
    ///
    /// # Errors
    /// When it takes too long, or the folder is gone.
    pub fn lock(&self) -> Result<FolderLock, FolderError> {
        let lock = self.lock_within(LOCK_PATIENCE)?;
        lock.ok_or_else(|| FolderError::Busy {
            path: self.path.clone(),
        })
    }

    /// Waits this long at most; `None` where it takes longer.
    ///
    /// # Errors
    /// When the folder is gone.
    pub fn lock_within(&self, patience: Duration) -> Result<Option<FolderLock>, FolderError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || open(&self.path, flags, Mode::empty()).map_err(failed("open", &self.path));
        let mut folder = open()?;
        let deadline = Instant::now() + patience;
        loop {
            match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if self.is(&folder) => return Ok(Some(FolderLock { _folder: folder })),
                // It was deleted while we waited, and perhaps made anew.
                Ok(()) => folder = open()?,
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                    thread::sleep(LOCK_STEP);
                }
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(failed("lock", &self.path)(errno)),
            }
        }
    }

    /// Whether the descriptor is of the folder that has the name now.
    fn is(&self, folder: &OwnedFd) -> bool {
        match (fstat(folder), stat(&self.path)) {
            (Ok(held), Ok(named)) => (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino),
            _ => false,
        }
    }

    /// Reads a record; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FolderError> {
        let path = self.path.join(name);
        let bytes = match fs::read(&path) {
            // The root of states may also hold what is no folder.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            read => read.map_err(failed("read", &path))?,
        };
        match serde_json::from_slice(&bytes) {
            Ok(record) => Ok(Some(record)),
            Err(source) => Err(FolderError::Damaged { path, source }),
        }
    }

    /// Replaces a record at once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write<T: Serialize>(&self, name: &str, record: &T) -> Result<(), FolderError> {
        let path = self.path.join(name);
        let next = self.path.join(format!(".{name}.next"));
        serde_json::to_vec(record)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&next, bytes))
            .and_then(|()| fs::rename(&next, &path))
            .map_err(failed("write", &path))
    }

    /// Removes a record, if there is one.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget(&self, name: &str) -> Result<(), FolderError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes it with all it holds.
    ///
    /// # Errors
    /// When something cannot be removed; one that is gone is none.
    pub fn remove(&self) -> Result<(), FolderError> {
        let present = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        };
        // What the container is known by goes last: a removal that is cut short can be done again.
        let remove_the_rest = || -> io::Result<()> {
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    present(fs::remove_dir_all(entry.path()))?;
                } else if entry.file_name() != RECORD {
                    present(fs::remove_file(entry.path()))?;
                }
            }
            Ok(())
        };
        let remove = || present(remove_the_rest()).and_then(|()| present(fs::remove_dir_all(&self.path)));
        let deadline = Instant::now() + REMOVAL_PATIENCE;
        loop {
            match remove() {
                // Of the processes that were ended one had been making something here.
                Err(error)
                    if error.kind() == io::ErrorKind::DirectoryNotEmpty && Instant::now() < deadline =>
                {
                    thread::sleep(LOCK_STEP);
                }
                removed => return removed.map_err(failed("remove", &self.path)),
            }
        }
    }
}

fn failed<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io {
        doing,
        path,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_and_free_again_after_removal() {
        let root = tempfile::tempdir().unwrap();
        let id = "web".parse().unwrap();
        let folder = Folder::create(root.path(), &id).unwrap();
        assert!(matches!(
            Folder::create(root.path(), &id),
            Err(FolderError::AlreadyExists { .. })
        ));
        folder.remove().unwrap();
        folder.remove().unwrap();
        Folder::create(root.path(), &id).unwrap();
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_damaged_one_is_named() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::create(root.path(), &"web".parse().unwrap()).unwrap();
        assert_eq!(folder.read::<u32>("number").unwrap(), None);
        folder.write("number", &7).unwrap();
        assert_eq!(folder.read::<u32>("number").unwrap(), Some(7));
        fs::write(folder.path().join("number"), "{").unwrap();
        let error = folder.read::<u32>("number").unwrap_err().to_string();
        assert!(error.contains("number is damaged"), "{error}");
    }

    #[test]
    fn a_lock_is_given_back_when_its_holder_goes() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::create(root.path(), &"web".parse().unwrap()).unwrap();
        let held = folder.lock().unwrap();
        let waiting = thread::spawn({
            let folder = folder.clone();
            move || folder.lock().map(drop)
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(held);
        waiting.join().unwrap().unwrap();
    }
}

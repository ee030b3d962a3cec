//! A container's folder of state: `<root>/<id>/state.json`, and the socket `start` while its process waits there.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use oci_spec::runtime::Spec;
use rustix::fs::{self as rfs, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags, SocketType};

use super::Record;
use crate::id::ContainerId;

const RECORD: &str = "state.json";
const RECORD_NEXT: &str = "state.json.next";
/// What the container was made from, as it was then: later changes of the bundle do not concern it.
const CONFIGURATION: &str = "config.json";
const START_SOCKET: &str = "start";
/// A record holds paths and annotations; one larger than this was not written by us.
const RECORD_LIMIT: u64 = 16 << 20;
/// How long start and delete wait for another process that is working on the same container.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Why a container's state could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No folder of that name.
    #[error("container `{id}` does not exist in {}", root.display())]
    NotFound {
        /// The container asked for.
        id: ContainerId,
        /// The folder it was looked for in.
        root: PathBuf,
    },
    /// The id is taken.
    #[error("container `{id}` already exists in {}: choose another id, or delete it", root.display())]
    AlreadyExists {
        /// The id.
        id: ContainerId,
        /// The folder of states.
        root: PathBuf,
    },
    /// Another process works on the container and did not finish.
    #[error("another process has been working on the container for {} seconds: {}", LOCK_PATIENCE.as_secs(), path.display())]
    Busy {
        /// The container's folder.
        path: PathBuf,
    },
    /// The record is not what this version writes.
    #[error("{} is damaged or of another version: the container can be deleted by force", path.display())]
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

/// The folder that holds one container's state. Only root can enter it.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    directory: OwnedFd,
}

/// The exclusive right to change a container's state. The kernel takes it back when its holder dies.
#[derive(Debug)]
pub(crate) struct StateLock<'a>(&'a StateDirectory);

impl Drop for StateLock<'_> {
    fn drop(&mut self) {
        // Unlocking, rather than closing, also ends the lock where a child still has a copy of the descriptor. It
        // fails only for a descriptor that is not one.
        let _ = rfs::flock(&self.0.directory, FlockOperation::Unlock);
    }
}

impl StateDirectory {
    /// Makes the folder, and the folder of states if that is missing; taking a name that exists is an error.
    pub(crate) fn create(root: &Path, id: &ContainerId) -> Result<StateDirectory, StateError> {
        let path = root.join(id);
        let private = Mode::RWXU;
        match rfs::mkdir(&path, private) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                use std::os::unix::fs::DirBuilderExt;
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(root)
                    .map_err(|source| failure("create", root, source))?;
                rfs::mkdir(&path, private).map_err(|errno| taken_or_failed(errno, root, id, &path))?;
            }
            Err(errno) => return Err(taken_or_failed(errno, root, id, &path)),
        }
        StateDirectory::open(root, id)
    }

    /// Opens the folder of a container that exists.
    pub fn open(root: &Path, id: &ContainerId) -> Result<StateDirectory, StateError> {
        let path = root.join(id);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rfs::open(&path, flags, Mode::empty()) {
            Ok(directory) => Ok(StateDirectory { path, directory }),
            Err(Errno::NOENT) => Err(StateError::NotFound {
                id: id.clone(),
                root: root.to_owned(),
            }),
            Err(errno) => Err(failure("open", &path, errno.into())),
        }
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for whoever works on the container, but not for ever.
    pub(crate) fn lock(&self) -> Result<StateLock<'_>, StateError> {
        self.lock_within(LOCK_PATIENCE)
    }

    /// Waits for at most `patience`.
    pub(crate) fn lock_within(&self, patience: Duration) -> Result<StateLock<'_>, StateError> {
        let deadline = Instant::now() + patience;
        loop {
            match rfs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(StateLock(self)),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(2));
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    return Err(StateError::Busy {
                        path: self.path.clone(),
                    });
                }
                Err(errno) => return Err(failure("lock", &self.path, errno.into())),
            }
        }
    }

    /// The record; none when its creator died before the first was written.
    pub(crate) fn read(&self) -> Result<Option<Record>, StateError> {
        let damaged = |source| StateError::Damaged {
            path: self.path.join(RECORD),
            source,
        };
        match self.read_text()? {
            Some(text) => serde_json::from_slice(&text).map(Some).map_err(damaged),
            None => Ok(None),
        }
    }

    /// The text of the record, whatever it is; none as above.
    pub(crate) fn read_text(&self) -> Result<Option<Vec<u8>>, StateError> {
        let path = || self.path.join(RECORD);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = match rfs::openat(&self.directory, RECORD, flags, Mode::empty()) {
            Ok(file) => fs::File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failure("open", &path(), errno.into())),
        };
        let mut text = Vec::with_capacity(4096);
        file.take(RECORD_LIMIT)
            .read_to_end(&mut text)
            .map_err(|source| failure("read", &path(), source))?;
        Ok(Some(text))
    }

    /// Replaces the record: a reader sees the old one or the new one, whole.
    pub(crate) fn write(&self, record: &Record) -> Result<(), StateError> {
        self.prepare(record)?;
        self.replace_by_prepared()
    }

    /// Writes what is to replace the record, where nobody reads it.
    pub(crate) fn prepare(&self, record: &Record) -> Result<(), StateError> {
        let path = self.path.join(RECORD_NEXT);
        let failed = |source: io::Error| failure("write", &path, source);
        let text = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rfs::openat(&self.directory, RECORD_NEXT, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed(errno.into()))?;
        fs::File::from(file).write_all(&text).map_err(failed)
    }

    /// Has it replace the record.
    pub(crate) fn replace_by_prepared(&self) -> Result<(), StateError> {
        rfs::renameat(&self.directory, RECORD_NEXT, &self.directory, RECORD)
            .map_err(|errno| failure("write", &self.path.join(RECORD), errno.into()))
    }

    /// Keeps the configuration for processes that join the container later.
    pub(crate) fn write_configuration(&self, configuration: &Spec) -> Result<(), StateError> {
        let failed = |source| failure("write", &self.path.join(CONFIGURATION), source);
        let text = serde_json::to_vec(configuration).map_err(|error| failed(error.into()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rfs::openat(&self.directory, CONFIGURATION, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed(errno.into()))?;
        fs::File::from(file).write_all(&text).map_err(failed)
    }

    /// The configuration that was kept.
    pub(crate) fn read_configuration(&self) -> Result<Spec, StateError> {
        let path = || self.path.join(CONFIGURATION);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rfs::openat(&self.directory, CONFIGURATION, flags, Mode::empty())
            .map_err(|errno| failure("open", &path(), errno.into()))?;
        let mut text = Vec::with_capacity(8192);
        fs::File::from(file)
            .take(RECORD_LIMIT)
            .read_to_end(&mut text)
            .map_err(|source| failure("read", &path(), source))?;
        serde_json::from_slice(&text).map_err(|source| StateError::Damaged { path: path(), source })
    }

    /// Makes the socket on which the container's process waits to be started.
    pub(crate) fn listen_for_start(&self) -> Result<OwnedFd, StateError> {
        let listen = || -> Result<OwnedFd, Errno> {
            let socket = unix_socket(SocketFlags::empty())?;
            rustix::net::bind(&socket, &self.start_address()?)?;
            rustix::net::listen(&socket, 1)?;
            Ok(socket)
        };
        listen().map_err(|errno| failure("listen on", &self.path.join(START_SOCKET), errno.into()))
    }

    /// Connects to the process that waits to be started; none when it no longer does.
    pub(crate) fn connect_to_start(&self) -> Result<Option<OwnedFd>, StateError> {
        match self.connect(SocketFlags::empty()) {
            Ok(socket) => Ok(Some(socket)),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
            Err(errno) => Err(self.not_connected(errno)),
        }
    }

    /// Whether the container's process was not started yet. The socket's file alone does not tell: a starter that dies
    /// before it has removed the file leaves it. Whoever connects and says nothing starts nothing.
    pub(crate) fn waits_for_start(&self) -> Result<bool, StateError> {
        if !self.has_start_file() {
            return Ok(false);
        }
        match self.connect(SocketFlags::NONBLOCK) {
            // The latter while others have connected and it has not looked at them yet.
            Ok(_) | Err(Errno::AGAIN) => Ok(true),
            Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(false),
            Err(errno) => Err(self.not_connected(errno)),
        }
    }

    fn has_start_file(&self) -> bool {
        let access = rfs::Access::EXISTS;
        rfs::accessat(&self.directory, START_SOCKET, access, AtFlags::empty()).is_ok()
    }

    fn connect(&self, flags: SocketFlags) -> Result<OwnedFd, Errno> {
        let socket = unix_socket(flags)?;
        rustix::net::connect(&socket, &self.start_address()?)?;
        Ok(socket)
    }

    fn not_connected(&self, errno: Errno) -> StateError {
        failure("connect to", &self.path.join(START_SOCKET), errno.into())
    }

    /// Notes that the container's process was started.
    pub(crate) fn forget_start(&self) -> Result<(), StateError> {
        self.unlink(START_SOCKET)
    }

    /// Removes the folder and all that is ours in it.
    pub(crate) fn remove(&self) -> Result<(), StateError> {
        for name in [START_SOCKET, CONFIGURATION, RECORD_NEXT, RECORD] {
            self.unlink(name)?;
        }
        match rfs::rmdir(&self.path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failure("remove", &self.path, errno.into())),
        }
    }

    fn unlink(&self, name: &str) -> Result<(), StateError> {
        match rfs::unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failure("remove", &self.path.join(name), errno.into())),
        }
    }

    /// A socket address holds 107 bytes of path; going through our descriptor keeps any state root within that.
    fn start_address(&self) -> Result<SocketAddrUnix, Errno> {
        SocketAddrUnix::new(format!(
            "/proc/self/fd/{}/{START_SOCKET}",
            self.directory.as_raw_fd()
        ))
    }
}

impl AsFd for StateDirectory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn unix_socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | flags,
        None,
    )
}

fn failure(doing: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

fn taken_or_failed(errno: Errno, root: &Path, id: &ContainerId, path: &Path) -> StateError {
    match errno {
        Errno::EXIST => StateError::AlreadyExists {
            id: id.clone(),
            root: root.to_owned(),
        },
        errno => failure("create", path, errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        "box".parse().unwrap()
    }

    #[test]
    fn a_name_can_be_taken_once_and_again_after_removal() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("not/there/yet");
        let first = StateDirectory::create(&root, &id()).unwrap();
        assert!(matches!(
            StateDirectory::create(&root, &id()),
            Err(StateError::AlreadyExists { .. })
        ));
        first.remove().unwrap();
        StateDirectory::create(&root, &id()).unwrap();
    }

    #[test]
    fn a_container_that_was_never_made_is_not_found() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(
            StateDirectory::open(root.path(), &id()),
            Err(StateError::NotFound { .. })
        ));
    }

    #[test]
    fn a_folder_without_a_record_reads_as_none_and_garbage_as_damaged() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDirectory::create(root.path(), &id()).unwrap();
        assert!(directory.read().unwrap().is_none());
        fs::write(root.path().join("box/state.json"), "{\"half\":").unwrap();
        assert!(matches!(directory.read(), Err(StateError::Damaged { .. })));
    }

    #[test]
    fn a_lock_held_through_another_descriptor_excludes_and_dropping_it_releases() {
        let root = tempfile::tempdir().unwrap();
        let one = StateDirectory::create(root.path(), &id()).unwrap();
        let other = StateDirectory::open(root.path(), &id()).unwrap();
        let lock = one.lock().unwrap();
        let attempt = rfs::flock(&other.directory, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(attempt, Err(Errno::WOULDBLOCK));
        drop(lock);
        drop(other.lock().unwrap());
    }

    #[test]
    fn one_who_looks_at_nobody_still_waits_for_start() {
        let root = tempfile::tempdir().unwrap();
        let directory = StateDirectory::create(root.path(), &id()).unwrap();
        assert!(!directory.waits_for_start().unwrap());
        let _listener = directory.listen_for_start().unwrap();
        for _ in 0..5 {
            assert!(directory.waits_for_start().unwrap());
        }
    }

    #[test]
    fn the_start_socket_works_below_a_path_longer_than_a_socket_address() {
        let root = tempfile::tempdir().unwrap();
        let deep = root.path().join("x".repeat(100)).join("y".repeat(100));
        let directory = StateDirectory::create(&deep, &id()).unwrap();
        assert!(directory.connect_to_start().unwrap().is_none());
        let listener = directory.listen_for_start().unwrap();
        assert!(directory.waits_for_start().unwrap());
        assert!(directory.connect_to_start().unwrap().is_some());
        drop(listener);
        assert!(directory.connect_to_start().unwrap().is_none());
        // The file of the socket is there as before.
        assert!(!directory.waits_for_start().unwrap());
        directory.remove().unwrap();
        assert!(!directory.path().exists());
    }
}

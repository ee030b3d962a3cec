//! Paths of sockets, of whatever length.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};

/// A socket's path by way of its directory, which is held open: a unix address has room for 107 bytes (unix(7)).
#[derive(Debug)]
pub struct UnixPath {
    directory: OwnedFd,
    name: OsString,
}

impl UnixPath {
    /// The way to `path`, whose last part need not exist.
    ///
    /// # Errors
    /// When its directory cannot be opened, or it has no last part.
    pub fn to(path: &Path) -> io::Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path ends in no file name"))?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            directory: open(parent, flags, Mode::empty())?,
            name: name.to_owned(),
        })
    }

    /// A short path, good in this process and for as long as this value lives.
    pub fn reach(&self) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.directory.as_raw_fd().to_string())
            .join(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_path_too_long_for_an_address_is_bound_and_connected_to() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("socket");
        assert!(UnixListener::bind(&path).is_err());
        let _listener = UnixListener::bind(UnixPath::to(&path).unwrap().reach()).unwrap();
        assert!(path.exists());
        UnixStream::connect(UnixPath::to(&path).unwrap().reach()).unwrap();
    }
}

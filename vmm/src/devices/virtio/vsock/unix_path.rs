//! Where the host's sockets are.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, chmodat, open, unlinkat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Why the device's socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("{doing} the vsock socket {}", path.display())]
pub struct VsockSocketError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The device's socket and its directory, which is held open: clients and guests are served from the same one wherever
/// it is moved and whatever the process can still see of the file system.
#[derive(Debug)]
pub(super) struct UnixPath {
    directory: OwnedFd,
    name: OsString,
}

impl UnixPath {
    /// Listens at `path`, which must not exist, for this user only.
    pub(super) fn listen(path: &Path) -> Result<(Self, UnixListener), VsockSocketError> {
        let failed = |doing| {
            move |source: io::Error| VsockSocketError {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "the path ends in no file name");
        let name = path.file_name().ok_or_else(no_name).map_err(failed("naming"))?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(parent, flags, Mode::empty())
            .map_err(io::Error::from)
            .map_err(failed("opening the directory of"))?;
        let this = Self {
            directory,
            name: name.to_owned(),
        };
        let listener = UnixListener::bind(this.reach(name)).map_err(failed("binding"))?;
        let prepared = chmodat(&this.directory, name, Mode::RUSR | Mode::WUSR, AtFlags::empty())
            .map_err(io::Error::from)
            .and_then(|()| listener.set_nonblocking(true));
        if let Err(error) = prepared {
            this.remove();
            return Err(failed("preparing")(error));
        }
        Ok((this, listener))
    }

    /// Connects to the socket that stands for `port` of the host, without waiting.
    pub(super) fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut name = self.name.clone();
        name.push(format!("_{port}"));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(self.reach(&name))?)?;
        Ok(UnixStream::from(socket))
    }

    /// Removes the device's socket.
    pub(super) fn remove(&self) {
        // It may be gone already, and there is nobody to tell.
        let _ = unlinkat(&self.directory, self.name.as_os_str(), AtFlags::empty());
    }

    /// A path to `name` through the open directory. It is also short: a unix address holds 107 bytes.
    fn reach(&self, name: &OsStr) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.directory.as_raw_fd().to_string())
            .join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_is_its_owners_and_goes_when_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let (unix, _listener) = UnixPath::listen(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        unix.remove();
        assert!(!path.exists());
    }

    #[test]
    fn a_path_too_long_for_an_address_works() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let (unix, _listener) = UnixPath::listen(&deep.join("vsock")).unwrap();
        let (_, _host) = UnixPath::listen(&deep.join("vsock_7")).unwrap();
        unix.connect(7).unwrap();
    }

    #[test]
    fn an_existing_path_and_a_missing_directory_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        std::fs::write(&path, "").unwrap();
        let error = UnixPath::listen(&path).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("binding the vsock socket {}", path.display())
        );
        assert!(path.exists());
        let error = UnixPath::listen(&directory.path().join("missing/vsock")).unwrap_err();
        assert!(error.to_string().starts_with("opening the directory of"));
        assert!(UnixPath::listen(Path::new("/")).is_err());
    }

    #[test]
    fn a_host_port_nobody_listens_on_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (unix, _listener) = UnixPath::listen(&directory.path().join("vsock")).unwrap();
        assert_eq!(unix.connect(5).unwrap_err().kind(), io::ErrorKind::NotFound);
        let _ = File::create(directory.path().join("vsock_6")).unwrap();
        assert!(unix.connect(6).is_err());
    }
}

//! The OCI console socket: a client listens, and gets the caller's end of a terminal.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, IoSlice};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, connect, sendmsg, socket_with,
};

/// How long a client may take to accept a connection, and what is sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// The terminal could not be delivered.
#[derive(Debug, thiserror::Error)]
#[error("cannot send the terminal to the console socket {}", path.display())]
pub struct ConsoleSocketError {
    path: PathBuf,
    source: io::Error,
}

/// Sends `terminal`, the master of one, to whoever listens at `path`.
///
/// # Errors
/// When nobody does, or takes it within ten seconds.
pub fn send_terminal(path: &Path, terminal: BorrowedFd<'_>) -> Result<(), ConsoleSocketError> {
    send_to(path, terminal).map_err(|errno| ConsoleSocketError {
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn send_to(path: &Path, terminal: BorrowedFd<'_>) -> Result<(), Errno> {
    let socket = connect_to(path, SocketType::STREAM)?;
    let descriptors = [terminal];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    // Receivers take the text for the terminal's name.
    sendmsg(
        &socket,
        &[IoSlice::new(b"/dev/ptmx")],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Connects to a socket of a client's. Connecting and sending fail when the client takes nothing for long.
pub(super) fn connect_to(path: &Path, kind: SocketType) -> Result<OwnedFd, Errno> {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    match SocketAddrUnix::new(path) {
        Ok(address) => connect(&socket, &address)?,
        // A socket address holds 107 bytes of path; a descriptor of the folder makes any path short.
        Err(Errno::NAMETOOLONG) => {
            let (folder, name) = (
                path.parent().unwrap_or(path),
                path.file_name().ok_or(Errno::INVAL)?,
            );
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let folder = rustix::fs::open(folder, flags, Mode::empty())?;
            let short = Path::new("/proc/self/fd")
                .join(folder.as_fd().as_raw_fd().to_string())
                .join(name);
            connect(&socket, &SocketAddrUnix::new(&short)?)?;
        }
        Err(errno) => return Err(errno),
    }
    Ok(socket)
}

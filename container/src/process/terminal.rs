//! A terminal in the container's own devpts.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{OFlags, fchown};
use rustix::io::Errno;
use rustix::process::{Uid, ioctl_tiocsctty};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::SetUpError;
use crate::plan::WindowSize;
use crate::rootfs::ContainerRoot;

const TAKE: &str = "take the terminal";

/// Both ends of a terminal.
pub(crate) struct Terminal {
    master: OwnedFd,
    /// The program's end.
    peer: OwnedFd,
}

/// Makes the terminal that the standard streams are the controlling one of the session that was just begun.
pub(super) fn control() -> Result<(), SetUpError> {
    ioctl_tiocsctty(rustix::stdio::stdin()).map_err(SetUpError::step(TAKE))
}

/// Opens a terminal of the given size for `user`.
pub(crate) fn open_terminal(
    root: &ContainerRoot,
    size: Option<WindowSize>,
    user: Uid,
) -> Result<Terminal, SetUpError> {
    let master = root
        .open_without_links(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY)
        .map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR => SetUpError::NoTerminals { source: errno.into() },
            errno => SetUpError::step("open /dev/pts/ptmx")(errno),
        })?;
    // By the descriptor: the path of the other end means something else to everyone outside.
    let open = || -> Result<OwnedFd, Errno> {
        unlockpt(&master)?;
        let peer = ioctl_tiocgptpeer(
            &master,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?;
        if let Some(WindowSize { rows, columns }) = size {
            tcsetwinsize(
                &master,
                Winsize {
                    ws_row: rows,
                    ws_col: columns,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                },
            )?;
        }
        fchown(&peer, Some(user), None)?;
        Ok(peer)
    };
    let peer = open().map_err(SetUpError::step("open a terminal"))?;
    Ok(Terminal { master, peer })
}

impl Terminal {
    /// The program's end.
    pub(crate) fn peer(&self) -> &OwnedFd {
        &self.peer
    }

    /// Makes this the standard streams.
    pub(super) fn connect(&self) -> Result<(), SetUpError> {
        let connect = || -> Result<(), Errno> {
            rustix::stdio::dup2_stdin(&self.peer)?;
            rustix::stdio::dup2_stdout(&self.peer)?;
            rustix::stdio::dup2_stderr(&self.peer)
        };
        connect().map_err(SetUpError::step(TAKE))
    }

    /// The end that the caller gets.
    pub(crate) fn into_master(self) -> OwnedFd {
        self.master
    }
}

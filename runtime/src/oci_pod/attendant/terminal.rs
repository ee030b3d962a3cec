//! The attendant's own terminal, whose other end whoever asked for one has.

use std::io;

use rustix::process::ioctl_tiocsctty;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// Takes the terminal on our standard input for our own, so that its changes of size are told to us, and lets everything
/// through it unchanged: what a terminal does to characters is done by the one in the guest.
///
/// # Errors
/// When it is none, or somebody else's.
pub(super) fn take() -> io::Result<()> {
    let terminal = rustix::stdio::stdin();
    ioctl_tiocsctty(terminal)?;
    let mut modes = tcgetattr(terminal)?;
    modes.make_raw();
    Ok(tcsetattr(terminal, OptionalActions::Now, &modes)?)
}

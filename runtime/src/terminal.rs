//! The terminal of the person at the command line.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// A terminal in raw mode; its former mode comes back when this is dropped.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    former: Termios,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Its width.
    pub columns: u16,
    /// Its height.
    pub rows: u16,
}

impl RawTerminal {
    /// Hands every key to the container: no echo, no line editing, no signals from keys. `None` where the descriptor
    /// is no terminal.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter<F: AsFd>(descriptor: F) -> io::Result<Option<Self>> {
        if !isatty(&descriptor) {
            return Ok(None);
        }
        let terminal = descriptor.as_fd().try_clone_to_owned()?;
        let former = tcgetattr(&terminal)?;
        let mut raw = former.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, former }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may have gone away, and then there is nothing to restore.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.former);
    }
}

/// The size of the terminal behind a descriptor; `None` where it is no terminal.
pub fn size<F: AsFd>(descriptor: F) -> Option<TerminalSize> {
    let size = tcgetwinsize(descriptor).ok()?;
    Some(TerminalSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

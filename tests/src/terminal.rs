//! A terminal for a command under test.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// The person's end of a terminal.
#[derive(Debug)]
pub struct Terminal {
    master: File,
}

impl Terminal {
    /// Runs `command` on a new terminal of this size.
    pub fn run(command: &mut Command, columns: u16, rows: u16) -> (Self, Child) {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&master).expect("a terminal");
        unlockpt(&master).expect("a terminal");
        let terminal = Self {
            master: master.into(),
        };
        terminal.resize(columns, rows);
        let path = ptsname(&terminal.master, Vec::new()).expect("a terminal's name");
        let open = || -> OwnedFd {
            rustix::fs::open(&path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("the terminal")
        };
        let child = command
            .stdin(open())
            .stdout(open())
            .stderr(open())
            .spawn()
            .expect("the binary");
        // What was kept for the child would keep the terminal open for ever.
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        (terminal, child)
    }

    /// Types.
    pub fn write(&self, text: &str) {
        rustix::io::write(&self.master, text.as_bytes()).expect("a terminal that takes a line");
    }

    /// Changes its size, as a person drags a window.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).expect("a new size");
    }

    /// Everything shown until the last user of the terminal has gone.
    pub fn read_to_end(mut self) -> String {
        let mut shown = Vec::new();
        // The end of a terminal is an error (EIO, pty(7)).
        let _ = self.master.read_to_end(&mut shown);
        String::from_utf8_lossy(&shown).into_owned()
    }
}

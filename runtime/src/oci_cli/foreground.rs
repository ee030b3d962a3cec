//! Waiting for a process of a container in the foreground: its terminal is shown on ours, and our signals are its.
//!
//! One thread and one loop, so that the engine may fork at any time.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use oci_spec::runtime::{BoxBuilder, Process};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::termios::{Winsize, tcsetwinsize};

use super::OciError;
use crate::terminal::{self, RawTerminal};

/// Signals that are passed on. The others mean this process, or cannot be held up.
const PASSED_ON: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGCONT,
];

/// In bytes: more typed than this waits in our terminal until the container has read.
const TYPED_AHEAD: usize = 4 << 10;

/// Gives a process whose terminal will be shown on ours the size of ours, before it can ask for it.
pub(super) fn take_our_size(process: &mut Process) {
    if let Some(size) = terminal::size(io::stdin()) {
        let console = BoxBuilder::default()
            .width(size.columns)
            .height(size.rows)
            .build();
        process.set_console_size(console.ok());
    }
}

/// A terminal holds 64 KiB (`TTYB_DEFAULT_MEM_LIMIT`), and gives 4 KiB at a time.
const READS_AT_THE_END: usize = 16 + 1;

/// Our signals, held from before the process exists: none is lost and none ends us while it runs.
pub(super) struct Foreground {
    signals: SignalFd,
}

impl Foreground {
    pub(super) fn begin() -> Result<Foreground, OciError> {
        let mut held: SigSet = PASSED_ON.into_iter().collect();
        held.add(Signal::SIGWINCH);
        let hold = || -> nix::Result<SignalFd> {
            held.thread_block()?;
            SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        };
        match hold() {
            Ok(signals) => Ok(Foreground { signals }),
            Err(errno) => Err(OciError::Wait(errno.into())),
        }
    }

    /// Waits for the end of our child `process`. Returns its exit code, or 128 and the number of the signal that ended
    /// it.
    pub(super) fn wait(&self, process: &OwnedFd, terminal: Option<OwnedFd>) -> Result<i32, OciError> {
        let mut session = match terminal {
            Some(master) => Some(Session::begin(master).map_err(OciError::Wait)?),
            None => None,
        };
        self.attend(process, session.as_mut()).map_err(OciError::Wait)?;
        let status = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED)
            .map_err(|errno| OciError::Wait(errno.into()))?;
        let code = status.as_ref().and_then(|status| status.exit_status());
        let signal = status.as_ref().and_then(|status| status.terminating_signal());
        Ok(code.or(signal.map(|signal| 128 + signal)).unwrap_or(255))
    }

    /// Serves everyone until the process ends and its terminal has said all.
    fn attend(&self, process: &OwnedFd, mut session: Option<&mut Session>) -> io::Result<()> {
        loop {
            let mut watched = vec![
                PollFd::new(process, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            if let Some(session) = &session {
                session.watch(&mut watched);
            }
            match poll(&mut watched, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let ready: Vec<PollFlags> = watched.iter().map(PollFd::revents).collect();
            let is_ready = |index: usize| ready.get(index).is_some_and(|flags| !flags.is_empty());
            if is_ready(1) {
                self.pass_signals_on(process, session.as_deref())?;
            }
            if let Some(session) = &mut session {
                session.copy(is_ready(2), is_ready(3))?;
            }
            if is_ready(0) {
                return match session {
                    Some(session) => session.show_the_rest(),
                    None => Ok(()),
                };
            }
        }
    }

    fn pass_signals_on(&self, process: &OwnedFd, session: Option<&Session>) -> io::Result<()> {
        while let Some(received) = self.signals.read_signal()? {
            let number = received.ssi_signo as i32;
            if number == Signal::SIGWINCH as i32 {
                if let Some(session) = session {
                    session.take_our_size();
                }
                continue;
            }
            // Every signal that is held has a name.
            let Some(signal) = rustix::process::Signal::from_named_raw(number) else {
                continue;
            };
            match pidfd_send_signal(process, signal) {
                // One that has just ended needs no signal.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// A container's terminal shown on ours.
struct Session {
    master: File,
    /// Read, and not yet taken by the container's terminal.
    typed: Vec<u8>,
    our_input_ended: bool,
    their_output_ended: bool,
    /// Given back when this goes.
    _raw: Option<RawTerminal>,
}

impl Session {
    fn begin(master: OwnedFd) -> io::Result<Session> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let session = Session {
            master: master.into(),
            typed: Vec::new(),
            our_input_ended: false,
            their_output_ended: false,
            _raw: RawTerminal::enter(io::stdin())?,
        };
        Ok(session)
    }

    /// A terminal that has just gone away has no size, and needs none.
    fn take_our_size(&self) {
        if let Some(size) = terminal::size(io::stdin()) {
            let size = Winsize {
                ws_row: size.rows,
                ws_col: size.columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// Adds the container's terminal and our input, in this order.
    fn watch<'a>(&'a self, watched: &mut Vec<PollFd<'a>>) {
        let mut wanted = PollFlags::empty();
        if !self.their_output_ended {
            wanted |= PollFlags::IN;
        }
        if !self.typed.is_empty() {
            wanted |= PollFlags::OUT;
        }
        // A terminal without users hangs up for as long as it has none, which would be reported again and again.
        if wanted.is_empty() {
            return;
        }
        watched.push(PollFd::new(&self.master, wanted));
        if !self.our_input_ended && self.typed.len() < TYPED_AHEAD {
            watched.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
        }
    }

    fn copy(&mut self, master_is_ready: bool, input_is_ready: bool) -> io::Result<()> {
        if input_is_ready {
            let mut buffer = [0; TYPED_AHEAD];
            match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(0) => self.our_input_ended = true,
                Ok(length) => self
                    .typed
                    .extend_from_slice(buffer.get(..length).unwrap_or_default()),
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Our terminal has hung up.
                Err(_) => self.our_input_ended = true,
            }
        }
        if !self.typed.is_empty() {
            match self.master.write(&self.typed) {
                Ok(length) => drop(self.typed.drain(..length)),
                Err(error) if is_for_later(&error) => {}
                // Nobody is left to read it.
                Err(_) => self.typed.clear(),
            }
        }
        if master_is_ready && !self.their_output_ended {
            self.show_some()?;
        }
        Ok(())
    }

    /// Shows what one read gives. Returns whether there was anything.
    fn show_some(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        match self.master.read(&mut buffer) {
            Ok(length) if length > 0 => {
                let mut ours = io::stdout().lock();
                ours.write_all(buffer.get(..length).unwrap_or_default())?;
                ours.flush()?;
                Ok(true)
            }
            Err(error) if is_for_later(&error) => Ok(false),
            // The last user has closed it (EIO, pty(7)).
            _ => {
                self.their_output_ended = true;
                Ok(false)
            }
        }
    }

    fn show_the_rest(&mut self) -> io::Result<()> {
        // As much as the terminal can hold, and not what somebody who has it open still may write.
        for _ in 0..READS_AT_THE_END {
            if self.their_output_ended || !self.show_some()? {
                break;
            }
        }
        Ok(())
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

//! Waiting for a process of a container in the foreground: its terminal is shown on ours, and our signals are its.
//!
//! One thread and one loop, so that the engine may fork at any time.

use std::fs::File;
use std::io::{self, Write};
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
    /// it. One that cannot be served any more, because what it writes cannot be shown, is killed.
    pub(super) fn wait(&self, process: &OwnedFd, terminal: Option<OwnedFd>) -> Result<i32, OciError> {
        let mut session = match terminal {
            Some(master) => Some(Session::begin(master).map_err(OciError::Wait)?),
            None => None,
        };
        if let Err(error) = self.attend(process, session.as_mut()) {
            // It may have ended already. A frozen one dies when it is thawed, which is not waited for.
            let _ = pidfd_send_signal(process, rustix::process::Signal::KILL);
            return Err(OciError::Wait(error));
        }
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
            let input_is_watched = session
                .as_ref()
                .is_some_and(|session| session.watch(&mut watched));
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
                session.copy(input_is_watched && is_ready(2))?;
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
    /// Read from the container's terminal, and not yet taken by our output, which may be one that does not block.
    to_show: Vec<u8>,
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
            to_show: Vec::new(),
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

    /// Adds our input, if there is room for it, the container's terminal, and our output while it has something to take.
    /// Returns whether our input is the first of them.
    fn watch<'a>(&'a self, watched: &mut Vec<PollFd<'a>>) -> bool {
        let mut wanted = PollFlags::empty();
        if !self.their_output_ended && self.to_show.is_empty() {
            wanted |= PollFlags::IN;
        }
        if !self.typed.is_empty() {
            wanted |= PollFlags::OUT;
        }
        let somebody_reads = !self.their_output_ended || !self.typed.is_empty();
        let has_room = !self.our_input_ended && self.typed.len() < TYPED_AHEAD;
        if somebody_reads && has_room {
            watched.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
        }
        // A terminal without users hangs up for as long as it has none, which would be reported again and again.
        if !wanted.is_empty() {
            watched.push(PollFd::new(&self.master, wanted));
        }
        if !self.to_show.is_empty() {
            watched.push(PollFd::from_borrowed_fd(rustix::stdio::stdout(), PollFlags::OUT));
        }
        somebody_reads && has_room
    }

    /// Copies what there is, as far as it is taken. Only our input may block, and is read when it is ready.
    fn copy(&mut self, input_is_ready: bool) -> io::Result<()> {
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
        if self.to_show.is_empty() && !self.their_output_ended {
            self.read_some();
        }
        self.show_some()
    }

    /// Takes what one read gives. Returns whether there was anything.
    fn read_some(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(length) if length > 0 => {
                self.to_show
                    .extend_from_slice(buffer.get(..length).unwrap_or_default());
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // The last user has closed it (EIO, pty(7)).
            _ => {
                self.their_output_ended = true;
                false
            }
        }
    }

    /// Shows as much as our output takes now.
    fn show_some(&mut self) -> io::Result<()> {
        while !self.to_show.is_empty() {
            match rustix::io::write(rustix::stdio::stdout(), &self.to_show) {
                Ok(length) => drop(self.to_show.drain(..length)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Shows what is left when the process has ended, however long our output takes.
    fn show_the_rest(&mut self) -> io::Result<()> {
        // As much as the terminal can hold, and not what somebody who has it open still may write.
        for _ in 0..READS_AT_THE_END {
            self.show_all()?;
            if self.their_output_ended || !self.read_some() {
                break;
            }
        }
        self.show_all()
    }

    fn show_all(&mut self) -> io::Result<()> {
        loop {
            self.show_some()?;
            if self.to_show.is_empty() {
                return Ok(());
            }
            let mut output = [PollFd::from_borrowed_fd(rustix::stdio::stdout(), PollFlags::OUT)];
            match poll(&mut output, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

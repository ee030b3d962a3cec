//! The signals that end a machine in good order.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGTERM and SIGINT as something to wait on.
#[derive(Debug)]
pub struct StopSignals {
    descriptor: SignalFd,
}

impl StopSignals {
    /// Blocks the signals on this thread, and so on those it starts later, and takes them from here.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn take() -> Result<Self, Errno> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGINT);
        signals.thread_block()?;
        let descriptor = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { descriptor })
    }

    /// The signal that has come, if one has.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn pending(&self) -> Result<Option<&'static str>, Errno> {
        let signal = self.descriptor.read_signal()?;
        Ok(signal.map(|signal| {
            Signal::try_from(signal.ssi_signo.cast_signed()).map_or("a signal", Signal::as_str)
        }))
    }
}

impl AsFd for StopSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

//! Why a machine stopped without being asked to.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use vmm_sys_util::eventfd::EventFd;

use crate::completion::CompletionError;
use crate::devices::virtio::failure::DeviceFailure;

/// What made a machine stop; all but a reset are failures.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The guest pulled the reset line.
    #[error("the guest reset itself")]
    Reset,
    /// A fault while delivering a fault while delivering a fault.
    #[error(
        "vCPU {vcpu} triple-faulted at {} (last page fault at {})",
        hexadecimal(*.rip),
        hexadecimal(*.cr2)
    )]
    TripleFault {
        /// The vCPU's number.
        vcpu: u8,
        /// Its instruction pointer, where KVM still tells.
        rip: Option<u64>,
        /// The address of its last page fault.
        cr2: Option<u64>,
    },
    /// An instruction that neither KVM nor the completion module can execute.
    #[error("vCPU {vcpu} cannot go on")]
    Completion {
        /// The vCPU's number.
        vcpu: u8,
        /// The cause.
        #[source]
        source: CompletionError,
    },
    /// An error inside KVM.
    #[error("KVM has an internal error of kind {suberror} on vCPU {vcpu}")]
    InternalError {
        /// The vCPU's number.
        vcpu: u8,
        /// `suberror` of the exit.
        suberror: u32,
    },
    /// The processor refused the vCPU's state.
    #[error("the processor refuses to enter vCPU {vcpu}: reason {reason:#x}")]
    EntryRefused {
        /// The vCPU's number.
        vcpu: u8,
        /// The processor's reason.
        reason: u64,
    },
    /// An exit this machine does not ask for.
    #[error("vCPU {vcpu} left the guest unexpectedly: {exit}")]
    UnexpectedExit {
        /// The vCPU's number.
        vcpu: u8,
        /// The exit.
        exit: String,
    },
    /// `KVM_RUN` failed.
    #[error("running vCPU {vcpu}")]
    Run {
        /// The vCPU's number.
        vcpu: u8,
        /// The cause.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A device cannot work any more, through no fault of the guest.
    #[error(transparent)]
    Device(#[from] DeviceFailure),
}

fn hexadecimal(value: Option<u64>) -> String {
    value.map_or_else(|| "an unknown address".into(), |value| format!("{value:#x}"))
}

/// Where the vCPU or device that stops first says why; the event wakes the thread that waits for it.
#[derive(Debug)]
pub struct FirstStop {
    stop: OnceLock<Stop>,
    event: EventFd,
}

impl FirstStop {
    /// A place nobody has used.
    ///
    /// # Errors
    /// When there is no event to be had.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            stop: OnceLock::new(),
            event: EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?,
        })
    }

    /// Says why; only the first caller's reason is kept.
    pub fn report(&self, stop: Stop) {
        // A later reason is a consequence of the first, or as good.
        let _ = self.stop.set(stop);
        // An event refuses a write only when its counter is full, and then it is readable already.
        let _ = self.event.write(1);
    }

    /// The reason, once there is one.
    pub fn get(&self) -> Option<&Stop> {
        self.stop.get()
    }
}

/// Readable once there is a reason.
impl AsFd for FirstStop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: The event is open as long as `self`, and so as the borrow, lives.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}

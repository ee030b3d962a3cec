//! How a virtio-mmio device interrupts its guest.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// InterruptStatus bit: the device used a buffer (virtio 1.2, section 4.2.2).
const USED_BUFFER: u32 = 1;
/// InterruptStatus bit: the configuration space changed.
const CONFIG_CHANGE: u32 = 2;

/// The device's InterruptStatus register together with the irqfd that raises its line.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    needs_reset: AtomicBool,
    line: EventFd,
}

impl Interrupt {
    /// An interrupt raised through `line`, which the machine has registered with KVM as an irqfd.
    pub fn new(line: EventFd) -> Self {
        Self {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            line,
        }
    }

    /// The event to register as irqfd.
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    /// Tells the driver that buffers were used.
    ///
    /// # Errors
    /// When the event cannot be written.
    pub fn signal_used_buffers(&self) -> io::Result<()> {
        self.raise(USED_BUFFER)
    }

    /// Tells the driver that the configuration space changed.
    ///
    /// # Errors
    /// When the event cannot be written.
    pub fn signal_config_change(&self) -> io::Result<()> {
        self.raise(CONFIG_CHANGE)
    }

    /// Tells the driver that the device does no more until it is reset: DEVICE_NEEDS_RESET appears in the Status
    /// register, announced as a configuration change (virtio 1.2, section 2.1.2).
    ///
    /// # Errors
    /// When the event cannot be written.
    pub fn request_reset(&self) -> io::Result<()> {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.signal_config_change()
    }

    /// Whether the device waits for its reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// What the driver writes to InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Makes pending what was when `status` and `needs_reset` were read from another, and raises the line if that is
    /// anything: the other's line may have been raised without the guest having got there.
    ///
    /// # Errors
    /// When the event cannot be written.
    pub fn restore(&self, status: u32, needs_reset: bool) -> io::Result<()> {
        self.needs_reset.store(needs_reset, Ordering::SeqCst);
        if status == 0 {
            return Ok(());
        }
        self.raise(status)
    }

    /// Forgets everything pending, as a reset does.
    pub fn clear(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) -> io::Result<()> {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.line.write(1)
    }
}

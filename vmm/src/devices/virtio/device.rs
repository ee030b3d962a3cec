//! What every virtio device is to the transport that carries it.

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::failure::FailureHandler;
use super::interrupt::Interrupt;

/// A virtio device. The transport calls it from a vCPU thread, one call at a time; the device does its work on a
/// thread of its own between [`activate`](Self::activate) and [`reset`](Self::reset).
pub trait VirtioDevice: Send {
    /// The device's number (virtio 1.2, section 5).
    fn device_type(&self) -> u32;

    /// A short name for threads, logs and errors, such as `vsock`.
    fn name(&self) -> &'static str;

    /// The greatest size of each queue; their count is the device's number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The feature bits offered to the driver.
    fn offered_features(&self) -> u64;

    /// Fills `data` with the configuration space from `offset`; bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes the driver over the queues; called once between two resets, when the driver sets DRIVER_OK.
    ///
    /// # Errors
    /// Why the device cannot start; the transport then sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops the device's thread and forgets the driver. Called also on devices that are not active.
    fn reset(&mut self);
}

/// What a driver has agreed on with the device.
pub struct Activation {
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// All queues in the order of their indices, each with the event the driver's notifications raise. Those that
    /// are ready lie in the guest's memory; a queue the driver left out is not ready.
    pub queues: Vec<ActiveQueue>,
    /// The device's way to interrupt the guest.
    pub interrupt: Arc<Interrupt>,
    /// The feature bits both sides accepted.
    pub features: u64,
    /// Where the device reports that it can no longer work.
    pub failures: FailureHandler,
}

/// Copies the bytes of a configuration space from `offset` on; bytes beyond its end are zero.
pub(crate) fn read_config_space(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|start| space.get(start..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}

/// One queue and the event that its notifications raise.
pub struct ActiveQueue {
    /// The queue's rings.
    pub queue: Queue,
    /// Readable when the driver has made buffers available.
    pub notification: EventFd,
}

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left a queue unconfigured that the device cannot do without.
    #[error("queue {index} of {device} is not ready")]
    QueueNotReady {
        /// The device's name.
        device: &'static str,
        /// The queue's index.
        index: usize,
    },
    /// The worker thread could not be started.
    #[error("starting the {device} thread")]
    Thread {
        /// The device's name.
        device: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

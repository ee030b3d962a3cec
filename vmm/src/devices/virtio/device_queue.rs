//! One virtqueue as a device's thread uses it.
//!
//! The rings belong to the guest, which may write anything into them at any time. Here is the one place that decides
//! what a broken ring means, so that no device loops over one for ever.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::device::{ActivateError, Activation, QueuePosition};
use super::interrupt::Interrupt;

/// VIRTIO_F_EVENT_IDX as a feature bit. Every device here offers it: each side says after how many buffers it wants to
/// hear of them, which saves most interrupts and notifications, and both are dear where the guest's kernel is emulated.
pub(crate) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// A descriptor chain that keeps the memory it lies in alive.
pub(crate) type Chain = DescriptorChain<Arc<GuestMemoryMmap>>;

/// Why a queue cannot be used any further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueueError {
    /// The driver broke the ring. Only a reset mends it.
    #[error("reading a ring the driver broke")]
    Ring(#[source] virtio_queue::Error),
    /// The driver says there are buffers but they cannot be read.
    #[error("reading an available ring that has entries but shows none")]
    NoProgress,
    /// The host could not raise the interrupt.
    #[error("raising the interrupt")]
    Interrupt(#[source] io::Error),
    /// The notification could not be taken.
    #[error("reading the notification event")]
    Notification(#[source] io::Error),
}

impl QueueError {
    /// Whether the guest brought this about, so that it is answered with DEVICE_NEEDS_RESET and not with a failure.
    pub(crate) fn is_drivers_fault(&self) -> bool {
        matches!(self, Self::Ring(_) | Self::NoProgress)
    }
}

/// A queue, its notification and the interrupt of its device.
pub(crate) struct DeviceQueue {
    queue: Queue,
    notification: EventFd,
    memory: Arc<GuestMemoryMmap>,
    interrupt: Arc<Interrupt>,
}

impl DeviceQueue {
    /// Takes the queues out of an activation, all of which must be ready.
    ///
    /// # Errors
    /// [`ActivateError::QueueNotReady`] when the driver left one out.
    pub(crate) fn take_all(
        device: &'static str,
        activation: &mut Activation,
    ) -> Result<Vec<Self>, ActivateError> {
        let queues = std::mem::take(&mut activation.queues);
        queues
            .into_iter()
            .enumerate()
            .map(|(index, active)| {
                if !active.queue.ready() {
                    return Err(ActivateError::QueueNotReady { device, index });
                }
                Ok(Self {
                    queue: active.queue,
                    notification: active.notification,
                    memory: Arc::clone(&activation.memory),
                    interrupt: Arc::clone(&activation.interrupt),
                })
            })
            .collect()
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// The number of descriptors: no more chains can be outstanding at once.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// How far the queue was served.
    pub(crate) fn position(&self) -> QueuePosition {
        QueuePosition {
            next_available: self.queue.next_avail(),
            next_used: self.queue.next_used(),
        }
    }

    /// The event that the driver's notifications raise.
    pub(crate) fn notification(&self) -> &EventFd {
        &self.notification
    }

    /// Lowers the event after the poller reported it.
    pub(crate) fn take_notification(&self) -> Result<(), QueueError> {
        match self.notification.read() {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(QueueError::Notification(error)),
        }
    }

    /// The next chain the driver made available.
    pub(crate) fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let available = self
            .queue
            .avail_idx(&*self.memory, Ordering::Acquire)
            .map_err(QueueError::Ring)?;
        if available.0 == self.queue.next_avail() {
            return Ok(None);
        }
        // An entry that is there and cannot be read would stay there: without this the caller would ask for ever.
        self.queue
            .iter(Arc::clone(&self.memory))
            .map_err(QueueError::Ring)?
            .next()
            .map(Some)
            .ok_or(QueueError::NoProgress)
    }

    /// Gives back the chain that [`pop`](Self::pop) returned last, unused.
    pub(crate) fn put_back(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Hands a chain back to the driver with `written` bytes of it filled.
    pub(crate) fn complete(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        self.queue
            .add_used(&*self.memory, head, written)
            .map_err(QueueError::Ring)
    }

    /// Interrupts the guest if it wants to hear of the chains completed since the last call.
    pub(crate) fn interrupt_if_wanted(&mut self) -> Result<(), QueueError> {
        if self
            .queue
            .needs_notification(&*self.memory)
            .map_err(QueueError::Ring)?
        {
            self.interrupt
                .signal_used_buffers()
                .map_err(QueueError::Interrupt)?;
        }
        Ok(())
    }

    /// How many buffers the driver has made available, modulo 2^16.
    pub(crate) fn available_index(&self) -> Result<u16, QueueError> {
        self.queue
            .avail_idx(&*self.memory, Ordering::Acquire)
            .map(|index| index.0)
            .map_err(QueueError::Ring)
    }

    /// Asks the driver to tell when it makes more than `available` buffers available, however many are still unused.
    /// It may have done so already.
    pub(crate) fn notify_beyond(&mut self, available: u16) -> Result<(), QueueError> {
        if !self.queue.event_idx_enabled() {
            return Ok(());
        }
        // `avail_event`, behind the flags, the index and the entries of the used ring (virtio 1.2, section 2.7.8).
        let entries = u64::from(self.queue.size()) * 8;
        let address = GuestAddress(self.queue.used_ring()).checked_add(4 + entries);
        address
            .ok_or(virtio_queue::Error::AddressOverflow)
            .and_then(|address| {
                self.memory
                    .store(available.to_le(), address, Ordering::SeqCst)
                    .map_err(virtio_queue::Error::GuestMemory)
            })
            .map_err(QueueError::Ring)
    }

    /// Asks the driver to stay silent about new buffers.
    pub(crate) fn pause_notifications(&mut self) -> Result<(), QueueError> {
        self.queue
            .disable_notification(&*self.memory)
            .map_err(QueueError::Ring)
    }

    /// Asks the driver to tell of new buffers again; true when some came in meanwhile.
    pub(crate) fn resume_notifications(&mut self) -> Result<bool, QueueError> {
        self.queue
            .enable_notification(&*self.memory)
            .map_err(QueueError::Ring)
    }
}

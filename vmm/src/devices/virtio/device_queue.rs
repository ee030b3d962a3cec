//! One virtqueue as a device's thread uses it.
//!
//! The rings belong to the guest, which may write anything into them at any time. Here is the one place that decides
//! what a broken ring means, so that no device loops over one for ever.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, AtomicAccess, Bytes, GuestAddress, GuestMemoryMmap};
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
    /// How far the used ring was when the driver was last told of it.
    told: u16,
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
        Self::take_ready(activation)
            .into_iter()
            .enumerate()
            .map(|(index, queue)| queue.ok_or(ActivateError::QueueNotReady { device, index }))
            .collect()
    }

    /// Takes the queues out of an activation: nothing in the place of one that the driver left out.
    pub(crate) fn take_ready(activation: &mut Activation) -> Vec<Option<Self>> {
        let queues = std::mem::take(&mut activation.queues);
        queues
            .into_iter()
            .map(|active| {
                active.queue.ready().then(|| Self {
                    told: active.queue.next_used(),
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

    /// Hands several chains back, each with the bytes of it that were filled. The driver sees all of them or none, which
    /// it relies on where they hold one thing together.
    pub(crate) fn complete_together(&mut self, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let (size, mut next) = (self.queue.size(), self.queue.next_used());
        for (head, written) in chains {
            // The used ring: flags, index, and entries of a number and a length (virtio 1.2, section 2.7.8).
            let entry = 4 + u64::from(next % size) * 8;
            self.store_used(entry, u32::from(*head).to_le(), Ordering::Relaxed)?;
            self.store_used(entry + 4, written.to_le(), Ordering::Relaxed)?;
            next = next.wrapping_add(1);
        }
        self.store_used(2, next.to_le(), Ordering::Release)?;
        self.queue.set_next_used(next);
        Ok(())
    }

    fn store_used<T: AtomicAccess>(&self, offset: u64, value: T, order: Ordering) -> Result<(), QueueError> {
        let address = GuestAddress(self.queue.used_ring()).checked_add(offset);
        address
            .ok_or(virtio_queue::Error::AddressOverflow)
            .and_then(|address| {
                self.memory
                    .store(value, address, order)
                    .map_err(virtio_queue::Error::GuestMemory)
            })
            .map_err(QueueError::Ring)
    }

    /// Interrupts the guest if it wants to hear of the chains completed since the last call.
    pub(crate) fn interrupt_if_wanted(&mut self) -> Result<(), QueueError> {
        if self.is_wanted().map_err(QueueError::Ring)? {
            self.interrupt
                .signal_used_buffers()
                .map_err(QueueError::Interrupt)?;
        }
        Ok(())
    }

    /// Whether the driver wants to hear of what it was not told yet. The queue's own answer knows nothing of chains that
    /// were [completed together](Self::complete_together).
    fn is_wanted(&mut self) -> Result<bool, virtio_queue::Error> {
        let used = self.queue.next_used();
        let new = used.wrapping_sub(std::mem::replace(&mut self.told, used));
        if !self.queue.event_idx_enabled() || new == 0 {
            return Ok(new != 0);
        }
        // The driver must see what was completed before this reads what it wants.
        fence(Ordering::SeqCst);
        // `used_event`, behind the flags, the index and the entries of the available ring (section 2.7.7).
        let entries = u64::from(self.queue.size()) * 2;
        let event: u16 = GuestAddress(self.queue.avail_ring())
            .checked_add(4 + entries)
            .ok_or(virtio_queue::Error::AddressOverflow)
            .and_then(|address| {
                self.memory
                    .load(address, Ordering::Relaxed)
                    .map_err(virtio_queue::Error::GuestMemory)
            })?;
        // It wants to hear when the entry of that number is used (section 2.7.10).
        Ok(used.wrapping_sub(u16::from_le(event)).wrapping_sub(1) < new)
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
        self.store_used(4 + entries, available.to_le(), Ordering::SeqCst)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::QueueState;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const SIZE: u16 = 8;
    const AVAILABLE: u64 = 0x1000;
    const USED: u64 = 0x2000;

    fn queue(next_used: u16, event_idx_enabled: bool) -> (Arc<GuestMemoryMmap>, Queue) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x3000)]).unwrap();
        let state = QueueState {
            max_size: SIZE,
            next_avail: next_used,
            next_used,
            event_idx_enabled,
            size: SIZE,
            ready: true,
            desc_table: 0,
            avail_ring: AVAILABLE,
            used_ring: USED,
        };
        (Arc::new(memory), Queue::try_from(state).unwrap())
    }

    fn device_queue(next_used: u16, event_idx_enabled: bool) -> DeviceQueue {
        let (memory, queue) = queue(next_used, event_idx_enabled);
        DeviceQueue {
            told: next_used,
            queue,
            notification: EventFd::new(EFD_NONBLOCK).unwrap(),
            memory,
            interrupt: Arc::new(Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap())),
        }
    }

    fn used_ring(memory: &GuestMemoryMmap) -> Vec<u8> {
        let mut bytes = vec![0; 4 + 8 * usize::from(SIZE) + 2];
        memory.read_slice(&mut bytes, GuestAddress(USED)).unwrap();
        bytes
    }

    proptest! {
        /// Chains completed together leave the ring, and the wish for an interrupt, that they leave one by one.
        #[test]
        fn several_chains_at_once_are_several_chains(
            start in any::<u16>(),
            batches in prop::collection::vec(
                (prop::collection::vec((0..SIZE, any::<u32>()), 1..6), any::<u16>(), any::<bool>()),
                0..20,
            ),
        ) {
            let mut ours = device_queue(start, true);
            let (memory, mut theirs) = queue(start, true);
            for (chains, distance, is_last) in batches {
                // What a driver asks for is mostly near.
                let wanted = ours.queue.next_used().wrapping_add(distance % 8).wrapping_sub(2).to_le();
                for memory in [&memory, &ours.memory] {
                    let used_event = GuestAddress(AVAILABLE + 4 + 2 * u64::from(SIZE));
                    memory.store(wanted, used_event, Ordering::SeqCst).unwrap();
                }
                ours.complete_together(&chains).unwrap();
                for (head, written) in chains {
                    theirs.add_used(&*memory, head, written).unwrap();
                }
                prop_assert_eq!(used_ring(&ours.memory), used_ring(&memory));
                if is_last {
                    prop_assert_eq!(
                        ours.is_wanted().unwrap(),
                        theirs.needs_notification(&*memory).unwrap()
                    );
                }
            }
        }
    }

    #[test]
    fn without_event_idx_the_driver_hears_of_everything_once() {
        let mut queue = device_queue(65_535, false);
        assert!(!queue.is_wanted().unwrap());
        queue.complete(3, 0).unwrap();
        queue.complete_together(&[(1, 5), (2, 6)]).unwrap();
        assert!(queue.is_wanted().unwrap());
        assert!(!queue.is_wanted().unwrap());
    }
}

//! The registers that place one queue in the guest's memory.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::devices::virtio::device::QueuePosition;

/// Bytes of a descriptor, of an entry of the available ring and of one of the used ring (virtio 1.2, section 2.7).
const DESCRIPTOR_SIZE: u64 = 16;
const AVAILABLE_ENTRY_SIZE: u64 = 2;
const USED_ENTRY_SIZE: u64 = 8;
/// Bytes of either ring beside its entries: flags, index and the other side's event index.
const RING_OVERHEAD: u64 = 6;

/// What the driver wrote about one queue. Nothing is believed before [`set_ready`](Self::set_ready).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueueRegisters {
    max_size: u16,
    size: u32,
    ready: bool,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
}

/// The three areas a driver places.
#[derive(Debug, Clone, Copy)]
pub(super) enum Area {
    DescriptorTable,
    AvailableRing,
    UsedRing,
}

/// The half of an address that one register holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Half {
    Low,
    High,
}

impl QueueRegisters {
    pub(super) fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: u32::from(max_size),
            ready: false,
            descriptor_table: 0,
            available_ring: 0,
            used_ring: 0,
        }
    }

    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Writes the queue's size; ignored while the queue is ready.
    pub(super) fn set_size(&mut self, size: u32) {
        if !self.ready {
            self.size = size;
        }
    }

    /// Writes half an address; ignored while the queue is ready.
    pub(super) fn set_address(&mut self, area: Area, half: Half, value: u32) {
        if self.ready {
            return;
        }
        let address = match area {
            Area::DescriptorTable => &mut self.descriptor_table,
            Area::AvailableRing => &mut self.available_ring,
            Area::UsedRing => &mut self.used_ring,
        };
        *address = match half {
            Half::Low => *address & !0xffff_ffff | u64::from(value),
            Half::High => *address & 0xffff_ffff | u64::from(value) << 32,
        };
    }

    /// Makes the queue ready if its size is allowed and its areas are aligned and lie in `memory`. A driver finds out
    /// by reading the register back.
    pub(super) fn set_ready(&mut self, ready: bool, memory: &GuestMemoryMmap) {
        self.ready = ready && self.is_valid(memory);
    }

    /// The queue that a device works on, from `position` on.
    pub(super) fn build(
        &self,
        event_index: bool,
        position: QueuePosition,
    ) -> Result<Queue, virtio_queue::Error> {
        if !self.ready {
            return Queue::new(self.max_size);
        }
        let size = u16::try_from(self.size).map_err(|_| virtio_queue::Error::InvalidSize)?;
        Queue::try_from(QueueState {
            max_size: self.max_size,
            next_avail: position.next_available,
            next_used: position.next_used,
            event_idx_enabled: event_index,
            size,
            ready: true,
            desc_table: self.descriptor_table,
            avail_ring: self.available_ring,
            used_ring: self.used_ring,
        })
    }

    /// Whether a device may work with the queue, if it is ready.
    pub(super) fn is_valid(&self, memory: &GuestMemoryMmap) -> bool {
        let size = u64::from(self.size);
        let lies_in_memory = |address: u64, alignment: u64, length: u64| {
            address.is_multiple_of(alignment)
                && usize::try_from(length)
                    .is_ok_and(|length| memory.check_range(GuestAddress(address), length))
        };
        self.size.is_power_of_two()
            && self.size <= u32::from(self.max_size)
            && lies_in_memory(self.descriptor_table, 16, DESCRIPTOR_SIZE * size)
            && lies_in_memory(
                self.available_ring,
                2,
                RING_OVERHEAD + AVAILABLE_ENTRY_SIZE * size,
            )
            && lies_in_memory(self.used_ring, 4, RING_OVERHEAD + USED_ENTRY_SIZE * size)
    }
}

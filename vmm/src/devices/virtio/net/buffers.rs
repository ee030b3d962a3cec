//! Receive buffers that were taken from the queue and wait for frames.

use std::collections::VecDeque;

use vm_memory::{GuestMemoryError, GuestMemoryMmap, VolatileSlice};

use super::areas::{self, Area, Direction};
use super::header::{HEADER_BYTES, MAX_FRAME_BYTES};
use crate::devices::virtio::device_queue::{DeviceQueue, QueueError};

/// Room for any frame.
pub(super) const ENOUGH: usize = HEADER_BYTES + MAX_FRAME_BYTES;

/// The buffers. A tap gives each frame to one read and cuts off what does not fit, so it is read only into buffers that
/// hold any frame; those that were not needed stay here, so that a descriptor is read once. Before anyone asks how far
/// the queue was served they are [put back](Self::put_back).
#[derive(Debug)]
pub(super) struct Buffers {
    /// Whether a frame may be spread over several.
    merges: bool,
    chains: VecDeque<Taken>,
    areas: VecDeque<Area>,
    bytes: usize,
    scratch: Vec<Area>,
}

#[derive(Debug, Clone, Copy)]
struct Taken {
    head: u16,
    areas: usize,
    bytes: usize,
}

impl Buffers {
    pub(super) fn new(merges: bool) -> Self {
        Self {
            merges,
            chains: VecDeque::new(),
            areas: VecDeque::new(),
            bytes: 0,
            scratch: Vec::new(),
        }
    }

    /// Takes buffers until they hold any frame, or the queue has no more.
    pub(super) fn take(&mut self, queue: &mut DeviceQueue) -> Result<(), QueueError> {
        let limit = usize::from(queue.size());
        while !self.is_full(limit) && self.bytes < ENOUGH && (self.merges || self.chains.is_empty()) {
            let Some(chain) = queue.pop()? else {
                return Ok(());
            };
            let bytes = areas::collect(&chain, Direction::ToGuest, limit, &mut self.scratch);
            // A buffer that cannot take even the header is given back empty.
            let Some(bytes) = bytes.filter(|bytes| *bytes >= HEADER_BYTES) else {
                queue.complete(chain.head_index(), 0)?;
                continue;
            };
            self.areas.extend(&self.scratch);
            self.bytes += bytes;
            self.chains.push_back(Taken {
                head: chain.head_index(),
                areas: self.scratch.len(),
                bytes,
            });
        }
        Ok(())
    }

    /// Whether the driver has no descriptors left to give, with `limit` in the queue.
    fn is_full(&self, limit: usize) -> bool {
        self.areas.len() >= limit
    }

    /// Gives all buffers back to the queue, as if they had not been taken.
    pub(super) fn put_back(&mut self, queue: &mut DeviceQueue) {
        for _ in self.chains.drain(..) {
            queue.put_back();
        }
        self.areas.clear();
        self.bytes = 0;
    }

    /// The longest frame, with its header, that fits.
    pub(super) fn capacity(&self) -> usize {
        if self.merges {
            return self.bytes;
        }
        self.chains.front().map_or(0, |first| first.bytes)
    }

    /// Whether a frame that does not fit will when the driver gives more buffers.
    pub(super) fn can_grow(&self, queue: &DeviceQueue) -> bool {
        self.chains.is_empty() || self.merges && !self.is_full(usize::from(queue.size()))
    }

    /// The memory for a frame of at most `limit` bytes, without the first `skip` bytes of the buffers.
    pub(super) fn slices<'m>(
        &self,
        memory: &'m GuestMemoryMmap,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<VolatileSlice<'m>>, GuestMemoryError> {
        areas::slices(memory, self.areas.iter().copied(), skip, limit)
    }

    /// How many buffers a frame of `length` bytes, which fits, is spread over.
    pub(super) fn needed(&self, length: usize) -> u16 {
        let mut left = length;
        let mut count = 0;
        for chain in &self.chains {
            count += 1;
            if left <= chain.bytes {
                break;
            }
            left -= chain.bytes;
        }
        count
    }

    /// Hands the first `count` buffers, which hold `length` bytes, to the driver.
    pub(super) fn complete(
        &mut self,
        queue: &mut DeviceQueue,
        count: u16,
        length: usize,
    ) -> Result<(), QueueError> {
        let mut left = length;
        let mut used = Vec::with_capacity(usize::from(count));
        for chain in self.chains.drain(..usize::from(count).min(self.chains.len())) {
            let written = left.min(chain.bytes);
            left -= written;
            self.bytes -= chain.bytes;
            self.areas.drain(..chain.areas.min(self.areas.len()));
            // At most a frame's length.
            used.push((chain.head, u32::try_from(written).unwrap_or(u32::MAX)));
        }
        queue.complete_together(&used)
    }
}

//! A driver as a script: registers, rings and descriptors, right or wrong.

use super::random::Random;
use super::script::{FREE, Script, WINDOWS, Width};

/// The registers that are used by name (virtio 1.2, section 4.2.2).
const DRIVER_FEATURES: u32 = 0x20;
const DRIVER_FEATURES_SELECT: u32 = 0x24;
const QUEUE_SELECT: u32 = 0x30;
const QUEUE_SIZE: u32 = 0x38;
const QUEUE_READY: u32 = 0x44;
pub(crate) const QUEUE_NOTIFY: u32 = 0x50;
pub(crate) const STATUS: u32 = 0x70;
const AREAS: [u32; 3] = [0x80, 0x90, 0xa0];

/// VIRTIO_F_EVENT_IDX; VIRTIO_F_VERSION_1 is in the other half.
pub(crate) const EVENT_INDEX: u32 = 1 << 29;
/// Descriptors of each queue.
pub(crate) const SIZE: u16 = 16;
/// Where queue 0 lies, and how far the next one is from it: descriptors, available and used ring 1 KiB each.
const QUEUES: u32 = FREE;
const QUEUE_STRIDE: u32 = 0x1000;
/// Where buffers lie that are filled before the guest starts.
pub(crate) const BUFFERS: u32 = FREE + 0x1_0000;
/// Memory that is nobody's, where devices may write.
pub(crate) const SCRATCH: u32 = 0x100_0000;
pub(crate) const SCRATCH_BYTES: u32 = 0x100_0000;
/// What no RAM is at.
pub(crate) const BEHIND_RAM: u64 = 64 << 20;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A device of the machine: the number of its window, its queues, and the features it is driven with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) window: u32,
    pub(crate) queues: u32,
    pub(crate) features: u32,
}

/// A descriptor as the device reads it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// Where the parts of `queue` are.
pub(crate) fn descriptors(queue: u32) -> u32 {
    QUEUES + queue * QUEUE_STRIDE
}

pub(crate) fn available(queue: u32) -> u32 {
    descriptors(queue) + 0x400
}

pub(crate) fn used(queue: u32) -> u32 {
    descriptors(queue) + 0x800
}

/// The bytes of an available ring that has come to `index`, of `heads`.
pub(crate) fn available_ring(index: u16, heads: &[u16]) -> Vec<u8> {
    let words = [0, index].into_iter().chain(heads.iter().copied());
    words.flat_map(u16::to_le_bytes).collect()
}

impl Target {
    pub(crate) fn register(self, offset: u32) -> u32 {
        WINDOWS + self.window * 4096 + offset
    }

    pub(crate) fn set(self, script: &mut Script, register: u32, value: u32) {
        script.store(Width::Four, self.register(register), value.into());
    }

    /// Resets the device and comes to an understanding about `features`.
    pub(crate) fn negotiate(self, script: &mut Script, features: u32) {
        for status in [0, 1, 3] {
            self.set(script, STATUS, status);
        }
        for (half, features) in [(0, features), (1, 1)] {
            self.set(script, DRIVER_FEATURES_SELECT, half);
            self.set(script, DRIVER_FEATURES, features);
        }
        self.set(script, STATUS, 11);
    }

    /// Places `queue`, of `size` descriptors, at three addresses.
    pub(crate) fn place(self, script: &mut Script, queue: u32, size: u32, areas: [u64; 3]) {
        self.set(script, QUEUE_SELECT, queue);
        self.set(script, QUEUE_SIZE, size);
        for (register, area) in AREAS.into_iter().zip(areas) {
            self.set(script, register, area as u32);
            self.set(script, register + 4, (area >> 32) as u32);
        }
        self.set(script, QUEUE_READY, 1);
    }

    /// Takes the device over as a driver should.
    pub(crate) fn start(self, script: &mut Script, features: u32) {
        self.negotiate(script, features);
        for queue in 0..self.queues {
            let areas = [descriptors(queue), available(queue), used(queue)].map(u64::from);
            self.place(script, queue, SIZE.into(), areas);
        }
        self.set(script, STATUS, 15);
    }

    pub(crate) fn notify(self, script: &mut Script, queue: u32) {
        self.set(script, QUEUE_NOTIFY, queue);
    }

    /// Has the rings of `queue` anew: chains that begin at `heads`, none of them used.
    pub(crate) fn refill(self, script: &mut Script, queue: u32, heads: &[u16]) {
        script.store(Width::Four, used(queue), 0);
        for (bytes, offset) in available_ring(heads.len() as u16, heads)
            .chunks(4)
            .zip((0..).step_by(4))
        {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            script.store(
                Width::Four,
                available(queue) + offset,
                u32::from_le_bytes(word).into(),
            );
        }
    }
}

/// Writes `descriptor` into the table of `queue`.
pub(crate) fn describe(script: &mut Script, queue: u32, index: u16, descriptor: Descriptor) {
    let bytes = descriptor.to_bytes();
    let words = bytes.as_chunks::<8>().0;
    for (word, offset) in words.iter().zip([0, 8]) {
        let address = descriptors(queue) + u32::from(index) * 16 + offset;
        script.store(Width::Eight, address, u64::from_le_bytes(*word));
    }
}

/// A descriptor that may mean something: its address lies where devices may write, in its own rings, at the end of RAM
/// or beyond it, and its length is any that has ever been wrong somewhere.
pub(crate) fn plausible(random: &mut Random) -> Descriptor {
    let address = match random.below(8) {
        0 => u64::from(descriptors(random.below(3) as u32)) + random.below(0x1000),
        1 => BEHIND_RAM - random.below(4096),
        2 => BEHIND_RAM + random.below(1 << 40),
        3 => u64::MAX - random.below(4096),
        4 => u64::from(WINDOWS) + random.below(0x1_0000),
        5 => u64::from(BUFFERS) + random.below(0x1_0000),
        _ => u64::from(SCRATCH) + random.below(u64::from(SCRATCH_BYTES / 2)),
    };
    let length = match random.below(6) {
        0 => 0,
        1 => 1,
        2 => u32::MAX - random.below(32) as u32,
        3 => random.of(&[12, 16, 44, 512, 4096, 65_536, 65_562, 1 << 20]),
        _ => random.below(8192) as u32,
    };
    // In the rings a long buffer would go on into what the driver itself reads.
    let length = match address >> 16 == u64::from(FREE) >> 16 {
        true => length.min(0x400),
        false => length,
    };
    Descriptor {
        address,
        length,
        flags: random.of(&[
            0,
            NEXT,
            NEXT,
            NEXT,
            WRITE,
            NEXT | WRITE,
            NEXT | WRITE,
            INDIRECT,
            0xffff,
        ]),
        next: random.of(&[0, 1, 2, 3, 5, 8, 13, 15, 16, 0xffff]),
    }
}

/// A queue that is offered chain after chain without being started anew.
pub(crate) struct Offer {
    target: Target,
    queue: u32,
    index: u16,
}

impl Offer {
    /// Of a queue that was just started.
    pub(crate) fn new(target: Target, queue: u32) -> Self {
        Self {
            target,
            queue,
            index: 0,
        }
    }

    /// Says that `count` more entries of the ring, whatever stands there, are available.
    pub(crate) fn again(&mut self, script: &mut Script, count: u16) {
        self.index = self.index.wrapping_add(count);
        script.store(Width::Two, available(self.queue) + 2, self.index.into());
        self.target.notify(script, self.queue);
    }

    /// Offers the chains that begin at `heads`.
    pub(crate) fn offer(&mut self, script: &mut Script, heads: &[u16]) {
        for (head, entry) in heads.iter().zip(0..) {
            let place = self.index.wrapping_add(entry) % SIZE;
            script.store(
                Width::Two,
                available(self.queue) + 4 + u32::from(place) * 2,
                (*head).into(),
            );
        }
        self.again(script, heads.len() as u16);
    }

    /// Waits until all that was offered is used.
    pub(crate) fn wait(&self, script: &mut Script) {
        script.wait_for(used(self.queue) + 2, self.index);
    }
}

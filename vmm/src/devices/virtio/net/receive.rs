//! Frames from the tap to the guest.

use std::io::ErrorKind;
use std::time::Instant;

use vm_memory::VolatileSlice;

use super::areas;
use super::buffers::{Buffers, ENOUGH};
use super::counters::NetCounters;
use super::features::Agreed;
use super::header::{HEADER_BYTES, Header, MAX_FRAME_BYTES};
use super::pace::{Pace, SharedLimit};
use super::tap::{self, Port, is_gone};
use crate::devices::virtio::device_queue::{DeviceQueue, QueueError};

/// The least that is expected: a frame of Ethernet's usual MTU, with a VLAN's tag.
const LEAST_EXPECTED: usize = 1518;

/// The receive side of one queue pair.
pub(super) struct Receiver {
    agreed: Agreed,
    buffers: Buffers,
    /// Where a frame waits for the guest's buffers, and its length there without the header.
    room: Box<[u8]>,
    held: Option<Held>,
    /// The length without header that the next frame has at most, if it is like those before it.
    expected: usize,
    /// Whether the tap may have frames.
    readable: bool,
    pace: Pace,
}

/// A frame that has been read and waits.
#[derive(Debug, Clone, Copy)]
struct Held {
    header: Header,
    /// Its length without the header.
    length: usize,
    /// Whether the rate limit has let it pass.
    admitted: bool,
}

/// What became of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// There may be more frames, and buffers for them.
    More,
    /// There are no more frames, no buffers for them, or they have to wait.
    Idle,
    /// The tap has no network device any more.
    Gone,
}

/// What became of a frame.
enum Step {
    Delivered,
    Dropped,
    NoFrame,
    NoBuffers,
    Later,
    Gone,
}

/// What a read came to.
enum Read {
    Frame(Held),
    Bad,
    Nothing,
    Gone,
}

impl Receiver {
    pub(super) fn new(agreed: Agreed, limit: SharedLimit) -> Self {
        Self {
            agreed,
            buffers: Buffers::new(agreed.merges_buffers()),
            room: vec![0; MAX_FRAME_BYTES].into_boxed_slice(),
            held: None,
            expected: LEAST_EXPECTED,
            readable: true,
            pace: Pace::new(limit),
        }
    }

    /// Takes note that the tap has frames.
    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// When the frame that the rate limit holds may go.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.pace.rests_until()
    }

    /// Leaves the queue between two frames. One that waits for buffers goes on waiting.
    pub(super) fn put_back(&mut self, queue: &mut DeviceQueue) {
        self.buffers.put_back(queue);
    }

    /// Leaves the queue, and drops the frame that waits: the guest wants none here any more.
    pub(super) fn give_up(&mut self, queue: &mut DeviceQueue, counters: &NetCounters) {
        self.put_back(queue);
        if self.held.take().is_some() {
            counters.receive_dropped.add_one();
        }
        self.pace.end_rest();
    }

    /// Hands the guest at most one ring full of frames.
    pub(super) fn turn(
        &mut self,
        queue: &mut DeviceQueue,
        port: &dyn Port,
        now: Instant,
        counters: &NetCounters,
    ) -> Result<Received, QueueError> {
        if self.pace.is_resting(now) {
            return Ok(Received::Idle);
        }
        queue.pause_notifications()?;
        for _ in 0..queue.size() {
            match self.step(queue, port, now)? {
                Step::Delivered => counters.received.add_one(),
                Step::Dropped => counters.receive_dropped.add_one(),
                Step::NoFrame | Step::Later => {
                    queue.interrupt_if_wanted()?;
                    return Ok(Received::Idle);
                }
                Step::NoBuffers => {
                    queue.interrupt_if_wanted()?;
                    // Only now does it matter when the guest adds buffers.
                    if !queue.resume_notifications()? {
                        return Ok(Received::Idle);
                    }
                }
                Step::Gone => {
                    queue.interrupt_if_wanted()?;
                    return Ok(Received::Gone);
                }
            }
        }
        queue.interrupt_if_wanted()?;
        Ok(Received::More)
    }

    fn step(&mut self, queue: &mut DeviceQueue, port: &dyn Port, now: Instant) -> Result<Step, QueueError> {
        let mut held = match self.held.take() {
            Some(held) => held,
            None => {
                if !self.readable {
                    return Ok(Step::NoFrame);
                }
                self.buffers.take(queue)?;
                let capacity = self.buffers.capacity();
                if capacity == 0 {
                    return Ok(Step::NoBuffers);
                }
                let straight = capacity >= ENOUGH && !self.pace.is_limited();
                let read = match straight {
                    true => self.read_straight(queue, port),
                    false => self.read_aside(port),
                };
                match read {
                    Read::Frame(frame) if straight => return self.complete(queue, frame),
                    Read::Frame(frame) => frame,
                    Read::Bad => return Ok(Step::Dropped),
                    Read::Nothing => return Ok(Step::NoFrame),
                    Read::Gone => return Ok(Step::Gone),
                }
            }
        };
        if !held.admitted && !self.pace.admits(now, held.length) {
            self.held = Some(held);
            return Ok(Step::Later);
        }
        held.admitted = true;
        self.buffers.take(queue)?;
        if self.buffers.capacity() < HEADER_BYTES + held.length {
            if self.buffers.can_grow(queue) {
                self.held = Some(held);
                return Ok(Step::NoBuffers);
            }
            return Ok(Step::Dropped);
        }
        let slices = self
            .buffers
            .slices(queue.memory(), HEADER_BYTES, held.length)
            .unwrap_or_default();
        areas::scatter(&slices, self.room.get(..held.length).unwrap_or_default());
        self.complete(queue, held)
    }

    /// Reads a frame into the guest's buffers, which hold any: into those that one as long as expected needs, and what is
    /// beyond by way of this process's memory. To hand the kernel buffers for the longest frame, dozens of them, costs more
    /// than a short frame; and where frames are long, it is the copy that costs.
    fn read_straight(&mut self, queue: &DeviceQueue, port: &dyn Port) -> Read {
        let expected = self.expected;
        // They were found to be there when they were taken.
        let Ok(mut slices) = self.buffers.slices(queue.memory(), HEADER_BYTES, expected) else {
            return Read::Nothing;
        };
        let mut room = std::mem::take(&mut self.room);
        let beyond = room.get_mut(..MAX_FRAME_BYTES - expected).unwrap_or_default();
        slices.push(VolatileSlice::from(beyond));
        let read = self.read(port, &slices);
        if let Read::Frame(Held { length, .. }) = read {
            if let Some(beyond) = length.checked_sub(expected).and_then(|beyond| room.get(..beyond)) {
                let slices = self
                    .buffers
                    .slices(queue.memory(), HEADER_BYTES + expected, beyond.len());
                areas::scatter(&slices.unwrap_or_default(), beyond);
            }
            // Long frames come among short ones; that none has come for a while is told by a few dozen.
            self.expected = length.max(expected - expected / 8).max(LEAST_EXPECTED);
        }
        self.room = room;
        read
    }

    /// Reads a frame into this process's memory.
    fn read_aside(&mut self, port: &dyn Port) -> Read {
        let mut room = std::mem::take(&mut self.room);
        let read = self.read(port, &[VolatileSlice::from(&mut *room)]);
        self.room = room;
        read
    }

    fn read(&mut self, port: &dyn Port, slices: &[VolatileSlice<'_>]) -> Read {
        let mut header = Header::default();
        match tap::read(port, &mut header, slices) {
            Ok(0) => Read::Gone,
            Ok(length) => match (length.checked_sub(HEADER_BYTES), self.agreed.received(header)) {
                (Some(length), Some(header)) => Read::Frame(Held {
                    header,
                    length,
                    admitted: false,
                }),
                _ => Read::Bad,
            },
            Err(error) => {
                // The next frame is told by an event, whatever was wrong with this one.
                self.readable = false;
                match error {
                    error if error.kind() == ErrorKind::WouldBlock => Read::Nothing,
                    error if is_gone(&error) => Read::Gone,
                    _ => Read::Bad,
                }
            }
        }
    }

    /// Hands a frame, which is in the buffers but for its header, to the guest.
    fn complete(&mut self, queue: &mut DeviceQueue, frame: Held) -> Result<Step, QueueError> {
        let Held {
            mut header, length, ..
        } = frame;
        let length = HEADER_BYTES + length;
        let count = self.buffers.needed(length);
        header.set_buffers(count);
        let slices = self
            .buffers
            .slices(queue.memory(), 0, HEADER_BYTES)
            .unwrap_or_default();
        areas::scatter(&slices, &header.0);
        self.buffers.complete(queue, count, length)?;
        Ok(Step::Delivered)
    }
}

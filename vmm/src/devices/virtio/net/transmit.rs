//! Frames from the guest to the tap.

use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::time::Instant;

use super::areas::{self, Area, Direction};
use super::counters::NetCounters;
use super::features::Agreed;
use super::header::{HEADER_BYTES, Header, MAX_FRAME_BYTES, MIN_FRAME_BYTES};
use super::pace::{Pace, SharedLimit};
use super::tap::{self, Port};
use crate::devices::virtio::device_queue::{Chain, DeviceQueue, QueueError};

/// The lengths of what the guest may send, with the header.
const LENGTHS: RangeInclusive<usize> = HEADER_BYTES + MIN_FRAME_BYTES..=HEADER_BYTES + MAX_FRAME_BYTES;

/// The transmit side of one queue pair.
pub(super) struct Transmitter {
    agreed: Agreed,
    areas: Vec<Area>,
    /// Whether the tap may have room for frames.
    writable: bool,
    pace: Pace,
}

/// What became of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transmitted {
    /// The guest may have more frames.
    More,
    /// It has none, or they have to wait.
    Idle,
    /// The tap has no room; it will tell.
    Full,
}

/// What becomes of a frame.
enum Sent {
    Taken,
    Refused,
    NoRoom,
    TooFast,
}

impl Transmitter {
    pub(super) fn new(agreed: Agreed, limit: SharedLimit) -> Self {
        Self {
            agreed,
            areas: Vec::new(),
            writable: true,
            pace: Pace::new(limit),
        }
    }

    /// Takes note that the tap has room.
    pub(super) fn set_writable(&mut self) {
        self.writable = true;
    }

    /// When the frame that the rate limit holds may go.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.pace.rests_until()
    }

    /// Takes at most one ring full of frames from the guest. Without a `port` they go nowhere.
    pub(super) fn turn(
        &mut self,
        queue: &mut DeviceQueue,
        port: Option<&dyn Port>,
        now: Instant,
        counters: &NetCounters,
    ) -> Result<Transmitted, QueueError> {
        let held_up = self.pace.is_resting(now) || !self.writable;
        if held_up && port.is_some() {
            return Ok(Transmitted::Idle);
        }
        queue.pause_notifications()?;
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop()? else {
                queue.interrupt_if_wanted()?;
                return Ok(match queue.resume_notifications()? {
                    true => Transmitted::More,
                    false => Transmitted::Idle,
                });
            };
            match self.send(&chain, queue.size(), port, now) {
                Sent::Taken => counters.transmitted.add_one(),
                Sent::Refused => counters.transmit_dropped.add_one(),
                Sent::NoRoom => {
                    queue.put_back();
                    queue.interrupt_if_wanted()?;
                    self.writable = false;
                    return Ok(Transmitted::Full);
                }
                Sent::TooFast => {
                    queue.put_back();
                    queue.interrupt_if_wanted()?;
                    return Ok(Transmitted::Idle);
                }
            }
            queue.complete(chain.head_index(), 0)?;
        }
        queue.interrupt_if_wanted()?;
        Ok(Transmitted::More)
    }

    fn send(&mut self, chain: &Chain, limit: u16, port: Option<&dyn Port>, now: Instant) -> Sent {
        let Some(port) = port else {
            return Sent::Refused;
        };
        let length = areas::collect(chain, Direction::FromGuest, usize::from(limit), &mut self.areas);
        let Some(length) = length.filter(|length| LENGTHS.contains(length)) else {
            return Sent::Refused;
        };
        let areas = || self.areas.iter().copied();
        let memory = chain.memory();
        let (Ok(start), Ok(frame)) = (
            areas::slices(memory, areas(), 0, HEADER_BYTES),
            areas::slices(memory, areas(), HEADER_BYTES, MAX_FRAME_BYTES),
        ) else {
            return Sent::Refused;
        };
        // Read once: the guest may change it meanwhile.
        let mut header = Header::default();
        areas::gather(&start, &mut header.0);
        let Some(header) = self.agreed.transmitted(header) else {
            return Sent::Refused;
        };
        if !self.pace.admits(now, length - HEADER_BYTES) {
            return Sent::TooFast;
        }
        match tap::write(port, &header, &frame) {
            Ok(_) => Sent::Taken,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::NoRoom,
            // A header that lies about the frame, a network device that is down or gone, no memory on the host.
            Err(_) => Sent::Refused,
        }
    }
}

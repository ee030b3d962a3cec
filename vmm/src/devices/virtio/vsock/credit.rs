//! Credit: how much either side may send before the other has passed it on (virtio 1.2, section 5.10.6.3).
//!
//! All counters are 32 bits wide and wrap around.

use std::num::Wrapping;

/// What the guest may send to us.
#[derive(Debug, Default)]
pub(super) struct Granted {
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>,
}

impl Granted {
    /// Bytes of one connection that wait here for the host's reader, at most. Two packets of the size Linux sends, so
    /// that one can be under way while the other is written. A thousand stuck connections then hold 128 MiB.
    pub(super) const BUFFER_SIZE: u32 = 128 << 10;

    /// Counts `length` bytes that came in; false when the guest had no credit for them.
    #[must_use]
    pub(super) fn receive(&mut self, length: u32) -> bool {
        let waiting = (self.received - self.forwarded).0;
        if length > Self::BUFFER_SIZE.saturating_sub(waiting) {
            return false;
        }
        self.received += length;
        true
    }

    /// Counts bytes that the host's reader took, or that nobody will read any more.
    pub(super) fn forward(&mut self, length: u32) {
        self.forwarded += length;
    }

    /// Whether the guest should hear of the room made since it last did. Half the buffer keeps the packets few, and
    /// always comes about before the guest runs dry: all it can have sent is then passed on.
    pub(super) fn is_worth_announcing(&self) -> bool {
        (self.forwarded - self.announced).0 >= Self::BUFFER_SIZE / 2
    }

    /// The count to put into a packet to the guest.
    pub(super) fn announce(&mut self) -> u32 {
        self.announced = self.forwarded;
        self.forwarded.0
    }
}

/// What we may send to the guest.
#[derive(Debug, Default)]
pub(super) struct Owned {
    buffer_size: u32,
    forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
}

impl Owned {
    /// Takes what the guest said in a packet.
    pub(super) fn update(&mut self, buffer_size: u32, forwarded: u32) {
        self.buffer_size = buffer_size;
        self.forwarded = Wrapping(forwarded);
    }

    /// Bytes that may be sent now. A guest that claims to have forwarded more than was sent gets nothing.
    pub(super) fn available(&self) -> u32 {
        self.buffer_size.saturating_sub((self.sent - self.forwarded).0)
    }

    /// Counts bytes sent.
    pub(super) fn send(&mut self, length: u32) {
        self.sent += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = Granted::BUFFER_SIZE;

    #[test]
    fn a_guest_may_fill_the_buffer_and_no_more() {
        let mut granted = Granted::default();
        assert!(granted.receive(SIZE));
        assert!(!granted.receive(1));
        granted.forward(10);
        assert!(granted.receive(10));
        assert!(!granted.receive(1));
        assert!(!granted.receive(u32::MAX));
    }

    #[test]
    fn room_is_announced_from_half_the_buffer_on_and_once() {
        let mut granted = Granted::default();
        assert!(granted.receive(SIZE));
        granted.forward(SIZE / 2 - 1);
        assert!(!granted.is_worth_announcing());
        granted.forward(1);
        assert!(granted.is_worth_announcing());
        assert_eq!(granted.announce(), SIZE / 2);
        assert!(!granted.is_worth_announcing());
    }

    #[test]
    fn counters_wrap_around() {
        let mut granted = Granted::default();
        let mut owned = Owned::default();
        owned.update(SIZE, 0);
        for _ in 0..=u32::MAX / SIZE {
            assert!(granted.receive(SIZE));
            assert!(!granted.receive(1));
            granted.forward(SIZE);
            owned.send(SIZE);
            assert_eq!(owned.available(), 0);
            owned.update(SIZE, granted.announce());
            assert_eq!(owned.available(), SIZE);
        }
        assert_eq!(granted.announce(), 0);
    }

    #[test]
    fn credit_is_used_up_and_renewed() {
        let mut owned = Owned::default();
        assert_eq!(owned.available(), 0);
        owned.update(100, 0);
        owned.send(100);
        assert_eq!(owned.available(), 0);
        owned.update(100, 40);
        assert_eq!(owned.available(), 40);
        owned.update(10, 40);
        assert_eq!(owned.available(), 0);
    }

    #[test]
    fn a_guest_that_forwarded_more_than_was_sent_gets_nothing() {
        let mut owned = Owned::default();
        owned.update(1000, 500);
        assert_eq!(owned.available(), 0);
    }
}

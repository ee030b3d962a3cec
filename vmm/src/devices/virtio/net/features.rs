//! What the device offers, and what a driver's choice means for the frames and for the tap.

use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::header::{Header, NEEDS_CHECKSUM};
use crate::devices::virtio::device_queue::EVENT_IDX;

const NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const TCP4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const TCP6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;

/// What every device offers. It is the same with and without a tap, so that a driver that has met the one can go on with
/// the other. UFO is absent: Linux 4.14 and later neither send such frames nor hand them to a tap.
const OFFERED: u64 = 1 << VIRTIO_F_VERSION_1
    | EVENT_IDX
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN;

/// All that a driver's choice can ask of a tap.
pub(super) const ALL_OFFLOADS: u32 = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;

/// What a device with several pairs of queues offers beside it.
const OFFERED_WITH_PAIRS: u64 = 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;

/// What a device of so many pairs of queues offers, with the MTU if there is something to say about it.
pub(super) fn offered(mtu: Option<u16>, queue_pairs: u16) -> u64 {
    let pairs = match queue_pairs {
        0 | 1 => 0,
        _ => OFFERED_WITH_PAIRS,
    };
    OFFERED | u64::from(mtu.is_some()) << VIRTIO_NET_F_MTU | pairs
}

/// What a driver chose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Agreed(pub(super) u64);

impl Agreed {
    fn has(self, feature: u32) -> bool {
        self.0 & 1 << feature != 0
    }

    /// Whether there is a control queue, behind the others.
    pub(super) fn has_control_queue(self) -> bool {
        self.has(VIRTIO_NET_F_CTRL_VQ)
    }

    /// How many pairs of queues come before the control queue, of a device that offered `offered`.
    pub(super) fn queue_pairs(self, offered: u16) -> u16 {
        match self.has(VIRTIO_NET_F_MQ) && self.has_control_queue() {
            true => offered,
            false => 1,
        }
    }

    /// Whether a frame may be spread over several buffers.
    pub(super) fn merges_buffers(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// What a tap may leave to the guest, in the numbers of `TUNSETOFFLOAD`. A feature without one that it needs
    /// (section 5.1.3.1) means nothing.
    pub(super) fn offloads(self) -> u32 {
        if !self.has(VIRTIO_NET_F_GUEST_CSUM) {
            return 0;
        }
        let four = self.has(VIRTIO_NET_F_GUEST_TSO4);
        let six = self.has(VIRTIO_NET_F_GUEST_TSO6);
        let ecn = self.has(VIRTIO_NET_F_GUEST_ECN) && (four || six);
        [
            (true, TUN_F_CSUM),
            (four, TUN_F_TSO4),
            (six, TUN_F_TSO6),
            (ecn, TUN_F_TSO_ECN),
        ]
        .into_iter()
        .filter(|(has, _)| *has)
        .fold(0, |all, (_, bit)| all | bit)
    }

    /// The header of a frame from the guest as the tap may see it; nothing if it asks for what was not agreed on. What
    /// it says of the frame's inside is checked by the tap.
    pub(super) fn transmitted(self, mut header: Header) -> Option<Header> {
        let flags = header.flags() & NEEDS_CHECKSUM;
        let checksum = self.has(VIRTIO_NET_F_CSUM);
        let segmentation = match header.segmentation() {
            NONE => true,
            TCP4 => checksum && self.has(VIRTIO_NET_F_HOST_TSO4),
            TCP6 => checksum && self.has(VIRTIO_NET_F_HOST_TSO6),
            _ => false,
        };
        let ecn = !header.has_ecn() || self.has(VIRTIO_NET_F_HOST_ECN);
        if flags != 0 && !checksum || !segmentation || !ecn {
            return None;
        }
        header.set_flags(flags);
        Some(header)
    }

    /// The header of a frame from the tap as the guest may see it; nothing if the driver cannot take such a frame: the
    /// tap may have made it for the driver before.
    pub(super) fn received(self, mut header: Header) -> Option<Header> {
        let offloads = self.offloads();
        let segmentation = match header.segmentation() {
            NONE => true,
            TCP4 => offloads & TUN_F_TSO4 != 0,
            TCP6 => offloads & TUN_F_TSO6 != 0,
            _ => false,
        };
        let ecn = !header.has_ecn() || offloads & TUN_F_TSO_ECN != 0;
        if offloads & TUN_F_CSUM == 0 {
            if header.flags() & NEEDS_CHECKSUM != 0 {
                return None;
            }
            header.set_flags(0);
        }
        (segmentation && ecn).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed(features: &[u32]) -> Agreed {
        Agreed(features.iter().fold(0, |all, bit| all | 1 << bit))
    }

    fn header(flags: u8, segmentation: u8) -> Header {
        let mut header = Header::default();
        header.0[..2].copy_from_slice(&[flags, segmentation]);
        header
    }

    #[test]
    fn offloads_without_the_checksum_are_none() {
        assert_eq!(
            agreed(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]).offloads(),
            0
        );
        assert_eq!(Agreed(OFFERED).offloads(), ALL_OFFLOADS);
        assert_eq!(
            agreed(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO6]).offloads(),
            TUN_F_CSUM | TUN_F_TSO6
        );
        assert_eq!(
            agreed(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN]).offloads(),
            TUN_F_CSUM
        );
    }

    #[test]
    fn a_frame_from_the_guest_asks_for_no_more_than_was_agreed_on() {
        let (none, all) = (Agreed(0), Agreed(OFFERED));
        assert_eq!(none.transmitted(header(0, NONE)), Some(header(0, NONE)));
        assert_eq!(none.transmitted(header(NEEDS_CHECKSUM, NONE)), None);
        for kind in [TCP4, TCP6, TCP4 | 0x80] {
            assert_eq!(none.transmitted(header(0, kind)), None);
            let asked = header(NEEDS_CHECKSUM, kind);
            assert_eq!(all.transmitted(asked), Some(asked));
        }
        for kind in [2, 3, 5, 0x7f, 0xff] {
            assert_eq!(all.transmitted(header(NEEDS_CHECKSUM, kind)), None);
        }
        let unknown = header(0xff, NONE);
        assert_eq!(all.transmitted(unknown), Some(header(NEEDS_CHECKSUM, NONE)));
    }

    #[test]
    fn a_frame_that_the_driver_cannot_take_does_not_reach_it() {
        let (none, all) = (Agreed(0), Agreed(OFFERED));
        assert_eq!(none.received(header(2, NONE)), Some(header(0, NONE)));
        assert_eq!(none.received(header(NEEDS_CHECKSUM, NONE)), None);
        assert_eq!(none.received(header(0, TCP4)), None);
        assert_eq!(all.received(header(2, TCP6)), Some(header(2, TCP6)));
        assert_eq!(all.received(header(0, 5)), None);
    }

    #[test]
    fn several_pairs_need_a_control_queue_and_one_offers_nothing_more() {
        assert_eq!(offered(None, 1), OFFERED);
        let chosen = offered(None, 4) & !OFFERED;
        assert_eq!(chosen, 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ);
        assert_eq!(Agreed(chosen).queue_pairs(4), 4);
        assert_eq!(agreed(&[VIRTIO_NET_F_MQ]).queue_pairs(4), 1);
        assert_eq!(agreed(&[VIRTIO_NET_F_CTRL_VQ]).queue_pairs(4), 1);
    }
}

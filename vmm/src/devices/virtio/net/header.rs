//! The header before each frame (virtio 1.2, section 5.1.6), which a tap reads and writes as it is.

use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN};

/// Its length; the tap is told that it is this long.
pub(super) const HEADER_BYTES: usize = 12;

/// The longest frame: an IP packet of 65,535 bytes, the Ethernet header, and a byte to an even number.
pub(super) const MAX_FRAME_BYTES: usize = 65_550;

/// The shortest frame: an Ethernet header.
pub(super) const MIN_FRAME_BYTES: usize = 14;

/// Flag: the checksum from `csum_start` on is for the receiver to fill in.
pub(super) const NEEDS_CHECKSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;

/// A bit beside the kind of segmentation: there are segments with the CWR flag of TCP.
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header(pub(super) [u8; HEADER_BYTES]);

impl Header {
    /// What is said of the checksum.
    pub(super) fn flags(&self) -> u8 {
        self.0[0]
    }

    /// Replaces what is said of the checksum.
    pub(super) fn set_flags(&mut self, flags: u8) {
        self.0[0] = flags;
    }

    /// How the frame is to be cut into segments, `VIRTIO_NET_HDR_GSO_NONE` for not at all.
    pub(super) fn segmentation(&self) -> u8 {
        self.0[1] & !ECN
    }

    /// Whether TCP's CWR flag is in one of the segments.
    pub(super) fn has_ecn(&self) -> bool {
        self.0[1] & ECN != 0
    }

    /// Says over how many buffers the frame is spread.
    pub(super) fn set_buffers(&mut self, count: u16) {
        [self.0[10], self.0[11]] = count.to_le_bytes();
    }
}

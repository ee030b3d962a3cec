//! The header of a vsock packet (virtio 1.2, section 5.10.6).

use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::bitmap::BitmapSlice;

/// The host's context id.
pub(super) const HOST_CID: u64 = 2;
/// The only type of socket this device serves: a byte stream.
pub(super) const TYPE_STREAM: u16 = 1;
/// The most data put into or taken from one packet. Linux sends at most 64 KiB at once.
pub(super) const MAX_DATA: u32 = 64 << 10;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Operation {
    pub(super) fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    fn to_wire(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// Directions in which the sender of a SHUTDOWN is done. Once said, they stay said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) receiving: bool,
    pub(super) sending: bool,
}

impl Done {
    /// The sender of the packet is done with both.
    pub(super) const BOTH: Self = Self {
        receiving: true,
        sending: true,
    };

    pub(super) fn from_flags(flags: u32) -> Self {
        Self {
            receiving: flags & 1 != 0,
            sending: flags & 2 != 0,
        }
    }

    pub(super) fn to_flags(self) -> u32 {
        u32::from(self.receiving) | u32::from(self.sending) << 1
    }
}

/// A connection's two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// What a connection or the muxer says in a packet to the guest; the ids and the type are always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) ports: Ports,
    pub(super) operation: Operation,
    pub(super) flags: u32,
    pub(super) data_length: u32,
    /// How many bytes of the guest's the sender has room for in all, and how many it has passed on so far.
    pub(super) buffer_size: u32,
    pub(super) forwarded: u32,
}

impl Header {
    /// The answer to a packet that belongs to no connection, or that ends one.
    pub(super) fn reset(ports: Ports) -> Self {
        Self {
            ports,
            operation: Operation::Reset,
            flags: 0,
            data_length: 0,
            buffer_size: 0,
            forwarded: 0,
        }
    }

    /// The bytes of the header in a packet from the host to `guest_cid`.
    pub(super) fn to_wire(self, guest_cid: u64) -> [u8; PKT_HEADER_SIZE] {
        let mut bytes = [0; PKT_HEADER_SIZE];
        let mut rest = bytes.as_mut_slice();
        let mut put = |field: &[u8]| {
            if let Some((to, after)) = std::mem::take(&mut rest).split_at_mut_checked(field.len()) {
                to.copy_from_slice(field);
                rest = after;
            }
        };
        put(&HOST_CID.to_le_bytes());
        put(&guest_cid.to_le_bytes());
        put(&self.ports.host.to_le_bytes());
        put(&self.ports.guest.to_le_bytes());
        put(&self.data_length.to_le_bytes());
        put(&TYPE_STREAM.to_le_bytes());
        put(&self.operation.to_wire().to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buffer_size.to_le_bytes());
        put(&self.forwarded.to_le_bytes());
        bytes
    }
}

/// A packet from the guest, taken apart. The ids and the type are still the guest's claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GuestHeader {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) kind: u16,
    pub(super) ports: Ports,
    /// None when the guest wrote a number that means nothing.
    pub(super) operation: Option<Operation>,
    pub(super) flags: u32,
    pub(super) buffer_size: u32,
    pub(super) forwarded: u32,
}

impl GuestHeader {
    pub(super) fn of<B: BitmapSlice>(packet: &VsockPacket<'_, B>) -> Self {
        Self {
            source_cid: packet.src_cid(),
            destination_cid: packet.dst_cid(),
            kind: packet.type_(),
            ports: Ports {
                host: packet.dst_port(),
                guest: packet.src_port(),
            },
            operation: Operation::from_wire(packet.op()),
            flags: packet.flags(),
            buffer_size: packet.buf_alloc(),
            forwarded: packet.fwd_cnt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_laid_out_as_the_specification_says() {
        let header = Header {
            ports: Ports {
                host: 0x0102,
                guest: 0x0304,
            },
            operation: Operation::Data,
            flags: 7,
            data_length: 0x0506,
            buffer_size: 0x0708,
            forwarded: 0x090a,
        };
        let expected = [
            2, 0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 4, 3, 0, 0, 6, 5, 0, 0, 1, 0, 5, 0,
            7, 0, 0, 0, 8, 7, 0, 0, 10, 9, 0, 0,
        ];
        assert_eq!(header.to_wire(42), expected);
    }

    #[test]
    fn operations_survive_the_wire_and_unknown_ones_are_none() {
        for value in 1..=7 {
            assert_eq!(Operation::from_wire(value).unwrap().to_wire(), value);
        }
        assert_eq!(Operation::from_wire(0), None);
        assert_eq!(Operation::from_wire(8), None);
    }

    #[test]
    fn shutdown_flags_say_who_is_done_with_what() {
        assert_eq!(Done::from_flags(2).to_flags(), 2);
        assert_eq!(
            Done::from_flags(0xffff_fffd),
            Done {
                receiving: true,
                sending: false
            }
        );
        assert_eq!(Done::BOTH.to_flags(), 3);
    }
}

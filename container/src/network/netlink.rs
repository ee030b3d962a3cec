//! As much of rtnetlink(7) as a pod's network takes: moving devices, and describing them, on the host and in a guest.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

/// `struct nlmsghdr` and `struct rtattr` of `<linux/netlink.h>` and `<linux/rtnetlink.h>`: what stands before a message
/// and an attribute, and what both are padded to.
const MESSAGE_HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const ALIGNMENT: usize = 4;
/// What the kernel sends at once at most, and what it says a reader should have room for.
const ROOM: usize = 32 << 10;

/// The sizes of the fixed parts: `struct ifinfomsg`, `ifaddrmsg`, `rtmsg`, `ndmsg` and `tcmsg`.
pub const LINK: usize = 16;
/// Of an address.
pub const ADDRESS: usize = 8;
/// Of a route.
pub const ROUTE: usize = 12;
/// Of a neighbour.
pub const NEIGHBOUR: usize = 12;
/// Of a queueing discipline, and of a filter in it.
pub const TRAFFIC: usize = 20;

/// Where `struct ifinfomsg` has its type of device, its number, its flags, and which of them change.
const LINK_INDEX: usize = 4;
const LINK_FLAGS: usize = 8;
const LINK_CHANGE: usize = 12;

/// An attribute's value that is attributes itself (`NLA_F_NESTED` of linux/netlink.h).
const NESTED: u16 = 1 << 15;

/// A socket to the kernel's routing of one network namespace: that in which it was made.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A message of the kernel's, or one to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub kind: u16,
    /// Its fixed part.
    pub fixed: Vec<u8>,
    /// Its attributes by their types.
    pub attributes: Vec<(u16, Vec<u8>)>,
}

impl Netlink {
    /// A socket in the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn open() -> Result<Netlink, Errno> {
        // No protocol is the first: NETLINK_ROUTE.
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Only the kernel answers one that is connected to it: others in the namespace cannot.
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// The number of the device of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn index_of(&self, name: &str) -> Result<u32, Errno> {
        name_to_index(&self.socket, name)
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// The kernel's.
    pub fn request(&mut self, message: &Message) -> Result<(), Errno> {
        self.request_with(message, 0)
    }

    /// Asks for something to be done, with flags that say how: `NLM_F_CREATE`, `NLM_F_EXCL`, `NLM_F_REPLACE`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn request_with(&mut self, message: &Message, flags: libc::c_int) -> Result<(), Errno> {
        self.talk(message, (libc::NLM_F_ACK | flags) as u16, 0).map(drop)
    }

    /// Asks for everything of a kind. The answers have a fixed part of `fixed` bytes.
    ///
    /// # Errors
    /// The kernel's, and where an answer is none.
    pub fn dump(&mut self, message: &Message, fixed: usize) -> Result<Vec<Message>, Errno> {
        self.talk(message, libc::NLM_F_DUMP as u16, fixed)
    }

    fn talk(&mut self, message: &Message, flags: u16, fixed: usize) -> Result<Vec<Message>, Errno> {
        self.sequence += 1;
        let packet = message.encode(flags | libc::NLM_F_REQUEST as u16, self.sequence)?;
        send(&self.socket, &packet, SendFlags::empty())?;
        let mut answers = Vec::new();
        let mut room = vec![0; ROOM];
        loop {
            let (length, _) = match recv(&self.socket, room.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                received => received?,
            };
            let mut rest = room.get(..length).ok_or(Errno::MSGSIZE)?;
            while !rest.is_empty() {
                let length = number(rest, 0).ok_or(Errno::BADMSG)? as usize;
                let (kind, sequence) = (half(rest, 4), number(rest, 8));
                let body = rest.get(MESSAGE_HEADER..length).ok_or(Errno::BADMSG)?;
                rest = rest.get(aligned(length)..).unwrap_or_default();
                if sequence != Some(self.sequence) {
                    continue;
                }
                match kind.map(i32::from) {
                    Some(libc::NLMSG_DONE) => return Ok(answers),
                    Some(libc::NLMSG_ERROR) => {
                        let code = number(body, 0).ok_or(Errno::BADMSG)? as i32;
                        return match code {
                            0 => Ok(answers),
                            code => Err(Errno::from_raw_os_error(code.wrapping_neg())),
                        };
                    }
                    Some(kind) => answers.push(Message::decode(kind as u16, body, fixed)?),
                    None => return Err(Errno::BADMSG),
                }
            }
        }
    }
}

impl Message {
    /// A change of the device with this number: of its flags that are in `changed`, to what they are in `flags`, and of
    /// what the attributes say.
    pub fn link(index: u32, flags: u32, changed: u32, attributes: Vec<(u16, Vec<u8>)>) -> Self {
        let mut message = Self {
            kind: libc::RTM_NEWLINK,
            fixed: vec![0; LINK],
            attributes,
        };
        for (offset, value) in [(LINK_INDEX, index), (LINK_FLAGS, flags), (LINK_CHANGE, changed)] {
            message.set_number(offset, value);
        }
        message
    }

    /// The first attribute of this type.
    pub fn attribute(&self, kind: libc::c_ushort) -> Option<&[u8]> {
        let found = self.attributes.iter().find(|(of, _)| *of == kind);
        found.map(|(_, value)| value.as_slice())
    }

    /// The attribute of this type, which is a number.
    pub fn attribute_number(&self, kind: libc::c_ushort) -> Option<u32> {
        number(self.attribute(kind)?, 0)
    }

    /// The attribute of this type, which is a text that ends with a zero byte.
    pub fn attribute_text(&self, kind: libc::c_ushort) -> Option<String> {
        let text = self.attribute(kind)?;
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// A number of the fixed part.
    pub fn number(&self, offset: usize) -> Option<u32> {
        number(&self.fixed, offset)
    }

    /// A byte of the fixed part.
    pub fn byte(&self, offset: usize) -> Option<u8> {
        self.fixed.get(offset).copied()
    }

    /// Sets a number of the fixed part, which must have room for it.
    pub fn set_number(&mut self, offset: usize, value: u32) {
        if let Some(place) = self.fixed.get_mut(offset..offset + 4) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
    }

    fn encode(&self, flags: u16, sequence: u32) -> Result<Vec<u8>, Errno> {
        let mut body = self.fixed.clone();
        body.resize(aligned(body.len()), 0);
        for (kind, value) in &self.attributes {
            append(&mut body, *kind, value)?;
        }
        let mut packet = Vec::with_capacity(MESSAGE_HEADER + body.len());
        packet.extend(((MESSAGE_HEADER + body.len()) as u32).to_ne_bytes());
        packet.extend(self.kind.to_ne_bytes());
        packet.extend(flags.to_ne_bytes());
        packet.extend(sequence.to_ne_bytes());
        packet.extend(0u32.to_ne_bytes());
        packet.extend(body);
        Ok(packet)
    }

    fn decode(kind: u16, body: &[u8], fixed: usize) -> Result<Message, Errno> {
        Ok(Message {
            kind,
            fixed: body.get(..fixed).ok_or(Errno::BADMSG)?.to_owned(),
            attributes: attributes(body.get(aligned(fixed)..).ok_or(Errno::BADMSG)?)?,
        })
    }
}

/// The attribute whose value is these attributes.
///
/// # Errors
/// When they are too long together.
pub fn nested(kind: libc::c_ushort, inner: &[(u16, Vec<u8>)]) -> Result<(u16, Vec<u8>), Errno> {
    let mut value = Vec::new();
    for (kind, inner) in inner {
        append(&mut value, *kind, inner)?;
    }
    Ok((kind | NESTED, value))
}

/// The attributes that an attribute's value, or the end of a message, is.
///
/// # Errors
/// When it is not.
pub fn attributes(mut rest: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, Errno> {
    let mut attributes = Vec::new();
    while rest.len() >= ATTRIBUTE_HEADER {
        let length = half(rest, 0).ok_or(Errno::BADMSG)? as usize;
        let value = rest.get(ATTRIBUTE_HEADER..length).ok_or(Errno::BADMSG)?;
        attributes.push((half(rest, 2).ok_or(Errno::BADMSG)? & !NESTED, value.to_owned()));
        rest = rest.get(aligned(length)..).unwrap_or_default();
    }
    Ok(attributes)
}

/// A text as the kernel takes it.
pub fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn append(body: &mut Vec<u8>, kind: u16, value: &[u8]) -> Result<(), Errno> {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).map_err(|_| Errno::MSGSIZE)?;
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(aligned(body.len()), 0);
    Ok(())
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

/// The 32 bits at an offset.
pub fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let message = Message {
            kind: libc::RTM_NEWADDR,
            fixed: vec![1, 2, 3, 4, 5, 6, 7, 8],
            attributes: vec![(1, vec![9; 4]), (3, b"odd".to_vec()), (8, Vec::new())],
        };
        let packet = message.encode(0, 7).unwrap();
        assert_eq!(packet.len() % ALIGNMENT, 0);
        assert_eq!(number(&packet, 0), Some(packet.len() as u32));
        assert_eq!(number(&packet, 8), Some(7));
        let read = Message::decode(message.kind, &packet[MESSAGE_HEADER..], 8).unwrap();
        assert_eq!(read.fixed, message.fixed);
        assert_eq!(read.attributes, message.attributes);
    }

    #[test]
    fn attributes_within_attributes_are_read_as_they_were_written() {
        let inner = vec![(1, b"veth\0".to_vec()), (2, vec![7])];
        let (kind, value) = nested(18, &inner).unwrap();
        assert_eq!(kind, 18 | NESTED);
        assert_eq!(attributes(&value).unwrap(), inner);
    }

    #[test]
    fn messages_that_are_cut_are_errors() {
        assert!(Message::decode(0, &[0; 4], 8).is_err());
        // An attribute that says it is shorter than its own header, and one longer than the message.
        assert!(Message::decode(0, &[2, 0, 1, 0], 0).is_err());
        assert!(Message::decode(0, &[9, 0, 1, 0, 0, 0], 0).is_err());
    }

    #[test]
    fn the_kernel_answers() {
        let mut netlink = Netlink::open().unwrap();
        let loopback = netlink.index_of("lo").unwrap();
        let links = Message {
            kind: libc::RTM_GETLINK,
            fixed: vec![0; 16],
            attributes: Vec::new(),
        };
        let links = netlink.dump(&links, 16).unwrap();
        let link = links
            .iter()
            .find(|link| number(&link.fixed, 4) == Some(loopback))
            .unwrap();
        assert!(link.attributes.contains(&(libc::IFLA_IFNAME, b"lo\0".to_vec())));
        let nothing = Message {
            kind: libc::RTM_GETLINK + 1000,
            fixed: Vec::new(),
            attributes: Vec::new(),
        };
        assert_eq!(netlink.request(&nothing), Err(Errno::OPNOTSUPP));
    }
}

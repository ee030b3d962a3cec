//! Taps: network devices whose other end is a descriptor.

use std::fs::File;
use std::io;
use std::iter;
use std::os::fd::{AsRawFd as _, OwnedFd};

use container::netlink::{Message, Netlink, nested};
use rustix::io::Errno;

/// The tap's name; the kernel puts the first free number there.
const NAME: &[u8] = b"bhtap%d";

/// `IFLA_INET6_ADDR_GEN_MODE` of linux/if_link.h, and the mode without an address: the tap itself takes part in nothing.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const NO_ADDRESSES: u8 = 1;

/// How many frames a tap's queue holds, as Linux has it (`TUN_READQ_SIZE`).
const QUEUE_LENGTH: u32 = 500;

/// A new tap in the namespace of this thread, with so many queues, and its name. It is gone when its descriptors are, of
/// which each queue has one.
pub(super) fn make(queues: u8) -> io::Result<(Vec<OwnedFd>, String)> {
    let several = match queues {
        0 | 1 => 0,
        _ => libc::IFF_MULTI_QUEUE,
    };
    let (first, name) = attach(NAME, several)?;
    let others = (1..queues).map(|_| Ok(attach(name.as_bytes(), several)?.0));
    let all = iter::once(Ok(first)).chain(others);
    Ok((all.collect::<io::Result<_>>()?, name))
}

/// A queue of the tap of this name, which is made if there is none, and its name as it is then.
fn attach(name: &[u8], flags: libc::c_int) -> io::Result<(OwnedFd, String)> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is made of numbers and of arrays and a pointer that may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let name: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|byte| byte.cast_unsigned())
        .take_while(|byte| *byte != 0)
        .collect();
    Ok((file.into(), String::from_utf8_lossy(&name).into_owned()))
}

/// Lets frames through, up to this length. What the `queues` of it hold for a guest that takes nothing is together what one
/// would.
pub(super) fn bring_up(netlink: &mut Netlink, index: u32, mtu: u32, queues: u8) -> Result<(), Errno> {
    let family = nested(
        libc::AF_INET6 as u16,
        &[(IFLA_INET6_ADDR_GEN_MODE, vec![NO_ADDRESSES])],
    )?;
    let quiet = vec![nested(libc::IFLA_AF_SPEC, &[family])?];
    match netlink.request(&Message::link(index, 0, 0, quiet)) {
        // A kernel without IPv6 makes no addresses either.
        Ok(()) | Err(Errno::AFNOSUPPORT | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    // Before it is up: its queueing disciplines are made then, as long as its queues, and 256 of them if it has several.
    let length = QUEUE_LENGTH / u32::from(queues.max(1));
    let length = vec![(libc::IFLA_TXQLEN, length.to_ne_bytes().to_vec())];
    netlink.request(&Message::link(index, 0, 0, length))?;
    let up = libc::IFF_UP as u32;
    let mtu = vec![(libc::IFLA_MTU, mtu.to_ne_bytes().to_vec())];
    netlink.request(&Message::link(index, up, up, mtu))
}

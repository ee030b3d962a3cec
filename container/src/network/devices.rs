//! Moving devices of the host into the container's network namespace (`linux.netDevices`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::netlink::{ADDRESS, Message, Netlink, text};
use crate::plan::NetDevice;

/// Where `struct ifaddrmsg` has the number of the device.
const ADDRESS_INDEX: usize = 4;
/// Where `struct ifaddrmsg` has its scope, and what it is for an address that is valid everywhere.
const ADDRESS_SCOPE: usize = 3;
const EVERYWHERE: u8 = 0;
/// Where it has eight of the flags.
const ADDRESS_FLAGS: usize = 2;

/// A device that cannot be given to the container.
#[derive(Debug, thiserror::Error)]
#[error("linux.netDevices.{device}: cannot {doing}")]
pub struct NetDeviceError {
    device: String,
    doing: &'static str,
    #[source]
    source: io::Error,
}

/// Moves the devices into the namespace, under their new names, with their addresses that are permanent and valid
/// everywhere, and brings them up. This process has one thread, and changes its namespace for a moment.
pub(crate) fn move_devices(devices: &[NetDevice], namespace: BorrowedFd<'_>) -> Result<(), NetDeviceError> {
    let Some(first) = devices.first() else {
        return Ok(());
    };
    let failed = |device: &NetDevice, doing| {
        let device = device.host_name.clone();
        move |errno: Errno| NetDeviceError {
            device,
            doing,
            source: errno.into(),
        }
    };
    let mut host = Netlink::open().map_err(failed(first, "open a netlink socket"))?;
    let mut container =
        open_inside(namespace).map_err(failed(first, "open a netlink socket in the container's network"))?;
    for device in devices {
        let index = host
            .index_of(&device.host_name)
            .map_err(failed(device, "find it"))?;
        let addresses = addresses_of(&mut host, index).map_err(failed(device, "read its addresses"))?;
        let to_container = [
            (
                libc::IFLA_NET_NS_FD,
                (namespace.as_raw_fd() as u32).to_ne_bytes().to_vec(),
            ),
            (libc::IFLA_IFNAME, text(&device.name)),
        ];
        host.request(&Message::link(index, 0, 0, to_container.to_vec()))
            .map_err(failed(device, "move it into the container's network"))?;
        // Where its number was taken it has another.
        let index = container
            .index_of(&device.name)
            .map_err(failed(device, "find it again"))?;
        for mut address in addresses {
            address.set_number(ADDRESS_INDEX, index);
            container
                .request(&address)
                .map_err(failed(device, "give it its addresses again"))?;
        }
        let up = libc::IFF_UP as u32;
        container
            .request(&Message::link(index, up, up, Vec::new()))
            .map_err(failed(device, "bring it up"))?;
    }
    Ok(())
}

/// A socket in another network namespace. A socket stays where it was made.
fn open_inside(namespace: BorrowedFd<'_>) -> Result<Netlink, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let own: OwnedFd = rustix::fs::open("/proc/self/ns/net", flags, Mode::empty())?;
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
    let socket = Netlink::open();
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network))?;
    socket
}

/// What has to be asked for to give a device the same addresses again.
fn addresses_of(netlink: &mut Netlink, index: u32) -> Result<Vec<Message>, Errno> {
    let all = Message {
        kind: libc::RTM_GETADDR,
        fixed: vec![0; ADDRESS],
        attributes: Vec::new(),
    };
    let is_kept = |address: &Message| {
        address.number(ADDRESS_INDEX) == Some(index)
            && address.byte(ADDRESS_SCOPE) == Some(EVERYWHERE)
            && address
                .byte(ADDRESS_FLAGS)
                .is_some_and(|flags| u32::from(flags) & libc::IFA_F_PERMANENT != 0)
    };
    let mut addresses = netlink.dump(&all, ADDRESS)?;
    addresses.retain(is_kept);
    for address in &mut addresses {
        address.kind = libc::RTM_NEWADDR;
        // Not its label, which is of its old name, nor how long it is valid, which is for ever.
        address.attributes.retain(|(kind, _)| {
            [
                libc::IFA_ADDRESS,
                libc::IFA_LOCAL,
                libc::IFA_BROADCAST,
                libc::IFA_FLAGS,
            ]
            .contains(kind)
        });
    }
    Ok(addresses)
}

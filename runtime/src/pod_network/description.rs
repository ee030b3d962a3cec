//! What a network namespace has: interfaces, addresses, routes, neighbours.

use std::collections::HashMap;
use std::net::IpAddr;

use container::netlink::{ADDRESS, LINK, Message, NEIGHBOUR, Netlink, ROUTE, attributes, number};
use protocol::sandbox::{Interface, InterfaceAddress, Neighbour, NetworkRequest, Route, RouteMetric};

use super::{PodNetworkError, device_mac};

/// Places in `struct ifinfomsg`, `ifaddrmsg`, `rtmsg` and `ndmsg`.
const LINK_INDEX: usize = 4;
const LINK_FLAGS: usize = 8;
const ADDRESS_PREFIX: usize = 1;
const ADDRESS_FLAGS: usize = 2;
const ADDRESS_SCOPE: usize = 3;
const ADDRESS_INDEX: usize = 4;
const ROUTE_PREFIX: usize = 1;
const ROUTE_SERVICE: usize = 3;
const ROUTE_TABLE: usize = 4;
const ROUTE_PROTOCOL: usize = 5;
const ROUTE_SCOPE: usize = 6;
const ROUTE_TYPE: usize = 7;
const ROUTE_FLAGS: usize = 8;
const NEIGHBOUR_INDEX: usize = 4;
const NEIGHBOUR_STATE: usize = 8;

/// An Ethernet device's type (linux/if_arp.h), which has its place in the upper half of the first word of `ifinfomsg`.
const LINK_TYPE: usize = 2;

/// `RTNH_F_ONLINK` of linux/rtnetlink.h: the only flag of a route that is asked for and not observed.
const ON_LINK: u32 = 4;

/// `RTAX_CC_ALGO` of linux/rtnetlink.h, the only metric that is a text: the name of an algorithm that the guest's kernel
/// may not have.
const CONGESTION_ALGORITHM: u16 = 16;

/// What there is in the namespace of the socket, and the numbers of the interfaces in their order.
pub(super) fn read(netlink: &mut Netlink) -> Result<(NetworkRequest, Vec<u32>), PodNetworkError> {
    let links = dump(netlink, libc::RTM_GETLINK, LINK, "interfaces")?;
    let mut interfaces = Vec::new();
    let mut indices = Vec::new();
    for link in &links {
        if let Some((index, interface)) = interface(link, interfaces.len())? {
            indices.push(index);
            interfaces.push(interface);
        }
    }
    let names: HashMap<u32, String> = indices
        .iter()
        .copied()
        .zip(interfaces.iter().map(|interface| interface.name.clone()))
        .collect();
    for message in dump(netlink, libc::RTM_GETADDR, ADDRESS, "addresses")? {
        let of = indices
            .iter()
            .position(|index| Some(*index) == message.number(ADDRESS_INDEX));
        if let Some(interface) = of.and_then(|place| interfaces.get_mut(place))
            && let Some(address) = address(&message)
        {
            interface.addresses.push(address);
        }
    }
    let mut routes = Vec::new();
    for message in dump(netlink, libc::RTM_GETROUTE, ROUTE, "routes")? {
        routes.extend(route(&message, &names)?);
    }
    // A gateway is reached by another route, which is there first.
    routes.sort_by_key(|route| !route.gateway.is_empty());
    let neighbours = dump(netlink, libc::RTM_GETNEIGH, NEIGHBOUR, "neighbours")?;
    let description = NetworkRequest {
        interfaces,
        routes,
        neighbours: neighbours
            .iter()
            .filter_map(|message| neighbour(message, &names))
            .collect(),
        ..NetworkRequest::default()
    };
    Ok((description, indices))
}

fn dump(
    netlink: &mut Netlink,
    kind: u16,
    fixed: usize,
    what: &'static str,
) -> Result<Vec<Message>, PodNetworkError> {
    let all = Message {
        kind,
        fixed: vec![0; fixed],
        attributes: Vec::new(),
    };
    netlink
        .dump(&all, fixed)
        .map_err(|source| PodNetworkError::Read { what, source })
}

/// An interface that takes part in something, and its number.
fn interface(link: &Message, place: usize) -> Result<Option<(u32, Interface)>, PodNetworkError> {
    let flags = link.number(LINK_FLAGS).unwrap_or_default();
    let is = |flag: libc::c_int| flags & flag as u32 != 0;
    // What belongs to a bridge or bond carries that one's traffic.
    if !is(libc::IFF_UP) || is(libc::IFF_LOOPBACK) || link.attribute(libc::IFLA_MASTER).is_some() {
        return Ok(None);
    }
    let name = link.attribute_text(libc::IFLA_IFNAME).unwrap_or_default();
    let kind = link
        .fixed
        .get(LINK_TYPE..)
        .and_then(|bytes| bytes.first_chunk())
        .map(|bytes| u16::from_ne_bytes(*bytes));
    let mac = link.attribute(libc::IFLA_ADDRESS).unwrap_or_default();
    if kind != Some(libc::ARPHRD_ETHER) || mac.len() != 6 {
        return Err(PodNetworkError::NotEthernet { name });
    }
    let interface = Interface {
        name,
        device_mac: device_mac(place).to_vec(),
        mac: mac.to_vec(),
        mtu: link.attribute_number(libc::IFLA_MTU).unwrap_or_default(),
        ..Interface::default()
    };
    Ok(link.number(LINK_INDEX).map(|index| (index, interface)))
}

fn address(message: &Message) -> Option<InterfaceAddress> {
    // Where both are there the local one is ours and the other the peer's; where there is one, it is ours.
    let given = message.attribute(libc::IFA_ADDRESS)?;
    let local = message.attribute(libc::IFA_LOCAL).unwrap_or(given);
    let peer = if local == given { &[] } else { given };
    let flags = message
        .attribute_number(libc::IFA_FLAGS)
        .or_else(|| message.byte(ADDRESS_FLAGS).map(u32::from));
    Some(InterfaceAddress {
        address: local.to_vec(),
        prefix: message.byte(ADDRESS_PREFIX)?.into(),
        peer: peer.to_vec(),
        broadcast: message
            .attribute(libc::IFA_BROADCAST)
            .unwrap_or_default()
            .to_vec(),
        scope: message.byte(ADDRESS_SCOPE)?.into(),
        flags: flags.unwrap_or_default(),
        ..InterfaceAddress::default()
    })
}

/// A route of the main table that leads over one of the interfaces, or nowhere.
fn route(message: &Message, names: &HashMap<u32, String>) -> Result<Option<Route>, PodNetworkError> {
    let number = |offset| message.byte(offset).map_or(0, u32::from);
    let value = |kind| message.attribute(kind).unwrap_or_default().to_vec();
    let flags = message.number(ROUTE_FLAGS).unwrap_or_default();
    let kind = message.byte(ROUTE_TYPE).unwrap_or_default();
    let is_of_families = [libc::AF_INET, libc::AF_INET6].contains(&(number(0) as i32));
    let table = message.attribute_number(libc::RTA_TABLE);
    let is_main = table.unwrap_or(number(ROUTE_TABLE)) == u32::from(libc::RT_TABLE_MAIN);
    if !is_of_families || !is_main || flags & libc::RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let destination = value(libc::RTA_DST);
    if message.attribute(libc::RTA_MULTIPATH).is_some() {
        return Err(PodNetworkError::Multipath {
            destination: shown(&destination, number(ROUTE_PREFIX)),
        });
    }
    let leads_nowhere = [
        libc::RTN_BLACKHOLE,
        libc::RTN_UNREACHABLE,
        libc::RTN_PROHIBIT,
        libc::RTN_THROW,
    ]
    .contains(&kind);
    let over = message.attribute_number(libc::RTA_OIF);
    let interface = match over.and_then(|index| names.get(&index)) {
        _ if leads_nowhere => String::new(),
        Some(name) => name.clone(),
        None => return Ok(None),
    };
    Ok(Some(Route {
        family: number(0),
        destination,
        prefix: number(ROUTE_PREFIX),
        interface,
        gateway: value(libc::RTA_GATEWAY),
        preferred_source: value(libc::RTA_PREFSRC),
        priority: message.attribute_number(libc::RTA_PRIORITY).unwrap_or_default(),
        type_of_service: number(ROUTE_SERVICE),
        protocol: number(ROUTE_PROTOCOL),
        scope: number(ROUTE_SCOPE),
        type_: kind.into(),
        flags: flags & ON_LINK,
        metrics: metrics(message),
        ..Route::default()
    }))
}

fn metrics(message: &Message) -> Vec<RouteMetric> {
    let inner = message
        .attribute(libc::RTA_METRICS)
        .and_then(|value| attributes(value).ok());
    inner
        .into_iter()
        .flatten()
        .filter(|(kind, _)| *kind != CONGESTION_ALGORITHM)
        .filter_map(|(kind, value)| {
            Some(RouteMetric {
                kind: kind.into(),
                value: number(&value, 0)?,
                ..RouteMetric::default()
            })
        })
        .collect()
}

fn neighbour(message: &Message, names: &HashMap<u32, String>) -> Option<Neighbour> {
    let state = message.fixed.get(NEIGHBOUR_STATE..)?.first_chunk()?;
    let is_permanent = u16::from_ne_bytes(*state) & libc::NUD_PERMANENT != 0;
    let address = message.attribute(libc::NDA_DST)?.to_vec();
    let mac = message.attribute(libc::NDA_LLADDR)?.to_vec();
    let interface = names.get(&message.number(NEIGHBOUR_INDEX)?)?.clone();
    is_permanent.then(|| Neighbour {
        interface,
        address,
        mac,
        ..Neighbour::default()
    })
}

fn shown(address: &[u8], prefix: u32) -> String {
    let address: Option<IpAddr> = match *address {
        [a, b, c, d] => Some([a, b, c, d].into()),
        _ => <[u8; 16]>::try_from(address).ok().map(Into::into),
    };
    address.map_or_else(|| "default".to_owned(), |address| format!("{address}/{prefix}"))
}

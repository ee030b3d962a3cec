//! The pod's network: the guest's devices, given the names, addresses and routes that the pod's interfaces have on the
//! host.

use std::collections::BTreeMap;

use container::netlink::{ADDRESS, LINK, Message, NEIGHBOUR, Netlink, ROUTE, nested, text};
use protocol::sandbox::{Interface, InterfaceAddress, Neighbour, NetworkRequest, Route};
use rustix::io::Errno;

/// `IFLA_INET6_ADDR_GEN_MODE` of linux/if_link.h, and the mode in which the kernel makes no address of its own: the pod's
/// are all there.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const NO_ADDRESSES: u8 = 1;

/// `IFA_F_NODAD` and `IFA_F_TENTATIVE` among others of linux/if_addr.h. Whether an address is anybody else's was found out
/// where the pod got it, and the guest is not to wait for it again.
const KEPT_FLAGS: u32 = libc::IFA_F_NOPREFIXROUTE | libc::IFA_F_HOMEADDRESS;

/// Where the numbers of devices are in the fixed parts.
const LINK_INDEX: usize = 4;
const ADDRESS_INDEX: usize = 4;
const NEIGHBOUR_INDEX: usize = 4;

/// Places in `struct rtmsg`.
const ROUTE_TABLE: usize = 4;
const ROUTE_PROTOCOL: usize = 5;

/// Why the guest's network is not the pod's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The kernel cannot be asked.
    #[error("opening a netlink socket")]
    Open(#[source] Errno),
    /// The devices cannot be listed.
    #[error("listing the network devices")]
    List(#[source] Errno),
    /// No device has the address.
    #[error("the guest has no network device with the address {mac} for the interface {name}")]
    Missing {
        /// The pod's interface.
        name: String,
        /// The address.
        mac: String,
    },
    /// A route or neighbour is of an interface that the pod has not.
    #[error("the {of} to {destination} is of the interface {name:?}, which the pod has not")]
    Unknown {
        /// Route or neighbour.
        of: &'static str,
        /// Where it leads.
        destination: String,
        /// The interface.
        name: String,
    },
    /// A number is greater than its place.
    #[error("the {field} {value} is too great")]
    Number {
        /// What it is.
        field: &'static str,
        /// It.
        value: u32,
    },
    /// A step failed.
    #[error("{doing} of the interface {name}")]
    Step {
        /// What was being done.
        doing: String,
        /// The pod's interface.
        name: String,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// A route was refused.
    #[error("adding the route to {destination} over {name:?}")]
    Route {
        /// Where it leads.
        destination: String,
        /// Its interface.
        name: String,
        /// The cause.
        #[source]
        source: Errno,
    },
}

/// Makes the network of this thread's namespace the pod's.
pub(crate) fn configure(request: &NetworkRequest) -> Result<(), NetworkError> {
    if request.interfaces.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open().map_err(NetworkError::Open)?;
    let devices = find(&mut netlink, &request.interfaces)?;
    // All out of the way first: one's new name can be another's old one.
    for (interface, index) in request.interfaces.iter().zip(&devices) {
        let aside = vec![(libc::IFLA_IFNAME, text(&format!("device-{index}")))];
        let message = Message::link(*index, 0, libc::IFF_UP as u32, aside);
        netlink
            .request(&message)
            .map_err(failed("changing the name", interface))?;
    }
    let mut indices = BTreeMap::new();
    for (interface, index) in request.interfaces.iter().zip(devices) {
        set_up(&mut netlink, interface, index)?;
        indices.insert(interface.name.as_str(), index);
    }
    for route in &request.routes {
        add_route(&mut netlink, route, &indices)?;
    }
    remove_other_prefix_routes(&mut netlink, request, &indices)?;
    for neighbour in &request.neighbours {
        add_neighbour(&mut netlink, neighbour, &indices)?;
    }
    Ok(())
}

/// The number of each interface's device.
fn find(netlink: &mut Netlink, interfaces: &[Interface]) -> Result<Vec<u32>, NetworkError> {
    let all = Message {
        kind: libc::RTM_GETLINK,
        fixed: vec![0; LINK],
        attributes: Vec::new(),
    };
    let links = netlink.dump(&all, LINK).map_err(NetworkError::List)?;
    let index = |interface: &Interface| {
        let has = |link: &&Message| link.attribute(libc::IFLA_ADDRESS) == Some(&interface.device_mac);
        links
            .iter()
            .find(has)
            .and_then(|link| link.number(LINK_INDEX))
            .ok_or_else(|| NetworkError::Missing {
                name: interface.name.clone(),
                mac: in_hex(&interface.device_mac),
            })
    };
    interfaces.iter().map(index).collect()
}

fn set_up(netlink: &mut Netlink, interface: &Interface, index: u32) -> Result<(), NetworkError> {
    let failed = |doing: &str| failed(doing, interface);
    let identity = vec![
        (libc::IFLA_IFNAME, text(&interface.name)),
        (libc::IFLA_ADDRESS, interface.mac.clone()),
        (libc::IFLA_MTU, interface.mtu.to_ne_bytes().to_vec()),
    ];
    netlink
        .request(&Message::link(index, 0, 0, identity))
        .map_err(failed("setting name, MAC address and MTU"))?;
    let quiet = nested(
        libc::AF_INET6 as u16,
        &[(IFLA_INET6_ADDR_GEN_MODE, vec![NO_ADDRESSES])],
    )
    .and_then(|family| nested(libc::IFLA_AF_SPEC, &[family]))
    .map_err(failed("describing the IPv6 settings"))?;
    match netlink.request(&Message::link(index, 0, 0, vec![quiet])) {
        // A kernel without IPv6 makes no such addresses.
        Ok(()) | Err(Errno::AFNOSUPPORT | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(failed("turning off the automatic IPv6 addresses")(error)),
    }
    let up = libc::IFF_UP as u32;
    netlink
        .request(&Message::link(index, up, up, Vec::new()))
        .map_err(failed("bringing up the device"))?;
    for address in &interface.addresses {
        let message = address_message(address, index)?;
        netlink
            .request_with(&message, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
            .map_err(failed(&format!(
                "adding the address {}",
                shown(&address.address, address.prefix)
            )))?;
    }
    Ok(())
}

fn address_message(address: &InterfaceAddress, index: u32) -> Result<Message, NetworkError> {
    let family = family(&address.address);
    let mut fixed = vec![
        family,
        byte("prefix", address.prefix)?,
        0,
        byte("scope", address.scope)?,
    ];
    fixed.resize(ADDRESS, 0);
    let mut flags = address.flags & KEPT_FLAGS;
    if i32::from(family) == libc::AF_INET6 {
        flags |= libc::IFA_F_NODAD;
    }
    let peer = if address.peer.is_empty() {
        &address.address
    } else {
        &address.peer
    };
    let mut attributes = vec![
        (libc::IFA_LOCAL, address.address.clone()),
        (libc::IFA_ADDRESS, peer.clone()),
        (libc::IFA_FLAGS, flags.to_ne_bytes().to_vec()),
    ];
    if !address.broadcast.is_empty() {
        attributes.push((libc::IFA_BROADCAST, address.broadcast.clone()));
    }
    let mut message = Message {
        kind: libc::RTM_NEWADDR,
        fixed,
        attributes,
    };
    message.set_number(ADDRESS_INDEX, index);
    Ok(message)
}

fn add_route(
    netlink: &mut Netlink,
    route: &Route,
    indices: &BTreeMap<&str, u32>,
) -> Result<(), NetworkError> {
    let destination = shown(&route.destination, route.prefix);
    let mut fixed = vec![
        byte("address family", route.family)?,
        byte("prefix", route.prefix)?,
        0,
        byte("type of service", route.type_of_service)?,
        libc::RT_TABLE_MAIN,
        byte("protocol", route.protocol)?,
        byte("scope", route.scope)?,
        byte("route type", route.type_)?,
    ];
    fixed.extend(route.flags.to_ne_bytes());
    let mut attributes = Vec::new();
    for (kind, value) in [
        (libc::RTA_DST, &route.destination),
        (libc::RTA_GATEWAY, &route.gateway),
        (libc::RTA_PREFSRC, &route.preferred_source),
    ] {
        if !value.is_empty() {
            attributes.push((kind, value.clone()));
        }
    }
    if route.priority != 0 {
        attributes.push((libc::RTA_PRIORITY, route.priority.to_ne_bytes().to_vec()));
    }
    if !route.interface.is_empty() {
        let index = indices
            .get(route.interface.as_str())
            .ok_or_else(|| NetworkError::Unknown {
                of: "route",
                destination: destination.clone(),
                name: route.interface.clone(),
            })?;
        attributes.push((libc::RTA_OIF, index.to_ne_bytes().to_vec()));
    }
    let failed = |source| NetworkError::Route {
        destination: destination.clone(),
        name: route.interface.clone(),
        source,
    };
    let metrics: Vec<(u16, Vec<u8>)> = route
        .metrics
        .iter()
        .map(|metric| {
            Ok((
                half("route metric", metric.kind)?,
                metric.value.to_ne_bytes().to_vec(),
            ))
        })
        .collect::<Result<_, NetworkError>>()?;
    if !metrics.is_empty() {
        attributes.push(nested(libc::RTA_METRICS, &metrics).map_err(failed)?);
    }
    let message = Message {
        kind: libc::RTM_NEWROUTE,
        fixed,
        attributes,
    };
    // It takes the place of the one that the kernel made with the address.
    netlink
        .request_with(&message, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
        .map_err(failed)
}

/// Removes what the kernel adds with an address and the pod has not.
fn remove_other_prefix_routes(
    netlink: &mut Netlink,
    request: &NetworkRequest,
    indices: &BTreeMap<&str, u32>,
) -> Result<(), NetworkError> {
    let all = Message {
        kind: libc::RTM_GETROUTE,
        fixed: vec![0; ROUTE],
        attributes: Vec::new(),
    };
    let routes = netlink.dump(&all, ROUTE).map_err(NetworkError::List)?;
    for mut found in routes {
        let index = found.attribute_number(libc::RTA_OIF);
        let interface = indices.iter().find(|(_, of)| Some(**of) == index);
        let is_the_kernels = found.byte(ROUTE_TABLE) == Some(libc::RT_TABLE_MAIN)
            && found.byte(ROUTE_PROTOCOL) == Some(libc::RTPROT_KERNEL);
        let Some((name, _)) = interface.filter(|_| is_the_kernels) else {
            continue;
        };
        let destination = found.attribute(libc::RTA_DST).unwrap_or_default().to_vec();
        let prefix = found.byte(1).unwrap_or_default();
        let is_wanted = request.routes.iter().any(|route| {
            route.interface == **name && route.destination == destination && route.prefix == u32::from(prefix)
        });
        if is_wanted {
            continue;
        }
        found.kind = libc::RTM_DELROUTE;
        found
            .attributes
            .retain(|(kind, _)| [libc::RTA_DST, libc::RTA_OIF, libc::RTA_PRIORITY].contains(kind));
        netlink.request(&found).map_err(|source| NetworkError::Step {
            doing: format!("removing the route to {}", shown(&destination, u32::from(prefix))),
            name: (*name).to_owned(),
            source,
        })?;
    }
    Ok(())
}

fn add_neighbour(
    netlink: &mut Netlink,
    neighbour: &Neighbour,
    indices: &BTreeMap<&str, u32>,
) -> Result<(), NetworkError> {
    let name = &neighbour.interface;
    let shown = shown(&neighbour.address, neighbour.address.len() as u32 * 8);
    let index = indices.get(name.as_str()).ok_or_else(|| NetworkError::Unknown {
        of: "neighbour",
        destination: shown.clone(),
        name: name.clone(),
    })?;
    let mut fixed = vec![family(&neighbour.address), 0, 0, 0, 0, 0, 0, 0];
    fixed.extend(libc::NUD_PERMANENT.to_ne_bytes());
    fixed.resize(NEIGHBOUR, 0);
    let mut message = Message {
        kind: libc::RTM_NEWNEIGH,
        fixed,
        attributes: vec![
            (libc::NDA_DST, neighbour.address.clone()),
            (libc::NDA_LLADDR, neighbour.mac.clone()),
        ],
    };
    message.set_number(NEIGHBOUR_INDEX, *index);
    netlink
        .request_with(&message, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
        .map_err(|source| NetworkError::Step {
            doing: format!("adding the neighbour {shown}"),
            name: name.clone(),
            source,
        })
}

fn failed(doing: &str, interface: &Interface) -> impl FnOnce(Errno) -> NetworkError + use<> {
    let (doing, name) = (doing.to_owned(), interface.name.clone());
    move |source| NetworkError::Step { doing, name, source }
}

fn family(address: &[u8]) -> u8 {
    let family = if address.len() == 4 {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    family as u8
}

fn byte(field: &'static str, value: u32) -> Result<u8, NetworkError> {
    u8::try_from(value).map_err(|_| NetworkError::Number { field, value })
}

fn half(field: &'static str, value: u32) -> Result<u16, NetworkError> {
    u16::try_from(value).map_err(|_| NetworkError::Number { field, value })
}

fn in_hex(mac: &[u8]) -> String {
    let octets: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    octets.join(":")
}

fn shown(address: &[u8], prefix: u32) -> String {
    let address: Option<std::net::IpAddr> = match *address {
        [a, b, c, d] => Some([a, b, c, d].into()),
        _ => <[u8; 16]>::try_from(address).ok().map(Into::into),
    };
    address.map_or_else(|| "default".to_owned(), |address| format!("{address}/{prefix}"))
}

#[cfg(test)]
mod tests;

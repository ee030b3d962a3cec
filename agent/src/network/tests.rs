use protocol::sandbox::RouteMetric;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;

const DEVICE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
const MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 2];

/// Does something in a network namespace that has two veths: `eth0`, and `eth1` with the address [`DEVICE_MAC`].
fn with_two_devices(work: impl FnOnce(&mut Netlink) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: network namespaces need root");
        return;
    }
    let thread = std::thread::spawn(|| {
        // SAFETY: A namespace is no memory, and this thread ends with it.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let mut netlink = Netlink::open().unwrap();
        for (name, mac) in [("eth0", MAC), ("eth1", DEVICE_MAC)] {
            let kind = (libc::IFLA_INFO_KIND, text("veth"));
            let attributes = vec![
                (libc::IFLA_IFNAME, text(name)),
                (libc::IFLA_ADDRESS, mac.to_vec()),
                nested(libc::IFLA_LINKINFO, &[kind]).unwrap(),
            ];
            let message = Message::link(0, 0, 0, attributes);
            netlink
                .request_with(&message, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
                .unwrap();
        }
        work(&mut netlink);
    });
    thread.join().unwrap();
}

fn address(address: &[u8], prefix: u32) -> InterfaceAddress {
    InterfaceAddress {
        address: address.to_vec(),
        prefix,
        ..InterfaceAddress::default()
    }
}

fn request() -> NetworkRequest {
    let mut six = [0; 16];
    (six[0], six[15]) = (0xfd, 2);
    let gateway = vec![10, 99, 0, 1];
    let route = |destination: &[u8], prefix, gateway: &[u8], protocol, scope| Route {
        family: libc::AF_INET as u32,
        destination: destination.to_vec(),
        prefix,
        interface: "eth0".to_owned(),
        gateway: gateway.to_vec(),
        protocol,
        scope,
        type_: libc::RTN_UNICAST.into(),
        ..Route::default()
    };
    NetworkRequest {
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            device_mac: DEVICE_MAC.to_vec(),
            mac: [0x0a, 0, 0, 0, 0, 9].to_vec(),
            mtu: 1400,
            addresses: vec![address(&[10, 99, 0, 2], 24), address(&six, 64)],
            ..Interface::default()
        }],
        // As the CNI plugin ptp has it: the network itself is behind the gateway.
        routes: vec![
            route(&gateway, 32, &[], 4, 253),
            Route {
                metrics: vec![RouteMetric {
                    kind: 2,
                    value: 1300,
                    ..RouteMetric::default()
                }],
                ..route(&[], 0, &gateway, 4, 0)
            },
        ],
        neighbours: vec![Neighbour {
            interface: "eth0".to_owned(),
            address: gateway,
            mac: MAC.to_vec(),
            ..Neighbour::default()
        }],
        ..NetworkRequest::default()
    }
}

/// What there is of a kind that is of this device.
fn of_device(netlink: &mut Netlink, kind: u16, fixed: usize, index: u32) -> Vec<Message> {
    let all = Message {
        kind,
        fixed: vec![0; fixed],
        attributes: Vec::new(),
    };
    let mut found = netlink.dump(&all, fixed).unwrap();
    found.retain(|message| match kind {
        libc::RTM_GETROUTE => {
            message.attribute_number(libc::RTA_OIF) == Some(index)
                && message.byte(ROUTE_TABLE) == Some(libc::RT_TABLE_MAIN)
                && message.byte(0) == Some(libc::AF_INET as u8)
        }
        _ => message.number(LINK_INDEX) == Some(index),
    });
    found
}

#[test]
fn the_device_with_the_address_becomes_the_pods_interface() {
    with_two_devices(|netlink| {
        // The other device has the name: it is only moved aside where it is one of the pod's.
        let other = netlink.index_of("eth0").unwrap();
        let aside = vec![(libc::IFLA_IFNAME, text("other"))];
        netlink.request(&Message::link(other, 0, 0, aside)).unwrap();
        let index = netlink.index_of("eth1").unwrap();
        configure(&request()).unwrap();
        assert_eq!(netlink.index_of("eth0").unwrap(), index);
        let link = of_device(netlink, libc::RTM_GETLINK, LINK, index).remove(0);
        assert_eq!(link.attribute(libc::IFLA_ADDRESS).unwrap(), [0x0a, 0, 0, 0, 0, 9]);
        assert_eq!(link.attribute_number(libc::IFLA_MTU), Some(1400));
        assert_ne!(link.number(8).unwrap() & libc::IFF_UP as u32, 0);
        let addresses = of_device(netlink, libc::RTM_GETADDR, ADDRESS, index);
        // None that the kernel made by itself.
        assert_eq!(addresses.len(), 2, "{addresses:?}");
        let routes = of_device(netlink, libc::RTM_GETROUTE, ROUTE, index);
        let mut destinations: Vec<_> = routes
            .iter()
            .map(|route| route.attribute(libc::RTA_DST).unwrap_or_default().to_vec())
            .collect();
        destinations.sort();
        // Not the one of the address's network, which the pod has not.
        assert_eq!(destinations, [vec![], vec![10, 99, 0, 1]]);
        let neighbours = of_device(netlink, libc::RTM_GETNEIGH, NEIGHBOUR, index);
        assert!(
            neighbours
                .iter()
                .any(|neighbour| neighbour.attribute(libc::NDA_LLADDR) == Some(&MAC))
        );
    });
}

#[test]
fn two_devices_exchange_their_names() {
    with_two_devices(|netlink| {
        let (first, second) = (
            netlink.index_of("eth0").unwrap(),
            netlink.index_of("eth1").unwrap(),
        );
        let interface = |name: &str, device_mac: [u8; 6], last| Interface {
            name: name.to_owned(),
            device_mac: device_mac.to_vec(),
            mac: vec![0x0a, 0, 0, 0, 0, last],
            mtu: 1500,
            ..Interface::default()
        };
        let request = NetworkRequest {
            interfaces: vec![interface("eth1", MAC, 8), interface("eth0", DEVICE_MAC, 9)],
            ..NetworkRequest::default()
        };
        configure(&request).unwrap();
        assert_eq!(netlink.index_of("eth1").unwrap(), first);
        assert_eq!(netlink.index_of("eth0").unwrap(), second);
    });
}

#[test]
fn what_cannot_be_had_is_told_by_its_name() {
    with_two_devices(|_| {
        let mut missing = request();
        missing.interfaces[0].device_mac = vec![2, 0, 0, 0, 0, 9];
        let error = configure(&missing).unwrap_err().to_string();
        assert!(
            error.contains("02:00:00:00:00:09") && error.contains("eth0"),
            "{error}"
        );
        let mut unknown = request();
        unknown.interfaces[0].name = "net0".to_owned();
        let error = configure(&unknown).unwrap_err().to_string();
        assert!(
            error.contains("10.99.0.1/32") && error.contains("eth0"),
            "{error}"
        );
    });
}

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;

use container::netlink::{ADDRESS, LINK, Message, NEIGHBOUR, ROUTE, nested, text};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;

/// `VETH_INFO_PEER` of linux/veth.h.
const VETH_INFO_PEER: u16 = 1;

const POD_MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 2];
const POD: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const MTU: u32 = 1400;

/// The header that the tap's frames have as long as nobody has set another length (struct virtio_net_hdr).
const TAP_HEADER: usize = 10;

/// Does something in a new network namespace, of which `None` is said where it cannot be made.
fn in_new_namespace<T: Send + 'static>(work: impl FnOnce(&mut Netlink) -> T + Send + 'static) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: network namespaces need root");
        return None;
    }
    let done = inside(|| {
        // SAFETY: A namespace is no memory, and this thread ends with it.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        work(&mut Netlink::open().unwrap())
    });
    Some(done.unwrap())
}

fn own_namespace() -> PathBuf {
    format!("/proc/self/task/{}/ns/net", rustix::thread::gettid().as_raw_pid()).into()
}

/// A veth `pod0`, whose other end is called `outside`, in the namespace of that descriptor or in this one.
fn veth(netlink: &mut Netlink, elsewhere: Option<&File>) {
    let mut peer = vec![0; LINK];
    let mut attributes = vec![(libc::IFLA_IFNAME, text("outside"))];
    if let Some(namespace) = elsewhere {
        let descriptor = namespace.as_raw_fd().to_ne_bytes().to_vec();
        attributes.push((libc::IFLA_NET_NS_FD, descriptor));
    }
    for attribute in &attributes {
        let (_, encoded) = nested(0, std::slice::from_ref(attribute)).unwrap();
        peer.extend(encoded);
    }
    let data = nested(libc::IFLA_INFO_DATA, &[(VETH_INFO_PEER, peer)]).unwrap();
    let kind = (libc::IFLA_INFO_KIND, text("veth"));
    let attributes = vec![
        (libc::IFLA_IFNAME, text("pod0")),
        (libc::IFLA_ADDRESS, POD_MAC.to_vec()),
        (libc::IFLA_MTU, MTU.to_ne_bytes().to_vec()),
        nested(libc::IFLA_LINKINFO, &[kind, data]).unwrap(),
    ];
    let message = Message::link(0, 0, 0, attributes);
    netlink
        .request_with(&message, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
        .unwrap();
}

fn up(netlink: &mut Netlink, name: &str) -> u32 {
    let index = netlink.index_of(name).unwrap();
    let up = libc::IFF_UP as u32;
    netlink
        .request(&Message::link(index, up, up, Vec::new()))
        .unwrap();
    index
}

fn add(netlink: &mut Netlink, kind: u16, fixed: &[u8], length: usize, attributes: Vec<(u16, Vec<u8>)>) {
    let mut fixed = fixed.to_vec();
    fixed.resize(length, 0);
    let message = Message {
        kind,
        fixed,
        attributes,
    };
    netlink.request_with(&message, libc::NLM_F_CREATE).unwrap();
}

fn add_address(netlink: &mut Netlink, index: u32, address: Ipv4Addr) {
    let [a, b, c, d] = index.to_ne_bytes();
    let address = address.octets().to_vec();
    let fixed = [libc::AF_INET as u8, 24, 0, 0, a, b, c, d];
    let attributes = vec![(libc::IFA_LOCAL, address.clone()), (libc::IFA_ADDRESS, address)];
    add(netlink, libc::RTM_NEWADDR, &fixed, ADDRESS, attributes);
}

#[test]
fn what_is_in_the_namespace_is_described() {
    in_new_namespace(|netlink| {
        veth(netlink, None);
        let index = up(netlink, "pod0");
        add_address(netlink, index, POD);
        // Over the gateway, with a smaller MTU.
        up(netlink, "outside");
        let metrics = nested(libc::RTA_METRICS, &[(2, 1300u32.to_ne_bytes().to_vec())]).unwrap();
        let attributes = vec![
            (libc::RTA_OIF, index.to_ne_bytes().to_vec()),
            (libc::RTA_GATEWAY, GATEWAY.octets().to_vec()),
            (libc::RTA_PRIORITY, 7u32.to_ne_bytes().to_vec()),
            metrics,
        ];
        let fixed = [libc::AF_INET as u8, 0, 0, 0, libc::RT_TABLE_MAIN, 4, 0, 1];
        add(netlink, libc::RTM_NEWROUTE, &fixed, ROUTE, attributes);
        let [a, b, c, d] = index.to_ne_bytes();
        let fixed = [
            libc::AF_INET as u8,
            0,
            0,
            0,
            a,
            b,
            c,
            d,
            libc::NUD_PERMANENT as u8,
        ];
        let attributes = vec![
            (libc::NDA_DST, GATEWAY.octets().to_vec()),
            (libc::NDA_LLADDR, vec![0x0a, 0, 0, 0, 0, 1]),
        ];
        add(netlink, libc::RTM_NEWNEIGH, &fixed, NEIGHBOUR, attributes);
        let outside = netlink.index_of("outside").unwrap();
        netlink
            .request(&Message::link(outside, 0, libc::IFF_UP as u32, Vec::new()))
            .unwrap();

        let (described, indices) = description::read(netlink).unwrap();
        assert_eq!(indices, [index]);
        let [interface] = described.interfaces.as_slice() else {
            panic!("{described:?}");
        };
        assert_eq!((interface.name.as_str(), interface.mtu), ("pod0", MTU));
        assert_eq!(interface.mac, POD_MAC);
        assert_eq!(interface.device_mac, device_mac(0));
        let four: Vec<_> = interface
            .addresses
            .iter()
            .filter(|address| address.address.len() == 4)
            .collect();
        assert_eq!(four.len(), 1);
        assert_eq!((&*four[0].address, four[0].prefix), (&POD.octets()[..], 24));
        let ways: Vec<_> = described
            .routes
            .iter()
            .filter(|route| route.family == libc::AF_INET as u32)
            .collect();
        let [prefix, default] = ways.as_slice() else {
            panic!("{ways:?}");
        };
        assert_eq!(prefix.prefix, 24);
        assert_eq!(prefix.preferred_source, POD.octets());
        assert_eq!(default.gateway, GATEWAY.octets());
        assert_eq!((default.priority, default.prefix), (7, 0));
        assert!(default.destination.is_empty());
        assert_eq!((default.metrics[0].kind, default.metrics[0].value), (2, 1300));
        assert_eq!(described.neighbours.len(), 1);
        assert_eq!(described.neighbours[0].address, GATEWAY.octets());
    });
}

/// The next frame that comes out of the tap, without the tap's header.
fn frame(tap: &File) -> Vec<u8> {
    use std::io::Read as _;
    let mut descriptor = [rustix::event::PollFd::new(tap, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    let ready = rustix::event::poll(&mut descriptor, Some(&patience)).unwrap();
    assert_eq!(ready, 1, "no frame arrived");
    let mut room = [0; 2048];
    let length = (&*tap).read(&mut room).unwrap();
    room[TAP_HEADER..length].to_vec()
}

/// What a station with the pod's addresses answers to a question for its Ethernet address, with the tap's header.
fn answer(question: &[u8]) -> Vec<u8> {
    let mut answer = vec![0; TAP_HEADER];
    answer.extend(&question[6..12]);
    answer.extend(POD_MAC);
    answer.extend(&question[12..20]);
    answer.extend([0, 2]);
    answer.extend(POD_MAC);
    answer.extend(POD.octets());
    answer.extend(&question[22..32]);
    answer
}

#[test]
fn frames_go_from_the_interface_to_the_tap_and_back() {
    let (to_outside, namespace) = mpsc::channel();
    let (to_pod, ready) = mpsc::channel();
    let outside = std::thread::spawn(move || {
        in_new_namespace(move |netlink| {
            to_pod.send(File::open(own_namespace()).unwrap()).unwrap();
            namespace.recv().unwrap();
            let index = up(netlink, "outside");
            add_address(netlink, index, GATEWAY);
            let socket = UdpSocket::bind((GATEWAY, 0)).unwrap();
            socket.send_to(b"hello", (POD, 9)).unwrap();
        })
    });
    let done = in_new_namespace(move |netlink| {
        use std::io::Write as _;
        let elsewhere = ready.recv().unwrap();
        veth(netlink, Some(&elsewhere));
        up(netlink, "pod0");
        let network = {
            let own = own_namespace();
            // A first one, whose taps are gone and whose queueing discipline is left.
            PodNetwork::of(&own, 1).unwrap().hand_over();
            PodNetwork::of(&own, 1).unwrap()
        };
        assert_eq!(network.devices(), 1);
        to_outside.send(()).unwrap();
        let tap = File::from(network.taps()[0][0].try_clone().unwrap());
        // Answered as often as it is asked: a link that has just come up may lose an answer.
        let datagram = loop {
            let frame = frame(&tap);
            match frame[12..14] {
                [0x08, 0x06] => (&tap).write_all(&answer(&frame)).unwrap(),
                [0x08, 0x00] => break frame,
                _ => {}
            }
        };
        assert!(datagram.windows(5).any(|bytes| bytes == b"hello"));

        // Without a machine nothing is left.
        drop(tap);
        drop(network);
        let mut links = netlink
            .dump(
                &Message {
                    kind: libc::RTM_GETLINK,
                    fixed: vec![0; LINK],
                    attributes: Vec::new(),
                },
                LINK,
            )
            .unwrap();
        links.retain(|link| {
            link.attribute_text(libc::IFLA_IFNAME)
                .is_some_and(|name| name.starts_with("bhtap"))
        });
        assert_eq!(links, []);
        let index = netlink.index_of("pod0").unwrap();
        let left = Redirection { from: index, to: 0 };
        assert!(left.undo(netlink).is_err());
    });
    assert_eq!(outside.join().unwrap(), done);
}

#[test]
fn a_tap_has_as_many_queues_as_asked_for() {
    in_new_namespace(|netlink| {
        veth(netlink, None);
        up(netlink, "pod0");
        let own = own_namespace();
        for queues in [1, 3] {
            let network = PodNetwork::of(&own, queues).unwrap();
            let [tap] = network.taps() else {
                panic!("{network:?}")
            };
            assert_eq!(tap.len(), usize::from(queues));
            let path = format!(
                "/proc/self/task/{}/net/dev",
                rustix::thread::gettid().as_raw_pid()
            );
            let devices = std::fs::read_to_string(path).unwrap();
            let taps = devices.lines().filter(|line| line.contains("bhtap"));
            assert_eq!(taps.count(), 1, "{devices}");
            network.hand_over();
        }
    });
}

#[test]
fn the_hosts_own_network_is_refused_with_the_other_wall_as_the_way_out() {
    let refused = PodNetwork::of(Path::new(OUR_NAMESPACE), 1).unwrap_err();
    assert!(refused.to_string().contains("shared-kernel"), "{refused}");
    let missing = PodNetwork::of(Path::new("/nonexistent"), 1).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent"));
}

//! Real taps, in network namespaces that the tests make for themselves.
//!
//! A thread has a network namespace of its own, so nothing of the machine's network is touched, and all is gone with the
//! thread. Where that is not allowed the tests say so and do nothing.

mod queues;

use std::fs::{File, OpenOptions};
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

use libc::{IFF_NO_PI, IFF_TAP, IFF_TUN, IFF_VNET_HDR};
use nix::sched::{CloneFlags, unshare};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF,
};

use super::{Net, Tap, TapError};
use crate::config::{MacAddress, NetworkDevice, NetworkRateLimit};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::test_driver::{Buffer, TestDriver};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const HEADER_BYTES: usize = 12;
const PATIENCE: Duration = Duration::from_secs(20);
const FLAGS: i32 = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
const NAME: &str = "tap-test";
const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST: [u8; 4] = [192, 0, 2, 1];
const GUEST: [u8; 4] = [192, 0, 2, 2];
const FEATURES: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO4;

/// Runs `test` where there are no network devices but its own.
fn in_a_network_of_its_own(test: impl FnOnce() + Send + 'static) {
    let outcome = thread::spawn(move || {
        let prepared = unshare(CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| open_tun().map(drop));
        if let Err(error) = prepared {
            eprintln!("SKIPPED: no network namespace, or no /dev/net/tun: {error}");
            return;
        }
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn open_tun() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun")
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: All of `ifreq` is numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn control(fd: &impl AsRawFd, number: libc::Ioctl, request: &mut libc::ifreq) {
    // SAFETY: The calls made here read or write one `ifreq`, which is valid for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number, &raw mut *request) };
    assert!(result >= 0, "{}", io::Error::last_os_error());
}

/// A tap as whoever starts a machine opens it.
fn attach(flags: i32) -> File {
    let tap = open_tun().unwrap();
    let mut request = request(NAME);
    request.ifr_ifru.ifru_flags = flags as i16;
    control(&tap, libc::TUNSETIFF, &mut request);
    tap
}

fn socket(family: i32, kind: i32, protocol: i32) -> OwnedFd {
    // SAFETY: The call takes no pointer.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: The descriptor was made by the call above, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn address(octets: [u8; 4]) -> libc::sockaddr {
    // SAFETY: All of `sockaddr` is numbers, for which zero is a value.
    let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
    address.sa_family = libc::AF_INET as u16;
    for (to, from) in address.sa_data[2..].iter_mut().zip(octets) {
        *to = from.cast_signed();
    }
    address
}

fn hardware_address(octets: [u8; 6]) -> libc::sockaddr {
    let mut address = address([0; 4]);
    address.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(octets) {
        *to = from.cast_signed();
    }
    address
}

/// Gives the host's side of the tap its addresses, and tells it the guest's.
fn configure() {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    let mut request = request(NAME);
    request.ifr_ifru.ifru_hwaddr = hardware_address(HOST_MAC);
    control(&socket, libc::SIOCSIFHWADDR as libc::Ioctl, &mut request);
    request.ifr_ifru.ifru_addr = address(HOST);
    control(&socket, libc::SIOCSIFADDR as libc::Ioctl, &mut request);
    request.ifr_ifru.ifru_netmask = address([255, 255, 255, 0]);
    control(&socket, libc::SIOCSIFNETMASK as libc::Ioctl, &mut request);
    bring(libc::IFF_UP);
    // SAFETY: All of `arpreq` is numbers, for which zero is a value.
    let mut neighbour: libc::arpreq = unsafe { std::mem::zeroed() };
    neighbour.arp_pa = address(GUEST);
    neighbour.arp_ha = hardware_address(GUEST_MAC);
    neighbour.arp_flags = libc::ATF_COM | libc::ATF_PERM;
    // SAFETY: SIOCSARP reads one `arpreq` through the pointer, which is valid for the call.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSARP as libc::Ioctl,
            &raw mut neighbour,
        )
    };
    assert!(result >= 0, "{}", io::Error::last_os_error());
}

fn bring(flag: i32) {
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
    let mut request = request(NAME);
    request.ifr_ifru.ifru_flags = flag as i16;
    control(&socket, libc::SIOCSIFFLAGS as libc::Ioctl, &mut request);
}

fn device(tap: &File) -> Net {
    device_with_queues(std::slice::from_ref(tap))
}

/// With a pair of queues for each of the tap's.
fn device_with_queues(tap: &[File]) -> Net {
    let numbers: Vec<_> = tap.iter().map(AsRawFd::as_raw_fd).collect();
    let config = NetworkDevice {
        mac: MacAddress::new(GUEST_MAC).unwrap(),
        mtu: None,
        queue_pairs: tap.len() as u8,
        tap_descriptors: numbers.clone(),
        rate_limit: NetworkRateLimit::default(),
    };
    Net::new(&config, Tap::inherit(&numbers).unwrap())
}

/// The sum of TCP and IP checksums over `bytes` (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A frame of the IP protocol `protocol` whose checksum covers only the pseudo header, as one leaves it to a device.
fn frame(
    from: ([u8; 6], [u8; 4]),
    to: ([u8; 6], [u8; 4]),
    protocol: u8,
    transport: &[u8],
    at: usize,
) -> Vec<u8> {
    let total = 20 + transport.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    ip.extend(from.1);
    ip.extend(to.1);
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut pseudo = [from.1, to.1].concat();
    pseudo.extend([0, protocol]);
    pseudo.extend((transport.len() as u16).to_be_bytes());
    let mut transport = transport.to_vec();
    transport[at..at + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
    [&to.0[..], &from.0, &[8, 0], &ip, &transport].concat()
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = [4000u16, port, 8 + payload.len() as u16, 0]
        .map(u16::to_be_bytes)
        .concat();
    datagram.extend(payload);
    frame((GUEST_MAC, GUEST), (HOST_MAC, HOST), 17, &datagram, 6)
}

/// The header for a frame whose checksum is left open, with segments of `size` bytes if there are to be any.
fn header(segmentation: u8, headers: u16, size: u16, at: u16) -> Vec<u8> {
    let mut header = vec![1, segmentation];
    header.extend([headers, size, 34, at, 0].map(u16::to_le_bytes).concat());
    header
}

fn transmit(driver: &mut TestDriver<'_>, header: &[u8], frame: &[u8]) {
    let data = driver.data(TRANSMIT);
    driver.write(data, &[header, frame].concat());
    driver.add(
        TRANSMIT,
        &[Buffer::readable(data, (header.len() + frame.len()) as u32)],
    );
    driver.wait_for_used(TRANSMIT);
}

/// The guest's frames, one after another in buffers of 2 KiB.
struct Inbox {
    next: u64,
}

impl Inbox {
    fn new(driver: &mut TestDriver<'_>) -> Self {
        for index in 0..200 {
            let address = driver.data(RECEIVE) + index * 2048;
            driver.add(RECEIVE, &[Buffer::writable(address, 2048)]);
        }
        Self { next: 0 }
    }

    fn frame(&mut self, driver: &mut TestDriver<'_>) -> (Vec<u8>, Vec<u8>) {
        let mut bytes = Vec::new();
        let mut left = 1;
        while left > 0 {
            let (_, length) = driver.wait_for_used(RECEIVE);
            let start = driver.data(RECEIVE) + self.next * 2048;
            let part = driver.read(start, length as usize);
            if bytes.is_empty() {
                left = u16::from_le_bytes([part[10], part[11]]);
            }
            bytes.extend(part);
            self.next += 1;
            left -= 1;
        }
        let frame = bytes.split_off(HEADER_BYTES);
        (bytes, frame)
    }

    /// The next frame that is IPv4 and of `protocol`; the kernel sends others of its own.
    fn ip_frame(&mut self, driver: &mut TestDriver<'_>, protocol: u8) -> (Vec<u8>, Vec<u8>) {
        loop {
            let (header, frame) = self.frame(driver);
            if frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&protocol) {
                return (header, frame);
            }
        }
    }
}

/// A raw socket on the tap whose messages begin with the header of virtio 0.9, which has ten bytes.
fn packet_socket() -> OwnedFd {
    let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
    let on: libc::c_int = 1;
    // SAFETY: The option is one int, which is valid for the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // SAFETY: All of `sockaddr_ll` is numbers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = rustix::net::netdevice::name_to_index(&socket, NAME).unwrap() as i32;
    // SAFETY: The address is one `sockaddr_ll`, which is valid for the call.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    socket
}

fn refusal(descriptor: i32) -> String {
    Tap::inherit(&[descriptor]).unwrap_err().to_string()
}

#[test]
fn what_is_no_tap_is_refused_with_what_it_is() {
    let file = File::open("/dev/null").unwrap();
    assert!(matches!(
        Tap::inherit(&[file.as_raw_fd()]),
        Err(TapError::NoTap { .. })
    ));
    let closed = 1_000_000;
    assert_eq!(
        refusal(closed),
        "taking descriptor 1000000 as a tap; whoever starts this process opens the tap and hands it down"
    );
    assert!(matches!(Tap::inherit(&[-1]), Err(TapError::Descriptor { .. })));
    in_a_network_of_its_own(|| {
        let unattached = open_tun().unwrap();
        assert!(matches!(
            Tap::inherit(&[unattached.as_raw_fd()]),
            Err(TapError::NoTap { .. })
        ));
        for (flags, missing) in [
            (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, "IFF_TAP"),
            (IFF_TAP | IFF_VNET_HDR, "IFF_NO_PI"),
            (IFF_TAP | IFF_NO_PI, "IFF_VNET_HDR"),
        ] {
            let tap = attach(flags);
            let number = tap.as_raw_fd();
            let mut reported = request(NAME);
            control(&tap, libc::TUNGETIFF, &mut reported);
            // SAFETY: The call has filled in the flags.
            let reported = i32::from(unsafe { reported.ifr_ifru.ifru_flags });
            if reported & FLAGS == FLAGS {
                eprintln!("SKIPPED: this kernel says {missing} of every tap");
                continue;
            }
            assert_eq!(
                refusal(number),
                format!("descriptor {number} is the device \"tap-test\" attached without {missing}")
            );
        }
    });
}

#[test]
fn datagrams_go_both_ways_with_their_checksums_left_to_the_other_side() {
    in_a_network_of_its_own(|| {
        let tap = attach(FLAGS);
        configure();
        let host = UdpSocket::bind("192.0.2.1:5000").unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        let memory = TestDriver::memory();
        let mut device = device(&tap);
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.accept(FEATURES);
        driver.activate(&mut device);
        let mut inbox = Inbox::new(&mut driver);

        transmit(&mut driver, &header(0, 42, 0, 6), &udp(5000, b"from the guest"));
        let mut buffer = [0; 100];
        let (length, from) = host.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"from the guest");
        assert_eq!(from.to_string(), "192.0.2.2:4000");

        host.send_to(b"from the host", from).unwrap();
        let (header, frame) = inbox.ip_frame(&mut driver, 17);
        assert_eq!(header[0], 1, "the checksum is left to the guest");
        assert_eq!(frame[..12], [GUEST_MAC, HOST_MAC].concat());
        assert_eq!(&frame[42..], b"from the host");
    });
}

#[test]
fn a_driver_that_chose_nothing_gets_complete_frames() {
    in_a_network_of_its_own(|| {
        let tap = attach(FLAGS);
        configure();
        let host = UdpSocket::bind("192.0.2.1:5000").unwrap();
        let memory = TestDriver::memory();
        let mut device = device(&tap);
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.activate(&mut device);
        let mut inbox = Inbox::new(&mut driver);
        host.send_to(b"from the host", "192.0.2.2:4000").unwrap();
        let (header, frame) = inbox.ip_frame(&mut driver, 17);
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let mut covered = [&frame[26..34], &[0, 17], &frame[38..40]].concat();
        covered.extend(&frame[34..]);
        assert_eq!(sum(&covered), 0xffff, "the checksum is right");
    });
}

/// Sends 30,000 bytes of TCP in one frame to the guest and returns what a driver with `features` gets of it.
fn segments(features: u64) -> Vec<(Vec<u8>, usize)> {
    let tap = attach(FLAGS);
    configure();
    let memory = TestDriver::memory();
    let mut device = device(&tap);
    let mut driver = TestDriver::new(&memory, device.queue_sizes());
    driver.accept(features);
    driver.activate(&mut device);
    let mut inbox = Inbox::new(&mut driver);
    let mut segment = [5000u16, 4000].map(u16::to_be_bytes).concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(vec![7; 30_000]);
    let frame = frame((HOST_MAC, HOST), (GUEST_MAC, GUEST), 6, &segment, 16);
    let header = &header(1, 54, 1000, 16)[..10];
    let socket = packet_socket();
    let message = [header, &frame].concat();
    assert_eq!(rustix::io::write(&socket, &message).unwrap(), message.len());
    let mut got = Vec::new();
    let mut payload = 0;
    while payload < 30_000 {
        let (header, frame) = inbox.ip_frame(&mut driver, 6);
        payload += frame.len() - 54;
        got.push((header, frame.len() - 54));
    }
    assert_eq!(payload, 30_000);
    got
}

#[test]
fn a_long_segment_arrives_whole_if_the_driver_chose_that_and_cut_otherwise() {
    in_a_network_of_its_own(|| {
        let whole = segments(FEATURES);
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].0[..2], [1, 1], "left to the guest to cut and to sum");
        assert_eq!(whole[0].0[4..6], 1000u16.to_le_bytes());
    });
    in_a_network_of_its_own(|| {
        let cut = segments(1 << VIRTIO_NET_F_MRG_RXBUF);
        assert_eq!(cut.len(), 30);
        assert!(
            cut.iter()
                .all(|(header, length)| header[..2] == [0, 0] && *length == 1000)
        );
    });
}

#[test]
fn what_the_tap_refuses_is_dropped_and_the_next_frame_goes() {
    in_a_network_of_its_own(|| {
        let tap = attach(FLAGS);
        let memory = TestDriver::memory();
        let mut device = device(&tap);
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.accept(FEATURES);
        driver.activate(&mut device);
        // It is down: EIO.
        transmit(&mut driver, &[0; HEADER_BYTES], &udp(5000, b"nobody"));
        assert_eq!(device.network_counts().unwrap().transmit_dropped, 1);
        configure();
        let host = UdpSocket::bind("192.0.2.1:5000").unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        // Checksums and segments beyond the frame: EINVAL.
        let mut beyond = header(0, 42, 0, 6);
        beyond[6..8].copy_from_slice(&9000u16.to_le_bytes());
        for lie in [beyond, header(0, u16::MAX, 0, u16::MAX), header(1, 54, 0, 16)] {
            transmit(&mut driver, &lie, &udp(5000, b"a lie"));
        }
        assert_eq!(device.network_counts().unwrap().transmit_dropped, 4);
        transmit(&mut driver, &header(0, 42, 0, 6), &udp(5000, b"the truth"));
        let mut buffer = [0; 100];
        let length = host.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"the truth");
    });
}

#[test]
fn a_tap_without_room_is_waited_for() {
    in_a_network_of_its_own(|| {
        let tap = attach(FLAGS);
        configure();
        // Room for about one small frame: it is held until the socket's owner has read it.
        let room: libc::c_int = 1;
        // SAFETY: TUNSETSNDBUF reads one int through the pointer, which is valid for the call.
        let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETSNDBUF, &raw const room) };
        assert_eq!(result, 0);
        let host = UdpSocket::bind("192.0.2.1:5000").unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        let memory = TestDriver::memory();
        let mut device = device(&tap);
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.accept(FEATURES);
        driver.activate(&mut device);
        let data = driver.data(TRANSMIT);
        for index in 0..50 {
            let start = data + index * 4096;
            driver.write(start, &[header(0, 42, 0, 6), udp(5000, &[index as u8])].concat());
            driver.add(TRANSMIT, &[Buffer::readable(start, 12 + 43)]);
        }
        for index in 0..50 {
            let mut buffer = [0; 100];
            assert_eq!(host.recv(&mut buffer).unwrap(), 1);
            assert_eq!(buffer[0], index);
        }
        assert_eq!(device.network_counts().unwrap().transmit_dropped, 0);
    });
}

#[test]
fn a_tap_whose_network_device_is_removed_takes_the_link_down() {
    in_a_network_of_its_own(|| {
        let tap = attach(FLAGS);
        configure();
        let memory = TestDriver::memory();
        let mut device = device(&tap);
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.accept(FEATURES);
        driver.activate(&mut device);
        Inbox::new(&mut driver);
        remove_device();
        driver.wait_for_config_change();
        let mut status = [0xff; 2];
        device.read_config(6, &mut status);
        assert_eq!(status, [0, 0]);
        transmit(&mut driver, &[0; HEADER_BYTES], &udp(5000, b"nobody"));
        // Another driver has no link from the start.
        device.reset();
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.activate(&mut device);
        transmit(&mut driver, &[0; HEADER_BYTES], &udp(5000, b"nobody"));
        assert_eq!(device.network_counts().unwrap().transmit_dropped, 2);
    });
}

/// Removes the tap's network device as `ip link delete` does (rtnetlink(7): RTM_DELLINK).
fn remove_device() {
    let netlink = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
    let index =
        rustix::net::netdevice::name_to_index(socket(libc::AF_INET, libc::SOCK_DGRAM, 0), NAME).unwrap();
    let mut message = Vec::new();
    message.extend(32u32.to_ne_bytes());
    message.extend(libc::RTM_DELLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    rustix::io::write(&netlink, &message).unwrap();
    let mut answer = [0; 64];
    let length = rustix::io::read(&netlink, &mut answer).unwrap();
    assert!(length >= 20);
    assert_eq!(answer[16..20], [0; 4], "the error of the acknowledgement");
}

/// A snapshot is moved onto a tap, and the guest's old choice with it.
#[test]
fn a_machine_made_without_a_tap_goes_on_with_one() {
    in_a_network_of_its_own(|| {
        let tap = attach(FLAGS);
        configure();
        let host = UdpSocket::bind("192.0.2.1:5000").unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        let memory = TestDriver::memory();
        let other = MacAddress::new([2, 0, 0, 0, 0, 9]).unwrap();
        let mut before = Net::connected(other, None, 1, Vec::new(), NetworkRateLimit::default());
        let mut after = device(&tap);
        let mut driver = TestDriver::new(&memory, before.queue_sizes());
        driver.accept(FEATURES);
        driver.activate(&mut before);
        let mut inbox = Inbox::new(&mut driver);
        driver.move_over(&mut before, &mut after);
        driver.wait_for_config_change();
        transmit(&mut driver, &header(0, 42, 0, 6), &udp(5000, b"from the guest"));
        let mut buffer = [0; 100];
        let (length, from) = host.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"from the guest");
        host.send_to(b"from the host", from).unwrap();
        let (header, _) = inbox.ip_frame(&mut driver, 17);
        assert_eq!(header[0], 1, "what the driver chose before holds for the tap");
    });
}

//! The whole device, driven through its queues, with a socket that keeps the bounds of messages for a tap.

mod hostile;
mod moved;
mod pairs;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_MRG_RXBUF,
};
use vm_memory::GuestMemoryMmap;

use super::device::Net;
use super::header::{HEADER_BYTES, MAX_FRAME_BYTES};
use super::tap::Port;
use super::{NetCounts, features};
use crate::config::{MacAddress, NetworkRateLimit};
use crate::devices::rate_limiter::RateLimit;
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::test_driver::{Buffer, TestDriver};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const PATIENCE: Duration = Duration::from_secs(20);
const A_MOMENT: Duration = Duration::from_millis(50);
const MERGES: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO4;

/// The device's end of a pair of sockets.
struct SocketPort {
    socket: OwnedFd,
    offloads: Mutex<Vec<u32>>,
    attached: AtomicBool,
}

impl AsFd for SocketPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Port for SocketPort {
    fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        self.offloads.lock().unwrap().push(offloads);
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        self.attached.store(attached, Ordering::SeqCst);
        Ok(())
    }
}

/// The other end.
struct Network {
    socket: OwnedFd,
    port: Arc<SocketPort>,
}

impl Network {
    fn new() -> Self {
        let (socket, ours) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let port = Arc::new(SocketPort {
            socket: ours,
            offloads: Mutex::default(),
            attached: AtomicBool::new(true),
        });
        Self { socket, port }
    }

    fn device(&self) -> Net {
        self.limited(NetworkRateLimit::default())
    }

    fn limited(&self, limit: NetworkRateLimit) -> Net {
        Net::connected(mac(1), None, 1, vec![self.port()], limit)
    }

    fn port(&self) -> Arc<dyn Port> {
        Arc::clone(&self.port) as _
    }

    /// Puts a frame on the wire when there is room for it.
    fn send(&self, header: [u8; HEADER_BYTES], frame: &[u8]) {
        let message = [&header, frame].concat();
        let deadline = Instant::now() + PATIENCE;
        while send(&self.socket, &message, SendFlags::empty()) == Err(Errno::AGAIN) {
            assert!(Instant::now() < deadline, "the device reads no frames");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next frame on the wire, if there is one.
    fn take(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut message = vec![0; HEADER_BYTES + MAX_FRAME_BYTES + 1];
        match recv(&self.socket, &mut message, RecvFlags::empty()) {
            Ok((length, _)) => {
                message.truncate(length);
                let frame = message.split_off(HEADER_BYTES);
                Some((message, frame))
            }
            Err(Errno::AGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn receive(&self) -> (Vec<u8>, Vec<u8>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(frame) = self.take() {
                return frame;
            }
            assert!(Instant::now() < deadline, "no frame came");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn mac(last: u8) -> MacAddress {
    MacAddress::new([2, 0, 0, 0, 0, last]).unwrap()
}

fn driver<'m>(memory: &'m Arc<GuestMemoryMmap>, features: u64, device: &mut Net) -> TestDriver<'m> {
    let mut driver = TestDriver::new(memory, device.queue_sizes());
    driver.accept(features);
    driver.activate(device);
    driver
}

/// Bytes that differ from place to place and from `seed` to `seed`.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251 + seed) as u8).collect()
}

fn header(flags: u8, segmentation: u8) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..2].copy_from_slice(&[flags, segmentation]);
    header
}

/// As the guest gets it, in `count` buffers.
fn received(mut header: [u8; HEADER_BYTES], count: u16) -> Vec<u8> {
    header[10..].copy_from_slice(&count.to_le_bytes());
    header.to_vec()
}

/// Gives the guest's `count` receive buffers of `length` bytes, one after another.
fn give(driver: &mut TestDriver<'_>, first: usize, count: usize, length: u32) {
    for index in first..first + count {
        let address = driver.data(RECEIVE) + index as u64 * u64::from(length);
        driver.add(RECEIVE, &[Buffer::writable(address, length)]);
    }
}

/// Waits for `count` used receive buffers and returns how much is in each.
fn used(driver: &mut TestDriver<'_>, count: usize) -> Vec<u32> {
    (0..count).map(|_| driver.wait_for_used(RECEIVE).1).collect()
}

fn transmit(driver: &mut TestDriver<'_>, header: [u8; HEADER_BYTES], frame: &[u8]) {
    let data = driver.data(TRANSMIT);
    driver.write(data, &header);
    driver.write(data + 4096, frame);
    driver.add(
        TRANSMIT,
        &[
            Buffer::readable(data, HEADER_BYTES as u32),
            Buffer::readable(data + 4096, frame.len() as u32),
        ],
    );
}

fn counts(device: &Net) -> NetCounts {
    device.network_counts().unwrap()
}

/// Waits until the device has counted as `expected`.
fn wait_for_counts(device: &Net, expected: NetCounts) {
    let deadline = Instant::now() + PATIENCE;
    while counts(device) != expected {
        assert!(Instant::now() < deadline, "{:?}", counts(device));
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_frame_of_the_guest_arrives_with_its_header_wherever_the_driver_cuts_it() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, OFFLOADS, &mut device);
    let header = header(1, 1);
    let frame = pattern(0, 1500);
    let data = driver.data(TRANSMIT);
    driver.write(data, &[&header[..], &frame].concat());
    for cuts in [
        &[1512][..],
        &[12, 1500],
        &[5, 7, 1, 1499],
        &[11, 2, 0, 1499],
        &[1511, 1],
    ] {
        let mut at = data;
        let mut buffers = Vec::new();
        for length in cuts {
            buffers.push(Buffer::readable(at, *length));
            at += u64::from(*length);
        }
        driver.add(TRANSMIT, &buffers);
        assert_eq!(driver.wait_for_used(TRANSMIT).1, 0);
        assert_eq!(network.receive(), (header.to_vec(), frame.clone()), "{cuts:?}");
    }
    assert_eq!(counts(&device).transmitted, 5);
    assert_eq!(
        *network.port.offloads.lock().unwrap(),
        [libc::TUN_F_CSUM | libc::TUN_F_TSO4]
    );
}

#[test]
fn frames_of_all_lengths_go_straight_into_many_small_buffers() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, MERGES | OFFLOADS, &mut device);
    give(&mut driver, 0, 256, 1500);
    let mut next = 0;
    // Longer and shorter than those before them, and as long.
    let lengths = [
        60,
        1488,
        1489,
        2988,
        2989,
        MAX_FRAME_BYTES,
        MAX_FRAME_BYTES,
        14,
        20_000,
        MAX_FRAME_BYTES,
        1518,
    ];
    for (seed, length) in lengths.into_iter().enumerate() {
        let frame = pattern(seed, length);
        network.send(header(1, 1), &frame);
        let count = (HEADER_BYTES + length).div_ceil(1500);
        let lengths = used(&mut driver, count);
        assert_eq!(lengths.iter().sum::<u32>() as usize, HEADER_BYTES + length);
        assert!(lengths[..count - 1].iter().all(|length| *length == 1500));
        let start = driver.data(RECEIVE) + next * 1500;
        let got = driver.read(start, HEADER_BYTES + length);
        assert_eq!(got[..HEADER_BYTES], received(header(1, 1), count as u16));
        assert!(got[HEADER_BYTES..] == frame, "{length} bytes differ");
        next += count as u64;
    }
    assert_eq!(counts(&device).received, lengths.len() as u64);
}

#[test]
fn a_frame_waits_for_buffers_that_hold_it() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, MERGES, &mut device);
    let frame = pattern(3, 2500);
    network.send(header(0, 0), &frame);
    network.send(header(0, 0), &frame[..100]);
    thread::sleep(A_MOMENT);
    give(&mut driver, 0, 2, 1000);
    thread::sleep(A_MOMENT);
    assert_eq!(driver.take_used(RECEIVE), None);
    give(&mut driver, 2, 2, 1000);
    assert_eq!(used(&mut driver, 4), [1000, 1000, 512, 112]);
    let got = driver.read(driver.data(RECEIVE), 2512);
    assert_eq!(got, [received(header(0, 0), 3), frame].concat());
}

#[test]
fn without_merged_buffers_a_frame_too_long_for_the_next_one_is_dropped() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, 0, &mut device);
    let data = driver.data(RECEIVE);
    driver.add(
        RECEIVE,
        &[Buffer::writable(data, 12), Buffer::writable(data + 4096, 1514)],
    );
    give(&mut driver, 1, 2, 70_000);
    for length in [1515, 1514, MAX_FRAME_BYTES, 60] {
        network.send(header(0, 0), &pattern(length, length));
    }
    assert_eq!(used(&mut driver, 3), [1526, 65_562, 72]);
    assert_eq!(driver.read(data, 12), received(header(0, 0), 1));
    assert_eq!(driver.read(data + 4096, 1514), pattern(1514, 1514));
    let long = driver.read(data + 70_000 + 12, MAX_FRAME_BYTES);
    assert!(long == pattern(MAX_FRAME_BYTES, MAX_FRAME_BYTES));
    wait_for_counts(
        &device,
        NetCounts {
            received: 3,
            receive_dropped: 1,
            ..NetCounts::default()
        },
    );
}

#[test]
fn a_frame_that_no_ring_of_buffers_can_hold_is_dropped() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, MERGES, &mut device);
    give(&mut driver, 0, 256, 16);
    network.send(header(0, 0), &pattern(0, 256 * 16));
    network.send(header(0, 0), &pattern(1, 14));
    assert_eq!(used(&mut driver, 2), [16, 10]);
    assert_eq!(counts(&device).receive_dropped, 1);
}

#[test]
fn what_the_driver_did_not_choose_does_not_reach_it_nor_the_tap() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, 0, &mut device);
    give(&mut driver, 0, 4, 2048);
    for wrong in [header(1, 0), header(0, 1), header(1, 4), header(0, 5)] {
        network.send(wrong, &pattern(0, 60));
        transmit(&mut driver, wrong, &pattern(0, 60));
        driver.wait_for_used(TRANSMIT);
    }
    // What the host has checked means nothing to a driver that has not asked.
    network.send(header(2, 0), &pattern(9, 60));
    assert_eq!(used(&mut driver, 1), [72]);
    assert_eq!(driver.read(driver.data(RECEIVE), 12), received(header(0, 0), 1));
    assert_eq!(driver.read(driver.data(RECEIVE) + 12, 60), pattern(9, 60));
    assert_eq!(network.take(), None);
    assert_eq!(
        counts(&device),
        NetCounts {
            received: 1,
            receive_dropped: 4,
            transmitted: 0,
            transmit_dropped: 4,
        }
    );
    assert_eq!(*network.port.offloads.lock().unwrap(), [0]);
}

#[test]
fn frames_wait_while_the_tap_is_full_and_none_is_lost() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, 0, &mut device);
    // More than the socket holds.
    let frames = 100;
    let data = driver.data(TRANSMIT);
    driver.write(data, &[0; HEADER_BYTES]);
    for index in 0..frames {
        let start = data + 16 + index as u64 * 20_000;
        driver.write(start, &pattern(index, 20_000));
        driver.add(
            TRANSMIT,
            &[Buffer::readable(data, 12), Buffer::readable(start, 20_000)],
        );
    }
    thread::sleep(A_MOMENT);
    assert!(
        counts(&device).transmitted < frames as u64,
        "the socket is never full"
    );
    for index in 0..frames {
        let (_, frame) = network.receive();
        assert!(frame == pattern(index, 20_000), "frame {index}");
    }
    for _ in 0..frames {
        driver.wait_for_used(TRANSMIT);
    }
    assert_eq!(counts(&device).transmitted, frames as u64);
    assert_eq!(counts(&device).transmit_dropped, 0);
}

#[test]
fn frames_arrive_while_the_guest_keeps_giving_its_buffers_back() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, MERGES, &mut device);
    let mut given = 64;
    give(&mut driver, 0, given, 2048);
    thread::scope(|scope| {
        scope.spawn(|| {
            for index in 0..2000 {
                network.send(header(0, 0), &pattern(index, 64 + index % 1400));
            }
        });
        for index in 0..2000 {
            assert_eq!(driver.wait_for_used(RECEIVE).1 as usize, 12 + 64 + index % 1400);
            let start = driver.data(RECEIVE) + (index % 64) as u64 * 2048 + 12;
            let frame = driver.read(start, 64 + index % 1400);
            assert!(frame == pattern(index, 64 + index % 1400), "frame {index}");
            give(&mut driver, given % 64, 1, 2048);
            given += 1;
        }
    });
    assert_eq!(counts(&device).received, 2000);
}

#[test]
fn a_device_without_a_tap_has_no_link_and_drops_what_is_sent() {
    let memory = TestDriver::memory();
    let mut device = Net::connected(mac(7), Some(9000), 1, Vec::new(), NetworkRateLimit::default());
    let mut driver = driver(&memory, MERGES | OFFLOADS, &mut device);
    give(&mut driver, 0, 4, 2048);
    transmit(&mut driver, header(0, 0), &pattern(0, 60));
    assert_eq!(driver.wait_for_used(TRANSMIT).1, 0);
    assert_eq!(driver.take_used(RECEIVE), None);
    assert_eq!(counts(&device).transmit_dropped, 1);

    let mut space = [0xff; 16];
    device.read_config(0, &mut space);
    assert_eq!(space, [2, 0, 0, 0, 0, 7, 0, 0, 1, 0, 0x28, 0x23, 0, 0, 0, 0]);
    assert_eq!(device.offered_features(), features::offered(Some(9000), 1));
}

#[test]
fn a_tap_that_is_gone_takes_the_link_down_and_the_next_driver_finds_it_so() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, MERGES, &mut device);
    let status = |device: &Net| {
        let mut status = [0; 2];
        device.read_config(6, &mut status);
        u16::from_le_bytes(status)
    };
    assert_eq!((status(&device), device.config_generation()), (1, 0));
    give(&mut driver, 0, 4, 2048);
    drop(network.socket);
    driver.wait_for_config_change();
    assert_eq!((status(&device), device.config_generation()), (0, 1));
    for _ in 0..3 {
        transmit(&mut driver, header(0, 0), &pattern(0, 60));
        driver.wait_for_used(TRANSMIT);
    }
    assert_eq!(counts(&device).transmit_dropped, 3);

    device.reset();
    let mut driver = TestDriver::new(&memory, device.queue_sizes());
    driver.activate(&mut device);
    transmit(&mut driver, header(0, 0), &pattern(0, 60));
    driver.wait_for_used(TRANSMIT);
    assert_eq!(status(&device), 0);
}

/// So many operations a second, one at a time.
fn operations(rate: u64) -> Option<RateLimit> {
    let limit = format!(r#"{{"operations_per_second":{rate},"burst_operations":1}}"#);
    Some(serde_json::from_str(&limit).unwrap())
}

/// The time that `FRAMES` frames take in each direction, to the guest and from it.
fn times(limit: NetworkRateLimit) -> [Duration; 2] {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.limited(limit);
    let mut driver = driver(&memory, MERGES, &mut device);
    give(&mut driver, 0, 200, 2048);
    let begun = Instant::now();
    for index in 0..FRAMES {
        network.send(header(0, 0), &pattern(index, 60 + index));
    }
    assert_eq!(used(&mut driver, FRAMES), [72, 73, 74, 75, 76, 77]);
    let received = begun.elapsed();
    let begun = Instant::now();
    for index in 0..FRAMES {
        transmit(&mut driver, header(0, 0), &pattern(index, 60));
    }
    for _ in 0..FRAMES {
        driver.wait_for_used(TRANSMIT);
    }
    let counts = counts(&device);
    assert_eq!(
        (counts.received, counts.transmitted),
        (FRAMES as u64, FRAMES as u64)
    );
    [received, begun.elapsed()]
}

const FRAMES: usize = 6;

#[test]
fn a_rate_limit_holds_frames_back_and_loses_none() {
    // Five have to wait, for 20 ms each.
    let held_back = Duration::from_millis(100);
    let limit = operations(50);
    for (receive, transmit) in [(limit, None), (None, limit), (limit, limit)] {
        let [received, sent] = times(NetworkRateLimit { receive, transmit });
        assert!(
            receive.is_none() || received >= held_back,
            "received in {received:?}"
        );
        assert!(transmit.is_none() || sent >= held_back, "sent in {sent:?}");
    }
}

#[test]
fn a_direction_that_has_to_wait_does_not_hold_up_the_other() {
    // One frame now, and the next one in more time than a test has.
    let stuck: RateLimit = serde_json::from_str(r#"{"bytes_per_second":1,"burst_bytes":100}"#).unwrap();
    for stuck_direction in [RECEIVE, TRANSMIT] {
        let limit = |direction| (direction == stuck_direction).then_some(stuck);
        let memory = TestDriver::memory();
        let network = Network::new();
        let mut device = network.limited(NetworkRateLimit {
            receive: limit(RECEIVE),
            transmit: limit(TRANSMIT),
        });
        let mut driver = driver(&memory, MERGES, &mut device);
        give(&mut driver, 0, 100, 2048);
        let free = 50;
        for _ in 0..free {
            match stuck_direction {
                RECEIVE => {
                    network.send(header(0, 0), &pattern(0, 100));
                    transmit(&mut driver, header(0, 0), &pattern(0, 100));
                    driver.wait_for_used(TRANSMIT);
                }
                _ => {
                    transmit(&mut driver, header(0, 0), &pattern(0, 100));
                    network.send(header(0, 0), &pattern(0, 100));
                    driver.wait_for_used(RECEIVE);
                }
            }
        }
        let counts = counts(&device);
        let (stuck, other) = match stuck_direction {
            RECEIVE => (counts.received, counts.transmitted),
            _ => (counts.transmitted, counts.received),
        };
        assert_eq!((stuck, other), (1, free));
    }
}

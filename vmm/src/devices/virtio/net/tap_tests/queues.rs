//! A tap of several queues, and a device that has a pair for each.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::Instant;

use libc::{IFF_DETACH_QUEUE, IFF_MULTI_QUEUE};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use super::{
    FEATURES, FLAGS, GUEST_MAC, HEADER_BYTES, NAME, PATIENCE, attach, configure, control, device,
    device_with_queues, header, in_a_network_of_its_own, open_tun, remove_device, request, udp,
};
use crate::config::{MacAddress, NetworkRateLimit};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::net::{Net, Tap};
use crate::devices::virtio::test_driver::{Buffer, TestDriver};

const PAIRS: usize = 3;
const CONTROL: usize = 2 * PAIRS;
const SEVERAL: u64 = FEATURES | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_MQ;
const GUEST_ADDRESS: &str = "192.0.2.2:4000";

fn tap() -> Vec<File> {
    let tap = (0..PAIRS).map(|_| attach(FLAGS | IFF_MULTI_QUEUE)).collect();
    configure();
    tap
}

fn is_attached(queue: &File) -> bool {
    let mut reported = request(NAME);
    control(queue, libc::TUNGETIFF, &mut reported);
    // SAFETY: The call has filled in the flags.
    let flags = i32::from(unsafe { reported.ifr_ifru.ifru_flags });
    flags & IFF_DETACH_QUEUE == 0
}

fn attached(tap: &[File]) -> [bool; PAIRS] {
    std::array::from_fn(|queue| is_attached(&tap[queue]))
}

fn give_buffers(driver: &mut TestDriver<'_>) {
    for queue in (0..PAIRS).map(|pair| 2 * pair) {
        for index in 0..200 {
            let address = driver.data(queue) + index * 2048;
            driver.add(queue, &[Buffer::writable(address, 2048)]);
        }
    }
}

fn use_pairs(driver: &mut TestDriver<'_>, count: u8) {
    let data = driver.data(CONTROL);
    driver.write(data, &[4, 0, count, 0, 0xee]);
    driver.add(
        CONTROL,
        &[Buffer::readable(data, 4), Buffer::writable(data + 4, 1)],
    );
    assert_eq!(driver.wait_for_used(CONTROL).1, 1);
    assert_eq!(driver.read(data + 4, 1), [0]);
}

/// Sends datagrams of so many flows to the guest, and returns how many of them each pair gets. The buffers are read one
/// after another: `next` says with which each pair goes on.
fn spread(driver: &mut TestDriver<'_>, next: &mut [u64; PAIRS], flows: usize) -> [usize; PAIRS] {
    for _ in 0..flows {
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.send_to(b"to whom it concerns", GUEST_ADDRESS).unwrap();
    }
    let mut arrived = [0; PAIRS];
    let deadline = Instant::now() + PATIENCE;
    while arrived.iter().sum::<usize>() < flows {
        driver.assert_waiting(deadline);
        for pair in 0..PAIRS {
            while let Some((_, length)) = driver.take_used(2 * pair) {
                let start = driver.data(2 * pair) + next[pair] * 2048;
                let frame = driver.read(start, length as usize).split_off(HEADER_BYTES);
                next[pair] += 1;
                arrived[pair] += usize::from(frame.ends_with(b"to whom it concerns"));
            }
        }
    }
    arrived
}

#[test]
fn only_pairs_in_use_get_frames_and_all_of_these_do() {
    in_a_network_of_its_own(|| {
        let tap = tap();
        let memory = TestDriver::memory();
        let mut device = device_with_queues(&tap);
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.accept(SEVERAL);
        driver.activate(&mut device);
        give_buffers(&mut driver);
        let mut next = [0; PAIRS];
        assert_eq!(attached(&tap), [true, false, false]);
        assert_eq!(spread(&mut driver, &mut next, 40), [40, 0, 0]);
        use_pairs(&mut driver, 3);
        assert_eq!(attached(&tap), [true; 3]);
        let all = spread(&mut driver, &mut next, 100);
        assert!(all.iter().all(|arrived| *arrived > 0), "{all:?}");
        use_pairs(&mut driver, 2);
        assert_eq!(attached(&tap), [true, true, false]);
        let two = spread(&mut driver, &mut next, 50);
        assert!(two[0] > 0 && two[1] > 0 && two[2] == 0, "{two:?}");
        device.reset();
        // Until there is another driver the last one's choice stands.
        driver = TestDriver::new(&memory, device.queue_sizes());
        driver.activate(&mut device);
        assert_eq!(attached(&tap), [true, false, false]);
    });
}

/// The tap sends a flow back where it came from (virtio 1.2, section 5.1.6.5.6: automatic receive steering), if its
/// queues are in the order of the pairs.
#[test]
fn the_answer_to_a_frame_comes_to_the_pair_that_sent_it() {
    in_a_network_of_its_own(|| {
        let tap = tap();
        let host = UdpSocket::bind("192.0.2.1:5000").unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        let memory = TestDriver::memory();
        let mut device = device_with_queues(&tap);
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.accept(SEVERAL);
        driver.activate(&mut device);
        give_buffers(&mut driver);
        for count in [3, 1, 3] {
            use_pairs(&mut driver, count);
        }
        let mut next = [0; PAIRS];
        for pair in [2, 0, 1, 2] {
            let transmit = 2 * pair + 1;
            let data = driver.data(transmit);
            let bytes = [header(0, 42, 0, 6), udp(5000, b"from the guest")].concat();
            driver.write(data, &bytes);
            driver.add(transmit, &[Buffer::readable(data, bytes.len() as u32)]);
            driver.wait_for_used(transmit);
            let mut buffer = [0; 100];
            let (length, from) = host.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"from the guest");
            host.send_to(b"from the host", from).unwrap();
            loop {
                let (_, length) = driver.wait_for_used(2 * pair);
                let start = driver.data(2 * pair) + next[pair] * 2048;
                next[pair] += 1;
                if driver.read(start, length as usize).ends_with(b"from the host") {
                    break;
                }
            }
        }
        assert_eq!(device.network_counts().unwrap().transmitted, 4);
    });
}

#[test]
fn a_copy_takes_as_many_queues_as_its_driver_used() {
    in_a_network_of_its_own(|| {
        let tap = tap();
        let memory = TestDriver::memory();
        let mac = MacAddress::new(GUEST_MAC).unwrap();
        let limit = NetworkRateLimit::default();
        let mut before = Net::connected(mac, None, PAIRS as u16, Vec::new(), limit);
        let mut after = device_with_queues(&tap);
        let mut driver = TestDriver::new(&memory, before.queue_sizes());
        driver.accept(SEVERAL);
        driver.activate(&mut before);
        give_buffers(&mut driver);
        use_pairs(&mut driver, 2);
        driver.move_over(&mut before, &mut after);
        assert_eq!(attached(&tap), [true, true, false]);
        let two = spread(&mut driver, &mut [0; PAIRS], 50);
        assert!(two[0] > 0 && two[1] > 0, "{two:?}");
    });
}

#[test]
fn a_tap_with_several_queues_whose_network_device_is_removed_takes_the_link_down_once() {
    in_a_network_of_its_own(|| {
        let tap = tap();
        let memory = TestDriver::memory();
        let mut device = device_with_queues(&tap);
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.accept(SEVERAL);
        driver.activate(&mut device);
        give_buffers(&mut driver);
        use_pairs(&mut driver, 2);
        remove_device();
        driver.wait_for_config_change();
        let mut status = [0xff; 2];
        device.read_config(6, &mut status);
        assert_eq!(status, [0, 0]);
        // A queue that was attached, one that was not, and one that is to be left.
        for count in [3, 1] {
            use_pairs(&mut driver, count);
        }
        device.reset();
        assert_eq!(device.config_generation(), 1);
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.accept(SEVERAL);
        driver.activate(&mut device);
        use_pairs(&mut driver, 3);
    });
}

#[test]
fn queues_that_are_not_of_one_tap_are_refused() {
    in_a_network_of_its_own(|| {
        let inherit = |queues: &[&File]| {
            let numbers: Vec<_> = queues.iter().map(|queue| queue.as_raw_fd()).collect();
            Tap::inherit(&numbers).map(|taps| taps.len())
        };
        let first = attach(FLAGS | IFF_MULTI_QUEUE);
        let second = attach(FLAGS | IFF_MULTI_QUEUE);
        assert_eq!(inherit(&[&first, &second]).unwrap(), 2);
        assert_eq!(inherit(&[&first]).unwrap(), 1);
        let other = open_tun().unwrap();
        let mut request = request("tap-other");
        request.ifr_ifru.ifru_flags = (FLAGS | IFF_MULTI_QUEUE) as i16;
        control(&other, libc::TUNSETIFF, &mut request);
        let number = other.as_raw_fd();
        assert_eq!(
            inherit(&[&first, &other]).unwrap_err().to_string(),
            format!("descriptor {number} is the device \"tap-other\", and those before it are \"tap-test\"")
        );
    });
    in_a_network_of_its_own(|| {
        let single = attach(FLAGS);
        let number = single.as_raw_fd();
        assert_eq!(
            Tap::inherit(&[number, number]).unwrap_err().to_string(),
            format!("descriptor {number} is the device \"tap-test\" attached without IFF_MULTI_QUEUE")
        );
        // One is enough for one pair, whatever its tap could have.
        drop(device(&single));
        drop(single);
        let alone = attach(FLAGS | IFF_MULTI_QUEUE);
        assert!(is_attached(&alone), "{}", io::Error::last_os_error());
        drop(device(&alone));
    });
}

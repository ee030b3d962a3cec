//! Several pairs of queues, and the control queue that says how many of them are used.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};
use vm_memory::GuestMemoryMmap;

use super::{
    A_MOMENT, HEADER_BYTES, MERGES, Network, counts, header, mac, operations, pattern, received,
    wait_for_counts,
};
use crate::config::NetworkRateLimit;
use crate::devices::virtio::device::{ActivateError, DeviceState, VirtioDevice};
use crate::devices::virtio::net::{Net, NetCounts, features};
use crate::devices::virtio::test_driver::{Buffer, TestDriver};

const PAIRS: u16 = 3;
const CONTROL: usize = 6;
const CONTROL_ONLY: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
const SEVERAL: u64 = MERGES | CONTROL_ONLY | 1 << VIRTIO_NET_F_MQ;

/// VIRTIO_NET_OK and VIRTIO_NET_ERR, and what the answer's place has before.
const OK: u8 = 0;
const ERROR: u8 = 1;
const UNANSWERED: u8 = 0xee;

fn receive_queue(pair: usize) -> usize {
    2 * pair
}

fn transmit_queue(pair: usize) -> usize {
    2 * pair + 1
}

/// A network for each pair.
fn networks() -> [Network; PAIRS as usize] {
    std::array::from_fn(|_| Network::new())
}

fn limited(networks: &[Network], limit: NetworkRateLimit) -> Net {
    let ports = networks.iter().map(Network::port).collect();
    Net::connected(mac(1), None, PAIRS, ports, limit)
}

fn device(networks: &[Network]) -> Net {
    limited(networks, NetworkRateLimit::default())
}

/// A driver that has started, and given each pair buffers for 50 frames.
fn driver<'m>(memory: &'m Arc<GuestMemoryMmap>, device: &mut Net) -> TestDriver<'m> {
    let mut driver = super::driver(memory, SEVERAL, device);
    for pair in 0..usize::from(PAIRS) {
        give(&mut driver, pair, 50);
    }
    driver
}

fn give(driver: &mut TestDriver<'_>, pair: usize, count: u64) {
    let queue = receive_queue(pair);
    for index in 0..count {
        let address = driver.data(queue) + index * 2048;
        driver.add(queue, &[Buffer::writable(address, 2048)]);
    }
}

fn transmit(driver: &mut TestDriver<'_>, pair: usize, frame: &[u8]) {
    let queue = transmit_queue(pair);
    let data = driver.data(queue);
    driver.write(data, &[&[0; HEADER_BYTES], frame].concat());
    driver.add(
        queue,
        &[Buffer::readable(data, (HEADER_BYTES + frame.len()) as u32)],
    );
}

/// What a command in these parts is answered.
fn command_to(driver: &mut TestDriver<'_>, control: usize, parts: &[&[u8]]) -> u8 {
    let data = driver.data(control);
    let answer = data + 4096;
    let mut buffers = Vec::new();
    for (place, part) in (0..).zip(parts) {
        let address = data + place * 64;
        driver.write(address, part);
        buffers.push(Buffer::readable(address, part.len() as u32));
    }
    driver.write(answer, &[UNANSWERED]);
    buffers.push(Buffer::writable(answer, 1));
    driver.add(control, &buffers);
    assert_eq!(driver.wait_for_used(control).1, 1);
    driver.read(answer, 1)[0]
}

fn command(driver: &mut TestDriver<'_>, parts: &[&[u8]]) -> u8 {
    command_to(driver, CONTROL, parts)
}

fn use_pairs(driver: &mut TestDriver<'_>, count: u16) -> u8 {
    command(driver, &[&[4, 0], &count.to_le_bytes()])
}

fn attached(networks: &[Network]) -> Vec<bool> {
    let is_attached = |network: &Network| network.port.attached.load(Ordering::SeqCst);
    networks.iter().map(is_attached).collect()
}

/// Each of the first `count` pairs, and no other, works in both directions. `index` is the place of the next buffers.
fn assert_uses(driver: &mut TestDriver<'_>, networks: &[Network], count: usize, index: &mut [u64]) {
    let used: Vec<bool> = (0..networks.len()).map(|pair| pair < count).collect();
    assert_eq!(attached(networks), used);
    for (pair, network) in networks.iter().enumerate().take(count) {
        transmit(driver, pair, &pattern(pair, 100));
        driver.wait_for_used(transmit_queue(pair));
        assert_eq!(network.receive().1, pattern(pair, 100));
        network.send(header(0, 0), &pattern(pair + 7, 60));
        let queue = receive_queue(pair);
        assert_eq!(driver.wait_for_used(queue).1, 72);
        let got = driver.read(driver.data(queue) + index[pair] * 2048, 72);
        assert_eq!(got, [received(header(0, 0), 1), pattern(pair + 7, 60)].concat());
        index[pair] += 1;
    }
}

#[test]
fn a_driver_is_told_how_many_pairs_there_are_and_finds_the_control_queue_behind_them() {
    let device = device(&networks());
    let mut space = [0; 12];
    device.read_config(0, &mut space);
    assert_eq!(space, [2, 0, 0, 0, 0, 1, 1, 0, 3, 0, 0, 0]);
    assert_eq!(device.queue_sizes(), [256, 256, 256, 256, 256, 256, 64]);
    assert_eq!(device.offered_features(), features::offered(None, 3));
    assert_eq!(device.offered_features() & SEVERAL, SEVERAL);
    // The same without taps.
    let unconnected = Net::connected(mac(1), None, PAIRS, Vec::new(), NetworkRateLimit::default());
    assert_eq!(unconnected.offered_features(), device.offered_features());
}

#[test]
fn a_driver_begins_with_one_pair_and_uses_as_many_as_it_asks_for() {
    let memory = TestDriver::memory();
    let networks = networks();
    let mut device = device(&networks);
    let mut driver = driver(&memory, &mut device);
    let mut index = [0; PAIRS as usize];
    let mut frames = 0;
    for count in [1_u16, 3, 2, 2, 3, 1] {
        assert_eq!(use_pairs(&mut driver, count), OK);
        assert_uses(&mut driver, &networks, count.into(), &mut index);
        frames += u64::from(count);
    }
    assert_eq!(
        counts(&device),
        NetCounts {
            received: frames,
            transmitted: frames,
            ..NetCounts::default()
        }
    );
    // The next driver begins anew.
    assert_eq!(use_pairs(&mut driver, 3), OK);
    device.reset();
    let mut driver = self::driver(&memory, &mut device);
    assert_uses(&mut driver, &networks, 1, &mut [0; PAIRS as usize]);
}

#[test]
fn a_pair_that_is_not_used_gets_no_frames() {
    let memory = TestDriver::memory();
    let networks = networks();
    let mut device = device(&networks);
    let mut driver = driver(&memory, &mut device);
    let quiet = |driver: &mut TestDriver<'_>, pair| {
        thread::sleep(A_MOMENT);
        assert_eq!(driver.take_used(receive_queue(pair)), None);
    };
    // A socket is never detached, so what the pair does not take stays there.
    networks[1].send(header(0, 0), &pattern(1, 60));
    quiet(&mut driver, 1);
    assert_eq!(use_pairs(&mut driver, 2), OK);
    networks[1].send(header(0, 0), &pattern(2, 61));
    assert_eq!(driver.wait_for_used(receive_queue(1)).1, 72);
    assert_eq!(driver.wait_for_used(receive_queue(1)).1, 73);
    assert_eq!(use_pairs(&mut driver, 1), OK);
    networks[1].send(header(0, 0), &pattern(3, 62));
    quiet(&mut driver, 1);
    // Nor do the driver's go anywhere.
    transmit(&mut driver, 1, &pattern(4, 63));
    driver.wait_for_used(transmit_queue(1));
    wait_for_counts(
        &device,
        NetCounts {
            received: 2,
            transmit_dropped: 1,
            ..NetCounts::default()
        },
    );
    quiet(&mut driver, 1);
}

#[test]
fn a_frame_that_waits_in_a_pair_is_dropped_with_it() {
    let memory = TestDriver::memory();
    let networks = networks();
    let mut device = device(&networks);
    let mut driver = super::driver(&memory, SEVERAL, &mut device);
    assert_eq!(use_pairs(&mut driver, 2), OK);
    // Room for half of it.
    let data = driver.data(receive_queue(1));
    driver.add(receive_queue(1), &[Buffer::writable(data, 100)]);
    networks[1].send(header(0, 0), &pattern(0, 150));
    thread::sleep(A_MOMENT);
    assert_eq!(use_pairs(&mut driver, 1), OK);
    driver.add(receive_queue(1), &[Buffer::writable(data + 100, 100)]);
    wait_for_counts(
        &device,
        NetCounts {
            receive_dropped: 1,
            ..NetCounts::default()
        },
    );
    assert_eq!(driver.take_used(receive_queue(1)), None);
    assert_eq!(use_pairs(&mut driver, 2), OK);
    networks[1].send(header(0, 0), &pattern(5, 60));
    assert_eq!(driver.wait_for_used(receive_queue(1)).1, 72);
    assert_eq!(driver.read(data + 12, 60), pattern(5, 60));
}

#[test]
fn what_is_no_command_is_an_error_and_changes_nothing() {
    let memory = TestDriver::memory();
    let networks = networks();
    let mut device = device(&networks);
    let mut driver = driver(&memory, &mut device);
    assert_eq!(use_pairs(&mut driver, 2), OK);
    let wrong: [&[&[u8]]; 14] = [
        &[&[4, 0, 0, 0]],
        &[&[4, 0, 4, 0]],
        &[&[4, 0, 0, 1]],
        &[&[4, 0, 255, 255]],
        &[&[4, 1, 3, 0]],
        &[&[0, 0, 3, 0]],
        &[&[1, 1], &[2, 0, 0, 0, 0, 9]],
        &[&[255, 255, 3, 0]],
        &[&[4]],
        &[&[4, 0]],
        &[&[4, 0], &[3]],
        &[&[4, 0], &[3, 0], &[0]],
        &[&[4, 0, 3, 0], &[0; 60]],
        &[],
    ];
    for parts in wrong {
        assert_eq!(command(&mut driver, parts), ERROR, "{parts:?}");
    }
    // However it is cut, one that is right is one.
    assert_uses(&mut driver, &networks, 2, &mut [0; PAIRS as usize]);
    for parts in [&[&[4, 0, 3, 0][..]][..], &[&[4], &[0], &[3], &[0]]] {
        assert_eq!(use_pairs(&mut driver, 1), OK);
        assert_eq!(command(&mut driver, parts), OK);
        assert_eq!(attached(&networks), [true; 3]);
    }
}

#[test]
fn a_command_without_an_end_or_a_place_for_the_answer_is_given_back() {
    let memory = TestDriver::memory();
    let networks = networks();
    let mut device = device(&networks);
    let mut driver = driver(&memory, &mut device);
    let (data, end) = (driver.data(CONTROL), driver.memory_end());
    driver.write(data, &[4, 0, 3, 0]);
    let chains: [&[Buffer]; 5] = [
        &[Buffer::readable(data, 4)],
        &[Buffer::readable(data, 4), Buffer::writable(data + 8, 0)],
        &[Buffer::readable(data, u32::MAX), Buffer::readable(data, u32::MAX)],
        &[Buffer::writable(end, 1)],
        &[Buffer::readable(end, 4), Buffer::writable(u64::MAX, 1)],
    ];
    for chain in chains {
        driver.add(CONTROL, chain);
        assert_eq!(driver.wait_for_used(CONTROL).1, 0, "{chain:?}");
    }
    driver.add_loop(CONTROL, Buffer::readable(data, 1));
    assert_eq!(driver.wait_for_used(CONTROL).1, 0);
    driver.add_loop(CONTROL, Buffer::writable(data + 100, 1));
    assert_eq!(driver.wait_for_used(CONTROL).1, 1);
    assert_eq!(driver.read(data + 100, 1), [ERROR]);
    assert_eq!(attached(&networks), [true, false, false]);
    assert_eq!(use_pairs(&mut driver, 3), OK);
    assert_uses(&mut driver, &networks, 3, &mut [0; PAIRS as usize]);
}

#[test]
fn a_broken_control_queue_asks_for_a_reset_and_the_pairs_go_on() {
    let memory = TestDriver::memory();
    let networks = networks();
    let mut device = device(&networks);
    let mut driver = driver(&memory, &mut device);
    assert_eq!(use_pairs(&mut driver, 2), OK);
    driver.set_available_index(CONTROL, 1000);
    driver.wait_for_reset_request();
    assert_uses(&mut driver, &networks, 2, &mut [0; PAIRS as usize]);
    device.worker().unwrap().pause();
    assert_eq!(device.worker().unwrap().queue_positions(), None);
    device.reset();
    let mut driver = self::driver(&memory, &mut device);
    assert_eq!(use_pairs(&mut driver, 3), OK);
    assert_uses(&mut driver, &networks, 3, &mut [0; PAIRS as usize]);
}

#[test]
fn a_driver_that_changes_its_mind_all_the_time_is_told_to_wait() {
    let memory = TestDriver::memory();
    let networks = networks();
    let mut device = device(&networks);
    let mut driver = driver(&memory, &mut device);
    let begun = Instant::now();
    let in_use = || 1 + u16::from(attached(&networks)[1]);
    let mut changes = 0;
    loop {
        let wanted = 3 - in_use();
        if use_pairs(&mut driver, wanted) == ERROR {
            assert_ne!(in_use(), wanted);
            break;
        }
        assert_eq!(in_use(), wanted);
        changes += 1;
        assert!(changes < 16 + 2 * (begun.elapsed().as_secs() + 1));
    }
    assert!(changes >= 16);
    assert_eq!(use_pairs(&mut driver, in_use()), OK, "what is so already");
    let patience = begun + Duration::from_secs(20);
    while use_pairs(&mut driver, 3) == ERROR {
        assert!(Instant::now() < patience);
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_driver_without_several_pairs_uses_the_first_and_a_control_queue_right_behind_it() {
    let memory = TestDriver::memory();
    for features in [MERGES, MERGES | CONTROL_ONLY, MERGES | 1 << VIRTIO_NET_F_MQ] {
        let networks = networks();
        let mut device = device(&networks);
        let mut driver = TestDriver::new(&memory, device.queue_sizes());
        driver.accept(features);
        (3..=CONTROL).for_each(|queue| driver.leave_out(queue));
        driver.activate(&mut device);
        give(&mut driver, 0, 5);
        assert_uses(&mut driver, &networks, 1, &mut [0; PAIRS as usize]);
        if features & CONTROL_ONLY != 0 {
            for (count, answer) in [(1, OK), (2, ERROR), (3, ERROR)] {
                let parts: [&[u8]; 2] = [&[4, 0], &[count, 0]];
                assert_eq!(command_to(&mut driver, 2, &parts), answer);
            }
        }
        device.worker().unwrap().pause();
        let positions = device.worker().unwrap().queue_positions().unwrap();
        assert_eq!(positions.len(), CONTROL + 1);
        assert_eq!((positions[0].next_used, positions[1].next_used), (1, 1));
    }
}

#[test]
fn pairs_that_the_driver_left_out_cannot_be_used() {
    let memory = TestDriver::memory();
    let networks = networks();
    let mut device = device(&networks);
    let mut driver = TestDriver::new(&memory, device.queue_sizes());
    driver.accept(SEVERAL);
    driver.leave_out(transmit_queue(2));
    driver.activate(&mut device);
    assert_eq!(use_pairs(&mut driver, 3), ERROR);
    assert_eq!(use_pairs(&mut driver, 2), OK);
    device.reset();
    driver.leave_out(transmit_queue(0));
    let refused = driver.try_activate(&mut device).unwrap_err();
    assert!(matches!(refused, ActivateError::QueueNotReady { index: 1, .. }));
}

/// The time that six frames take to the guest and from it, each through another pair than the one before.
#[test]
fn a_rate_limit_holds_for_all_pairs_together() {
    let memory = TestDriver::memory();
    let networks = networks();
    let limit = operations(20);
    let mut device = limited(
        &networks,
        NetworkRateLimit {
            receive: limit,
            transmit: limit,
        },
    );
    let mut driver = driver(&memory, &mut device);
    assert_eq!(use_pairs(&mut driver, PAIRS), OK);
    let begun = Instant::now();
    for round in 0..6 {
        networks[round % 3].send(header(0, 0), &pattern(round, 60));
        transmit(&mut driver, round % 3, &pattern(round, 60));
    }
    for round in 0..6 {
        driver.wait_for_used(receive_queue(round % 3));
        driver.wait_for_used(transmit_queue(round % 3));
    }
    // Five of six have to wait, for 50 ms each.
    assert!(begun.elapsed().as_millis() >= 250, "{:?}", begun.elapsed());
}

#[test]
fn a_copy_goes_on_with_as_many_pairs() {
    let memory = TestDriver::memory();
    let (networks, mut index) = (networks(), [0; PAIRS as usize]);
    let mut before = Net::connected(mac(9), None, PAIRS, Vec::new(), NetworkRateLimit::default());
    let mut after = device(&networks);
    let mut driver = driver(&memory, &mut before);
    assert_eq!(use_pairs(&mut driver, 2), OK);
    transmit(&mut driver, 1, &pattern(0, 60));
    driver.wait_for_used(transmit_queue(1));
    driver.move_over(&mut before, &mut after);
    driver.wait_for_config_change();
    assert_uses(&mut driver, &networks, 2, &mut index);
    assert_eq!(use_pairs(&mut driver, 3), OK);
    assert_uses(&mut driver, &networks, 3, &mut index);
    after.worker().unwrap().pause();
    assert_eq!(
        after.save().unwrap(),
        DeviceState::Net {
            mac: mac(1),
            link_up: true,
            generation: 1,
            pairs_in_use: 3,
        }
    );
}

#[test]
fn all_pairs_pause_and_go_on() {
    let memory = TestDriver::memory();
    let (networks, mut index) = (networks(), [0; PAIRS as usize]);
    let mut device = device(&networks);
    let mut driver = driver(&memory, &mut device);
    assert_eq!(use_pairs(&mut driver, 2), OK);
    assert_uses(&mut driver, &networks, 2, &mut index);
    let worker = device.worker().unwrap();
    worker.pause();
    let positions = worker.queue_positions().unwrap();
    let used: Vec<_> = positions
        .iter()
        .map(|at| (at.next_available, at.next_used))
        .collect();
    assert_eq!(
        used,
        [(1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (0, 0), (1, 1)],
        "buffers without a frame are not taken"
    );
    networks[1].send(header(0, 0), &pattern(1, 61));
    transmit(&mut driver, 1, &pattern(2, 62));
    thread::sleep(A_MOMENT);
    assert_eq!(driver.take_used(receive_queue(1)), None);
    assert_eq!(networks[1].take(), None);
    device.worker().unwrap().resume().unwrap();
    assert_eq!(driver.wait_for_used(receive_queue(1)).1, 73);
    assert_eq!(networks[1].receive().1, pattern(2, 62));
}

#[test]
fn a_state_with_pairs_that_are_not_there_is_refused() {
    let memory = TestDriver::memory();
    let driver = {
        let mut driver = TestDriver::new(&memory, device(&networks()).queue_sizes());
        driver.accept(SEVERAL);
        driver
    };
    for (pairs_in_use, is_possible) in [(0, false), (1, true), (3, true), (4, false), (u16::MAX, false)] {
        let mut device = device(&networks());
        let state = DeviceState::Net {
            mac: mac(1),
            link_up: true,
            generation: 0,
            pairs_in_use,
        };
        let restored = device.restore(driver.activation(&[Default::default(); CONTROL + 1]), &state);
        assert_eq!(restored.is_ok(), is_possible, "{pairs_in_use}");
    }
}

#[test]
fn a_tap_that_is_gone_is_told_once_by_whichever_pair_finds_out() {
    let memory = TestDriver::memory();
    let networks = networks();
    let mut device = device(&networks);
    let mut driver = driver(&memory, &mut device);
    assert_eq!(use_pairs(&mut driver, 2), OK);
    drop(networks);
    driver.wait_for_config_change();
    thread::sleep(A_MOMENT);
    assert_eq!(device.config_generation(), 1);
    // Neither it nor the number of pairs is of use any more, but harms nothing.
    assert_eq!(use_pairs(&mut driver, 3), OK);
    for pair in 0..3 {
        transmit(&mut driver, pair, &pattern(0, 60));
        driver.wait_for_used(transmit_queue(pair));
    }
    assert_eq!(counts(&device).transmit_dropped, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever comes by the control queue, it all comes back, and the device still works.
    #[test]
    fn any_commands_are_survived(
        commands in prop::collection::vec(
            (
                prop_oneof![
                    (0..6_u16).prop_map(|count| [&[4, 0], &count.to_le_bytes()[..]].concat()),
                    prop::collection::vec(any::<u8>(), 0..40),
                ],
                0..8_usize,
                prop_oneof![Just(0_u64), 0..64_u64 << 20, any::<u64>()],
                0..3_u32,
            ),
            1..30,
        ),
    ) {
        let memory = TestDriver::memory();
        let networks = networks();
        let mut device = device(&networks);
        let mut driver = driver(&memory, &mut device);
        let data = driver.data(CONTROL);
        for (bytes, cut, answer, length) in &commands {
            driver.write(data, bytes);
            let cut = (*cut).min(bytes.len());
            let mut buffers = vec![
                Buffer::readable(data, cut as u32),
                Buffer::readable(data + cut as u64, (bytes.len() - cut) as u32),
            ];
            let answer = Buffer::writable(if *answer == 0 { data + 4096 } else { *answer }, *length);
            if !answer.reaches_rings() {
                buffers.push(answer);
            }
            driver.add(CONTROL, &buffers);
            prop_assert!(driver.wait_for_used(CONTROL).1 <= 1);
        }
        prop_assert_eq!(use_pairs(&mut driver, 3), OK);
        for (pair, network) in networks.iter().enumerate() {
            transmit(&mut driver, pair, &pattern(pair, 60));
            driver.wait_for_used(transmit_queue(pair));
            prop_assert_eq!(network.receive().1, pattern(pair, 60));
        }
    }
}

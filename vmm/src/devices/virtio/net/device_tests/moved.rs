//! A device that pauses, or is replaced by another as when a snapshot is restored.

use std::thread;

use super::{
    A_MOMENT, HEADER_BYTES, MERGES, Network, OFFLOADS, RECEIVE, TRANSMIT, driver, give, header, mac,
    operations, pattern, received, transmit, used,
};
use crate::config::NetworkRateLimit;
use crate::devices::virtio::device::{DeviceState, VirtioDevice};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::test_driver::TestDriver;

#[test]
fn a_paused_device_leaves_frames_alone_until_it_goes_on() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, MERGES, &mut device);
    give(&mut driver, 0, 100, 2048);
    network.send(header(0, 0), &pattern(0, 60));
    used(&mut driver, 1);

    let worker = device.worker().unwrap();
    worker.pause();
    let positions = worker.queue_positions().unwrap();
    assert_eq!(
        (positions[RECEIVE].next_available, positions[RECEIVE].next_used),
        (1, 1),
        "buffers without a frame are not taken"
    );
    network.send(header(0, 0), &pattern(1, 61));
    transmit(&mut driver, header(0, 0), &pattern(2, 62));
    thread::sleep(A_MOMENT);
    assert_eq!(
        (driver.take_used(RECEIVE), driver.take_used(TRANSMIT)),
        (None, None)
    );
    assert_eq!(network.take(), None);

    device.worker().unwrap().resume().unwrap();
    assert_eq!(used(&mut driver, 1), [73]);
    assert_eq!(
        driver.read(driver.data(RECEIVE) + 2048, 73),
        [received(header(0, 0), 1), pattern(1, 61)].concat()
    );
    driver.wait_for_used(TRANSMIT);
    assert_eq!(network.receive().1, pattern(2, 62));
}

#[test]
fn a_frame_that_waits_for_a_buffer_outlives_a_pause() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, MERGES, &mut device);
    give(&mut driver, 0, 1, 100);
    network.send(header(0, 0), &pattern(0, 150));
    thread::sleep(A_MOMENT);
    device.worker().unwrap().pause();
    give(&mut driver, 1, 1, 100);
    device.worker().unwrap().resume().unwrap();
    assert_eq!(used(&mut driver, 2), [100, 62]);
    let got = driver.read(driver.data(RECEIVE), 162);
    assert_eq!(got[HEADER_BYTES..], pattern(0, 150));
}

#[test]
fn a_pause_does_not_wait_for_a_rate_limit() {
    let memory = TestDriver::memory();
    let network = Network::new();
    // One frame in a thousand seconds.
    let limit = r#"{"bytes_per_second":1,"burst_bytes":1000}"#;
    let limit = Some(serde_json::from_str(limit).unwrap());
    let mut device = network.limited(NetworkRateLimit {
        receive: limit,
        transmit: limit,
    });
    let mut driver = driver(&memory, MERGES, &mut device);
    give(&mut driver, 0, 4, 2048);
    for _ in 0..2 {
        network.send(header(0, 0), &pattern(0, 1000));
        transmit(&mut driver, header(0, 0), &pattern(0, 1000));
    }
    used(&mut driver, 1);
    driver.wait_for_used(TRANSMIT);
    device.worker().unwrap().pause();
    let positions = device.worker().unwrap().queue_positions().unwrap();
    for position in positions {
        assert_eq!((position.next_available, position.next_used), (1, 1));
    }
}

/// A device without a link, as in a machine that is made to be copied.
fn unconnected() -> Net {
    Net::connected(mac(9), None, 1, Vec::new(), NetworkRateLimit::default())
}

#[test]
fn a_machine_that_had_no_link_finds_one_where_it_goes_on() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let (mut before, mut after) = (unconnected(), network.device());
    let mut driver = driver(&memory, MERGES | OFFLOADS, &mut before);
    give(&mut driver, 0, 100, 2048);
    transmit(&mut driver, header(0, 0), &pattern(0, 60));
    driver.wait_for_used(TRANSMIT);

    network.send(header(1, 1), &pattern(1, 5000));
    driver.move_over(&mut before, &mut after);
    driver.wait_for_config_change();
    let mut space = [0; 8];
    after.read_config(0, &mut space);
    assert_eq!(space, [2, 0, 0, 0, 0, 1, 1, 0], "its own address, and a link");
    assert_eq!(after.config_generation(), 1);
    assert_eq!(
        *network.port.offloads.lock().unwrap(),
        [libc::TUN_F_CSUM | libc::TUN_F_TSO4],
        "what the driver chose before"
    );
    assert_eq!(used(&mut driver, 3), [2048, 2048, 916]);
    transmit(&mut driver, header(1, 1), &pattern(2, 3000));
    driver.wait_for_used(TRANSMIT);
    assert_eq!(network.receive(), (header(1, 1).to_vec(), pattern(2, 3000)));
}

#[test]
fn what_has_not_changed_is_not_announced() {
    let memory = TestDriver::memory();
    let (mut before, mut after, mut other) = (unconnected(), unconnected(), Network::new().device());
    let mut driver = driver(&memory, MERGES, &mut before);
    driver.move_over(&mut before, &mut after);
    transmit(&mut driver, header(0, 0), &pattern(0, 60));
    driver.wait_for_used(TRANSMIT);
    assert_eq!(driver.interrupt_status() & 2, 0);
    assert_eq!(after.config_generation(), 0);
    // Another address alone is a change.
    let mut renamed = Net::connected(mac(8), None, 1, Vec::new(), NetworkRateLimit::default());
    driver.move_over(&mut after, &mut renamed);
    driver.wait_for_config_change();
    assert_eq!(renamed.config_generation(), 1);
    driver.move_over(&mut renamed, &mut other);
    assert_eq!(other.config_generation(), 2);
    other.worker().unwrap().pause();
    assert_eq!(
        other.save().unwrap(),
        DeviceState::Net {
            mac: mac(1),
            link_up: true,
            generation: 2,
            pairs_in_use: 1,
        }
    );
}

#[test]
fn what_was_not_sent_before_is_sent_after_and_nothing_twice() {
    let memory = TestDriver::memory();
    let (first, second) = (Network::new(), Network::new());
    let limit = NetworkRateLimit {
        receive: None,
        transmit: operations(10),
    };
    let (mut before, mut after) = (first.limited(limit), second.device());
    let mut driver = driver(&memory, MERGES, &mut before);
    let data = driver.data(TRANSMIT);
    for index in 0..20_usize {
        let start = data + index as u64 * 4096;
        driver.write(start, &[&[0; HEADER_BYTES][..], &pattern(index, 100)].concat());
        let buffer = crate::devices::virtio::test_driver::Buffer::readable(start, 112);
        driver.add(TRANSMIT, &[buffer]);
    }
    driver.wait_for_used(TRANSMIT);
    driver.move_over(&mut before, &mut after);
    for _ in 1..20 {
        driver.wait_for_used(TRANSMIT);
    }
    let mut seen = Vec::new();
    for network in [&first, &second] {
        while let Some((_, frame)) = network.take() {
            seen.push(frame);
        }
    }
    let expected: Vec<_> = (0..20).map(|index| pattern(index, 100)).collect();
    assert!(seen == expected, "{} frames", seen.len());
}

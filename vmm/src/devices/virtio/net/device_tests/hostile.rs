//! Drivers that break the rules.

use proptest::prelude::*;

use super::{
    HEADER_BYTES, MERGES, Network, OFFLOADS, RECEIVE, TRANSMIT, counts, driver, give, header, pattern,
    received, transmit, used,
};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::test_driver::{Buffer, TestDriver};

/// The device still sends and receives.
fn assert_works(driver: &mut TestDriver<'_>, network: &Network) {
    while network.take().is_some() {}
    transmit(driver, header(0, 0), &pattern(42, 60));
    driver.wait_for_used(TRANSMIT);
    assert_eq!(network.receive(), (vec![0; HEADER_BYTES], pattern(42, 60)));
    let address = driver.data(RECEIVE) + (4 << 20);
    driver.add(RECEIVE, &[Buffer::writable(address, 2048)]);
    network.send(header(0, 0), &pattern(43, 60));
    while driver.wait_for_used(RECEIVE).1 == 0 {}
    assert_eq!(
        driver.read(address, 72),
        [received(header(0, 0), 1), pattern(43, 60)].concat()
    );
}

#[test]
fn what_is_no_frame_is_given_back_and_not_sent() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, OFFLOADS, &mut device);
    let (data, end) = (driver.data(TRANSMIT), driver.memory_end());
    let chains: [&[Buffer]; 11] = [
        &[Buffer::readable(data, 0)],
        &[Buffer::readable(data, 11)],
        &[Buffer::readable(data, 12)],
        &[Buffer::readable(data, 25)],
        &[Buffer::readable(data, 65_563)],
        &[Buffer::readable(data, u32::MAX)],
        &[Buffer::readable(data, u32::MAX), Buffer::readable(data, u32::MAX)],
        &[Buffer::readable(end - 8, 100)],
        &[Buffer::readable(u64::MAX - 8, 100)],
        &[Buffer::readable(data, 12), Buffer::readable(end, 60)],
        &[Buffer::writable(data, 100)],
    ];
    for chain in chains {
        driver.add(TRANSMIT, chain);
        assert_eq!(driver.wait_for_used(TRANSMIT).1, 0, "{chain:?}");
    }
    driver.add_loop(TRANSMIT, Buffer::readable(data, 4096));
    driver.wait_for_used(TRANSMIT);
    assert_eq!(network.take(), None);
    assert_eq!(counts(&device).transmit_dropped, 12);
    assert_works(&mut driver, &network);
}

#[test]
fn a_short_loop_of_descriptors_is_a_frame_of_repeated_bytes_at_most() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    let mut driver = driver(&memory, 0, &mut device);
    driver.add_loop(TRANSMIT, Buffer::readable(driver.data(TRANSMIT), 1));
    driver.wait_for_used(TRANSMIT);
    assert_eq!(network.receive().1.len(), 256 - HEADER_BYTES);
    assert_works(&mut driver, &network);
}

#[test]
fn what_cannot_take_a_header_is_given_back_empty() {
    let memory = TestDriver::memory();
    for features in [0, MERGES] {
        let network = Network::new();
        let mut device = network.device();
        let mut driver = driver(&memory, features, &mut device);
        let (data, end) = (driver.data(RECEIVE), driver.memory_end());
        let chains: [&[Buffer]; 6] = [
            &[Buffer::writable(data, 0)],
            &[Buffer::writable(data, 11)],
            &[Buffer::writable(end - 8, 100)],
            &[Buffer::writable(u64::MAX - 8, 100)],
            &[Buffer::writable(data, 12), Buffer::writable(end, 60)],
            &[Buffer::readable(data, 100)],
        ];
        for chain in chains {
            driver.add(RECEIVE, chain);
        }
        network.send(header(0, 0), &pattern(0, 60));
        assert_eq!(used(&mut driver, 6), [0; 6]);
        give(&mut driver, 0, 1, 2048);
        assert_eq!(used(&mut driver, 1), [72]);
        assert_works(&mut driver, &network);
    }
}

#[test]
fn a_loop_of_receive_descriptors_holds_at_most_a_ring_full() {
    let memory = TestDriver::memory();
    for length in [1, 300, 70_000] {
        let network = Network::new();
        let mut device = network.device();
        let mut driver = driver(&memory, MERGES, &mut device);
        driver.add_loop(RECEIVE, Buffer::writable(driver.data(RECEIVE), length));
        network.send(header(0, 0), &pattern(0, 200));
        assert_eq!(used(&mut driver, 1), [212], "{length}");
        assert_works(&mut driver, &network);
    }
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_the_device_works_after_it() {
    let memory = TestDriver::memory();
    let network = Network::new();
    let mut device = network.device();
    for queue in [RECEIVE, TRANSMIT] {
        for break_it in [
            (|driver, queue| driver.set_available_index(queue, 1000)) as fn(&mut TestDriver<'_>, usize),
            |driver, queue| driver.offer_head(queue, 256),
        ] {
            let mut driver = driver(&memory, MERGES, &mut device);
            break_it(&mut driver, queue);
            network.send(header(0, 0), &pattern(0, 60));
            driver.wait_for_reset_request();
            device.reset();
            // What it had not taken from the tap is there for the next driver.
            let mut driver = super::driver(&memory, MERGES, &mut device);
            give(&mut driver, 0, 1, 2048);
            assert_eq!(used(&mut driver, 1), [72]);
            assert_works(&mut driver, &network);
            device.reset();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a driver offers, everything comes back and the device still works.
    #[test]
    fn any_chains_are_survived(
        features in any::<u64>(),
        chains in prop::collection::vec(
            (0..2_usize, prop::collection::vec(
                (prop_oneof![0..64_u64 << 20, any::<u64>()],
                 prop_oneof![0..64_u32, 0..70_000_u32, any::<u32>()],
                 any::<bool>()),
                1..6,
            )),
            1..30,
        ),
        frames in prop::collection::vec((any::<[u8; 12]>(), 0..5000_usize), 0..20),
    ) {
        let memory = TestDriver::memory();
        let network = Network::new();
        let mut device = network.device();
        let mut driver = driver(&memory, features, &mut device);
        for (queue, buffers) in &chains {
            let buffers: Vec<_> = buffers.iter().map(|(address, length, writable)| {
                // The rings themselves are spared: what becomes of broken ones is another test's.
                let address = if address % (8 << 20) < 1 << 20 { address + (1 << 20) } else { *address };
                let length = if address < 64 << 20 { (*length).min(100_000) } else { *length };
                match writable {
                    true => Buffer::writable(address, length),
                    false => Buffer::readable(address, length),
                }
            }).collect();
            let buffers: Vec<_> = buffers.into_iter().filter(|buffer| !buffer.reaches_rings()).collect();
            if !buffers.is_empty() {
                driver.add(*queue, &buffers);
            }
        }
        for (header, length) in &frames {
            network.send(*header, &pattern(0, *length));
        }
        device.worker().unwrap().pause();
        let positions = device.worker().unwrap().queue_positions().unwrap();
        prop_assert!(positions.iter().all(|at| at.next_used <= at.next_available));
        device.worker().unwrap().resume().unwrap();
        device.reset();
        let mut driver = super::driver(&memory, 0, &mut device);
        give(&mut driver, 0, 200, 2048);
        // What is left in the wire comes first.
        transmit(&mut driver, header(0, 0), &pattern(42, 60));
        driver.wait_for_used(TRANSMIT);
    }
}

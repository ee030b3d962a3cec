//! Drivers that are broken, or bent on the device's end.

use proptest::prelude::*;

use super::tests::{
    DISCARD, FLUSH, GET_ID, Guest, IN, IO_ERROR, Layout, OK, OUT, SECTORS, UNANSWERED, UNSUPPORTED,
    WRITE_ZEROES,
};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::test_driver::{Buffer, TestDriver};

#[test]
fn requests_that_are_none_are_errors_and_change_nothing() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let before = guest.contents();
    let Layout { header, data, status } = guest.layout();
    let end = guest.driver.memory_end();
    let head = Buffer::readable(header, 16);
    let answer = Buffer::writable(status, 1);
    let (readable, writable) = (Buffer::readable, Buffer::writable);
    for (kind, buffers, expected) in [
        // Without data, of half a sector, and more than the limit.
        (IN, vec![head, answer], IO_ERROR),
        (OUT, vec![head, answer], IO_ERROR),
        (IN, vec![head, writable(data, 511), answer], IO_ERROR),
        (OUT, vec![head, readable(data, 513), answer], IO_ERROR),
        (IN, vec![head, writable(0, 32 << 20), answer], IO_ERROR),
        (OUT, vec![head, readable(0, 32 << 20), answer], IO_ERROR),
        // In the wrong direction, or in both.
        (IN, vec![head, readable(data, 512), answer], IO_ERROR),
        (OUT, vec![head, writable(data, 512), answer], IO_ERROR),
        (
            IN,
            vec![head, readable(data, 512), writable(data, 512), answer],
            IO_ERROR,
        ),
        (
            OUT,
            vec![head, readable(data, 512), writable(data, 512), answer],
            IO_ERROR,
        ),
        (GET_ID, vec![head, readable(data, 20), answer], IO_ERROR),
        (DISCARD, vec![head, writable(data, 16), answer], IO_ERROR),
        (WRITE_ZEROES, vec![head, writable(data, 16), answer], IO_ERROR),
        (FLUSH, vec![head, readable(data, 512), answer], IO_ERROR),
        (FLUSH, vec![head, writable(data, 512), answer], IO_ERROR),
        // What is to be read behind what is to be written.
        (IN, vec![writable(data, 512), head, answer], IO_ERROR),
        (OUT, vec![answer, head, readable(data, 512), answer], IO_ERROR),
        // Too short a header, and none.
        (
            IN,
            vec![readable(header, 15), writable(data, 512), answer],
            IO_ERROR,
        ),
        (IN, vec![writable(data, 512), answer], IO_ERROR),
        (FLUSH, vec![answer], IO_ERROR),
        // Outside the guest's memory.
        (IN, vec![head, writable(end, 512), answer], IO_ERROR),
        (IN, vec![head, writable(end - 256, 512), answer], IO_ERROR),
        (IN, vec![head, writable(u64::MAX - 511, 512), answer], IO_ERROR),
        (IN, vec![head, writable(u64::MAX, 512), answer], IO_ERROR),
        (OUT, vec![head, readable(end - 256, 512), answer], IO_ERROR),
        (
            OUT,
            vec![head, readable(data, 512), readable(u64::MAX, 512), answer],
            IO_ERROR,
        ),
        (
            IN,
            vec![readable(end - 8, 16), writable(data, 512), answer],
            IO_ERROR,
        ),
        // Words that are not known, among them those of features that are not offered.
        (2, vec![head, writable(data, 512), answer], UNSUPPORTED),
        (10, vec![head, writable(data, 6), answer], UNSUPPORTED),
        (14, vec![head, readable(data, 16), answer], UNSUPPORTED),
        (16, vec![head, writable(data, 512), answer], UNSUPPORTED),
        (0x8000_0000, vec![head, answer], UNSUPPORTED),
        (u32::MAX, vec![head, answer], UNSUPPORTED),
    ] {
        guest.write_header(kind, 0);
        let (status, written) = guest.submit(&buffers);
        assert_eq!(status, expected, "{kind} {buffers:?}");
        assert!(written <= 1, "{kind} {buffers:?}");
    }
    assert!(guest.contents() == before);
    guest.assert_works();
}

#[test]
fn requests_without_a_place_for_an_answer_are_given_back_and_not_carried_out() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let before = guest.contents();
    let Layout { data, .. } = guest.layout();
    let end = guest.driver.memory_end();
    guest.driver.write(data, &[0xff; 512]);
    let header = guest.write_header(OUT, 0);
    let payload = Buffer::readable(data, 512);
    for buffers in [
        vec![header],
        vec![header, payload],
        vec![header, payload, Buffer::writable(data, 0)],
        vec![header, payload, Buffer::writable(end, 1)],
        vec![header, payload, Buffer::writable(u64::MAX, 1)],
        vec![header, payload, Buffer::writable(end - 1, 2)],
    ] {
        assert_eq!(guest.submit(&buffers), (UNANSWERED, 0), "{buffers:?}");
    }
    assert!(guest.contents() == before);
    guest.assert_works();
}

#[test]
fn loops_end_without_an_answer() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let before = guest.contents();
    let Layout { data, header, status } = guest.layout();
    guest.write_header(OUT, 0);
    for buffer in [
        Buffer::readable(header, 16),
        Buffer::writable(status, 1),
        Buffer::writable(data, 0),
        Buffer::writable(0, 32 << 20),
        Buffer::readable(u64::MAX, u32::MAX),
    ] {
        guest.driver.add_loop(0, buffer);
        assert_eq!(guest.driver.wait_for_used(0).1, 0, "{buffer:?}");
    }
    assert!(guest.contents() == before);
    guest.assert_works();
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_the_disk_works_after_it() {
    let memory = TestDriver::memory();
    for break_ring in [
        |driver: &mut TestDriver<'_>| driver.offer_head(0, 999),
        |driver: &mut TestDriver<'_>| driver.set_available_index(0, 1000),
    ] {
        let mut guest = Guest::new(&memory);
        break_ring(&mut guest.driver);
        guest.driver.wait_for_reset_request();
        assert!(guest.driver.failure().is_none());
        guest.blk.reset();
        guest.driver = TestDriver::new(&memory, &super::device::QUEUE_SIZES);
        guest.driver.activate(&mut guest.blk);
        guest.assert_works();
    }
}

#[test]
fn the_greatest_request_is_served() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let header = guest.write_header(IN, 0);
    let Layout { data, status, .. } = guest.layout();
    let mut buffers = vec![header];
    // 254 buffers, together as long as the disk.
    let length = (SECTORS * 512) as u32;
    buffers.extend((0..253).map(|index| Buffer::writable(data + index * 512, 512)));
    buffers.push(Buffer::writable(data + 253 * 512, length - 253 * 512));
    buffers.push(Buffer::writable(status, 1));
    assert_eq!(guest.submit(&buffers), (OK, length + 1));
    assert!(guest.driver.read(data, length as usize) == guest.contents());
}

fn any_buffer(base: u64, end: u64) -> impl Strategy<Value = Buffer> {
    let address = prop_oneof![
        4 => base..base + 0x4000,
        1 => end - 0x1000..end + 0x1000,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![Just(0), Just(1), Just(16), Just(512), 0..4096_u32, any::<u32>()];
    (address, length, any::<bool>()).prop_map(|(address, length, is_writable)| {
        if is_writable {
            Buffer::writable(address, length)
        } else {
            Buffer::readable(address, length)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever the chains are, each comes back, and the device still works.
    #[test]
    fn no_chain_is_the_devices_end(
        kinds in prop::collection::vec((prop_oneof![0..16_u32, any::<u32>()], prop_oneof![0..300_u64, any::<u64>()]), 4),
        chains in prop::collection::vec(prop::collection::vec(any_buffer(1 << 20, 64 << 20), 1..6), 4),
    ) {
        let memory = TestDriver::memory();
        let mut guest = Guest::with(&memory, true, None);
        let before = guest.contents();
        for ((kind, sector), mut chain) in kinds.into_iter().zip(chains) {
            let header = guest.write_header(kind, sector);
            chain.insert(0, header);
            guest.submit(&chain);
        }
        guest.assert_works();
        prop_assert!(guest.driver.failure().is_none());
        prop_assert!(guest.contents() == before);
    }
}

use std::fs;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tempfile::NamedTempFile;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::GuestMemoryMmap;

use super::device::QUEUE_SIZES;
use super::*;
use crate::devices::rate_limiter::RateLimit;
use crate::devices::virtio::device::{ActivateError, DeviceState, QueuePosition, VirtioDevice};
use crate::devices::virtio::test_driver::{Buffer, TestDriver};

pub(super) const IN: u32 = VIRTIO_BLK_T_IN;
pub(super) const OUT: u32 = VIRTIO_BLK_T_OUT;
pub(super) const FLUSH: u32 = VIRTIO_BLK_T_FLUSH;
pub(super) const GET_ID: u32 = VIRTIO_BLK_T_GET_ID;
pub(super) const DISCARD: u32 = VIRTIO_BLK_T_DISCARD;
pub(super) const WRITE_ZEROES: u32 = VIRTIO_BLK_T_WRITE_ZEROES;
pub(super) const OK: u8 = VIRTIO_BLK_S_OK as u8;
pub(super) const IO_ERROR: u8 = VIRTIO_BLK_S_IOERR as u8;
pub(super) const UNSUPPORTED: u8 = VIRTIO_BLK_S_UNSUPP as u8;
/// What a status byte is before the device writes it.
pub(super) const UNANSWERED: u8 = 0xee;

/// Sectors of the tests' disks.
pub(super) const SECTORS: u64 = 256;

/// A file of so many sectors, each full of its own number.
pub(super) fn image(sectors: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..sectors).flat_map(|sector| [sector as u8; 512]).collect();
    file.as_file().write_all_at(&bytes, 0).unwrap();
    file
}

/// A disk, and a guest that uses it.
pub(super) struct Guest<'m> {
    pub(super) driver: TestDriver<'m>,
    pub(super) blk: Blk,
    pub(super) image: NamedTempFile,
}

/// Where the parts of a request are.
pub(super) struct Layout {
    pub(super) header: u64,
    pub(super) data: u64,
    pub(super) status: u64,
}

impl<'m> Guest<'m> {
    pub(super) fn new(memory: &'m Arc<GuestMemoryMmap>) -> Self {
        Self::with(memory, false, None)
    }

    pub(super) fn with(memory: &'m Arc<GuestMemoryMmap>, read_only: bool, limit: Option<RateLimit>) -> Self {
        let image = image(SECTORS);
        let mut blk = Blk::new("data", image.path(), read_only, limit).unwrap();
        let driver = TestDriver::new(memory, &QUEUE_SIZES);
        driver.activate(&mut blk);
        Self { driver, blk, image }
    }

    pub(super) fn layout(&self) -> Layout {
        let base = self.driver.data(0);
        Layout {
            header: base,
            data: base + 0x1000,
            status: base + 0x800,
        }
    }

    pub(super) fn write_header(&self, kind: u32, sector: u64) -> Buffer {
        let Layout { header, status, .. } = self.layout();
        let bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.driver.write(header, &bytes);
        self.driver.write(status, &[UNANSWERED]);
        Buffer::readable(header, 16)
    }

    /// Submits `buffers` and returns the status and the bytes written.
    pub(super) fn submit(&mut self, buffers: &[Buffer]) -> (u8, u32) {
        self.driver.add(0, buffers);
        let (_, written) = self.driver.wait_for_used(0);
        (self.driver.read(self.layout().status, 1)[0], written)
    }

    /// A request that takes `data` to the disk.
    pub(super) fn send(&mut self, kind: u32, sector: u64, data: &[u8]) -> (u8, u32) {
        let header = self.write_header(kind, sector);
        let Layout { data: at, status, .. } = self.layout();
        self.driver.write(at, data);
        let status = Buffer::writable(status, 1);
        match data {
            [] => self.submit(&[header, status]),
            _ => self.submit(&[header, Buffer::readable(at, data.len() as u32), status]),
        }
    }

    /// A request that brings `length` bytes from the disk.
    pub(super) fn fetch(&mut self, kind: u32, sector: u64, length: u32) -> (u8, u32, Vec<u8>) {
        let header = self.write_header(kind, sector);
        let Layout { data, status, .. } = self.layout();
        self.driver.write(data, &vec![UNANSWERED; length as usize]);
        let (status, written) = self.submit(&[
            header,
            Buffer::writable(data, length),
            Buffer::writable(status, 1),
        ]);
        (status, written, self.driver.read(data, length as usize))
    }

    pub(super) fn contents(&self) -> Vec<u8> {
        fs::read(self.image.path()).unwrap()
    }

    /// The device does what it should.
    pub(super) fn assert_works(&mut self) {
        let (status, written, data) = self.fetch(IN, 7, 512);
        assert_eq!((status, written, data), (OK, 513, vec![7; 512]));
    }
}

/// A range of a request to discard or to write zeros.
pub(super) fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        &sector.to_le_bytes()[..],
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

#[test]
fn what_is_written_is_read_again_and_is_in_the_file() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let data: Vec<u8> = (0..3 * 512).map(|index| (index * 5 / 3) as u8).collect();
    assert_eq!(guest.send(OUT, 100, &data), (OK, 1));
    assert_eq!(guest.contents()[100 * 512..103 * 512], data);
    assert_eq!(guest.fetch(IN, 100, 3 * 512), (OK, 3 * 512 + 1, data));
    assert_eq!(guest.fetch(IN, 99, 512).2, [99; 512]);
    assert_eq!(guest.fetch(IN, 103, 512).2, [103; 512]);
    assert_eq!(guest.contents().len() as u64, SECTORS * 512);
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let Layout { header, data, status } = guest.layout();
    guest.write_header(OUT, 10);
    guest.driver.write(header + 16, &[0xab; 1024]);
    // The header in three parts, the last of them with data; an empty buffer between.
    let buffers = [
        Buffer::readable(header, 1),
        Buffer::readable(header + 1, 14),
        Buffer::readable(header + 15, 100),
        Buffer::readable(data, 0),
        Buffer::readable(header + 115, 925),
        Buffer::writable(status, 1),
    ];
    assert_eq!(guest.submit(&buffers), (OK, 1));
    assert_eq!(guest.contents()[10 * 512..12 * 512], [0xab; 1024]);

    // The status behind the data in one buffer.
    let header = guest.write_header(IN, 10);
    guest.driver.write(data, &[UNANSWERED; 1025]);
    guest.driver.add(
        0,
        &[
            header,
            Buffer::writable(data, 3),
            Buffer::writable(data + 3, 1022),
        ],
    );
    assert_eq!(guest.driver.wait_for_used(0).1, 1025);
    assert_eq!(guest.driver.read(data, 1025), [&[0xab; 1024][..], &[OK]].concat());
}

#[test]
fn the_last_sector_is_on_the_disk_and_the_next_is_not() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    assert_eq!(guest.send(OUT, SECTORS - 1, &[1; 512]), (OK, 1));
    assert_eq!(guest.fetch(IN, SECTORS - 1, 512), (OK, 513, vec![1; 512]));
    assert_eq!(guest.fetch(IN, 0, (SECTORS * 512) as u32).0, OK);
    let before = guest.contents();
    for (sector, length) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (0, (SECTORS as usize + 1) * 512),
        (u64::MAX, 512),
        (u64::MAX / 512, 1024),
        (1 << 55, 512),
    ] {
        assert_eq!(
            guest.send(OUT, sector, &vec![2; length]),
            (IO_ERROR, 1),
            "{sector}"
        );
        let (status, written, data) = guest.fetch(IN, sector, length as u32);
        assert_eq!((status, written), (IO_ERROR, 0), "{sector}");
        assert_eq!(data, vec![UNANSWERED; length]);
    }
    assert_eq!(guest.contents(), before);
}

#[test]
fn the_guest_can_ask_for_the_disks_name() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let name = [&b"data"[..], &[0; 16]].concat();
    assert_eq!(guest.fetch(GET_ID, 0, 20), (OK, 21, name));
    for length in [1, 19, 21, 512] {
        assert_eq!(guest.fetch(GET_ID, 0, length).0, IO_ERROR);
    }
}

#[test]
fn a_read_only_disk_is_never_written() {
    let memory = TestDriver::memory();
    let mut guest = Guest::with(&memory, true, None);
    let before = guest.contents();
    let features = guest.blk.offered_features();
    assert_ne!(features & 1 << VIRTIO_BLK_F_RO, 0);
    let writing = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    assert_eq!(features & writing, 0);
    assert_eq!(guest.send(OUT, 1, &[1; 512]), (IO_ERROR, 1));
    assert_eq!(guest.send(DISCARD, 0, &range(0, 8, 0)), (IO_ERROR, 1));
    assert_eq!(guest.send(WRITE_ZEROES, 0, &range(0, 8, 0)), (IO_ERROR, 1));
    assert_eq!(guest.send(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(guest.contents(), before);
    guest.assert_works();
}

#[test]
fn discarded_sectors_are_a_hole_and_zeroed_ones_are_zero() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let offered = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;
    assert_eq!(guest.blk.offered_features() & offered, offered);
    let ranges = [range(8, 8, 0), range(32, 64, 0)].concat();
    assert_eq!(guest.send(DISCARD, 0, &ranges), (OK, 1));
    assert_eq!(guest.send(WRITE_ZEROES, 0, &range(129, 3, 0)), (OK, 1));
    assert_eq!(guest.send(WRITE_ZEROES, 0, &range(136, 8, 1)), (OK, 1));
    for (sector, bytes) in guest.contents().chunks(512).enumerate() {
        let gone = matches!(sector, 8..16 | 32..96 | 129..132 | 136..144);
        let expected = if gone { 0 } else { sector as u8 };
        assert!(bytes.iter().all(|byte| *byte == expected), "sector {sector}");
    }
}

#[test]
fn ranges_that_are_none_change_nothing() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let before = guest.contents();
    let most = request::MAX_DISCARD_RANGES as usize;
    for (kind, data, expected) in [
        (DISCARD, range(0, 8, 1), UNSUPPORTED),
        (DISCARD, range(0, 8, 2), UNSUPPORTED),
        (WRITE_ZEROES, range(0, 8, 2), UNSUPPORTED),
        (WRITE_ZEROES, range(0, 8, 0x8000_0001), UNSUPPORTED),
        (DISCARD, range(SECTORS, 1, 0), IO_ERROR),
        (DISCARD, range(SECTORS - 1, 2, 0), IO_ERROR),
        (DISCARD, range(u64::MAX, 2, 0), IO_ERROR),
        (DISCARD, range(0, u32::MAX, 0), IO_ERROR),
        (DISCARD, range(0, 0, 0), IO_ERROR),
        (WRITE_ZEROES, range(0, 0, 0), IO_ERROR),
        (WRITE_ZEROES, range(0, u32::MAX, 1), IO_ERROR),
        (WRITE_ZEROES, [range(0, 1, 0), range(1, 1, 0)].concat(), IO_ERROR),
        (DISCARD, range(0, 1, 0).repeat(most + 1), IO_ERROR),
        (DISCARD, range(0, 8, 0)[..15].to_vec(), IO_ERROR),
        (DISCARD, [range(0, 8, 0), vec![0]].concat(), IO_ERROR),
        (DISCARD, vec![], IO_ERROR),
        // One that is none is enough.
        (DISCARD, [range(0, 8, 0), range(SECTORS, 8, 0)].concat(), IO_ERROR),
    ] {
        assert_eq!(guest.send(kind, 0, &data), (expected, 1), "{kind} {data:?}");
    }
    assert_eq!(guest.contents(), before);
    guest.assert_works();
}

/// The pages of `file` that wait to be written to the disk (cachestat(2)), where that can be asked.
fn dirty_pages(file: &fs::File) -> Option<u64> {
    const CACHESTAT: libc::c_long = 451;
    let (all, mut figures) = ([0_u64; 2], [0_u64; 5]);
    // SAFETY: The call reads two numbers, offset and length, and writes five.
    let result = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), all.as_ptr(), figures.as_mut_ptr(), 0) };
    (result == 0).then_some(figures[1] + figures[2])
}

#[test]
fn a_flush_and_a_write_of_a_driver_that_never_flushes_are_on_the_disk() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    // The image has just been made.
    if dirty_pages(guest.image.as_file()).is_none_or(|pages| pages == 0) {
        eprintln!("SKIPPED: this host does not tell what is not yet on its disks; nothing was tested");
        return;
    }
    assert_eq!(guest.send(OUT, 0, &[1; 512]), (OK, 1));
    assert_eq!(
        dirty_pages(guest.image.as_file()),
        Some(0),
        "a write without a flush"
    );

    guest.blk.reset();
    guest.driver = TestDriver::new(&memory, &QUEUE_SIZES);
    guest.driver.accept(1 << VIRTIO_BLK_F_FLUSH);
    guest.driver.activate(&mut guest.blk);
    for sector in (0..SECTORS).step_by(8) {
        assert_eq!(guest.send(OUT, sector, &[2; 512]), (OK, 1));
    }
    assert_eq!(guest.send(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(dirty_pages(guest.image.as_file()), Some(0), "a flush");

    assert_eq!(guest.send(OUT, 0, &[3; 512]), (OK, 1));
    guest.blk.worker().unwrap().pause();
    guest.blk.save().unwrap();
    assert_eq!(dirty_pages(guest.image.as_file()), Some(0), "a snapshot");
}

#[test]
fn the_configuration_tells_the_disk_and_its_limits() {
    let image = image(SECTORS);
    let blk = Blk::new("", image.path(), false, None).unwrap();
    let mut config = [0xff; 64];
    blk.read_config(0, &mut config);
    let number = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), SECTORS);
    assert_eq!((number(8), number(12)), (32 << 10, 254));
    assert_eq!(number(20), 512, "bytes of a block");
    let exponent = config[24];
    assert_eq!(u16::from_le_bytes([config[26], config[27]]), 1 << exponent);
    assert_eq!((number(36), number(40)), (1 << 18, 16));
    assert_eq!(number(44), 1 << exponent, "sectors of a block");
    assert_eq!((number(48), number(52), config[56]), (1 << 15, 1, 1));
    assert_eq!(config[60..], [0; 4]);
}

fn operations(per_second: u64, burst: u64) -> Option<RateLimit> {
    Some(RateLimit {
        operations_per_second: NonZeroU64::new(per_second),
        burst_operations: NonZeroU64::new(burst),
        ..RateLimit::default()
    })
}

#[test]
fn a_limited_disk_keeps_its_guest_waiting_and_serves_everything() {
    let memory = TestDriver::memory();
    let mut guest = Guest::with(&memory, false, operations(50, 1));
    let begun = Instant::now();
    for _ in 0..6 {
        guest.assert_works();
    }
    // The first was free; each other one brings 20 ms.
    assert!(
        begun.elapsed() >= Duration::from_millis(100),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_disk_that_waits_for_its_rate_can_be_paused_and_another_goes_on() {
    let memory = TestDriver::memory();
    // The next operation after the first is due in an hour and more.
    let limit = Some(RateLimit {
        bytes_per_second: NonZeroU64::new(1),
        burst_bytes: NonZeroU64::new(1),
        ..RateLimit::default()
    });
    let mut guest = Guest::with(&memory, true, limit);
    assert_eq!(guest.fetch(IN, 0, 8192).0, OK);
    let header = guest.write_header(IN, 3);
    let Layout { data, status, .. } = guest.layout();
    let buffers = [header, Buffer::writable(data, 512), Buffer::writable(status, 1)];
    guest.driver.add(0, &buffers);
    std::thread::sleep(Duration::from_millis(20));
    let begun = Instant::now();
    guest.blk.worker().unwrap().pause();
    guest.blk.worker().unwrap().resume().unwrap();
    guest.blk.worker().unwrap().pause();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(guest.driver.take_used(0), None);

    let mut other = Blk::new("data", guest.image.path(), true, None).unwrap();
    guest.driver.move_over(&mut guest.blk, &mut other);
    assert_eq!(guest.driver.wait_for_used(0).1, 513);
    assert_eq!(guest.driver.take_used(0), None);
    assert_eq!(guest.driver.read(data, 512), [3; 512]);
}

#[test]
fn a_disk_of_another_size_does_not_take_the_first_ones_place() {
    let memory = TestDriver::memory();
    let mut guest = Guest::with(&memory, true, None);
    guest.assert_works();
    guest.blk.worker().unwrap().pause();
    let state = guest.blk.save().unwrap();
    assert_eq!(state, DeviceState::Blk { sectors: SECTORS });
    let positions = [QueuePosition::default()];
    for (sectors, state, expected) in [
        (
            SECTORS - 1,
            state.clone(),
            "the disk has 255 sectors of 512 bytes, and its driver knows one that has 256",
        ),
        (
            SECTORS,
            DeviceState::Stateless,
            "the saved state of blk is another device's",
        ),
    ] {
        let other_image = image(sectors);
        let mut other = Blk::new("data", other_image.path(), true, None).unwrap();
        let refused: ActivateError = other
            .restore(guest.driver.activation(&positions), &state)
            .unwrap_err();
        assert_eq!(refused.to_string(), expected);
    }
}

#[test]
fn a_file_that_has_become_shorter_is_an_error_of_the_disk() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    guest.image.as_file().set_len(8 * 512).unwrap();
    assert_eq!(guest.fetch(IN, 6, 4 * 512).0, IO_ERROR);
    assert_eq!(guest.fetch(IN, 100, 512).0, IO_ERROR);
    guest.assert_works();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A disk is an array of bytes, however the requests are cut into buffers.
    #[test]
    fn a_disk_is_what_was_written_to_it(
        requests in prop::collection::vec(
            (any::<bool>(), 0..SECTORS, 1..24_u64, any::<u8>(), prop::collection::vec(1..3000_u32, 1..12)),
            1..12,
        ),
    ) {
        let memory = TestDriver::memory();
        let mut guest = Guest::new(&memory);
        let mut model = guest.contents();
        for (is_write, sector, sectors, seed, cuts) in requests {
            let header = guest.write_header(if is_write { OUT } else { IN }, sector);
            let Layout { data, status, .. } = guest.layout();
            let length = sectors * 512;
            let bytes: Vec<u8> = (0..length).map(|index| seed.wrapping_add((index / 3) as u8)).collect();
            guest.driver.write(data, &bytes);
            let mut buffers = vec![header];
            let mut at = 0;
            for cut in cuts {
                let part = u64::from(cut).min(length - at);
                buffers.push(if is_write {
                    Buffer::readable(data + at, part as u32)
                } else {
                    Buffer::writable(data + at, part as u32)
                });
                at += part;
            }
            let rest = (length - at) as u32;
            buffers.push(if is_write {
                Buffer::readable(data + at, rest)
            } else {
                Buffer::writable(data + at, rest)
            });
            buffers.push(Buffer::writable(status, 1));
            let (answer, _) = guest.submit(&buffers);
            let (start, end) = ((sector * 512) as usize, ((sector + sectors) * 512) as usize);
            prop_assert_eq!(answer == OK, sector + sectors <= SECTORS);
            if answer == OK && is_write {
                model[start..end].copy_from_slice(&bytes);
            } else if answer == OK {
                prop_assert_eq!(&guest.driver.read(data, length as usize), &model[start..end]);
            }
        }
        prop_assert!(guest.contents() == model);
    }
}

use std::fs::{self, File, OpenOptions};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Instant;

use tempfile::NamedTempFile;
use vm_memory::GuestMemoryMmap;

use super::slot::{DiskSlot, NewDisk};
use super::tests::{DISCARD, FLUSH, GET_ID, IN, IO_ERROR, Layout, OK, OUT, SECTORS, UNANSWERED, image};
use crate::devices::rate_limiter::RateLimit;
use crate::devices::virtio::device::{Pausable, VirtioDevice, read_config_space};
use crate::devices::virtio::test_driver::{Buffer, TestDriver};

const CONFIG_CHANGE: u32 = 2;

struct Guest<'m> {
    driver: TestDriver<'m>,
    slot: DiskSlot,
}

fn disk(id: &str, read_only: bool) -> NewDisk {
    NewDisk {
        id: id.to_owned(),
        read_only,
        read_limit: None,
        write_limit: None,
    }
}

fn opened(image: &NamedTempFile, read_only: bool) -> OwnedFd {
    let mut options = OpenOptions::new();
    options.read(true).write(!read_only);
    options.open(image.path()).unwrap().into()
}

fn capacity(slot: &DiskSlot) -> u64 {
    let mut bytes = [0; 8];
    slot.read_config(0, &mut bytes);
    u64::from_le_bytes(bytes)
}

impl<'m> Guest<'m> {
    fn new(memory: &'m Arc<GuestMemoryMmap>) -> Self {
        let mut slot = DiskSlot::new();
        let driver = TestDriver::new(memory, slot.queue_sizes());
        driver.activate(&mut slot);
        Self { driver, slot }
    }

    fn layout(&self) -> Layout {
        let base = self.driver.data(0);
        Layout {
            header: base,
            data: base + 0x1000,
            status: base + 0x800,
        }
    }

    /// Makes a request available; the data is a sector.
    fn submit(&mut self, kind: u32, sector: u64, byte: u8) {
        let Layout { header, data, status } = self.layout();
        let bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.driver.write(header, &bytes);
        self.driver.write(status, &[UNANSWERED]);
        self.driver.write(data, &[byte; 512]);
        let buffer = match kind {
            OUT => Some(Buffer::readable(data, 512)),
            IN => Some(Buffer::writable(data, 512)),
            GET_ID => Some(Buffer::writable(data, 20)),
            DISCARD => Some(Buffer::readable(data, 16)),
            _ => None,
        };
        let ends = [Buffer::readable(header, 16), Buffer::writable(status, 1)];
        let buffers: Vec<Buffer> = [ends[0]].into_iter().chain(buffer).chain([ends[1]]).collect();
        self.driver.add(0, &buffers);
    }

    fn answer(&mut self) -> u8 {
        self.driver.wait_for_used(0);
        self.driver.read(self.layout().status, 1)[0]
    }

    fn ask(&mut self, kind: u32, sector: u64, byte: u8) -> u8 {
        self.submit(kind, sector, byte);
        self.answer()
    }
}

#[test]
fn a_disk_is_put_in_used_and_taken_out_while_the_driver_works() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    assert_eq!((capacity(&guest.slot), guest.slot.config_generation()), (0, 0));
    let (first, second) = (image(SECTORS), image(8));
    for (image, id, sectors) in [(&first, "first", SECTORS), (&second, "second", 8)] {
        let before = guest.slot.config_generation();
        let put_in = guest.slot.attach(&disk(id, false), opened(image, false));
        assert_eq!(put_in.unwrap(), sectors);
        assert_eq!(capacity(&guest.slot), sectors);
        assert_ne!(guest.slot.config_generation(), before);
        assert_ne!(guest.driver.interrupt_status() & CONFIG_CHANGE, 0);
        assert_eq!(guest.ask(GET_ID, 0, 0), OK);
        assert!(
            guest
                .driver
                .read(guest.layout().data, 20)
                .starts_with(id.as_bytes())
        );
        assert_eq!(guest.ask(OUT, 3, 0x5a), OK);
        assert_eq!(guest.ask(IN, sectors, 0), IO_ERROR);
        assert_eq!(guest.ask(FLUSH, 0, 0), OK);

        // Somebody else's it is when it is out, not before.
        let another = File::open(image.path()).unwrap();
        assert!(another.try_lock().is_err());
        let generation = guest.slot.config_generation();
        guest.slot.detach().unwrap();
        another.try_lock().unwrap();
        assert_eq!(capacity(&guest.slot), 0);
        assert_ne!(guest.slot.config_generation(), generation);
        assert_eq!(guest.ask(OUT, 4, 0x5a), IO_ERROR);
        let bytes = fs::read(image.path()).unwrap();
        assert_eq!((bytes[3 * 512], bytes[4 * 512]), (0x5a, 4));
    }
    // There is nothing to take out any more.
    guest.slot.detach().unwrap();
    assert!(guest.driver.failure().is_none());
}

#[test]
fn what_a_guest_writes_to_a_read_only_disk_is_refused() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let image = image(SECTORS);
    // Also where the descriptor could.
    for descriptor in [opened(&image, true), opened(&image, false)] {
        guest.slot.attach(&disk("base", true), descriptor).unwrap();
        assert_eq!(guest.ask(OUT, 1, 0xff), IO_ERROR);
        assert_eq!(guest.ask(DISCARD, 0, 0), IO_ERROR);
        assert_eq!(guest.ask(FLUSH, 0, 0), OK);
        assert_eq!(guest.ask(IN, 1, 0), OK);
        assert_eq!(guest.driver.read(guest.layout().data, 512), [1; 512]);
        guest.slot.detach().unwrap();
    }
    assert_eq!(fs::read(image.path()).unwrap()[512], 1);
}

#[test]
fn an_empty_slot_sleeps_until_it_is_woken() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    guest.submit(GET_ID, 0, 0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(guest.slot.is_dormant());
    assert_eq!(guest.driver.take_used(0), None);
    // A pause of the machine does not wake it.
    guest.slot.pause();
    guest.slot.resume().unwrap();
    assert_eq!(guest.driver.take_used(0), None);
    guest.slot.wake().unwrap();
    assert_eq!(guest.answer(), IO_ERROR);
    assert!(!guest.slot.is_dormant());
    // Nor does a reset send it to sleep, because nobody waits for its notification any more.
    guest.slot.reset();
    guest.driver = TestDriver::new(&memory, guest.slot.queue_sizes());
    guest.driver.activate(&mut guest.slot);
    assert_eq!(guest.ask(GET_ID, 0, 0), IO_ERROR);
}

#[test]
fn a_slot_goes_with_a_snapshot_while_it_is_empty() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let mut copy = DiskSlot::new();
    guest.driver.move_over(&mut guest.slot, &mut copy);
    assert!(copy.is_dormant());
    // What the driver has asked of one that sleeps, it has asked of the copy.
    guest.slot = copy;
    guest.submit(GET_ID, 0, 0);
    let mut copy = DiskSlot::new();
    guest.driver.move_over(&mut guest.slot, &mut copy);
    assert!(!copy.is_dormant());
    guest.slot = copy;
    assert_eq!(guest.answer(), IO_ERROR);

    let image = image(SECTORS);
    guest
        .slot
        .attach(&disk("data", false), opened(&image, false))
        .unwrap();
    guest.slot.pause();
    let refusal = guest.slot.save().unwrap_err().to_string();
    assert!(refusal.contains("the disk \"data\" was attached"), "{refusal}");
}

#[test]
fn what_is_no_disk_is_refused_and_the_slot_stays_as_it_was() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let image = image(SECTORS);
    let refusal = |slot: &mut DiskSlot, new: &NewDisk, descriptor: OwnedFd| {
        slot.attach(new, descriptor).unwrap_err().to_string()
    };
    let slot = &mut guest.slot;
    let writable = disk("data", false);
    let with_flags = |flags: i32| -> OwnedFd {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags);
        options.open(image.path()).unwrap().into()
    };
    let only_written: OwnedFd = OpenOptions::new().write(true).open(image.path()).unwrap().into();
    let (pipe, _writer) = std::io::pipe().unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let null = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap()
            .into()
    };
    let folder = File::open(std::env::temp_dir()).unwrap().into();
    let kind = "it is neither a file nor a block device";
    for (descriptor, read_only, expected) in [
        (
            opened(&image, true),
            false,
            "its descriptor is not open for writing",
        ),
        (only_written, true, "its descriptor is not open for reading"),
        (
            with_flags(libc::O_APPEND),
            false,
            "its descriptor is open for appending",
        ),
        (
            with_flags(libc::O_PATH),
            true,
            "its descriptor is open for no transfers",
        ),
        (pipe.into(), true, kind),
        (socket.into(), false, kind),
        (null(), false, kind),
        (folder, true, kind),
    ] {
        let new = disk("data", read_only);
        assert_eq!(refusal(slot, &new, descriptor), expected);
    }
    let half = tempfile::tempfile().unwrap();
    half.set_len(700).unwrap();
    assert!(refusal(slot, &writable, half.into()).contains("it has 700 bytes"));
    let busy = File::open(image.path()).unwrap();
    busy.try_lock_shared().unwrap();
    assert!(refusal(slot, &writable, opened(&image, false)).contains("another machine has it open"));
    drop(busy);
    let long = disk("123456789012345678901", false);
    assert!(refusal(slot, &long, opened(&image, false)).contains("at most 20"));
    let burst = NewDisk {
        write_limit: Some(RateLimit {
            burst_bytes: NonZeroU64::new(1),
            ..RateLimit::default()
        }),
        ..writable.clone()
    };
    assert_eq!(refusal(slot, &burst, opened(&image, false)), "its rate limit");
    assert_eq!(capacity(slot), 0);

    slot.attach(&writable, opened(&image, false)).unwrap();
    let other = NamedTempFile::new().unwrap();
    assert!(refusal(slot, &disk("more", true), opened(&other, true)).contains("the disk \"data\" is in it"));
    assert_eq!(capacity(slot), SECTORS);
}

#[test]
fn each_disk_brings_its_own_limit() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    let image = image(SECTORS);
    let limit = RateLimit {
        operations_per_second: NonZeroU64::new(10),
        burst_operations: NonZeroU64::new(1),
        ..RateLimit::default()
    };
    let slow_to_read = NewDisk {
        read_limit: Some(limit),
        ..disk("slow", false)
    };
    let slow_to_write = NewDisk {
        write_limit: Some(limit),
        ..disk("slow", false)
    };
    for (new, reads, writes) in [
        (&slow_to_read, true, false),
        (&slow_to_write, false, true),
        (&disk("fast", false), false, false),
    ] {
        guest.slot.attach(new, opened(&image, false)).unwrap();
        for (kind, is_slow) in [(IN, reads), (OUT, writes)] {
            let begun = Instant::now();
            for _ in 0..4 {
                assert_eq!(guest.ask(kind, 0, 0), OK);
            }
            let took = begun.elapsed();
            assert_eq!(took.as_millis() >= 290, is_slow, "{new:?} {kind}: {took:?}");
        }
        guest.slot.detach().unwrap();
    }
}

#[test]
fn a_driver_that_broke_its_queue_gets_the_disk_after_its_reset() {
    let memory = TestDriver::memory();
    let mut guest = Guest::new(&memory);
    guest.slot.wake().unwrap();
    guest.driver.offer_head(0, 5000);
    guest.driver.wait_for_reset_request();
    let image = image(SECTORS);
    guest
        .slot
        .attach(&disk("data", false), opened(&image, false))
        .unwrap();
    guest.slot.reset();
    guest.driver = TestDriver::new(&memory, guest.slot.queue_sizes());
    guest.driver.activate(&mut guest.slot);
    assert_eq!(guest.ask(IN, 7, 0), OK);
    assert_eq!(guest.driver.read(guest.layout().data, 512), [7; 512]);
}

#[test]
fn every_slot_looks_alike_to_a_driver_that_finds_it() {
    let (mut with, without) = (DiskSlot::new(), DiskSlot::new());
    let image = image(SECTORS);
    with.attach(&disk("base", true), opened(&image, true)).unwrap();
    assert_eq!(with.offered_features(), without.offered_features());
    let rest = |slot: &DiskSlot| {
        let mut space = [0; 60];
        slot.read_config(8, &mut space);
        space
    };
    assert_eq!(rest(&with), rest(&without));
    let mut beyond = [0xff; 4];
    read_config_space(&rest(&with), 60, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

//! A guest with a disk: what it writes is in the host's file, and a copy of the machine goes on with it.

use std::fs;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use vmm::config::BlockDevice;
use vmm::devices::rate_limiter::RateLimit;
use vmm::status::ExitKind;

use crate::flat_guest::elf;
use crate::program::{Machine, PATIENCE, kvm_is_missing};
use crate::snapshot::{console, snapshot, stop};
use crate::virtio_guest::{Access, Device, describe, jump_back, store};

const HEADER: u32 = 0x60_0000;
const STATUS: u32 = 0x60_0100;
const DATA: u32 = 0x60_1000;
const IN: u32 = 0;
const OUT: u32 = 1;
/// What the guest writes, and the sector it writes it to.
const WORDS: &[u8; 16] = b"the guest wrote\n";
const SECTOR: u32 = 9;

/// Code that moves one sector.
fn transfer(disk: Device, kind: u32, sector: u32) -> Vec<u8> {
    let access = if kind == IN { Access::Write } else { Access::Read };
    let buffers = [
        (HEADER, 16, Access::Read),
        (DATA, 512, access),
        (STATUS, 1, Access::Write),
    ];
    [
        store(HEADER, kind),
        store(HEADER + 8, sector),
        describe(0, &buffers),
        disk.submit(0),
    ]
    .concat()
}

/// A guest that writes a line to its disk, and then for ever reads it back, prints it and rests.
fn writing(disk: &Path) -> Machine {
    // Console, entropy and balloon are before it.
    let device = Device::at(3);
    let words: Vec<u8> = WORDS
        .chunks(4)
        .zip((0..).step_by(4))
        .flat_map(|(word, at)| store(DATA + at, u32::from_le_bytes(word.try_into().unwrap())))
        .collect();
    let begin = [device.start(1, 0), words, transfer(device, OUT, SECTOR)].concat();
    let round = [
        store(DATA, 0),
        transfer(device, IN, SECTOR),
        // mov esi, DATA; mov ecx, 16; mov dx, 0x3f8; rep outsb
        [
            &[0xbe][..],
            &DATA.to_le_bytes(),
            &[0xb9, 16, 0, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e],
        ]
        .concat(),
        // rdtsc; mov esi, eax; wait: rdtsc; sub eax, esi; cmp eax, 1 << 24; jb wait
        vec![
            0x0f, 0x31, 0x89, 0xc6, 0x0f, 0x31, 0x29, 0xf0, 0x3d, 0, 0, 0, 1, 0x72, 0xf5,
        ],
    ]
    .concat();
    let again = jump_back(round.len());
    let mut machine = Machine::of(&elf(&[begin, round, again].concat()));
    machine.config.control_socket = Some(machine.path("control"));
    machine.config.block_devices = vec![BlockDevice {
        id: "data".into(),
        path: disk.to_owned(),
        read_only: false,
        rate_limit: None,
    }];
    machine
}

fn wait_for_lines(machine: &Machine, lines: usize) {
    let deadline = Instant::now() + PATIENCE;
    while console(machine).lines().count() < lines {
        assert!(Instant::now() < deadline, "the guest reads nothing");
        std::thread::sleep(Duration::from_millis(2));
    }
    let text = console(machine);
    let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
    for line in complete.lines() {
        assert_eq!(line, "the guest wrote");
    }
}

#[test]
fn a_guests_disk_is_the_hosts_file_also_after_a_restore() {
    if kvm_is_missing() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = directory.path().join("disk");
    fs::write(&disk, [0xa5; 64 * 512]).unwrap();
    let machine = writing(&disk);
    let running = machine.start().wait_for_first_run();
    wait_for_lines(&machine, 3);

    // Nobody else may have it meanwhile.
    let mut second = writing(&disk);
    second.config.control_socket = None;
    let refused = second.start().finish();
    assert_eq!(refused.exit().reason.kind, ExitKind::StartFailed);
    let message = &refused.exit().reason.message;
    assert!(message.contains("another machine has it open"), "{message}");

    let saved = snapshot(&machine, "snapshot");
    stop(&machine, running);
    let bytes = fs::read(&disk).unwrap();
    let at = SECTOR as usize * 512;
    assert_eq!(&bytes[at..at + 16], WORDS);
    assert!(
        bytes[..at]
            .iter()
            .chain(&bytes[at + 512..])
            .all(|byte| *byte == 0xa5)
    );

    let mut copy = writing(&disk);
    copy.config.restore = Some(saved.clone());
    let running = copy.start().wait_for_first_run();
    wait_for_lines(&copy, 3);
    stop(&copy, running);

    // A disk of another size is not the one the guest knows.
    fs::File::options()
        .write(true)
        .open(&disk)
        .unwrap()
        .write_all_at(&[0; 512], 64 * 512)
        .unwrap();
    let mut other = writing(&disk);
    other.config.restore = Some(saved);
    let refused = other.start().finish();
    assert_eq!(refused.exit().reason.kind, ExitKind::StartFailed);
    let message = &refused.exit().reason.message;
    assert!(
        message.contains("the disk has 65 sectors of 512 bytes, and its driver knows one that has 64"),
        "{message}"
    );
}

#[test]
fn what_cannot_be_a_disk_is_told_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let machine = writing(directory.path());
    let refused = machine.start().finish();
    assert_eq!(refused.exit().reason.kind, ExitKind::StartFailed);
    let message = &refused.exit().reason.message;
    let expected = format!(
        "using {} as a disk: it is neither a file nor a block device",
        directory.path().display()
    );
    // Without KVM that is what is told.
    assert!(message.contains(&expected) || kvm_is_missing(), "{message}");
}

/// Sectors of the disk that is numbered: more than a test has time for.
const NUMBERED_SECTORS: u64 = 1 << 14;

/// A guest that writes 1 to sector 1, 2 to sector 2 and so on, and stands still for ever if a write fails.
fn numbering(disk: &Path, operations_per_second: Option<u64>) -> Machine {
    let device = Device::at(3);
    let begin = [device.start(1, 0), store(DATA, 0), transfer(device, OUT, 0)].concat();
    let increment = |address: u32| [&[0xff, 0x04, 0x25][..], &address.to_le_bytes()].concat();
    let round = [
        increment(DATA),
        increment(HEADER + 8),
        store(STATUS, 0xff),
        device.submit(0),
        // cmp byte [STATUS], 0; failed: jne failed
        [&[0x80, 0x3c, 0x25][..], &STATUS.to_le_bytes(), &[0, 0x75, 0xfe]].concat(),
    ]
    .concat();
    let again = jump_back(round.len());
    let mut machine = Machine::of(&elf(&[begin, round, again].concat()));
    machine.config.control_socket = Some(machine.path("control"));
    machine.config.block_devices = vec![BlockDevice {
        id: "numbered".into(),
        path: disk.to_owned(),
        read_only: false,
        rate_limit: operations_per_second.map(|rate| RateLimit {
            operations_per_second: NonZeroU64::new(rate),
            burst_operations: NonZeroU64::new(1),
            ..RateLimit::default()
        }),
    }];
    machine
}

/// How many sectors are numbered, all of them from 1 on and none after them, which is checked.
fn numbered(disk: &Path) -> u32 {
    let bytes = fs::read(disk).unwrap();
    let sectors = bytes.chunks(512).skip(1);
    let number = |sector: &[u8]| u32::from_le_bytes(sector[..4].try_into().unwrap());
    let count = sectors.clone().take_while(|sector| number(sector) != 0).count();
    for (index, sector) in sectors.enumerate() {
        let expected = if index < count { index as u32 + 1 } else { 0 };
        assert_eq!(number(sector), expected, "sector {} of {count}", index + 1);
    }
    u32::try_from(count).unwrap()
}

/// A machine moves again and again, at whatever moment, and a copy of its disk with it. A write that was lost would be a gap
/// among the numbers; one that was told twice would leave the guest waiting for a queue that is ahead of it.
#[test]
fn each_write_is_made_and_told_once_however_often_the_machine_moves() {
    if kvm_is_missing() {
        return;
    }
    // With the rate there is nearly always a request that waits for its turn.
    for rate in [None, Some(200)] {
        let directory = tempfile::tempdir().unwrap();
        let mut disk = directory.path().join("disk-0");
        let file = fs::File::create_new(&disk).unwrap();
        file.set_len(NUMBERED_SECTORS * 512).unwrap();
        let mut restore = None;
        let mut before = 0;
        let mut machines = Vec::new();
        for hop in 1..=12 {
            let mut machine = numbering(&disk, rate);
            machine.config.restore = restore;
            let running = machine.start().wait_for_first_run();
            let deadline = Instant::now() + PATIENCE;
            while numbered(&disk) <= before + 1 {
                assert!(
                    Instant::now() < deadline,
                    "no write after {before} at {rate:?} a second"
                );
                std::thread::sleep(Duration::from_millis(2));
            }
            // Another moment of a request's life each time.
            std::thread::sleep(Duration::from_micros(hop * 700));
            restore = Some(snapshot(&machine, "snapshot"));
            before = numbered(&disk);
            let copy = directory.path().join(format!("disk-{hop}"));
            fs::copy(&disk, &copy).unwrap();
            stop(&machine, running);
            assert_eq!(numbered(&disk), before, "a machine that stands still wrote");
            disk = copy;
            // It has the snapshot.
            machines.push(machine);
        }
    }
}

//! A guest that tells which of its memory is free, and the host that has it back.

use std::fs;
use std::time::{Duration, Instant};

use crate::flat_guest::{elf, print};
use crate::kernel_boot;
use crate::program::{Machine, PATIENCE, Running, kvm_is_missing};
use crate::snapshot::{console, snapshot, stop};
use crate::virtio_guest::{Access, Device, describe, jump_back};

/// VIRTIO_BALLOON_F_PAGE_REPORTING and the queue that belongs to it.
const PAGE_REPORTING: u32 = 1 << 5;
const REPORTING_QUEUE: u32 = 2;
/// The memory the guest uses and gives back.
const BLOCK: u32 = 16 << 20;
const BLOCK_BYTES: u32 = 16 << 20;

/// A guest that for ever uses 16 MiB, reports them free, prints a line and rests for 2^29 ticks of its clock.
fn reporting() -> Machine {
    let balloon = Device::at(2);
    let begin = [
        balloon.start(3, PAGE_REPORTING),
        describe(REPORTING_QUEUE, &[(BLOCK, BLOCK_BYTES, Access::Write)]),
    ]
    .concat();
    let round = [
        // mov edi, BLOCK
        &[0xbf][..],
        &BLOCK.to_le_bytes(),
        // page: mov [rdi], rdi; add edi, 4096; cmp edi, BLOCK + BLOCK_BYTES; jb page
        &[0x48, 0x89, 0x3f, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x81, 0xff],
        &(BLOCK + BLOCK_BYTES).to_le_bytes(),
        &[0x72, 0xef],
        &balloon.submit(REPORTING_QUEUE),
        &print("reported\n"),
        // rdtsc; mov esi, eax; wait: rdtsc; sub eax, esi; cmp eax, 1 << 29; jb wait
        &[0x0f, 0x31, 0x89, 0xc6],
        &[0x0f, 0x31, 0x29, 0xf0, 0x3d, 0x00, 0x00, 0x00, 0x20, 0x72, 0xf5],
    ]
    .concat();
    let again = jump_back(round.len());
    let mut machine = Machine::of(&elf(&[begin, round, again].concat()));
    machine.config.control_socket = Some(machine.path("control"));
    machine
}

/// A figure of `/proc/<pid>/status` in KiB.
fn figure(running: &Running, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", running.process_id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let number = line.trim_start_matches(':').trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

/// Waits until the process has 15 MiB less than it once had, which is when the guest rests.
fn wait_until_given_back(machine: &Machine, running: &Running) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (most, now) = (figure(running, "VmHWM"), figure(running, "VmRSS"));
        if console(machine).contains("reported\n") && now + (15 << 10) <= most {
            return;
        }
        assert!(Instant::now() < deadline, "{now} KiB are left of {most} KiB");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_host_has_back_what_a_guest_reports_free_also_after_a_restore() {
    if kvm_is_missing() {
        return;
    }
    let machine = reporting();
    let running = machine.start().wait_for_first_run();
    wait_until_given_back(&machine, &running);
    let directory = snapshot(&machine, "snapshot");
    stop(&machine, running);

    // There the memory is a private mapping of the snapshot's file, and what comes back are the copies of its pages.
    let mut copy = reporting();
    copy.config.restore = Some(directory);
    let running = copy.start().wait_for_first_run();
    wait_until_given_back(&copy, &running);
    stop(&copy, running);
}

/// Linux reports free blocks of 2 MiB two seconds later. Of the program's 16 MiB not all become such blocks: others'
/// pages lie among them, and some wait in lists of single pages.
#[test]
fn the_host_has_back_what_a_program_in_a_guest_used() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = kernel_boot::machine("memory");
    machine.config.control_socket = Some(machine.path("control"));
    let running = machine.start().wait_for_first_run();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (most, now) = (figure(&running, "VmHWM"), figure(&running, "VmRSS"));
        if console(&machine).contains("they are free") && now + (4 << 10) <= most {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{now} KiB are left of {most} KiB\n{}",
            console(&machine)
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    stop(&machine, running);
}

//! The machine that a hostile driver drives, and the one beside it.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm::config::{BlockDevice, SharedDirectory, VsockConfig};
use vmm::console_ring::ConsoleRing;
use vmm::control::{MemoryRange, Request, Response};
use vmm::status::ExitKind;

use super::driver::{self, BUFFERS, Descriptor, EVENT_INDEX, NEXT, Target, WRITE, describe};
use super::random::Random;
use super::script::{Script, Width};
use crate::kernel_network;
use crate::program::{Machine, Running, kvm_is_missing};

/// The devices in the order of their windows.
pub(crate) const CONSOLE: Target = target("console", 0, 2, EVENT_INDEX);
pub(crate) const ENTROPY: Target = target("entropy", 1, 1, EVENT_INDEX);
pub(crate) const BALLOON: Target = target("balloon", 2, 3, EVENT_INDEX | 1 << 5);
pub(crate) const VSOCK: Target = target("vsock", 3, 3, EVENT_INDEX);
pub(crate) const FILES: Target = target("fs", 4, 2, EVENT_INDEX);
pub(crate) const DISK: Target = target("blk", 5, 1, EVENT_INDEX | 1 << 9);
/// Everything that it offers: MAC, status, merged buffers, checksums, segmentation with ECN.
pub(crate) const NETWORK: Target = target("net", 6, 2, EVENT_INDEX | 0x1_bb83 | 1 << 15);
pub(crate) const ALL: [Target; 7] = [CONSOLE, ENTROPY, BALLOON, VSOCK, FILES, DISK, NETWORK];

const fn target(name: &'static str, window: u32, queues: u32, features: u32) -> Target {
    Target {
        name,
        window,
        queues,
        features,
    }
}

const SECTORS: usize = 64;
/// What is in each sector of the disk, and so what a guest reads from it.
const WORD: u32 = 0x6b68_6c62;
/// What the guest says at last, with the digit of its complaints behind it.
const DONE: &str = "done ";
/// How much larger the VMM may become beside its guest, in KiB: rings of frames, buffers of connections, threads.
const GROWTH_KIB: u64 = 24 << 10;
/// Descriptors it may have more: those of 1,024 connections and some of files.
const MORE_DESCRIPTORS: usize = 1_200;
/// From the request to the end, on a machine that has nothing else to do.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// Only a hang takes it all.
const PATIENCE: Duration = Duration::from_secs(60);

/// The seed that cases are drawn from.
pub(crate) fn seed() -> u64 {
    std::env::var("BULKHEAD_TEST_SEED").map_or(1, |seed| seed.parse().unwrap())
}

/// What hostile guests find, and the machine beside theirs.
pub(crate) struct Scene {
    directory: TempDir,
    tap: Vec<File>,
    bystander: (Machine, Running),
    /// Whether the bystander runs all the time.
    beside: bool,
}

impl Scene {
    /// Runs `test` where there are KVM and a network of the test's own.
    pub(crate) fn run(test: impl FnOnce(&Self) + Send + 'static) {
        Self::run_with(false, test);
    }

    /// The same with a bystander that runs all the time.
    pub(crate) fn run_beside(test: impl FnOnce(&Self) + Send + 'static) {
        Self::run_with(true, test);
    }

    fn run_with(beside: bool, test: impl FnOnce(&Self) + Send + 'static) {
        if kvm_is_missing() {
            return;
        }
        kernel_network::in_a_network_of_its_own(move || {
            let scene = Self::new(beside);
            scene.bystander_goes_on("before everything");
            test(&scene);
            scene.end();
        });
    }

    fn new(beside: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("shared")).unwrap();
        fs::write(directory.path().join("shared/file"), "somebody's").unwrap();
        let words = WORD.to_le_bytes().repeat(SECTORS * 128);
        for disk in ["disk", "bystanders-disk"] {
            fs::write(directory.path().join(disk), &words).unwrap();
        }
        let mut script = Script::new();
        read_disk(&mut script, Target { window: 3, ..DISK });
        script.say_complaints();
        script.repeat();
        let mut machine = Machine::of(&script.kernel());
        machine.config.control_socket = Some(machine.path("control"));
        machine.config.block_devices = vec![disk(directory.path().join("bystanders-disk"))];
        let running = machine.start().wait_for_first_run();
        Self {
            directory,
            tap: kernel_network::tap(),
            bystander: (machine, running),
            beside,
        }
    }

    /// Where the guest's share of files and its disk are.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Has a guest go through `script`, and looks at its VMM.
    pub(crate) fn endure(&self, case: &str, script: &Script) {
        self.endure_with(case, script, |_| {});
    }

    /// The same, with something to prepare before the machine starts.
    pub(crate) fn endure_with(&self, case: &str, script: &Script, prepare: impl FnOnce(&Machine)) {
        let machine = self.machine(script);
        prepare(&machine);
        let running = kernel_network::start(&machine, &self.tap);
        let guest_memory = statistics(case, &machine);
        let before = Figures::of(&running, &guest_memory);
        wait_until(case, "the guest is done", || {
            let said = console(&machine);
            let complaints = said.get(said.len().saturating_sub(DONE.len() + 1)..);
            match complaints.and_then(|end| end.strip_prefix(DONE.as_bytes())) {
                Some([complaints]) => {
                    assert_eq!(*complaints, b'0', "{case}");
                    true
                }
                _ => false,
            }
        });
        wait_until(case, "the VMM rests", || is_at_rest(&running));
        statistics(case, &machine);
        let after = Figures::of(&running, &guest_memory);
        let grown = after.kib.saturating_sub(before.kib);
        assert!(grown < GROWTH_KIB, "{case}: the VMM grew by {grown} KiB");
        let more = after.descriptors.saturating_sub(before.descriptors);
        assert!(more < MORE_DESCRIPTORS, "{case}: {more} descriptors more");
        self.bystander_goes_on(case);
        self.stop(case, &machine, running);
        assert_eq!(
            fs::metadata(self.directory.path().join("disk")).unwrap().len(),
            SECTORS as u64 * 512,
            "{case}"
        );
    }

    /// Starts a guest that goes through `script`, without looking at what it does.
    pub(crate) fn start(&self, case: &str, script: &Script) -> (Machine, Running) {
        let machine = self.machine(script);
        let running = kernel_network::start(&machine, &self.tap);
        statistics(case, &machine);
        (machine, running)
    }

    fn stop(&self, case: &str, machine: &Machine, running: Running) {
        let begun = Instant::now();
        assert_eq!(machine.ask(Request::Stop), Response::Stopping, "{case}");
        let finished = running.finish();
        let patience = STOP_PATIENCE * busy_factor();
        assert!(begun.elapsed() < patience, "{case}: {:?}", begun.elapsed());
        assert_eq!(finished.exit().reason.kind, ExitKind::Stopped, "{case}");
        assert_eq!(finished.errors, "", "{case}");
    }

    fn machine(&self, script: &Script) -> Machine {
        let mut script = script.clone();
        // Whatever was done to the devices, this one serves a driver that is right; and all can be reset.
        for target in ALL {
            script.expect(target.register(0), u32::from_le_bytes(*b"virt"));
            target.set(&mut script, driver::STATUS, 0);
            script.expect(target.register(driver::STATUS), 0);
        }
        read_disk(&mut script, DISK);
        script.say(DONE);
        script.say_complaints();
        let mut machine = Machine::of(&script.kernel());
        let path = |name: &str| self.directory.path().join(name);
        fs::write(path("disk"), WORD.to_le_bytes().repeat(SECTORS * 128)).unwrap();
        machine.config.control_socket = Some(machine.path("control"));
        machine.config.vsock = Some(VsockConfig {
            guest_cid: 3,
            socket: machine.path("vsock"),
        });
        machine.config.shared_directories = vec![SharedDirectory {
            tag: "shared".into(),
            path: path("shared"),
            read_only: false,
        }];
        machine.config.block_devices = vec![disk(path("disk"))];
        machine.config.network_devices = kernel_network::device("02:00:00:00:00:02", &self.tap);
        machine
    }

    /// Has the bystander read its disk once more. Otherwise it is paused, because it would take a whole processor.
    fn bystander_goes_on(&self, case: &str) {
        let machine = &self.bystander.0;
        let before = self.bystanders_progress();
        assert_eq!(machine.ask(Request::Resume), Response::Resumed);
        wait_until(case, "the machine beside it goes on", || {
            self.bystanders_progress() > before
        });
        if !self.beside {
            assert_eq!(machine.ask(Request::Pause), Response::Paused);
        }
    }

    fn bystanders_progress(&self) -> usize {
        let said = console(&self.bystander.0);
        assert!(said.iter().all(|byte| *byte == b'0'), "the bystander complains");
        said.len()
    }

    fn end(self) {
        let (machine, running) = self.bystander;
        assert_eq!(machine.ask(Request::Stop), Response::Stopping);
        assert_eq!(running.finish().exit().reason.kind, ExitKind::Stopped);
    }
}

fn disk(path: std::path::PathBuf) -> BlockDevice {
    BlockDevice {
        id: "disk".into(),
        path,
        read_only: false,
        rate_limit: None,
    }
}

/// Reads sector 63 as a driver should, and checks what is in it.
fn read_disk(script: &mut Script, disk: Target) {
    const HEADER: u32 = BUFFERS + 0xf000;
    const DATA: u32 = BUFFERS + 0xf200;
    const STATUS: u32 = BUFFERS + 0xf100;
    disk.set(script, driver::STATUS, 0);
    script.store(Width::Eight, HEADER, 0);
    script.store(Width::Eight, HEADER + 8, SECTORS as u64 - 1);
    script.store(Width::Four, DATA, 0);
    script.store(Width::Four, STATUS, 0xff);
    let parts = [
        (HEADER, 16, NEXT, 1),
        (DATA, 512, NEXT | WRITE, 2),
        (STATUS, 1, WRITE, 0),
    ];
    for (index, (address, length, flags, next)) in (0..).zip(parts) {
        let descriptor = Descriptor {
            address: address.into(),
            length,
            flags,
            next,
        };
        describe(script, 0, index, descriptor);
    }
    disk.refill(script, 0, &[]);
    disk.start(script, 0);
    disk.refill(script, 0, &[0]);
    disk.notify(script, 0);
    script.wait_for(driver::used(0) + 2, 1);
    script.expect(DATA, WORD);
}

/// What `machine` showed, which may be no text.
fn console(machine: &Machine) -> Vec<u8> {
    ConsoleRing::read_file(&machine.path("console")).unwrap_or_default()
}

fn statistics(case: &str, machine: &Machine) -> Vec<MemoryRange> {
    match machine.ask(Request::Statistics) {
        Response::Statistics { guest_memory, .. } => guest_memory,
        other => panic!("{case}: {other:?}"),
    }
}

/// What a VMM takes beside its guest.
struct Figures {
    kib: u64,
    descriptors: usize,
}

impl Figures {
    fn of(running: &Running, guest_memory: &[MemoryRange]) -> Self {
        let process = format!("/proc/{}", running.process_id());
        let mut of_guest = false;
        let mut kib = 0;
        for line in fs::read_to_string(format!("{process}/smaps")).unwrap().lines() {
            let first = line.split(' ').next().unwrap();
            if let Some((start, _)) = first.split_once('-') {
                let start = u64::from_str_radix(start, 16).unwrap();
                of_guest = guest_memory
                    .iter()
                    .any(|range| (range.start..range.start + range.bytes).contains(&start));
            } else if first == "Anonymous:" && !of_guest {
                let figure = line.split_whitespace().nth(1).unwrap();
                kib += figure.parse::<u64>().unwrap();
            }
        }
        Self {
            kib,
            descriptors: fs::read_dir(format!("{process}/fd")).unwrap().count(),
        }
    }
}

/// How much longer things may take because of others: 1 on an idle machine, and one more for each thread that waits for
/// each processor.
fn busy_factor() -> u32 {
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    let processors = std::thread::available_parallelism().unwrap().get();
    1 + (load / processors as f64) as u32
}

/// Whether all threads together take less than half of a processor for a moment.
fn is_at_rest(running: &Running) -> bool {
    const MOMENT: Duration = Duration::from_millis(20);
    let taken = || -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", running.process_id())).unwrap();
        tasks
            // A thread that ends meanwhile takes nothing.
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
            .filter_map(|figures| figures.split(' ').next()?.parse::<u64>().ok())
            .sum()
    };
    let before = taken();
    std::thread::sleep(MOMENT);
    u128::from(taken().saturating_sub(before)) < MOMENT.as_nanos() / 2
}

#[track_caller]
fn wait_until(case: &str, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{case}: waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A source of numbers for `case`, the same for the same seed.
pub(crate) fn random(case: &str) -> Random {
    Random::new(case.bytes().fold(seed(), |seed, byte| {
        seed.wrapping_mul(31).wrapping_add(byte.into())
    }))
}

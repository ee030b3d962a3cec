//! Machines that go on in another process, from two files: flat guests of a few instructions.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use vmm::config::{SharedDirectory, VsockConfig};
use vmm::console_ring::ConsoleRing;
use vmm::control::{Request, Response};
use vmm::status::{Event, ExitKind, Phase};

use crate::flat_guest::{LOOP, elf, elf_with_memory};
use crate::program::{Finished, Machine, PATIENCE, Running, kvm_is_missing};

/// A program that counts, from 1, in EBX and in memory, and writes each number as a line of eight hexadecimal digits
/// to the early console, in one repeated instruction. It pauses for 2^20 ticks of the time stamp counter between two
/// numbers, which is less than a millisecond.
const COUNTER: &[u8] = &[
    0x31, 0xdb, // xor ebx, ebx
    0xc6, 0x04, 0x25, 0x08, 0x00, 0x30, 0x00, 0x0a, // mov byte [0x300008], 10
    // next:
    0xff, 0xc3, // inc ebx
    0x89, 0x1c, 0x25, 0x10, 0x00, 0x30, 0x00, // mov [0x300010], ebx
    0x89, 0xd8, // mov eax, ebx
    0xbf, 0x07, 0x00, 0x30, 0x00, // mov edi, 0x300007
    // digit:
    0x89, 0xc1, // mov ecx, eax
    0x83, 0xe1, 0x0f, // and ecx, 15
    0x83, 0xf9, 0x0a, // cmp ecx, 10
    0x72, 0x03, // jb decimal
    0x83, 0xc1, 0x27, // add ecx, 39
    // decimal:
    0x83, 0xc1, 0x30, // add ecx, 48
    0x88, 0x0f, // mov [rdi], cl
    0xc1, 0xe8, 0x04, // shr eax, 4
    0xff, 0xcf, // dec edi
    0x81, 0xff, 0x00, 0x00, 0x30, 0x00, // cmp edi, 0x300000
    0x73, 0xe1, // jae digit
    0xbe, 0x00, 0x00, 0x30, 0x00, // mov esi, 0x300000
    0xb9, 0x09, 0x00, 0x00, 0x00, // mov ecx, 9
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xf3, 0x6e, // rep outsb
    0x0f, 0x31, // rdtsc
    0x89, 0xc6, // mov esi, eax
    // wait:
    0x0f, 0x31, // rdtsc
    0x29, 0xf0, // sub eax, esi
    0x3d, 0x00, 0x00, 0x10, 0x00, // cmp eax, 1 << 20
    0x72, 0xf5, // jb wait
    0xeb, 0xb0, // jmp next
];
/// Where the number is in memory.
const COUNT_ADDRESS: u64 = 0x30_0010;

/// Code followed by bytes that are not zero, so that the guest's memory has at least so many.
fn padded(code: &[u8], bytes: usize) -> Vec<u8> {
    let mut padded = code.to_vec();
    padded.resize(bytes, 0xcc);
    padded
}

fn counting() -> Machine {
    let mut machine = Machine::of(&elf(COUNTER));
    machine.config.control_socket = Some(machine.path("control"));
    machine
}

/// What `machine`'s console shows.
pub(crate) fn console(machine: &Machine) -> String {
    let ring = ConsoleRing::read_file(&machine.path("console")).unwrap_or_default();
    String::from_utf8(ring).unwrap()
}

/// Waits until `machine`'s console shows `lines` lines.
fn wait_for_lines(machine: &Machine, lines: usize) {
    let deadline = Instant::now() + PATIENCE;
    while console(machine).lines().count() < lines {
        assert!(Instant::now() < deadline, "the guest does not count");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Takes a snapshot into a new directory of `machine`.
pub(crate) fn snapshot(machine: &Machine, name: &str) -> PathBuf {
    let directory = machine.path(name);
    fs::create_dir(&directory).unwrap();
    let request = Request::Snapshot {
        directory: directory.clone(),
    };
    assert_eq!(machine.ask(request), Response::Snapshot);
    directory
}

/// A machine like `counting()` that goes on from `snapshot`. Its kernel and initial file system are not there.
fn restored(snapshot: &Path) -> Machine {
    let mut machine = counting();
    machine.config.restore = Some(snapshot.to_owned());
    for file in [&machine.config.kernel, &machine.config.initramfs] {
        fs::remove_file(file).unwrap();
    }
    machine
}

/// Has `machine` end.
pub(crate) fn stop(machine: &Machine, running: Running) -> Finished {
    assert_eq!(machine.ask(Request::Stop), Response::Stopping);
    let finished = running.finish();
    assert_eq!(
        finished.exit().reason.kind,
        ExitKind::Stopped,
        "{:?}",
        finished.exit()
    );
    finished
}

fn count_in(snapshot: &Path) -> u32 {
    let memory = fs::File::open(snapshot.join("memory")).unwrap();
    let mut bytes = [0; 4];
    memory.read_exact_at(&mut bytes, COUNT_ADDRESS).unwrap();
    u32::from_le_bytes(bytes)
}

/// Checks that `text` is the numbers from 1, each once and whole but for the last.
fn assert_counts_on(text: &str) {
    let mut lines: Vec<&str> = text.lines().collect();
    if !text.ends_with('\n') {
        lines.pop();
    }
    for (number, line) in (1..).zip(&lines) {
        assert_eq!(*line, format!("{number:08x}"));
    }
}

/// A snapshot of a machine that counts, with what its console showed, and the machine that keeps both.
fn counting_snapshot() -> (Machine, PathBuf, String) {
    let machine = counting();
    let running = machine.start().wait_for_first_run();
    wait_for_lines(&machine, 5);
    let directory = snapshot(&machine, "snapshot");
    stop(&machine, running);
    let text = console(&machine);
    (machine, directory, text)
}

#[test]
fn two_machines_count_on_from_one_snapshot_each_for_itself() {
    if kvm_is_missing() {
        return;
    }
    let (_original, directory, before) = counting_snapshot();
    let (first, second) = (restored(&directory), restored(&directory));
    let first_running = first.start().wait_for_first_run();
    wait_for_lines(&first, 10);
    // The second starts when the first has already changed its memory.
    let second_running = second.start().wait_for_first_run();
    wait_for_lines(&second, 5);
    let again = snapshot(&first, "again");
    stop(&second, second_running);
    stop(&first, first_running);
    for machine in [&first, &second] {
        assert_counts_on(&(before.clone() + &console(machine)));
    }
    assert!(count_in(&again) >= count_in(&directory) + 9);

    // A snapshot of a machine that came from one is as good.
    let third = restored(&again);
    let running = third.start().wait_for_first_run();
    wait_for_lines(&third, 5);
    stop(&third, running);
    assert_counts_on(&(before + &console(&first) + &console(&third)));
}

#[test]
fn a_machine_counts_on_after_its_own_snapshot() {
    if kvm_is_missing() {
        return;
    }
    let machine = counting();
    let running = machine.start().wait_for_first_run();
    wait_for_lines(&machine, 5);
    snapshot(&machine, "snapshot");
    let then = console(&machine);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(console(&machine), then, "it is paused");
    assert_eq!(machine.ask(Request::Resume), Response::Resumed);
    wait_for_lines(&machine, then.lines().count() + 10);
    stop(&machine, running);
    assert_counts_on(&console(&machine));
}

#[test]
fn a_paused_machine_does_nothing_until_it_is_resumed_and_can_be_ended() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = counting();
    machine.config.vcpus = 3;
    let running = machine.start().wait_for_first_run();
    wait_for_lines(&machine, 3);
    for _ in 0..20 {
        assert_eq!(machine.ask(Request::Pause), Response::Paused);
        assert_eq!(machine.ask(Request::Pause), Response::Paused);
        let then = console(&machine);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(console(&machine), then);
        assert_eq!(machine.ask(Request::Resume), Response::Resumed);
        wait_for_lines(&machine, then.lines().count() + 2);
    }
    assert_eq!(machine.ask(Request::Pause), Response::Paused);
    stop(&machine, running);
    assert_counts_on(&console(&machine));
}

#[test]
fn a_restored_machine_reports_the_same_phases() {
    if kvm_is_missing() {
        return;
    }
    let (_original, directory, _) = counting_snapshot();
    let machine = restored(&directory);
    let running = machine.start().wait_for_first_run();
    let finished = stop(&machine, running);
    let names: Vec<Phase> = finished
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Phase { name, .. } => Some(*name),
            Event::Exit(_) => None,
        })
        .collect();
    let all = [
        Phase::FilesOpened,
        Phase::KernelLoaded,
        Phase::MachineBuilt,
        Phase::FirstRun,
    ];
    assert_eq!(names, all);
    machine.assert_nothing_left();
}

#[test]
fn only_the_two_files_are_written_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    if kvm_is_missing() {
        return;
    }
    let (_original, directory, _) = counting_snapshot();
    let files: BTreeMap<_, _> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name(), entry.metadata().unwrap()))
        .collect();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["memory", "state"]);
    assert!(
        files
            .values()
            .all(|file| file.permissions().mode() & 0o777 == 0o600)
    );
    assert_eq!(files[std::ffi::OsStr::new("memory")].len(), 64 << 20);
}

/// The reason why `machine` is not restored, without the path of the snapshot.
fn refusal(machine: &Machine, directory: &Path) -> String {
    let finished = machine.start().finish();
    assert_eq!(finished.exit().reason.kind, ExitKind::StartFailed);
    assert_eq!(finished.status.code(), Some(1));
    assert!(!machine.path("console").exists(), "a console without a machine");
    let message = &finished.exit().reason.message;
    message.replace(&directory.display().to_string(), "S")
}

#[test]
fn a_machine_that_is_not_like_the_snapshots_is_refused_with_the_difference() {
    if kvm_is_missing() {
        return;
    }
    let (_original, directory, _) = counting_snapshot();
    let refused = |change: &dyn Fn(&mut Machine)| {
        let mut machine = restored(&directory);
        change(&mut machine);
        refusal(&machine, &directory)
    };
    assert_eq!(
        refused(&|machine| machine.config.vcpus = 2),
        "the snapshot S does not fit: it has 1 vCPUs, and this machine is to have 2"
    );
    assert_eq!(
        refused(&|machine| machine.config.memory_mib = 65),
        "the snapshot S does not fit: it has 64 MiB of memory, and this machine is to have 65"
    );
    assert_eq!(
        refused(&|machine| {
            let socket = machine.path("vsock");
            machine.config.vsock = Some(VsockConfig { guest_cid: 3, socket });
        }),
        "the snapshot S does not fit: it has the devices console, rng, balloon, and this machine is to have \
         console, rng, balloon, vsock of guest 3"
    );
    assert_eq!(
        refused(&|machine| {
            machine.config.shared_directories = vec![SharedDirectory {
                tag: "share".into(),
                path: machine.directory.path().to_owned(),
                read_only: true,
            }];
        }),
        "the snapshot S does not fit: it has the devices console, rng, balloon, and this machine is to have \
         console, rng, balloon, fs \"share\""
    );
}

/// What `--verify` says of `directory`, without its path; nothing if it is content.
fn verify(directory: &Path) -> Option<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
        .arg("--verify")
        .arg(directory)
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.success(), errors.is_empty(), "{errors}");
    (!errors.is_empty()).then(|| errors.trim_end().replace(&directory.display().to_string(), "S"))
}

#[test]
fn a_snapshot_that_was_damaged_is_refused_and_fails_verification() {
    if kvm_is_missing() {
        return;
    }
    let (_original, directory, _) = counting_snapshot();
    assert_eq!(verify(&directory), None);
    let state = fs::read(directory.join("state")).unwrap();
    let open = |name: &str| {
        let options = fs::OpenOptions::new().read(true).write(true).clone();
        options.open(directory.join(name)).unwrap()
    };
    let assert_both = |reason: &str| {
        let refused = refusal(&restored(&directory), &directory);
        assert_eq!(refused, reason);
        assert_eq!(verify(&directory).unwrap(), format!("bulkhead-vmm: {reason}"));
    };

    for (position, reason) in [
        (0, "it is no snapshot's state"),
        (8, "it has format version 0, and this program reads version 1"),
        (30, "it is damaged: its checksum is wrong"),
        (state.len() / 2, "it is damaged: its checksum is wrong"),
    ] {
        let mut damaged = state.clone();
        damaged[position] ^= 1;
        fs::write(directory.join("state"), damaged).unwrap();
        assert_both(&format!("the state of the snapshot S cannot be used: {reason}"));
    }
    fs::write(directory.join("state"), &state[..state.len() - 1]).unwrap();
    assert_both(&format!(
        "the state of the snapshot S cannot be used: it has {} bytes where it should have {}",
        state.len() - 1,
        state.len()
    ));
    fs::write(directory.join("state"), &state).unwrap();

    let wrong_size = |bytes: u64| {
        open("memory").set_len(bytes).unwrap();
        assert_both(&format!(
            "the memory of the snapshot S cannot be used: the memory file has {bytes} bytes where it should have \
             67108864"
        ));
    };
    wrong_size((64 << 20) + 1);
    open("memory").set_len(64 << 20).unwrap();
    assert_eq!(verify(&directory), None);

    // A changed page is found by whoever looks for it.
    open("memory").write_all_at(b"?", COUNT_ADDRESS).unwrap();
    assert_eq!(
        verify(&directory).unwrap(),
        "bulkhead-vmm: the memory of the snapshot S cannot be used: the memory file is damaged: its checksum is wrong"
    );

    wrong_size((64 << 20) - 4096);
    wrong_size(0);
    fs::remove_file(directory.join("state")).unwrap();
    assert_both("opening S/state: No such file or directory (os error 2)");
}

#[test]
fn a_snapshot_goes_only_into_an_empty_directory_and_the_machine_runs_on() {
    if kvm_is_missing() {
        return;
    }
    let machine = counting();
    let running = machine.start().wait_for_first_run();
    let ask = |directory: PathBuf| match machine.ask(Request::Snapshot { directory }) {
        Response::Error { message } => message,
        other => panic!("{other:?}"),
    };
    let here = machine.directory.path().to_owned();
    assert_eq!(
        ask(here.clone()),
        format!("the directory {} is not empty", here.display())
    );
    let nowhere = machine.path("nowhere");
    assert_eq!(
        ask(nowhere.clone()),
        format!(
            "opening the directory {}: No such file or directory (os error 2)",
            nowhere.display()
        )
    );
    let lines = console(&machine).lines().count();
    wait_for_lines(&machine, lines + 10);
    stop(&machine, running);
    assert_counts_on(&console(&machine));
    machine.assert_nothing_left();
}

#[test]
fn a_full_disk_leaves_no_file_and_the_machine_runs_on() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = Machine::of(&elf_with_memory(&padded(COUNTER, 3 << 20), 3 << 20));
    machine.config.control_socket = Some(machine.path("control"));
    let small = machine.path("small");
    fs::create_dir(&small).unwrap();
    // Only the machine's process sees the file system that has too little room.
    let script = "mount -t tmpfs -o size=1m none \"$2\" && exec \"$0\" --config \"$1\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_bulkhead-vmm")])
        .arg(machine.write_config())
        .arg(&small);
    let running = Running::spawn(&mut command).wait_for_first_run();
    let answer = machine.ask(Request::Snapshot {
        directory: small.clone(),
    });
    let Response::Error { message } = answer else {
        panic!("{answer:?}")
    };
    assert!(
        message.ends_with("writing the memory file: No space left on device (os error 28)"),
        "{message}"
    );
    let seen_by_machine = format!("/proc/{}/root{}", running.process_id(), small.display());
    assert_eq!(fs::read_dir(seen_by_machine).unwrap().count(), 0);
    let lines = console(&machine).lines().count();
    wait_for_lines(&machine, lines + 10);
    stop(&machine, running);
    assert_counts_on(&console(&machine));
}

/// At moments spread over what a snapshot takes, and a little longer.
#[test]
fn a_machine_that_is_killed_while_it_is_saved_leaves_a_whole_snapshot_or_none() {
    const KILLS: u32 = 24;
    if kvm_is_missing() {
        return;
    }
    let counting = || {
        let mut machine = Machine::of(&elf_with_memory(&padded(COUNTER, 3 << 20), 3 << 20));
        machine.config.control_socket = Some(machine.path("control"));
        machine
    };
    let undisturbed = counting();
    let running = undisturbed.start().wait_for_first_run();
    let begun = Instant::now();
    snapshot(&undisturbed, "snapshot");
    let taken = begun.elapsed();
    stop(&undisturbed, running);

    let mut whole = 0;
    for kill in 0..KILLS {
        let machine = counting();
        let mut running = machine.start().wait_for_first_run();
        let directory = machine.path("snapshot");
        fs::create_dir(&directory).unwrap();
        let _answer = machine.send(Request::Snapshot {
            directory: directory.clone(),
        });
        std::thread::sleep(taken * 5 / 4 * kill / KILLS);
        running.child.kill().unwrap();
        running.child.wait().unwrap();
        let complaint = verify(&directory);
        if directory.join("state").exists() {
            assert_eq!(complaint, None);
            whole += 1;
        } else {
            assert_eq!(
                complaint.as_deref(),
                Some("bulkhead-vmm: opening S/state: No such file or directory (os error 2)")
            );
        }
    }
    assert!(
        (1..KILLS).contains(&whole),
        "{whole} of {KILLS} kills came after the snapshot"
    );
}

#[test]
fn vcpus_that_were_never_started_wait_in_the_restored_machine_too() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = Machine::of(&elf(LOOP));
    machine.config.control_socket = Some(machine.path("control"));
    machine.config.vcpus = 4;
    let running = machine.start().wait_for_first_run();
    let directory = snapshot(&machine, "snapshot");
    stop(&machine, running);
    let mut copy = restored(&directory);
    copy.config.vcpus = 4;
    let running = copy.start().wait_for_first_run();
    let finished = stop(&copy, running);
    assert_eq!(finished.exit().vcpus.len(), 4);
    assert_eq!(finished.errors, "");
}

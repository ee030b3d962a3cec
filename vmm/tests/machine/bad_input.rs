//! Machines that cannot be: each is refused with its reason on both channels, and leaves nothing.

use std::fs;
use std::process::Command;

use vmm::status::ExitKind;

use crate::flat_guest::{RESET, elf, elf_with_memory};
use crate::program::{Finished, Machine, Running, kvm_is_missing};

/// The reason why `finished` did not start, the same on both channels.
fn refusal(finished: &Finished) -> &str {
    assert_eq!(finished.exit().reason.kind, ExitKind::StartFailed);
    assert_eq!(finished.status.code(), Some(1));
    let message = &finished.exit().reason.message;
    assert_eq!(finished.errors, format!("bulkhead-vmm: {message}\n"));
    message
}

fn assert_refused(machine: &Machine, reason: &str) {
    let finished = machine.run();
    let message = refusal(&finished);
    assert!(
        message.contains(reason),
        "{message:?} does not contain {reason:?}"
    );
    assert!(!machine.path("console").exists(), "a console without a machine");
}

#[test]
fn a_missing_kernel_is_named() {
    let mut machine = Machine::of(&elf(RESET));
    machine.config.kernel = machine.path("no-such-kernel");
    let path = machine.config.kernel.display().to_string();
    assert_refused(
        &machine,
        &format!("opening the kernel {path}: No such file or directory"),
    );
}

#[test]
fn a_truncated_kernel_is_named_with_what_is_missing() {
    let mut kernel = elf(RESET);
    kernel.truncate(124);
    let machine = Machine::of(&kernel);
    let path = machine.config.kernel.display().to_string();
    assert_refused(
        &machine,
        &format!(
            "checking the kernel {path}: the file is cut short: a segment ends at byte 126, the file at 124"
        ),
    );
}

#[test]
fn a_kernel_that_is_not_elf_is_named() {
    let machine = Machine::of(&[b'M'; 4096]);
    assert_refused(
        &machine,
        "the file is not a 64-bit little-endian ELF file (it begins with [4d, 4d",
    );
}

#[test]
fn an_initramfs_that_is_not_cpio_is_named() {
    let machine = Machine::of(&elf(RESET));
    fs::write(&machine.config.initramfs, [0x1f, 0x8b, 8, 0, 0, 0]).unwrap();
    let path = machine.config.initramfs.display().to_string();
    assert_refused(
        &machine,
        &format!("checking the initramfs {path}: the file is not an uncompressed cpio"),
    );
}

#[test]
fn too_little_memory_is_refused_with_the_arithmetic() {
    let mut machine = Machine::of(&elf_with_memory(RESET, 46 << 20));
    machine.config.memory_mib = 48;
    assert_refused(
        &machine,
        "48 MiB of memory are too few: the kernel ends at 48 MiB, the initramfs takes 1 MiB packed and as much \
         unpacked, and the kernel works with 16 MiB more; give at least 65 MiB",
    );
}

#[test]
fn an_unknown_key_is_named() {
    let machine = Machine::of(&elf(RESET));
    let mut config = serde_json::to_value(&machine.config).unwrap();
    config["memory"] = 64.into();
    let path = machine.path("config");
    fs::write(&path, config.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"));
    let finished = Running::spawn(command.arg("--config").arg(&path)).finish();
    let message = refusal(&finished);
    assert!(message.contains("unknown field `memory`"), "{message}");
}

#[test]
fn a_descriptor_that_is_no_tap_is_told() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = Machine::of(&elf(RESET));
    let network = |descriptor: i32| {
        let json = format!(r#"[{{"mac":"02:00:00:00:00:01","tap_descriptors":[{descriptor}]}}]"#);
        serde_json::from_str(&json).unwrap()
    };
    for (descriptor, reason) in [
        (
            99,
            "connecting the network device 02:00:00:00:00:01: taking descriptor 99 as a tap; whoever starts this \
             process opens the tap and hands it down: Bad file descriptor (os error 9)",
        ),
        // The first one that this process opens itself.
        (
            3,
            "asking descriptor 3 which tap it is; it is /dev/net/tun opened and attached by TUNSETIFF: ",
        ),
    ] {
        machine.config.network_devices = network(descriptor);
        let finished = machine.start().finish();
        let message = refusal(&finished);
        assert!(
            message.contains(reason),
            "{message:?} does not contain {reason:?}"
        );
        fs::remove_file(machine.path("console")).unwrap();
    }
    machine.config.network_devices = network(1);
    assert_refused(&machine, "is descriptor 1: an inherited tap has a number above 2");
}

#[test]
fn no_vcpu_is_refused() {
    let mut machine = Machine::of(&elf(RESET));
    machine.config.vcpus = 0;
    assert_refused(&machine, "0 vcpus: a machine has 1 to 32");
}

#[test]
fn a_control_socket_that_exists_is_named_and_not_removed() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = Machine::of(&elf(RESET));
    let path = machine.path("control");
    fs::write(&path, "somebody's").unwrap();
    machine.config.control_socket = Some(path.clone());
    let finished = machine.start().finish();
    let message = refusal(&finished);
    let expected = format!(
        "listening for control requests at {}: Address already in use",
        path.display()
    );
    assert!(message.starts_with(&expected), "{message}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "somebody's");
}

/// Runs the machine where `hide`, a shell command, has changed `/dev` for this process alone.
fn run_with_dev(machine: &Machine, hide: &str) -> Finished {
    let script = format!("{hide} && exec \"$0\" --config \"$1\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_bulkhead-vmm")]);
    Running::spawn(command.arg(machine.write_config())).finish()
}

#[test]
fn a_host_without_kvm_is_told() {
    let machine = Machine::of(&elf(RESET));
    let finished = run_with_dev(&machine, "mount -t tmpfs none /dev");
    let message = refusal(&finished);
    assert!(
        message.starts_with("opening /dev/kvm; a microVM needs a host with KVM"),
        "{message}"
    );
    assert!(
        message.ends_with("No such file or directory (os error 2)"),
        "{message}"
    );
    machine.assert_nothing_left();
}

#[test]
fn a_kvm_that_is_something_else_is_told() {
    if kvm_is_missing() {
        return;
    }
    let machine = Machine::of(&elf(RESET));
    let finished = run_with_dev(&machine, "mount --bind /dev/null /dev/kvm");
    let message = refusal(&finished);
    assert!(
        message.starts_with("/dev/kvm answers with API version -1, not 12"),
        "{message}"
    );
}

#[test]
fn an_unknown_argument_is_answered_with_the_usage() {
    let output = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
        .arg("--frobnicate")
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.starts_with("bulkhead-vmm: unknown argument \"--frobnicate\"\n\nusage: "),
        "{errors}"
    );
    assert_eq!(output.status.code(), Some(1));
}

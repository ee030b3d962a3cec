//! The real kernel, with a first program that does what a test tells it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use vmm::config::{BlockDevice, SharedDirectory, VsockConfig};
use vmm::status::ExitKind;

use crate::cpio;
use crate::program::{Finished, Machine, kvm_is_missing};

/// The kernel that `kernel-config/build` makes, or has made before; or the one that `BULKHEAD_KERNEL` names.
fn kernel() -> &'static Path {
    static KERNEL: OnceLock<PathBuf> = OnceLock::new();
    KERNEL.get_or_init(|| {
        if let Some(path) = std::env::var_os("BULKHEAD_KERNEL") {
            return path.into();
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel-config/build");
        let output = Command::new(&script).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .last()
            .unwrap()
            .into()
    })
}

/// An archive with the tests' own first program.
fn initramfs() -> &'static [u8] {
    static INITRAMFS: OnceLock<Vec<u8>> = OnceLock::new();
    INITRAMFS.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("init");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/init.rs");
        let output = Command::new("rustc")
            .args([
                "--edition",
                "2024",
                "-O",
                "-C",
                "target-feature=+crt-static",
                "-C",
                "strip=symbols",
            ])
            .args(["--target", "x86_64-unknown-linux-gnu", "-C", "panic=abort", "-o"])
            .args([&program, &source])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        cpio::archive("init", &fs::read(program).unwrap())
    })
}

/// A machine whose first program is told `orders`.
pub(crate) fn machine(orders: &str) -> Machine {
    let mut machine = Machine::of(b"");
    machine.config.kernel = kernel().to_owned();
    fs::write(&machine.config.initramfs, initramfs()).unwrap();
    machine.config.memory_mib = 128;
    machine.config.command_line = format!("-- {orders}");
    machine
}

fn console(finished: &Finished) -> String {
    finished.exit().console.join("\n")
}

#[test]
fn a_guest_with_two_vcpus_uses_every_device_and_restarts() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = machine("cpus entropy disks share vsock restart");
    machine.config.vcpus = 2;
    let share = machine.path("share");
    fs::create_dir(&share).unwrap();
    fs::write(share.join("question"), "Is anybody there?").unwrap();
    machine.config.shared_directories = vec![SharedDirectory {
        tag: "share".into(),
        path: share.clone(),
        read_only: false,
    }];
    let disks = ["first", "second"].map(|name| machine.path(name));
    for disk in &disks {
        fs::write(disk, b"an old disk says".repeat(1 << 17)).unwrap();
    }
    machine.config.block_devices = disks
        .iter()
        .zip([false, true])
        .map(|(disk, read_only)| BlockDevice {
            id: format!("disk{}", u8::from(read_only)),
            path: disk.clone(),
            read_only,
            rate_limit: None,
        })
        .collect();
    machine.config.vsock = Some(VsockConfig {
        guest_cid: 3,
        socket: machine.path("vsock"),
    });
    let listener = UnixListener::bind(machine.path("vsock_1000")).unwrap();
    let host = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(b"pong").unwrap();
        word
    });

    let finished = machine.start().finish();
    let console = console(&finished);
    assert_eq!(
        finished.exit().reason.kind,
        ExitKind::GuestReset,
        "{:?}\n{console}",
        finished.exit().reason
    );
    assert!(console.contains("init: 2 cpus"), "{console}");
    assert!(console.contains("init: entropy is there"), "{console}");
    assert!(console.contains("init: the host says pong"), "{console}");
    assert_eq!(
        fs::read_to_string(share.join("answer")).unwrap(),
        "Is anybody there? yes"
    );
    assert_eq!(&host.join().unwrap(), b"ping");
    for line in [
        "init: vda is disk0 of 4096 sectors, read-only 0",
        "init: vdb is disk1 of 4096 sectors, read-only 1",
        "init: the disk says an old disk says",
        "init: writing to the second disk: permission denied",
    ] {
        assert!(console.contains(line), "{line}\n{console}");
    }
    let [first, second] = disks.map(|disk| {
        let bytes = fs::read(&disk).unwrap();
        fs::remove_file(disk).unwrap();
        bytes
    });
    let (old, new) = first.split_at(1 << 20);
    assert!(old == b"an old disk says".repeat(1 << 16));
    for (index, byte) in new.iter().enumerate() {
        let expected = match index >> 16 {
            0..4 | 8 => 0,
            _ => 0x5a,
        };
        assert_eq!(*byte, expected, "byte {index} of the second MiB");
    }
    assert!(second == b"an old disk says".repeat(1 << 17));
    fs::remove_file(machine.path("vsock_1000")).unwrap();
    fs::remove_dir_all(share).unwrap();
    machine.assert_nothing_left();
}

#[test]
fn a_first_program_that_returns_is_the_kernels_panic() {
    if kvm_is_missing() {
        return;
    }
    let finished = machine("return").run();
    let reason = &finished.exit().reason;
    assert_eq!(
        reason.kind,
        ExitKind::GuestPanic,
        "{reason:?}\n{}",
        console(&finished)
    );
    assert_eq!(reason.message, "Attempted to kill init! exitcode=0x00000000");
}

#[test]
fn a_kernel_without_a_first_program_panics_and_says_so() {
    if kvm_is_missing() {
        return;
    }
    let machine = machine("");
    fs::write(&machine.config.initramfs, cpio::end()).unwrap();
    let finished = machine.run();
    let reason = &finished.exit().reason;
    assert_eq!(
        reason.kind,
        ExitKind::GuestPanic,
        "{reason:?}\n{}",
        console(&finished)
    );
    assert!(!reason.message.is_empty());
}

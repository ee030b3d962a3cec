//! The container engine's own tests on the guest's kernel: what makes containers on a host makes them there, with
//! cgroup version 2.
//!
//! They run in a machine of their own without our agent, because their subject is the engine and the kernel; each makes
//! real containers, which takes seconds where KVM emulates the guest's kernel. So a part runs by default, all of them with
//! `BULKHEAD_ENGINE_IN_GUEST=all`, and with other words in its place those whose names hold one of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tests::engine_program::engine_program;
use tests::{binary, guest_part, guests_are_too_slow, initramfs};

/// What depends on the kernel most, and is not told by asking the agent (`engine_parity.rs`).
const PART: &str = "limits_are_written";
/// For all of them on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(3000);

/// Runs in the initial file system: makes a root that can be left by `pivot_root`, and goes there.
const INIT: &str = "#!/bin/busybox sh
set -e
/bin/busybox --install -s /bin
mount -t tmpfs tmpfs /new
mkdir /new/bin /new/proc /new/sys /new/dev /new/tmp /new/etc /new/run /new/host /new/root
cp -a /bin/. /new/bin
mount -t proc proc /new/proc
mount -t sysfs sysfs /new/sys
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
mount -t devtmpfs devtmpfs /new/dev
mkdir /new/dev/pts /new/dev/shm
mount -t devpts -o ptmxmode=0666 devpts /new/dev/pts
mount -t tmpfs tmpfs /new/dev/shm
mount -t virtiofs host /new/host
exec switch_root /new /bin/sh /host/run
";

/// Runs in that root.
const RUN: &str = "export PATH=/bin
ip link set lo up
cp /host/engine /tmp/engine
BULKHEAD_ENGINE_SLOW=1 /tmp/engine $(cat /host/filters) > /host/output 2>&1
echo $? > /host/code
reboot -f
";

#[test]
fn the_engine_makes_containers_on_the_guests_kernel() {
    if !Path::new("/dev/kvm").exists() {
        println!("SKIPPED: microVMs need /dev/kvm");
        return;
    }
    let asked_for = std::env::var("BULKHEAD_ENGINE_IN_GUEST").ok();
    let filters = match asked_for.as_deref() {
        None if guests_are_too_slow() => return,
        None => PART,
        Some("all") => "",
        Some(words) => words,
    };
    let Some(engine) = engine_program() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::copy(&engine, shared.join("engine")).unwrap();
    // What the guest's kernel would otherwise have to read is mostly for debuggers.
    let stripped = Command::new("strip").arg(shared.join("engine")).status();
    assert!(
        stripped.is_ok_and(|status| status.success()),
        "`strip` comes with gcc"
    );
    fs::write(shared.join("filters"), filters).unwrap();
    fs::write(shared.join("run"), RUN).unwrap();
    let archive = directory.path().join("initramfs.cpio");
    initramfs::with_entries(
        &[
            ("bin", initramfs::FOLDER, &[]),
            ("new", initramfs::FOLDER, &[]),
            (
                "bin/busybox",
                initramfs::PROGRAM,
                &fs::read(image_builder::busybox::BUSYBOX).unwrap(),
            ),
            ("init", initramfs::PROGRAM, INIT.as_bytes()),
        ],
        &archive,
    );
    let output = run_machine(directory.path(), &shared, &archive);
    println!("{output}");
    let code = fs::read_to_string(shared.join("code")).unwrap_or_default();
    assert_eq!(code.trim(), "0", "the engine's tests in the guest:\n{output}");
    assert!(output.contains("test result: ok"), "{output}");
    assert!(!output.contains("running 0 tests"), "{output}");
}

/// Boots a machine with the folder and returns what the tests there printed.
fn run_machine(directory: &Path, shared: &Path, archive: &Path) -> String {
    let console = directory.join("console");
    let machine = json!({
        "kernel": guest_part("vmlinux"),
        "initramfs": archive,
        "command_line": "",
        "vcpus": 1,
        "memory_mib": 512,
        "console_ring": console,
        "vsock": null,
        "shared_directories": [{ "tag": "host", "path": shared, "read_only": false }],
        "control_socket": null,
        "die_with_parent": true,
        "restore": null
    });
    let mut vmm = Command::new(binary("bulkhead-vmm"))
        .args(["--config", "-"])
        .stdin(Stdio::piped())
        .stdout(fs::File::create(directory.join("status")).unwrap())
        .spawn()
        .expect("bulkhead-vmm; `make build` makes it");
    let mut stdin = vmm.stdin.take().unwrap();
    stdin.write_all(machine.to_string().as_bytes()).unwrap();
    drop(stdin);
    let deadline = Instant::now() + PATIENCE;
    while vmm.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            vmm.kill().unwrap();
            vmm.wait().unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    fs::read_to_string(shared.join("output")).unwrap_or_else(|_| {
        let console = fs::read(console).unwrap_or_default();
        format!("the guest printed:\n{}", String::from_utf8_lossy(&console))
    })
}

//! The workloads in a guest, and what its VMM takes meanwhile.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use vmm::config::{BlockDevice, MachineConfig, SharedDirectory};
use vmm::console_ring::ConsoleRing;

use super::workload::{ALL, Done};
use super::{FILES_TAG, Measured};
use crate::machine::{self, Parts};

const MEMORY_MIB: u32 = 256;
/// A boot, and each workload, of which some end late.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often the console is looked at, and so how far off a processor time can be.
const STEP: Duration = Duration::from_millis(2);

/// Ends the process however the measurement ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes the guest's initial file system: this program and busybox.
pub(crate) fn make_initramfs(directory: &Path) -> anyhow::Result<()> {
    let root = directory.join("guest");
    fs::create_dir(&root)?;
    fs::copy(std::env::current_exe()?, root.join("init"))?;
    fs::copy(image_builder::busybox::BUSYBOX, root.join("busybox"))?;
    let mut cpio = Command::new(image_builder::busybox::BUSYBOX)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(&root)
        .stdin(Stdio::piped())
        .stdout(File::create(directory.join("initramfs"))?)
        .stderr(Stdio::null())
        .spawn()?;
    cpio.stdin
        .take()
        .context("a pipe")?
        .write_all(b"init\nbusybox\n")?;
    ensure!(cpio.wait()?.success(), "making the initramfs failed");
    Ok(())
}

/// Boots a guest that does all of them, one after the other.
pub(crate) fn measure(
    parts: Parts<'_>,
    directory: &Path,
    tap: &File,
    seconds: u64,
) -> anyhow::Result<Vec<Measured>> {
    let console = directory.join("console");
    // The one of the round before.
    if console.exists() {
        fs::remove_file(&console)?;
    }
    let network = json!([{"mac": "02:00:00:00:00:01", "tap_descriptors": [tap.as_raw_fd()]}]);
    let config = MachineConfig {
        kernel: parts.share.join("vmlinux"),
        initramfs: directory.join("initramfs"),
        command_line: format!("-- --guest-seconds {seconds}"),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        console_ring: console.clone(),
        vsock: None,
        shared_directories: vec![SharedDirectory {
            tag: FILES_TAG.to_owned(),
            path: directory.join("data"),
            read_only: false,
        }],
        block_devices: vec![BlockDevice {
            id: "disk".to_owned(),
            path: directory.join("data/disk"),
            read_only: false,
            rate_limit: None,
        }],
        disk_slots: 0,
        network_devices: serde_json::from_value(network)?,
        control_socket: None,
        die_with_parent: true,
        own_root: false,
        restore: None,
    };
    let path = directory.join("machine.json");
    fs::write(&path, serde_json::to_vec(&config)?)?;
    let mut command = Command::new(parts.bin.join("bulkhead-vmm"));
    command.arg("--config").arg(path).stdout(Stdio::null());
    let descriptor = tap.as_raw_fd();
    // SAFETY: between fork and exec there is one call, which may be made there (signal-safety(7)).
    unsafe {
        command.pre_exec(move || match libc::fcntl(descriptor, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut process = Process(
        command
            .spawn()
            .context("starting bulkhead-vmm; `make build` makes it")?,
    );
    watch(&mut process, &console)
}

/// Reads the console for who begins and who has ended.
fn watch(process: &mut Process, console: &Path) -> anyhow::Result<Vec<Measured>> {
    let deadline = Instant::now() + PATIENCE;
    let mut measured: Vec<Measured> = Vec::new();
    let mut taken_before = Duration::ZERO;
    let mut is_at_work = false;
    while measured.len() < ALL.len() {
        let said = ConsoleRing::read_file(console).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        if let Some(failure) = said.lines().find(|line| line.contains("bench failed")) {
            bail!("the guest says: {failure}");
        }
        if let Some(status) = process.0.try_wait()? {
            bail!("the VMM ended with {status}; the guest said:\n{said}");
        }
        ensure!(
            Instant::now() < deadline,
            "the guest takes too long; it said:\n{said}"
        );
        let begun = said
            .lines()
            .filter(|line| line.starts_with("bench begin"))
            .count();
        if begun > measured.len() && !is_at_work {
            taken_before = machine::processor_time(process.0.id())?;
            is_at_work = true;
        }
        // A line is there when its end is.
        let (complete, _) = said.rsplit_once('\n').unwrap_or_default();
        let ended = complete.lines().filter_map(Done::from_line).nth(measured.len());
        if let Some((workload, done)) = ended {
            let taken = machine::processor_time(process.0.id())?.saturating_sub(taken_before);
            measured.push(Measured {
                workload,
                done,
                processor_time: taken,
            });
            is_at_work = false;
        }
        thread::sleep(STEP);
    }
    Ok(measured)
}

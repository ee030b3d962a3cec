//! QEMU's microvm beside our VMM: the same kernel in a guest of the same size, until the guest first wants something of
//! its machine, and what the process takes. No further: not every KVM lets QEMU boot this kernel to its end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use vmm::control::MemoryRange;

use crate::machine::{self, MEMORY_MIB, Machine, Memory, Parts};
use crate::rounds::{median, milliseconds};

const BINARY: &str = "qemu-system-x86_64";
/// The fewest devices that the machine can have.
const MACHINE: &str = "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off";
/// Written by QEMU when the guest's first exit is there.
const FIRST_EXIT: &str = "kvm_run_exit";
/// From the start to the measurement of the memory: the guest's kernel is at work.
const AT_WORK: Duration = Duration::from_secs(2);

/// What one start has cost.
struct Start {
    begun: Duration,
    memory: Memory,
}

/// Starts both in turn, and prints the medians.
pub(crate) fn measure(parts: Parts<'_>, rounds: usize) -> anyhow::Result<()> {
    let version = Command::new(BINARY)
        .arg("--version")
        .stderr(Stdio::null())
        .output();
    let Ok(version) = version else {
        println!("{BINARY} is not installed and is left out");
        return Ok(());
    };
    let version = String::from_utf8_lossy(&version.stdout);
    println!("{}", version.lines().next().unwrap_or_default());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let machine = Machine::start(parts, None)?;
        let (_, guest_memory) = machine.statistics()?;
        ours.push(Start {
            begun: machine.first_run,
            memory: machine.memory(&guest_memory)?,
        });
        drop(machine);
        theirs.push(start(parts)?);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        &format!("{MEMORY_MIB} MiB, 1 vCPU, booted: medians of {rounds}"),
        "bulkhead-vmm",
        "QEMU microvm",
    ]);
    let mut row = |heading: &str, figure: &dyn Fn(&[Start]) -> String| {
        table.add_row([heading.to_owned(), figure(&ours), figure(&theirs)]);
    };
    row("process start to first KVM_RUN; to the first exit", &|starts| {
        let times: Vec<_> = starts.iter().map(|start| start.begun).collect();
        milliseconds(median(&times))
    });
    row("memory beside the guest's (Pss); after 2 s", &|starts| {
        let sizes: Vec<_> = starts.iter().map(|start| start.memory.beside_guest).collect();
        format!("{} KiB", median(&sizes))
    });
    println!("{table}\n");
    Ok(())
}

/// Ends the process however the measurement ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(parts: Parts<'_>) -> anyhow::Result<Start> {
    let begun = Instant::now();
    let child = Command::new(BINARY)
        .args([
            "-M",
            MACHINE,
            "-enable-kvm",
            "-cpu",
            "host,-arch-capabilities,-cx16",
        ])
        .args(["-smp", "1", "-m", &MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-trace", &format!("enable={FIRST_EXIT}")])
        .arg("-kernel")
        .arg(parts.share.join("vmlinux"))
        .arg("-initrd")
        .arg(parts.share.join("initramfs.cpio"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut process = Process(child);
    let mut said = BufReader::new(process.0.stderr.take().context("a pipe from QEMU")?);
    let mut everything = String::new();
    loop {
        let before = everything.len();
        let count = said.read_line(&mut everything)?;
        ensure!(
            count > 0,
            "QEMU ended before its guest's first exit:\n{everything}"
        );
        let line = everything.get(before..).unwrap_or_default();
        if line.contains(FIRST_EXIT) {
            break;
        }
    }
    let first_exit = begun.elapsed();
    // It waits for nobody who reads what else it says.
    let drain = thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    thread::sleep(AT_WORK.saturating_sub(begun.elapsed()));
    let pid = process.0.id();
    let memory = machine::memory(pid, &[guest_memory(pid)?])?;
    drop(process);
    // What QEMU said after that is of no interest, nor whether it could be read.
    let _ = drain.join();
    Ok(Start {
        begun: first_exit,
        memory,
    })
}

/// The mapping of exactly the guest's size.
fn guest_memory(pid: u32) -> anyhow::Result<MemoryRange> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let bytes = u64::from(MEMORY_MIB) << 20;
    maps.lines()
        .filter_map(|line| line.split_whitespace().next()?.split_once('-'))
        .filter_map(|(start, end)| {
            let start = u64::from_str_radix(start, 16).ok()?;
            Some((start, u64::from_str_radix(end, 16).ok()?))
        })
        .find(|(start, end)| end - start == bytes)
        .map(|(start, _)| MemoryRange { start, bytes })
        .with_context(|| format!("QEMU has no mapping of {MEMORY_MIB} MiB"))
}

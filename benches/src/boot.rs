//! A machine's start to an agent that is ready, booted and cloned, measured on the VMM itself: the guest kernel's
//! instructions where the KVM emulates (and so counts) them, the VMM's own start, its memory beside the guest's.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use comfy_table::{Table, presets};
use vmm::config::{MachineConfig, VsockConfig};
use vmm::control::{MemoryRange, Request, Response};
use vmm::status::{Event, Phase};

use crate::rounds::{median, milliseconds};

/// The host's port for the agent's events (`protocol::ports::EVENT`).
const EVENT_PORT: u32 = 1026;

/// What one start has cost.
#[derive(Debug)]
struct Start {
    /// From the start of the process to the first guest instruction.
    first_run: Duration,
    /// From the start of the process to the agent's first word.
    ready: Duration,
    /// Guest kernel instructions that KVM emulated until then.
    emulated: u64,
    /// Proportional set size of the VMM beside the guest's memory, in KiB.
    beside_guest_kib: u64,
    /// What of the guest's memory is no file's and no other process's, in KiB.
    guest_kib: u64,
}

/// Boots machines one after the other, clones the last, and prints the medians.
pub(crate) fn measure(bin: &Path, share: &Path, boots: usize, clones: usize) -> anyhow::Result<()> {
    let template = tempfile::tempdir()?;
    let mut booted = Vec::new();
    for number in 0..boots {
        let save = (number + 1 == boots).then_some(template.path());
        booted.push(start(bin, share, None, save)?);
    }
    let mut cloned = Vec::new();
    for _ in 0..clones {
        cloned.push(start(bin, share, Some(template.path()), None)?);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "128 MiB, 1 vCPU: medians of".to_owned(),
        format!("{boots} boots"),
        format!("{clones} clones"),
    ]);
    let mut row = |heading: &str, figure: &dyn Fn(&Start) -> u64, shown: fn(u64) -> String| {
        let of = |starts: &[Start]| shown(median(&starts.iter().map(figure).collect::<Vec<_>>()));
        table.add_row([heading.to_owned(), of(&booted), of(&cloned)]);
    };
    let time: fn(u64) -> String = |micros| milliseconds(Duration::from_micros(micros));
    let size: fn(u64) -> String = |kib| format!("{kib} KiB");
    row(
        "process start to first KVM_RUN",
        &|start| start.first_run.as_micros() as u64,
        time,
    );
    row(
        "process start to agent ready",
        &|start| start.ready.as_micros() as u64,
        time,
    );
    row(
        "emulated guest kernel instructions to agent ready",
        &|start| start.emulated,
        |count| count.to_string(),
    );
    row(
        "VMM memory beside the guest's (Pss)",
        &|start| start.beside_guest_kib,
        size,
    );
    row("guest memory private to the VMM", &|start| start.guest_kib, size);
    println!("{table}\n");
    Ok(())
}

/// Ends the machine however the measurement ends.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one machine, from nothing or from a snapshot, and saves it if asked to.
fn start(bin: &Path, share: &Path, restore: Option<&Path>, save: Option<&Path>) -> anyhow::Result<Start> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("vsock");
    let control = directory.path().join("control");
    let events = UnixListener::bind(directory.path().join(format!("vsock_{EVENT_PORT}")))?;
    let config = MachineConfig {
        kernel: share.join("vmlinux"),
        initramfs: share.join("initramfs.cpio"),
        command_line: String::new(),
        vcpus: 1,
        memory_mib: 128,
        console_ring: directory.path().join("console"),
        vsock: Some(VsockConfig { guest_cid: 3, socket }),
        shared_directories: Vec::new(),
        control_socket: Some(control.clone()),
        die_with_parent: true,
        restore: restore.map(Path::to_owned),
    };
    let begun = Instant::now();
    let child = Command::new(bin.join("bulkhead-vmm"))
        .args(["--config", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting bulkhead-vmm; `make build` makes it")?;
    let mut machine = Machine(child);
    let mut stdin = machine.0.stdin.take().context("a pipe to the VMM")?;
    stdin.write_all(&serde_json::to_vec(&config)?)?;
    drop(stdin);
    let mut status = BufReader::new(machine.0.stdout.take().context("a pipe from the VMM")?);
    let first_run = loop {
        let mut line = String::new();
        status.read_line(&mut line)?;
        match serde_json::from_str(&line).with_context(|| format!("reading the VMM's status {line:?}"))? {
            Event::Phase {
                name: Phase::FirstRun,
                ..
            } => break begun.elapsed(),
            Event::Phase { .. } => {}
            Event::Exit(exit) => bail!("the machine ended: {}", exit.reason.message),
        }
    };
    // The agent connects and says that it is ready; a machine that ends first closes its status channel.
    let (mut ready_event, _) = events.accept()?;
    ready_event.read_exact(&mut [0; 4])?;
    let ready = begun.elapsed();
    let (emulated, guest_memory) = statistics(&control)?;
    let (beside_guest_kib, guest_kib) = memory(machine.0.id(), &guest_memory)?;
    if let Some(directory) = save {
        let save = Request::Snapshot {
            directory: directory.to_owned(),
        };
        let answer = ask(&control, &save)?;
        ensure!(
            answer == Response::Snapshot,
            "asked for a snapshot, the VMM answered {answer:?}"
        );
    }
    Ok(Start {
        first_run,
        ready,
        emulated,
        beside_guest_kib,
        guest_kib,
    })
}

fn ask(control: &Path, request: &Request) -> anyhow::Result<Response> {
    let mut connection = UnixStream::connect(control)?;
    let mut request = serde_json::to_vec(request)?;
    request.push(b'\n');
    connection.write_all(&request)?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// The guest kernel's instructions emulated so far, and where the guest's memory lies in the VMM.
fn statistics(control: &Path) -> anyhow::Result<(u64, Vec<MemoryRange>)> {
    match ask(control, &Request::Statistics)? {
        Response::Statistics { vcpus, guest_memory } => {
            let emulated = vcpus
                .iter()
                .filter_map(|vcpu| vcpu.kvm.get("insn_emulation"))
                .sum();
            Ok((emulated, guest_memory))
        }
        other => bail!("asked for statistics, the VMM answered {other:?}"),
    }
}

/// What of the process's memory is not the guest's (its proportional set size), and what of the guest's it shares with
/// nobody and no file, in KiB.
fn memory(pid: u32, guest_memory: &[MemoryRange]) -> anyhow::Result<(u64, u64)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut beside, mut guest) = (0, 0);
    let mut of_guest = false;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((start, _)) = first.split_once('-') {
            let start = u64::from_str_radix(start, 16)?;
            of_guest = guest_memory
                .iter()
                .any(|range| (range.start..range.start + range.bytes).contains(&start));
            continue;
        }
        let mut kib = || -> anyhow::Result<u64> { Ok(words.next().context("a figure")?.parse()?) };
        match first {
            "Pss:" if !of_guest => beside += kib()?,
            "Anonymous:" if of_guest => guest += kib()?,
            _ => {}
        }
    }
    Ok((beside, guest))
}

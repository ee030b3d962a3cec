//! A cold boot to an agent that is ready, measured on the VMM itself: the guest kernel's instructions where the KVM
//! emulates (and so counts) them, the VMM's own start, its memory beside the guest's.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use comfy_table::{Table, presets};
use vmm::config::{MachineConfig, VsockConfig};
use vmm::control::{Request, Response};
use vmm::status::{Event, Phase};

use crate::rounds::{median, milliseconds};

/// The host's port for the agent's events (`protocol::ports::EVENT`).
const EVENT_PORT: u32 = 1026;

/// What one boot has cost.
#[derive(Debug)]
struct Boot {
    /// From the start of the process to the first guest instruction.
    first_run: Duration,
    /// From the start of the process to the agent's first word.
    ready: Duration,
    /// Guest kernel instructions that KVM emulated until then.
    emulated: u64,
    /// Proportional set size of the VMM beside the guest's memory, in KiB.
    beside_guest_kib: u64,
    /// The same of the guest's memory.
    guest_kib: u64,
}

/// Boots `boots` machines one after the other and prints the medians.
pub(crate) fn measure(bin: &Path, share: &Path, boots: usize) -> anyhow::Result<()> {
    let mut results = Vec::new();
    for _ in 0..boots {
        results.push(boot(bin, share)?);
    }
    let of = |figure: fn(&Boot) -> u64| median(&results.iter().map(figure).collect::<Vec<_>>());
    let micros = |figure: fn(&Boot) -> u64| milliseconds(Duration::from_micros(of(figure)));
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["cold boot, 128 MiB, 1 vCPU", &format!("median of {boots}")]);
    table.add_row([
        "process start to first KVM_RUN",
        &micros(|boot| boot.first_run.as_micros() as u64),
    ]);
    table.add_row([
        "process start to agent ready",
        &micros(|boot| boot.ready.as_micros() as u64),
    ]);
    table.add_row([
        "emulated guest kernel instructions to agent ready",
        &of(|boot| boot.emulated).to_string(),
    ]);
    table.add_row([
        "VMM memory beside the guest's (Pss)",
        &format!("{} KiB", of(|boot| boot.beside_guest_kib)),
    ]);
    table.add_row([
        "guest memory touched (Pss)",
        &format!("{} KiB", of(|boot| boot.guest_kib)),
    ]);
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

fn boot(bin: &Path, share: &Path) -> anyhow::Result<Boot> {
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
        restore: None,
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
    let emulated = emulated_instructions(&control)?;
    let (beside_guest_kib, guest_kib) = memory(machine.0.id(), config.memory_mib)?;
    Ok(Boot {
        first_run,
        ready,
        emulated,
        beside_guest_kib,
        guest_kib,
    })
}

fn emulated_instructions(control: &Path) -> anyhow::Result<u64> {
    let mut connection = UnixStream::connect(control)?;
    let mut request = serde_json::to_vec(&Request::Statistics)?;
    request.push(b'\n');
    connection.write_all(&request)?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    match serde_json::from_str(&line)? {
        Response::Statistics { vcpus } => Ok(vcpus
            .iter()
            .filter_map(|vcpu| vcpu.kvm.get("insn_emulation"))
            .sum()),
        other => bail!("asked for statistics, the VMM answered {other:?}"),
    }
}

/// The process's proportional set size, in KiB, beside the guest's memory and of it. The guest's memory is what is
/// mapped in pieces that together are as large as it: every mapping above 1 MiB that is no file of ours.
fn memory(pid: u32, memory_mib: u32) -> anyhow::Result<(u64, u64)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut beside, mut guest) = (0, 0);
    let mut of_guest = false;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((start, end)) = first.split_once('-') {
            let size = u64::from_str_radix(end, 16)? - u64::from_str_radix(start, 16)?;
            // The kernel's and initramfs's private file mappings are guest memory as well.
            let name = words.nth(4).unwrap_or_default();
            of_guest =
                size >= u64::from(memory_mib) << 18 || name.ends_with("vmlinux") || name.ends_with("cpio");
        } else if first == "Pss:" {
            let pss: u64 = words.next().context("a figure")?.parse()?;
            *(if of_guest { &mut guest } else { &mut beside }) += pss;
        }
    }
    Ok((beside, guest))
}

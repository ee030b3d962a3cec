//! One machine on the VMM itself, from nothing or from a snapshot: started until its agent is ready, looked at, ended.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use vmm::config::{MachineConfig, VsockConfig};
use vmm::control::{MemoryRange, Request, Response, VcpuStatistics};
use vmm::status::{Event, Phase};

/// The host's port for the agent's events (`protocol::ports::EVENT`).
const EVENT_PORT: u32 = 1026;

/// The guest's memory in MiB.
pub(crate) const MEMORY_MIB: u32 = 128;

/// How long an agent may take to be ready, with many others at it.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often a machine that is waited for is looked at.
const STEP: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// What machines are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// Folder of the binaries.
    pub(crate) bin: &'a Path,
    /// Folder of the guest's kernel and initramfs.
    pub(crate) share: &'a Path,
}

/// A machine whose agent is ready. It ends with the value, and with the thread that started it.
#[derive(Debug)]
pub(crate) struct Machine {
    process: Process,
    control: PathBuf,
    /// From the start of the process to the first guest instruction.
    pub(crate) first_run: Duration,
    /// From the start of the process to the agent's first word.
    pub(crate) ready: Duration,
    // A VMM that cannot report, and an agent that nobody listens to, would do other things than idle.
    _status: BufReader<ChildStdout>,
    _events: UnixStream,
    _directory: TempDir,
}

/// Ends the process however the measurement ends.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a machine takes, in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Of the VMM beside the guest's memory (proportional set size).
    pub(crate) beside_guest: u64,
    /// Of the guest's memory, what is no file's and no other process's.
    pub(crate) guest_private: u64,
    /// Of the guest's memory, this machine's part of the pages that it shares with others.
    pub(crate) guest_shared: u64,
    /// The process's page tables.
    pub(crate) page_tables: u64,
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            beside_guest: sum.beside_guest + one.beside_guest,
            guest_private: sum.guest_private + one.guest_private,
            guest_shared: sum.guest_shared + one.guest_shared,
            page_tables: sum.page_tables + one.page_tables,
        })
    }
}

impl Memory {
    /// All of it.
    pub(crate) fn total(self) -> u64 {
        self.beside_guest + self.guest_private + self.guest_shared + self.page_tables
    }
}

impl Machine {
    /// Boots one, or clones one from the snapshot in `restore`.
    pub(crate) fn start(parts: Parts<'_>, restore: Option<&Path>) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("vsock");
        let control = directory.path().join("control");
        let listener = UnixListener::bind(directory.path().join(format!("vsock_{EVENT_PORT}")))?;
        let config = MachineConfig {
            kernel: parts.share.join("vmlinux"),
            initramfs: parts.share.join("initramfs.cpio"),
            command_line: String::new(),
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            console_ring: directory.path().join("console"),
            vsock: Some(VsockConfig { guest_cid: 3, socket }),
            shared_directories: Vec::new(),
            block_devices: Vec::new(),
            disk_slots: 0,
            network_devices: Vec::new(),
            control_socket: Some(control.clone()),
            die_with_parent: true,
            own_root: false,
            restore: restore.map(Path::to_owned),
        };
        let begun = Instant::now();
        let child = Command::new(parts.bin.join("bulkhead-vmm"))
            .args(["--config", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting bulkhead-vmm; `make build` makes it")?;
        let mut process = Process(child);
        let mut stdin = process.0.stdin.take().context("a pipe to the VMM")?;
        stdin.write_all(&serde_json::to_vec(&config)?)?;
        drop(stdin);
        let mut status = BufReader::new(process.0.stdout.take().context("a pipe from the VMM")?);
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
        let events = agent_ready(&listener, &mut process)?;
        Ok(Self {
            process,
            control,
            first_run,
            ready: begun.elapsed(),
            _status: status,
            _events: events,
            _directory: directory,
        })
    }

    /// Writes a snapshot into the empty folder; the machine then stands still.
    pub(crate) fn save(&self, directory: &Path) -> anyhow::Result<()> {
        let answer = self.ask(&Request::Snapshot {
            directory: directory.to_owned(),
        })?;
        ensure!(
            answer == Response::Snapshot,
            "asked for a snapshot, the VMM answered {answer:?}"
        );
        Ok(())
    }

    /// Has it do nothing any more.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        let answer = self.ask(&Request::Pause)?;
        ensure!(
            answer == Response::Paused,
            "asked to pause, the VMM answered {answer:?}"
        );
        Ok(())
    }

    /// The guest kernel's instructions emulated so far, and where the guest's memory lies in the VMM.
    pub(crate) fn statistics(&self) -> anyhow::Result<(u64, Vec<MemoryRange>)> {
        match self.ask(&Request::Statistics)? {
            Response::Statistics {
                vcpus, guest_memory, ..
            } => Ok((emulated(&vcpus), guest_memory)),
            other => bail!("asked for statistics, the VMM answered {other:?}"),
        }
    }

    /// What it takes, the guest's memory being where [`Self::statistics`] said.
    pub(crate) fn memory(&self, guest_memory: &[MemoryRange]) -> anyhow::Result<Memory> {
        memory(self.process.0.id(), guest_memory)
    }

    /// The processor time of all its threads so far, the guest's included.
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        processor_time(self.process.0.id())
    }

    fn ask(&self, request: &Request) -> anyhow::Result<Response> {
        let mut connection = UnixStream::connect(&self.control)?;
        let mut request = serde_json::to_vec(request)?;
        request.push(b'\n');
        connection.write_all(&request)?;
        let mut line = String::new();
        BufReader::new(connection).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// Waits for the agent's first word, for as long as its machine lives. An agent whose connection took too long makes
/// another: the last one counts.
fn agent_ready(listener: &UnixListener, process: &mut Process) -> anyhow::Result<UnixStream> {
    let begun = Instant::now();
    let mut connection: Option<UnixStream> = None;
    loop {
        let mut awaited = vec![PollFd::new(listener, PollFlags::IN)];
        awaited.extend(
            connection
                .iter()
                .map(|connection| PollFd::new(connection, PollFlags::IN)),
        );
        poll(&mut awaited, Some(&STEP))?;
        let happened = |index: usize| awaited.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let (another, word) = (happened(0), happened(1));
        if word && let Some(mut spoken) = connection.take() {
            // Closed without a word, it was given up.
            if spoken.read(&mut [0; 4]).is_ok_and(|bytes| bytes > 0) {
                return Ok(spoken);
            }
        }
        if another {
            connection = Some(listener.accept()?.0);
        }
        if let Some(status) = process.0.try_wait()? {
            bail!("the VMM ended with {status} before the agent was ready");
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "the agent was not ready within {} s",
            PATIENCE.as_secs()
        );
    }
}

/// The processor time of all threads of a process so far (proc(5), `schedstat`).
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let on_processor = text.split_whitespace().next().context("a figure")?;
        nanoseconds += on_processor.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// What a process takes, of which the guest's memory is at these addresses.
pub(crate) fn memory(pid: u32, guest_memory: &[MemoryRange]) -> anyhow::Result<Memory> {
    let mut memory = Memory::default();
    let mut of_guest = false;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
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
            "Pss:" if !of_guest => memory.beside_guest += kib()?,
            "Pss:" => memory.guest_shared += kib()?,
            "Anonymous:" if of_guest => memory.guest_private += kib()?,
            _ => {}
        }
    }
    // A page that is nobody else's is its owner's whole share.
    memory.guest_shared = memory.guest_shared.saturating_sub(memory.guest_private);
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let page_tables = status.lines().find_map(|line| line.strip_prefix("VmPTE:"));
    let page_tables = page_tables.and_then(|figure| figure.split_whitespace().next());
    memory.page_tables = page_tables.context("the size of the page tables")?.parse()?;
    Ok(memory)
}

/// The guest kernel's instructions that KVM has emulated on these vCPUs.
pub(crate) fn emulated(vcpus: &[VcpuStatistics]) -> u64 {
    vcpus
        .iter()
        .filter_map(|vcpu| vcpu.kvm.get("insn_emulation"))
        .sum()
}

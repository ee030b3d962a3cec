//! A flat guest under one of the VMMs, and what it has done and taken.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};
use vmm::config::{BlockDevice, MachineConfig};
use vmm::console_ring::ConsoleRing;
use vmm::control::{Request, Response};

use super::guest::{self, Program, Windows};
use crate::machine;

pub(super) const QEMU: &str = "qemu-system-x86_64";
/// The fewest devices that the machine can have. Its interrupt lines are those that the guest's program sets up only with
/// one IOAPIC.
const QEMU_MACHINE: &str =
    "microvm,acpi=off,pit=off,pic=off,rtc=off,isa-serial=off,ioapic2=off,kernel-irqchip=on";
/// Where it has its windows (`hw/i386/microvm.c`).
const QEMU_WINDOWS: Windows = Windows {
    first: 0xfeb0_0000,
    stride: 0x200,
};
const WINDOWS: Windows = Windows {
    first: vmm::memory::layout::VIRTIO_MMIO,
    stride: vmm::memory::layout::VIRTIO_MMIO_BYTES,
};

/// From the start of the process to the first mark, and from one mark to the next.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked for marks.
const STEP: Duration = Duration::from_micros(200);

/// Who has the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Bulkhead,
    /// As it is without further words: disks on its main thread, with threads for transfers.
    Qemu,
    /// Its disks on a thread of their own, with io_uring for transfers.
    QemuIoUring,
}

impl Peer {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bulkhead => "bulkhead-vmm",
            Self::Qemu => "QEMU",
            Self::QemuIoUring => "QEMU, iothread, io_uring",
        }
    }
}

/// What the device works on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Backend<'a> {
    Disk(&'a Path),
    Tap(&'a File),
}

/// What there was at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) at: Instant,
    /// Marks of the guest's.
    pub(super) marks: u64,
    /// Of all threads of the process, those that have ended included.
    pub(super) processor_time: Duration,
    /// Of the vCPU's thread.
    pub(super) vcpu_time: Duration,
}

/// A machine. It ends with the value.
pub(super) struct Machine {
    process: Process,
    peer: Peer,
    console: PathBuf,
    control: PathBuf,
    errors: PathBuf,
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

impl Machine {
    /// Starts the program in a directory of the machine's own, with descriptors on the one device.
    pub(super) fn start(
        peer: Peer,
        bin: &Path,
        directory: &Path,
        program: &Program,
        backend: Backend<'_>,
    ) -> anyhow::Result<Self> {
        let windows = match peer {
            Peer::Bulkhead => WINDOWS,
            Peer::Qemu | Peer::QemuIoUring => QEMU_WINDOWS,
        };
        let kernel = directory.join("kernel");
        fs::write(&kernel, guest::elf(program, windows))?;
        let (console, control) = (directory.join("console"), directory.join("control"));
        let errors = directory.join("errors");
        let mut command = match peer {
            Peer::Bulkhead => bulkhead(bin, directory, &kernel, &console, &control, backend)?,
            Peer::Qemu | Peer::QemuIoUring => qemu(peer, &kernel, &console, &control, backend),
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&errors)?);
        if let Backend::Tap(tap) = backend {
            let descriptor = tap.as_raw_fd();
            // SAFETY: between fork and exec there is one call, which may be made there (signal-safety(7)).
            unsafe {
                command.pre_exec(move || match libc::fcntl(descriptor, libc::F_SETFD, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                });
            }
        }
        let process = Process(
            command
                .spawn()
                .with_context(|| format!("starting {}", peer.name()))?,
        );
        Ok(Self {
            process,
            peer,
            console,
            control,
            errors,
        })
    }

    /// Waits for the next mark beyond `marks`.
    pub(super) fn sample_beyond(&mut self, marks: u64) -> anyhow::Result<Sample> {
        let begun = Instant::now();
        loop {
            let said = self.said()?;
            let at = Instant::now();
            if said > marks {
                return Ok(Sample {
                    at,
                    marks: said,
                    processor_time: process_time(self.process.0.id())?,
                    vcpu_time: self.vcpu_time()?,
                });
            }
            if let Some(status) = self.process.0.try_wait()? {
                let errors = fs::read_to_string(&self.errors)?;
                bail!("{} ended with {status}: {errors}", self.peer.name());
            }
            ensure!(
                begun.elapsed() < PATIENCE,
                "the guest of {} is not heard of for {} s, after {marks} marks",
                self.peer.name(),
                PATIENCE.as_secs()
            );
            thread::sleep(STEP);
        }
    }

    /// How many marks the guest has made.
    fn said(&self) -> anyhow::Result<u64> {
        let said = match self.peer {
            // It is there a moment after the process.
            Peer::Bulkhead => ConsoleRing::read_file(&self.console).unwrap_or_default(),
            Peer::Qemu | Peer::QemuIoUring => fs::read(&self.console).unwrap_or_default(),
        };
        let why = match said.iter().find(|byte| **byte != guest::MARK) {
            None => return Ok(said.len() as u64),
            Some(&guest::NO_DEVICE) => "there is no such device",
            Some(&guest::NOT_ACCEPTED) => "the device does not accept the features or a queue",
            Some(&guest::EXCEPTION) => "an exception",
            Some(&guest::BAD_STATUS) => "a request failed",
            Some(&guest::WRONG_DATA) => "a sector is not that which was asked for",
            Some(_) => "something that is no mark",
        };
        bail!("the guest of {} tells of {why}", self.peer.name())
    }

    /// The guest's instructions that KVM has emulated so far.
    pub(super) fn emulated(&self) -> anyhow::Result<u64> {
        let mut connection = BufReader::new(UnixStream::connect(&self.control)?);
        if self.peer == Peer::Bulkhead {
            let answer = ask(&mut connection, &serde_json::to_value(Request::Statistics)?)?;
            return match serde_json::from_value(answer)? {
                Response::Statistics { vcpus, .. } => Ok(machine::emulated(&vcpus)),
                other => bail!("asked for statistics, the VMM answered {other:?}"),
            };
        }
        let mut greeting = String::new();
        connection.read_line(&mut greeting)?;
        ask(&mut connection, &json!({"execute": "qmp_capabilities"}))?;
        let providers = json!([{"provider": "kvm", "names": ["insn_emulation"]}]);
        let answer = ask(
            &mut connection,
            &json!({"execute": "query-stats", "arguments": {"target": "vcpu", "providers": providers}}),
        )?;
        answer
            .pointer("/return/0/stats/0/value")
            .and_then(Value::as_u64)
            .with_context(|| format!("asked for statistics, QEMU answered {answer}"))
    }

    fn vcpu_time(&self) -> anyhow::Result<Duration> {
        let name = match self.peer {
            Peer::Bulkhead => "vcpu0\n",
            Peer::Qemu | Peer::QemuIoUring => "CPU 0/KVM\n",
        };
        for task in fs::read_dir(format!("/proc/{}/task", self.process.0.id()))? {
            let task = task?.path();
            // A thread may end meanwhile.
            if fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm == name) {
                let text = fs::read_to_string(task.join("schedstat"))?;
                let on_processor = text.split_whitespace().next().context("a figure")?;
                return Ok(Duration::from_nanos(on_processor.parse()?));
            }
        }
        bail!("{} has no thread {name:?}", self.peer.name())
    }
}

/// Asks by a line, and is answered by one; events of QEMU's are others.
fn ask(connection: &mut BufReader<UnixStream>, request: &Value) -> anyhow::Result<Value> {
    connection
        .get_mut()
        .write_all(format!("{request}\n").as_bytes())?;
    loop {
        let mut line = String::new();
        ensure!(connection.read_line(&mut line)? > 0, "{request} was not answered");
        let answer: Value = serde_json::from_str(&line)?;
        if answer.get("event").is_none() {
            return Ok(answer);
        }
    }
}

/// What a process has taken of the processors, whatever became of its threads.
fn process_time(pid: u32) -> anyhow::Result<Duration> {
    let mut clock = 0;
    // SAFETY: the call writes one number where the pointer says.
    let result = unsafe { libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) };
    ensure!(
        result == 0,
        "asking for the clock of process {pid}: error {result}"
    );
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the call writes one structure where the pointer says.
    let result = unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
    ensure!(
        result == 0,
        "reading the clock of process {pid}: {}",
        std::io::Error::last_os_error()
    );
    // SAFETY: the call has succeeded, and so has written it.
    let time = unsafe { time.assume_init() };
    Ok(Duration::new(time.tv_sec.try_into()?, time.tv_nsec.try_into()?))
}

fn bulkhead(
    bin: &Path,
    directory: &Path,
    kernel: &Path,
    console: &Path,
    control: &Path,
    backend: Backend<'_>,
) -> anyhow::Result<Command> {
    let initramfs = directory.join("initramfs");
    // The guest has no use for one: an archive (newc of cpio(5)) with nothing but its end, whose name has eleven bytes.
    let numbers = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 11, 0].map(|number: u32| format!("{number:08x}"));
    fs::write(
        &initramfs,
        format!("070701{}TRAILER!!!\0\0\0\0", numbers.concat()),
    )?;
    let mut config = MachineConfig {
        kernel: kernel.to_owned(),
        initramfs,
        command_line: String::new(),
        vcpus: 1,
        memory_mib: guest::MEMORY_MIB,
        console_ring: console.to_owned(),
        vsock: None,
        shared_directories: Vec::new(),
        block_devices: Vec::new(),
        disk_slots: 0,
        network_devices: Vec::new(),
        control_socket: Some(control.to_owned()),
        die_with_parent: true,
        own_root: false,
        restore: None,
    };
    match backend {
        Backend::Disk(path) => config.block_devices.push(BlockDevice {
            id: "disk".to_owned(),
            path: path.to_owned(),
            read_only: false,
            rate_limit: None,
        }),
        Backend::Tap(tap) => {
            let device = json!({"mac": "02:00:00:00:00:01", "tap_descriptors": [tap.as_raw_fd()]});
            config.network_devices.push(serde_json::from_value(device)?);
        }
    }
    let path = directory.join("machine.json");
    fs::write(&path, serde_json::to_vec(&config)?)?;
    let mut command = Command::new(bin.join("bulkhead-vmm"));
    command.arg("--config").arg(path);
    Ok(command)
}

fn qemu(peer: Peer, kernel: &Path, console: &Path, control: &Path, backend: Backend<'_>) -> Command {
    let mut command = Command::new(QEMU);
    command
        .args(["-M", QEMU_MACHINE, "-enable-kvm"])
        .args(["-cpu", "host,-arch-capabilities,-cx16"])
        .args(["-smp", "1", "-m", &guest::MEMORY_MIB.to_string()])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-name", "peer,debug-threads=on"])
        .args(["-global", "virtio-mmio.force-legacy=false"])
        .arg("-chardev")
        .arg(format!("file,id=console,path={}", console.display()))
        .args(["-device", "isa-debugcon,iobase=0x3f8,chardev=console"])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", control.display()))
        .arg("-kernel")
        .arg(kernel);
    match backend {
        Backend::Disk(path) => {
            let (asynchronous, thread) = match peer {
                Peer::QemuIoUring => {
                    command.args(["-object", "iothread,id=disks"]);
                    ("io_uring", ",iothread=disks")
                }
                _ => ("threads", ""),
            };
            let path = path.display();
            command.arg("-drive").arg(format!(
                "if=none,id=disk,file={path},format=raw,cache=writeback,aio={asynchronous}"
            ));
            command.arg("-device").arg(format!(
                "virtio-blk-device,drive=disk,bus=virtio-mmio-bus.0{thread}"
            ));
        }
        Backend::Tap(tap) => {
            command
                .arg("-netdev")
                .arg(format!("tap,id=net,vhost=off,fd={}", tap.as_raw_fd()));
            command
                .arg("-device")
                .arg("virtio-net-device,netdev=net,bus=virtio-mmio-bus.0,mac=02:00:00:00:00:01");
        }
    }
    command
}

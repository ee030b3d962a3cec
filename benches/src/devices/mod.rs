//! The block and the network device beside QEMU's: the same flat guest program under both VMMs, in turn. A guest with a
//! kernel would do for both where KVM runs it; where KVM emulates the guest's kernel, QEMU's does not get beyond the
//! first `int3`, and what a driver executes would hide what a device takes.

mod guest;
mod network;
mod peer;
mod workload;

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use comfy_table::{Table, presets};

use self::network::{Count, SOCKET_HEADER_BYTES, Sender, Tap};
use self::peer::{Backend, Machine, Peer, Sample};
use self::workload::{Direction, Workload};

/// What one machine has done with one workload.
#[derive(Debug, Clone, Copy)]
struct Measured {
    peer: Peer,
    workload: Workload,
    /// Requests or frames.
    count: f64,
    time: Duration,
    /// Of the whole VMM, its guest included.
    processor_time: Duration,
    /// Of it without the vCPU's thread.
    device_time: Duration,
    /// Instructions that KVM emulated for each request or frame.
    emulated: f64,
}

impl Measured {
    fn amount(&self) -> f64 {
        match self.workload.counts_bytes() {
            true => self.count * self.workload.bytes() as f64 / f64::from(1 << 20),
            false => self.count,
        }
    }

    fn a_second(&self) -> f64 {
        self.amount() / self.time.as_secs_f64()
    }

    fn a_processor_second(&self) -> f64 {
        self.amount() / self.processor_time.as_secs_f64().max(1e-6)
    }

    fn a_device_second(&self) -> f64 {
        self.amount() / self.device_time.as_secs_f64().max(1e-6)
    }
}

/// Does the workloads whose name has `only` in it with each VMM, in turn, and prints the medians.
pub(crate) fn measure(bin: &Path, only: &str, rounds: usize, duration: Duration) -> anyhow::Result<()> {
    let mut peers = vec![Peer::Bulkhead];
    let version = Command::new(peer::QEMU)
        .arg("--version")
        .stderr(Stdio::null())
        .output();
    match version {
        Ok(version) => {
            let version = String::from_utf8_lossy(&version.stdout);
            println!("{}", version.lines().next().unwrap_or_default());
            peers.extend([Peer::Qemu, Peer::QemuIoUring]);
        }
        Err(_) => println!("{} is not installed and is left out", peer::QEMU),
    }
    network::leave_the_hosts()?;
    let directory = tempfile::tempdir()?;
    let disk = directory.path().join("disk");
    workload::make_disk(&disk)?;
    let mut measured = Vec::new();
    let mut workloads = workload::all();
    workloads.retain(|workload| workload.title().contains(only));
    for &workload in &workloads {
        for _ in 0..rounds {
            for peer in &peers {
                if !workload.is_of_disk() && *peer == Peer::QemuIoUring {
                    continue;
                }
                measured.push(measure_one(*peer, workload, bin, &disk, duration)?);
            }
        }
        workload.check_disk(&disk)?;
    }
    print(&workloads, &peers, &measured, rounds);
    Ok(())
}

fn measure_one(
    peer: Peer,
    workload: Workload,
    bin: &Path,
    disk: &Path,
    duration: Duration,
) -> anyhow::Result<Measured> {
    let directory = tempfile::tempdir()?;
    let program = workload.program();
    let Workload::Network { direction, segments } = workload else {
        let mut machine = Machine::start(peer, bin, directory.path(), &program, Backend::Disk(disk))?;
        return observe(&mut machine, peer, workload, duration, None);
    };
    let tap = Tap::open()?;
    let backend = Backend::Tap(&tap.descriptor);
    let mut machine = Machine::start(peer, bin, directory.path(), &program, backend)?;
    let sender = match direction {
        Direction::Transmit => None,
        Direction::Receive => Some(Sender::start(
            &tap,
            workload::frame(segments, SOCKET_HEADER_BYTES),
        )?),
    };
    let measured = observe(&mut machine, peer, workload, duration, Some((&tap, direction)))?;
    drop(sender);
    Ok(measured)
}

/// Lets the guest begin, and takes what is there before and after.
fn observe(
    machine: &mut Machine,
    peer: Peer,
    workload: Workload,
    duration: Duration,
    tap: Option<(&Tap, Direction)>,
) -> anyhow::Result<Measured> {
    let counted = || -> anyhow::Result<Option<Count>> {
        let Some((tap, direction)) = tap else {
            return Ok(None);
        };
        let (transmitted, received) = tap.counts()?;
        Ok(Some(match direction {
            Direction::Transmit => transmitted,
            Direction::Receive => received,
        }))
    };
    let sample = |machine: &mut Machine, marks: u64| -> anyhow::Result<(Sample, Option<Count>)> {
        Ok((machine.sample_beyond(marks)?, counted()?))
    };
    let warm = machine.sample_beyond(1)?;
    let emulated_before = machine.emulated()?;
    let (before, counted_before) = sample(machine, warm.marks)?;
    thread::sleep(duration);
    let seen = machine.sample_beyond(before.marks)?;
    let (after, counted_after) = sample(machine, seen.marks)?;
    let emulated_after = machine.emulated()?;

    let per_mark = workload.between_marks() as f64;
    let of_guest = (after.marks - before.marks) as f64 * per_mark;
    let count = match counted_before.zip(counted_after) {
        // The guest's count is of requests.
        None => of_guest,
        Some((before, after)) => {
            let (frames, bytes) = (after.frames - before.frames, after.bytes - before.bytes);
            check_frames(workload, frames as f64, bytes as f64, of_guest)?;
            frames as f64
        }
    };
    let processor_time = after.processor_time.saturating_sub(before.processor_time);
    // What was emulated was counted over a little more.
    let between = machine.sample_beyond(0)?.marks - warm.marks;
    let scale = of_guest / (between as f64 * per_mark);
    Ok(Measured {
        peer,
        workload,
        count,
        time: after.at.duration_since(before.at),
        processor_time,
        device_time: processor_time.saturating_sub(after.vcpu_time.saturating_sub(before.vcpu_time)),
        emulated: (emulated_after - emulated_before) as f64 * scale / count,
    })
}

/// Whether the tap has counted what the guest has: frames of the length, no more and no fewer than fit between marks.
fn check_frames(workload: Workload, frames: f64, bytes: f64, of_guest: f64) -> anyhow::Result<()> {
    let Workload::Network { direction, segments } = workload else {
        return Ok(());
    };
    let buffers = match (direction, segments) {
        (Direction::Receive, 2..) => (workload.bytes() as f64 / 4096.0).ceil(),
        _ => 1.0,
    };
    let counted = frames * buffers;
    ensure!(
        bytes == frames * workload.bytes() as f64,
        "{frames} frames had {bytes} bytes and not {} each",
        workload.bytes()
    );
    ensure!(
        (counted - of_guest).abs() < of_guest * 0.05 + 1024.0,
        "the tap has counted {frames} frames, {counted} buffers, and the guest {of_guest}"
    );
    Ok(())
}

fn print(workloads: &[Workload], peers: &[Peer], measured: &[Measured], rounds: usize) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        &format!("medians of {rounds}"),
        "VMM",
        "a second",
        "for each of a processor",
        "bulkhead-vmm of this",
        "for each of a processor beside the vCPU",
        "bulkhead-vmm of this",
        "emulated instructions each",
    ]);
    for &workload in workloads {
        let middle = |peer: Peer, figure: fn(&Measured) -> f64| {
            let mut figures: Vec<f64> = measured
                .iter()
                .filter(|one| one.workload == workload && one.peer == peer)
                .map(figure)
                .collect();
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied()
        };
        let unit = if workload.counts_bytes() { " MiB" } else { "" };
        let mut title = workload.title();
        for peer in peers {
            let Some(a_second) = middle(*peer, Measured::a_second) else {
                continue;
            };
            let mut row = vec![
                std::mem::take(&mut title),
                peer.name().to_owned(),
                format!("{a_second:.0}{unit}"),
            ];
            for figure in [Measured::a_processor_second, Measured::a_device_second] {
                let theirs = middle(*peer, figure).unwrap_or_default();
                let ours = middle(Peer::Bulkhead, figure).unwrap_or_default();
                row.extend([format!("{theirs:.0}{unit}"), format!("{:.2}", ours / theirs)]);
            }
            let emulated = middle(*peer, |one| one.emulated).unwrap_or_default();
            row.push(format!("{emulated:.1}"));
            table.add_row(row);
        }
    }
    println!("{table}");
}

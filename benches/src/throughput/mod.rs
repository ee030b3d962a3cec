//! How much goes through each device of a machine, a second and for each second of the host's processors that it takes,
//! beside the same program on the host's kernel. QEMU is not beside it: on a KVM that emulates the guest's kernel it
//! does not get beyond the kernel's first `int3`, and without KVM it would be its translator that is measured. What its
//! devices take is measured without a kernel (`devices`).

pub(crate) mod init;
mod micro_vm;
mod network;
pub(crate) mod shared_kernel;
mod workload;

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use comfy_table::{Table, presets};

use self::network::Network;
use self::workload::{ALL, DISK_BYTES, Done, Workload};
use crate::cgroup_mounts;
use crate::machine::Parts;

/// The shared folder's tag.
const FILES_TAG: &str = "data";
/// The guest's network: its own address and the host's.
const GUEST_ADDRESS: &str = "192.0.2.2";
const HOST_ADDRESS: &str = "192.0.2.1";
/// The container's.
const CONTAINER_ADDRESS: &str = "198.51.100.2";
const CONTAINERS_HOST_ADDRESS: &str = "198.51.100.1";

/// One workload once.
pub(crate) struct Measured {
    workload: Workload,
    done: Done,
    /// Of the host's processors: the VMM's with its guest's, or the program's.
    processor_time: Duration,
}

impl Measured {
    fn amount(&self) -> f64 {
        if self.workload.counts_operations() {
            self.done.operations as f64
        } else {
            self.done.bytes as f64 / f64::from(1 << 20)
        }
    }

    fn a_second(&self) -> f64 {
        self.amount() / self.done.time.as_secs_f64()
    }

    fn a_processor_second(&self) -> f64 {
        self.amount() / self.processor_time.as_secs_f64().max(1e-6)
    }
}

/// Does all workloads behind both walls, in turn, and prints the medians.
pub(crate) fn measure(parts: Parts<'_>, rounds: usize, seconds: u64) -> anyhow::Result<()> {
    cgroup_mounts::show_version_1_alone()?;
    let network = Network::build()?;
    let directory = tempfile::tempdir()?;
    std::fs::create_dir(directory.path().join("data"))?;
    let mut disk = File::create(directory.path().join("data/disk"))?;
    for _ in 0..DISK_BYTES >> 20 {
        disk.write_all(&[0x11; 1 << 20])?;
    }
    drop(disk);
    let oci = parts.bin.join("bulkhead-oci");
    micro_vm::make_initramfs(directory.path())?;
    shared_kernel::make_bundle(&oci, directory.path(), &network.containers())?;
    let (mut guest, mut host) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        host.extend(shared_kernel::measure(&oci, directory.path(), seconds)?);
        guest.extend(micro_vm::measure(parts, directory.path(), &network.tap, seconds)?);
    }
    print(&guest, &host, rounds);
    Ok(())
}

fn print(guest: &[Measured], host: &[Measured], rounds: usize) {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        &format!("medians of {rounds}"),
        "shared-kernel, a second",
        "for each of a processor",
        "microvm, a second",
        "for each of a processor",
        "a second, microvm of shared-kernel",
        "of a processor",
    ]);
    for workload in ALL {
        let middle = |all: &[Measured], figure: fn(&Measured) -> f64| {
            let mut figures: Vec<f64> = all
                .iter()
                .filter(|one| one.workload == workload)
                .map(figure)
                .collect();
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied().unwrap_or_default()
        };
        let figures = [
            middle(host, Measured::a_second),
            middle(host, Measured::a_processor_second),
            middle(guest, Measured::a_second),
            middle(guest, Measured::a_processor_second),
        ];
        let unit = if workload.counts_operations() { "" } else { " MiB" };
        let mut row = vec![workload.title().to_owned()];
        row.extend(figures.map(|figure| match figure {
            figure if figure < 100.0 => format!("{figure:.1}{unit}"),
            figure => format!("{figure:.0}{unit}"),
        }));
        row.push(format!("{:.4}", figures[2] / figures[0]));
        row.push(format!("{:.4}", figures[3] / figures[1]));
        table.add_row(row);
    }
    println!("{table}");
}

//! `bulkhead-bench`: what a start costs, ours beside others' in one run, as medians and ratios. Machines are shared
//! and noisy; absolute times are for orientation, ratios and instruction counts for decisions.

mod boot;
mod cgroup_mounts;
mod chart;
mod density;
mod devices;
mod machine;
mod oci;
mod qemu;
mod rounds;
mod run;
mod tap;
mod throughput;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::machine::Parts;

/// Measures the binaries of `make build`.
#[derive(Debug, Parser)]
struct Cli {
    /// Folder of the binaries
    #[arg(long, default_value = "out/bin")]
    bin: PathBuf,
    /// Folder of the guest's kernel and initramfs
    #[arg(long, default_value = "out/share/bulkhead")]
    share: PathBuf,
    /// Rounds of each measurement that takes milliseconds
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// Only the OCI command line beside others'
    #[arg(long)]
    oci: bool,
    /// Rounds of each measurement that boots a machine
    #[arg(long, default_value_t = 5)]
    boots: usize,
    /// Only many clones, at once, one after the other and idle, and QEMU's microvm (takes minutes)
    #[arg(long)]
    density: bool,
    /// Clones that start at once
    #[arg(long, default_value_t = 50, requires = "density")]
    at_once: usize,
    /// Clones that idle together
    #[arg(long, default_value_t = 500, requires = "density")]
    idle: usize,
    /// Draw what the idle clones take into this file, as SVG
    #[arg(long, value_name = "FILE", requires = "density")]
    svg: Option<PathBuf>,
    /// Only what goes through each device of a machine, beside the host's kernel
    #[arg(long)]
    throughput: bool,
    /// Only the block and the network device, beside QEMU's, with the same guest program
    #[arg(long, conflicts_with = "throughput")]
    devices: bool,
    /// Only the workloads whose name has this in it
    #[arg(long, value_name = "TEXT", requires = "devices", default_value = "")]
    only: String,
    /// Seconds of each workload
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Be the init of the machine whose devices are measured, for so many seconds each
    #[arg(long, hide = true)]
    guest_seconds: Option<u64>,
    /// Be the program of the container that is measured, for so many seconds
    #[arg(long, hide = true, requires = "workload")]
    container_seconds: Option<u64>,
    /// What that program does
    #[arg(long, hide = true)]
    workload: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let mut cli = Cli::parse();
    if let Some(seconds) = cli.guest_seconds {
        throughput::init::run(Duration::from_secs(seconds));
    }
    if let (Some(seconds), Some(word)) = (cli.container_seconds, &cli.workload) {
        return throughput::shared_kernel::run(word, Duration::from_secs(seconds));
    }
    cli.bin = std::path::absolute(&cli.bin)?;
    cli.share = std::path::absolute(&cli.share)?;
    let parts = Parts {
        bin: &cli.bin,
        share: &cli.share,
    };
    if cli.density {
        let options = density::Options {
            at_once: cli.at_once,
            idle: cli.idle,
            svg: cli.svg,
        };
        density::measure(parts, &options)?;
        return qemu::measure(parts, cli.boots);
    }
    if cli.throughput {
        return throughput::measure(parts, cli.boots, cli.seconds);
    }
    if cli.devices {
        return devices::measure(&cli.bin, &cli.only, cli.boots, Duration::from_secs(cli.seconds));
    }
    cgroup_mounts::show_version_1_alone()?;
    oci::measure(&cli.bin, cli.rounds)?;
    if cli.oci {
        return Ok(());
    }
    boot::measure(parts, cli.boots, cli.rounds)?;
    run::measure(&cli.bin, cli.rounds, cli.boots)
}

//! `bulkhead-bench`: what a start costs, ours beside others' in one run, as medians and ratios. Machines are shared
//! and noisy; absolute times are for orientation, ratios and instruction counts for decisions.

mod boot;
mod cgroup_mounts;
mod oci;
mod rounds;
mod run;

use std::path::PathBuf;

use clap::Parser;

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
}

fn main() -> anyhow::Result<()> {
    let mut cli = Cli::parse();
    cgroup_mounts::show_version_1_alone()?;
    cli.bin = std::path::absolute(&cli.bin)?;
    cli.share = std::path::absolute(&cli.share)?;
    oci::measure(&cli.bin, cli.rounds)?;
    if cli.oci {
        return Ok(());
    }
    boot::measure(&cli.bin, &cli.share, cli.boots, cli.rounds)?;
    run::measure(&cli.bin, cli.rounds, cli.boots)
}

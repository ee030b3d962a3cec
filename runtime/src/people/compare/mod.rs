//! `bulkhead compare`: one image behind both walls, and what differs.

mod host_view;
mod observation;

use comfy_table::{Table, presets};

use self::observation::{Observation, observe};
use crate::configuration::Configuration;
use crate::isolation::Isolation;
use crate::kvm;

/// Options of `compare`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The image, with a shell and the usual small commands in it: oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    image: String,
}

/// Runs the image behind both walls and prints one table.
pub(crate) fn compare(configuration: &Configuration, arguments: &Arguments) -> anyhow::Result<u8> {
    kvm::check(&configuration.microvm.kvm)?;
    let walls = [Isolation::SharedKernel, Isolation::MicroVm];
    let mut observations = Vec::new();
    for wall in walls {
        eprintln!("running {} behind {wall} …", arguments.image);
        observations.push(observe(configuration, &arguments.image, wall)?);
    }
    println!("{}", table(&walls, &observations));
    Ok(0)
}

/// A row's heading and what it says of one observation.
type Row = (&'static str, fn(&Observation) -> String);

const ROWS: [Row; 9] = [
    ("kernel seen inside", |seen| seen.kernel_release.clone()),
    ("boot id seen inside", |seen| seen.boot_id.clone()),
    ("process inside", |seen| {
        format!("pid {}, uid {}", seen.pid_inside, seen.uid_inside)
    }),
    ("process on the host", |seen| seen.host.to_string()),
    ("memory overrun ends with", |seen| match seen.overrun_exit {
        137 => "137 (killed)".to_owned(),
        other => other.to_string(),
    }),
    ("time to first output", |seen| {
        format!("{:.0} ms", seen.first_output.as_secs_f64() * 1e3)
    }),
    ("the same, of a machine that boots", |seen| {
        seen.first_output_booting.map_or_else(
            || "no machine".to_owned(),
            |time| format!("{:.0} ms", time.as_secs_f64() * 1e3),
        )
    }),
    ("host memory (Pss)", |seen| {
        format!(
            "{:.1} MiB of {}",
            seen.host.pss_kib as f64 / 1024.0,
            seen.host.name
        )
    }),
    ("guest kernel instructions emulated", |seen| {
        match seen.emulated_instructions {
            None => "no guest kernel".to_owned(),
            Some(0) => "0 (this KVM runs them natively)".to_owned(),
            Some(count) => format!("{:.1} million", count as f64 / 1e6),
        }
    }),
];

fn table(walls: &[Isolation], observations: &[Observation]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([""].into_iter().chain(walls.iter().map(|wall| wall.as_str())));
    for (heading, cell) in ROWS {
        table.add_row(
            [heading.to_owned()]
                .into_iter()
                .chain(observations.iter().map(cell)),
        );
    }
    table
}

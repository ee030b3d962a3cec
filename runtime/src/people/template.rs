//! `bulkhead template`: what microVMs are cloned from.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use comfy_table::{Table, presets};
use image::bundle::{ByteSize, CpuCount};

use super::ps::age;
use super::{event_loop, pod_limits};
use crate::configuration::Configuration;
use crate::kvm;
use crate::micro_vm::template;
use crate::micro_vm::template::store::{TemplateStore, TemplateSummary};
use crate::sizing::{PodLimits, machine_size};

/// Digits of a name that are shown; they suffice to name it.
const SHOWN_DIGITS: usize = 12;

/// Options of `template`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the template for pods of these limits, unless it is there
    Build {
        /// The pod's memory limit, as in 64m
        #[arg(long, value_name = "SIZE")]
        memory: Option<ByteSize>,
        /// The pod's processor limit, as in 0.5
        #[arg(long, value_name = "NUMBER")]
        cpus: Option<CpuCount>,
        /// How many network interfaces the pod has; those of `bulkhead run` have none
        #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=8))]
        interfaces: u8,
    },
    /// List the templates
    List,
    /// Say what a template was made from, and check that it is whole
    Inspect {
        /// The beginning of its name
        name: String,
    },
    /// Remove the templates that nothing will be cloned from any more, and what exceeds the limit
    Prune {
        /// Remove every template
        #[arg(long)]
        all: bool,
    },
}

/// Does what was asked for.
pub(crate) fn template(configuration: &Configuration, arguments: &Arguments) -> anyhow::Result<u8> {
    let microvm = &configuration.microvm;
    let store = TemplateStore::new(microvm.templates.clone(), microvm.templates_limit);
    match &arguments.command {
        Command::Build {
            memory,
            cpus,
            interfaces,
        } => build(
            configuration,
            &store,
            &pod_limits(*memory, *cpus),
            usize::from(*interfaces),
        ),
        Command::List => list(&store),
        Command::Inspect { name } => inspect(&store, name),
        Command::Prune { all } => {
            for name in store.prune(*all)? {
                println!("{}", shown(&name));
            }
            Ok(0)
        }
    }
}

fn build(
    configuration: &Configuration,
    store: &TemplateStore,
    limits: &PodLimits,
    interfaces: usize,
) -> anyhow::Result<u8> {
    kvm::check(&configuration.microvm.kvm)?;
    let size = machine_size(limits)?;
    let (template, _) = event_loop()?
        .block_on(template::obtain(store, &configuration.microvm, size, interfaces))
        .context("building the template")?;
    println!("{}", shown(&template.name));
    Ok(0)
}

fn list(store: &TemplateStore) -> anyhow::Result<u8> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "NAME",
        "VCPUS",
        "MEMORY",
        "INTERFACES",
        "ON DISK",
        "LAST USED",
        "STATUS",
    ]);
    for TemplateSummary {
        template,
        inputs,
        bytes,
        used,
    } in store.list()?
    {
        let used = used.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (vcpus, memory, interfaces, status) = match inputs {
            Ok(inputs) => (
                inputs.vcpus.to_string(),
                format!("{} MiB", inputs.memory_mib),
                inputs.network_devices.to_string(),
                inputs
                    .staleness()
                    .map_or_else(|| "current".to_owned(), |reason| format!("stale: {reason}")),
            ),
            Err(error) => (
                String::new(),
                String::new(),
                String::new(),
                format!("broken: {:#}", anyhow::Error::new(error)),
            ),
        };
        let on_disk = format!("{} MiB", bytes.div_ceil(1 << 20));
        table.add_row([
            shown(&template.name),
            &vcpus,
            &memory,
            &interfaces,
            &on_disk,
            &age(used),
            &status,
        ]);
    }
    println!("{table}");
    Ok(0)
}

fn inspect(store: &TemplateStore, name: &str) -> anyhow::Result<u8> {
    ensure!(!name.is_empty(), "the beginning of a template's name is missing");
    let summary = store.find_by_beginning(name)?;
    let inputs = summary.inputs?;
    vmm::snapshot::verify(&summary.template.snapshot())
        .with_context(|| format!("checking template {}", summary.template.name))?;
    let status = inputs.staleness().unwrap_or_else(|| "current".to_owned());
    let text = serde_json::to_string_pretty(&serde_json::json!({
        "name": summary.template.name,
        "status": status,
        "bytes_on_disk": summary.bytes,
        "last_used": summary.used.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "inputs": inputs,
    }))?;
    println!("{text}");
    Ok(0)
}

fn shown(name: &str) -> &str {
    name.get(..SHOWN_DIGITS).unwrap_or(name)
}

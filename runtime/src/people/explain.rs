//! `bulkhead explain`: which wall a pod would stand behind and how large its machine would be, by the functions that
//! decide it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use comfy_table::{Table, presets};
use container::Bundle;
use image::bundle::{ByteSize, CpuCount};
use serde::Serialize;
use serde_json::Value;

use super::{Format, pod_limits};
use crate::annotations::{ISOLATION_ANNOTATION, MACHINE_MEMORY_ANNOTATION, MACHINE_VCPUS_ANNOTATION};
use crate::configuration::Configuration;
use crate::isolation::{ChosenBy, Isolation};
use crate::oci_pod::DEFAULT_ROOT;
use crate::oci_pod::membership::Membership;
use crate::oci_pod::sandbox::{Asked, PodSandbox, Said};
use crate::sizing::{
    GUEST_OVERHEAD_MIB, HOST_OVERHEAD_MIB, MachineSize, PodLimits, container_memory_mib, machine_size,
};

/// Options of `explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A bundle's folder or a configuration file, as for `bulkhead-oci` [default: what the options ask `bulkhead run` for]
    #[arg(value_name = "BUNDLE|CONFIG_JSON")]
    bundle: Option<PathBuf>,
    /// The memory limit, as in 64m
    #[arg(long, value_name = "SIZE", conflicts_with = "bundle")]
    memory: Option<ByteSize>,
    /// The processor limit, as in 0.5
    #[arg(long, value_name = "NUMBER", conflicts_with = "bundle")]
    cpus: Option<CpuCount>,
    /// The wall, as if it were chosen there
    #[arg(long, value_name = "WALL")]
    isolation: Option<Isolation>,
    /// How to write the answer: text or json
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    format: Format,
}

/// The whole answer. What does not apply is none.
#[derive(Debug, Serialize)]
struct Explanation {
    isolation: Isolation,
    chosen_by: ChosenBy,
    /// The configuration file that was read.
    configuration: Option<PathBuf>,
    /// The container whose sandbox is joined.
    joins: Option<String>,
    asked: Option<Demand>,
    machine: Option<Machine>,
    /// Of `bulkhead-oci`; `bulkhead run` puts machines into no cgroup.
    host_cgroup: Option<HostCgroup>,
}

/// What the pod asks for: sizes in bytes, times in microseconds.
#[derive(Debug, Serialize)]
struct Demand {
    memory: Said,
    cpu_quota: Said,
    cpu_period: Said,
    millicpus: Option<u32>,
    machine_memory_mib: Option<u32>,
    machine_vcpus: Option<u8>,
}

#[derive(Debug, Serialize)]
struct Machine {
    containers_mib: u64,
    guest_overhead_mib: u64,
    memory_mib: u32,
    vcpus: u8,
}

#[derive(Debug, Serialize)]
struct HostCgroup {
    host_overhead_mib: u64,
    #[serde(flatten)]
    limits: container::PodLimits,
}

/// Says what would be done, and does nothing.
pub(crate) fn explain(configuration: &Configuration, arguments: &Arguments) -> anyhow::Result<u8> {
    let explanation = match &arguments.bundle {
        Some(path) => of_bundle(configuration, arguments.isolation, path)?,
        None => of_options(configuration, arguments)?,
    };
    match arguments.format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Format::Text => println!("{}", table(&explanation)),
    }
    Ok(0)
}

/// What `bulkhead run` would do.
fn of_options(configuration: &Configuration, arguments: &Arguments) -> anyhow::Result<Explanation> {
    let (isolation, chosen_by) =
        Isolation::choose_and_tell(arguments.isolation, None, configuration.isolation);
    let mut explanation = Explanation::of(configuration, isolation, chosen_by);
    if isolation == Isolation::MicroVm {
        let said = |limit: Option<u64>, option| Said {
            limit,
            read_from: limit.is_some().then_some(option),
        };
        let quota = arguments.cpus.map(|cpus| cpus.quota().unsigned_abs());
        let asked = Asked {
            memory: said(arguments.memory.map(|ByteSize(bytes)| bytes), "--memory"),
            cpu_quota: said(quota, "--cpus"),
            cpu_period: said(quota.map(|_| CpuCount::PERIOD), "--cpus"),
            machine_memory_mib: None,
            machine_vcpus: None,
            cpu_shares: None,
        };
        explanation.size(&asked, &pod_limits(arguments.memory, arguments.cpus))?;
    }
    Ok(explanation)
}

/// What `bulkhead-oci` would do.
fn of_bundle(
    configuration: &Configuration,
    flag: Option<Isolation>,
    path: &Path,
) -> anyhow::Result<Explanation> {
    let (bundle, file) = if path.is_dir() {
        (Bundle::load(path)?, path.join("config.json"))
    } else {
        (Bundle::load_file(path)?, path.to_owned())
    };
    let annotation = match bundle.spec().annotations() {
        Some(annotations) => Isolation::from_annotations(annotations)
            .with_context(|| format!("reading the annotations of {}", file.display()))?,
        None => None,
    };
    let (isolation, chosen_by) = Isolation::choose_and_tell(flag, annotation, configuration.isolation);
    let mut explanation = Explanation::of(configuration, isolation, chosen_by);
    if isolation == Isolation::SharedKernel {
        return Ok(explanation);
    }
    let text = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
    let config: Value =
        serde_json::from_slice(&text).with_context(|| format!("parsing {}", file.display()))?;
    match Membership::of(&config, Path::new(DEFAULT_ROOT))? {
        Membership::Member(founder) => explanation.joins = Some(founder.to_string()),
        Membership::Founder { .. } => {
            let asked = Asked::of(&config);
            explanation.size(&asked, &asked.limits())?;
            explanation.host_cgroup = Some(HostCgroup {
                host_overhead_mib: HOST_OVERHEAD_MIB,
                limits: PodSandbox::limits_on_host(&config)?,
            });
        }
    }
    Ok(explanation)
}

impl Explanation {
    fn of(configuration: &Configuration, isolation: Isolation, chosen_by: ChosenBy) -> Self {
        Self {
            isolation,
            chosen_by,
            configuration: configuration.file.clone(),
            joins: None,
            asked: None,
            machine: None,
            host_cgroup: None,
        }
    }

    fn size(&mut self, asked: &Asked, limits: &PodLimits) -> anyhow::Result<()> {
        let MachineSize { memory_mib, vcpus } = machine_size(limits).context("sizing the microVM")?;
        self.asked = Some(Demand {
            memory: asked.memory,
            cpu_quota: asked.cpu_quota,
            cpu_period: asked.cpu_period,
            millicpus: limits.millicpus,
            machine_memory_mib: limits.machine_memory_mib,
            machine_vcpus: limits.machine_vcpus,
        });
        self.machine = Some(Machine {
            containers_mib: container_memory_mib(limits),
            guest_overhead_mib: GUEST_OVERHEAD_MIB,
            memory_mib,
            vcpus,
        });
        Ok(())
    }
}

fn table(explanation: &Explanation) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.add_row(["wall", &wall(explanation)]);
    match (&explanation.asked, &explanation.machine) {
        (Some(asked), Some(machine)) => {
            table.add_row(["asked for", &memory_asked(asked)]);
            table.add_row(["", &cpus_asked(asked)]);
            table.add_row(["machine", &machine_memory(asked, machine)]);
            table.add_row(["", &machine_processors(asked, machine)]);
            table.add_row([
                "on the host",
                &host_memory(machine, explanation.host_cgroup.as_ref()),
            ]);
            if let Some(cgroup) = &explanation.host_cgroup {
                table.add_row(["", &host_processors(cgroup)]);
            }
        }
        _ => {
            let none = match &explanation.joins {
                Some(founder) => {
                    format!("that of container {founder}, which is joined; the limits hold inside the guest")
                }
                None => "none: the container's cgroup on the host has the container's own limits".to_owned(),
            };
            table.add_row(["machine", &none]);
        }
    }
    table
}

fn wall(explanation: &Explanation) -> String {
    let isolation = explanation.isolation;
    match explanation.chosen_by {
        ChosenBy::Flag => format!("{isolation}, by --isolation, which wins over all else"),
        ChosenBy::Annotation => {
            format!("{isolation}, by annotation {ISOLATION_ANNOTATION}, which wins over the configuration")
        }
        ChosenBy::Configuration => {
            let file = explanation.configuration.as_deref().unwrap_or(Path::new(""));
            format!("{isolation}, by configuration file {}", file.display())
        }
        ChosenBy::Default => {
            format!("{isolation}, the default: neither --isolation, annotation nor configuration file says")
        }
    }
}

fn memory_asked(asked: &Demand) -> String {
    match (asked.memory.limit, asked.memory.read_from) {
        (Some(bytes), Some(place)) => format!("{bytes} bytes of memory ({place})"),
        (_, Some(place)) => format!("no limit of memory ({place} says so)"),
        (_, None) => "no limit of memory".to_owned(),
    }
}

fn cpus_asked(asked: &Demand) -> String {
    let place = |said: Said| said.read_from.unwrap_or("not said");
    match (asked.cpu_quota.limit, asked.cpu_period.limit, asked.millicpus) {
        (Some(quota), Some(period), Some(millicpus)) => {
            let mut text = format!("{} processors: {quota} us ", thousandths(millicpus));
            let (quota_place, period_place) = (place(asked.cpu_quota), place(asked.cpu_period));
            text += &match quota_place == period_place {
                true => format!("in each {period} us ({quota_place})"),
                false => format!("({quota_place}) in each {period} us ({period_place})"),
            };
            text
        }
        (Some(quota), None, _) => format!(
            "{quota} us of processor time ({}) in each period of unknown length: no number of processors",
            place(asked.cpu_quota)
        ),
        _ => match asked.cpu_quota.read_from {
            Some(place) => format!("no limit of processor time ({place} says so)"),
            None => "no limit of processor time".to_owned(),
        },
    }
}

fn machine_memory(asked: &Demand, machine: &Machine) -> String {
    if asked.machine_memory_mib.is_some() {
        return format!(
            "{} MiB of memory ({MACHINE_MEMORY_ANNOTATION}) = {} MiB for containers + {} MiB for the guest",
            machine.memory_mib, machine.containers_mib, machine.guest_overhead_mib
        );
    }
    let why = match asked.memory.limit {
        Some(_) => "the limit, rounded up",
        None => "what containers without a limit share",
    };
    format!(
        "{} MiB of memory = {} MiB for containers ({why}) + {} MiB for the guest",
        machine.memory_mib, machine.containers_mib, machine.guest_overhead_mib
    )
}

fn machine_processors(asked: &Demand, machine: &Machine) -> String {
    let why = match (asked.machine_vcpus, asked.millicpus) {
        (Some(_), _) => MACHINE_VCPUS_ANNOTATION.to_owned(),
        (None, Some(millicpus)) => format!("{} processors, rounded up", thousandths(millicpus)),
        (None, None) => "one without a limit".to_owned(),
    };
    let noun = if machine.vcpus == 1 { "vCPU" } else { "vCPUs" };
    format!("{} {noun} ({why})", machine.vcpus)
}

fn host_memory(machine: &Machine, cgroup: Option<&HostCgroup>) -> String {
    let Some(cgroup) = cgroup else {
        return "no cgroup: `bulkhead run` limits a machine by its size alone".to_owned();
    };
    match cgroup.limits.memory {
        Some(bytes) => format!(
            "a cgroup with {} MiB of memory = {} MiB for the machine + {} MiB for what stands beside it",
            bytes >> 20,
            machine.memory_mib,
            cgroup.host_overhead_mib
        ),
        None => "a cgroup without a limit of memory".to_owned(),
    }
}

fn host_processors(cgroup: &HostCgroup) -> String {
    let limits = &cgroup.limits;
    let shares = limits
        .cpu_shares
        .map_or_else(String::new, |shares| format!(", {shares} shares"));
    match (limits.cpu_quota, limits.cpu_period) {
        (Some(quota), Some(period)) => {
            format!("and {quota} us of processor time in each {period} us{shares}")
        }
        (Some(quota), None) => {
            format!("and {quota} us of processor time in each of the kernel's periods{shares}")
        }
        (None, _) => format!("and no limit of processor time{shares}"),
    }
}

/// A number of thousandths as people write it.
fn thousandths(number: u32) -> String {
    format!("{}", f64::from(number) / 1000.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::configuration::Folders;

    fn configuration() -> Configuration {
        let file = tempfile::NamedTempFile::new().unwrap();
        Configuration::load(Some(file.path()), &Folders::default()).unwrap()
    }

    fn explained(config: &Value) -> anyhow::Result<Explanation> {
        let bundle = tempfile::tempdir().unwrap();
        let file = bundle.path().join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let configuration = configuration();
        let shown = |explained: &anyhow::Result<Explanation>| match explained {
            Ok(explanation) => format!("{explanation:?}"),
            Err(error) => format!("{error:#}"),
        };
        let of_folder = of_bundle(&configuration, None, bundle.path());
        let of_file = of_bundle(&configuration, None, &file);
        assert_eq!(shown(&of_folder), shown(&of_file));
        of_folder
    }

    #[test]
    fn the_answer_is_what_the_machine_and_its_cgroup_get() {
        let config = json!({
            "ociVersion": "1.0.0",
            "annotations": {"io.kubernetes.cri.sandbox-memory": "67108864"},
            "linux": {"resources": {"cpu": {"quota": 150_000, "period": 100_000}}}
        });
        let explanation = explained(&config).unwrap();
        let machine = explanation.machine.as_ref().unwrap();
        let size = machine_size(&Asked::of(&config).limits()).unwrap();
        assert_eq!((machine.memory_mib, machine.vcpus), (size.memory_mib, size.vcpus));
        let shares = machine.containers_mib + machine.guest_overhead_mib;
        assert_eq!(shares, u64::from(machine.memory_mib));
        let cgroup = explanation.host_cgroup.as_ref().unwrap();
        assert_eq!(cgroup.limits, PodSandbox::limits_on_host(&config).unwrap());
        assert_eq!(
            cgroup.limits.memory,
            Some((shares + cgroup.host_overhead_mib) << 20)
        );
        let text = table(&explanation).to_string();
        for part in [
            "sandbox-memory",
            "/linux/resources/cpu/quota",
            "2 vCPUs",
            "1.5 processors",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
    }

    #[test]
    fn a_size_that_is_said_of_the_machine_is_explained_by_its_annotation() {
        let config = json!({
            "ociVersion": "1.0.0",
            "annotations": {MACHINE_MEMORY_ANNOTATION: "300", MACHINE_VCPUS_ANNOTATION: "3"}
        });
        let explanation = explained(&config).unwrap();
        let machine = explanation.machine.as_ref().unwrap();
        assert_eq!((machine.memory_mib, machine.vcpus), (300, 3));
        let text = table(&explanation).to_string();
        for part in [
            "300 MiB of memory (dev.bulkhead.machine.memory_mib) = 236 MiB for containers + 64 MiB",
            "3 vCPUs (dev.bulkhead.machine.vcpus)",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
    }

    #[test]
    fn one_that_joins_has_no_machine_of_its_own() {
        let config = json!({
            "ociVersion": "1.0.0",
            "annotations": {
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.sandbox-id": "founder"
            }
        });
        let explanation = explained(&config).unwrap();
        assert_eq!(explanation.joins.as_deref(), Some("founder"));
        assert!(explanation.machine.is_none() && explanation.host_cgroup.is_none());
    }

    #[test]
    fn an_unknown_annotation_of_ours_is_an_error() {
        let config = json!({"ociVersion": "1.0.0", "annotations": {"dev.bulkhead.isolatoin": "microvm"}});
        let error = format!("{:#}", explained(&config).unwrap_err());
        assert!(error.contains("dev.bulkhead.isolatoin"), "{error}");
    }
}

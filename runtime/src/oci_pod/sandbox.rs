//! The virtual machine of a pod: made by the pod's first container, in whose folder it is written down.

use std::io;
use std::num::NonZeroU64;
use std::path::Path;
use std::str::FromStr;

use container::{ContainerId, PodCgroup};
use serde::Serialize;
use serde_json::Value;
use vmm::config::NetworkRateLimit;
use vmm::devices::rate_limiter::RateLimit;

use super::folder::{Folder, FolderError};
use super::membership::network_namespace;
pub use super::sandbox_record::{PodSandbox, RECORD};
use crate::annotations::{
    MACHINE_MEMORY_ANNOTATION, MACHINE_VCPUS_ANNOTATION, NETWORK_RECEIVE_ANNOTATION,
    NETWORK_TRANSMIT_ANNOTATION,
};
use crate::configuration::MicroVmConfiguration;
use crate::kill_process::kill_and_wait;
use crate::micro_vm::MicroVm;
use crate::micro_vm::boot::BootError;
use crate::micro_vm::machine_files::MachineFiles;
use crate::micro_vm::start::{Life, NewMachine, queue_pairs};
use crate::pod_network::{PodNetwork, PodNetworkError};
use crate::sizing::{HOST_OVERHEAD_MIB, MachineSize, PodLimits, TooLarge, machine_size};
use crate::start_record::StartRecord;

/// How containerd's CRI plugin says what all containers of a pod may use together.
pub const MEMORY_ANNOTATION: &str = "io.kubernetes.cri.sandbox-memory";
/// The same of processor time in each period, in microseconds.
const CPU_QUOTA_ANNOTATION: &str = "io.kubernetes.cri.sandbox-cpu-quota";
/// And of the period.
const CPU_PERIOD_ANNOTATION: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// The machine's folder in the first container's.
const MACHINE: &str = "vm";

/// How long a VMM that was killed may take to be gone: the kernel gives the memory of a large machine back page by page,
/// beside whatever else the host does.
const KILL_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Why a pod has no virtual machine.
#[derive(Debug, thiserror::Error)]
pub enum PodSandboxError {
    /// The pod asks for more than a machine can have.
    #[error("sizing the microVM")]
    Size(#[from] TooLarge),
    /// What it is connected to cannot be carried into it.
    #[error("carrying the pod's network into the microVM")]
    Network(#[from] PodNetworkError),
    /// The machine did not start.
    #[error("starting the microVM")]
    Boot(#[from] BootError),
    /// It could not be written down.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// There is none to join.
    #[error(
        "container `{id}` has no sandbox to join: it does not exist behind the microvm wall, or is not its pod's first"
    )]
    Missing {
        /// The container whose sandbox was looked for.
        id: ContainerId,
    },
    /// The VMM could not be ended.
    #[error("ending the microVM")]
    Kill(#[source] io::Error),
    /// The event loop could not be started.
    #[error("starting the event loop")]
    EventLoop(#[source] io::Error),
}

impl PodSandbox {
    /// Starts the machine for a container with this configuration, which runs on when this process has ended. Whoever
    /// finds the folder can end it, from its first moment on.
    ///
    /// # Errors
    /// With the stage that failed.
    pub async fn start(
        configuration: &MicroVmConfiguration,
        folder: &Folder,
        cgroup: &PodCgroup,
        config: &Value,
        of_a_pod: bool,
    ) -> Result<(Self, MicroVm), PodSandboxError> {
        let size = machine_size(&Asked::of(config).limits())?;
        let MachineSize { memory_mib, vcpus } = size;
        let sandbox_of = |machine| Self {
            machine,
            of_a_pod,
            memory_mib,
            vcpus,
            start: StartRecord::default(),
        };
        let write_down = |machine| {
            folder
                .write(RECORD, &sandbox_of(machine))
                .map_err(io::Error::other)
        };
        let files = machine_files(folder);
        let mut network = network(config, queue_pairs(size))?;
        network.rates = network_rates(config);
        let new = NewMachine {
            configuration,
            files: &files,
            size,
            network: &network,
            life: Life::OnItsOwn(&write_down),
            cgroup: Some(cgroup),
        };
        let hostname = config.get("hostname").and_then(Value::as_str).unwrap_or_default();
        let mut start = StartRecord::default();
        let started = MicroVm::start(&new, hostname, &mut start).await?;
        let sandbox = Self {
            start,
            ..sandbox_of(started.machine())
        };
        folder.write(RECORD, &sandbox)?;
        network.hand_over();
        Ok((sandbox, started))
    }

    /// What the machine of a container with this configuration may use of the host together with all that stands there for
    /// it.
    ///
    /// # Errors
    /// When the pod asks for more than a machine can have.
    pub fn limits_on_host(config: &Value) -> Result<container::PodLimits, PodSandboxError> {
        let asked = Asked::of(config);
        let size = machine_size(&asked.limits())?;
        Ok(asked.limits_around(size.memory_mib))
    }

    /// The same for this machine once its first container has other limits. What that leaves without a limit may use all
    /// that the machine has.
    ///
    /// # Errors
    /// When the pod asks for more than a machine can have.
    pub fn new_limits_on_host(&self, config: &Value) -> Result<container::PodLimits, PodSandboxError> {
        let asked = Asked::of(config);
        let memory_mib = match asked.memory.limit {
            Some(_) => machine_size(&asked.limits())?.memory_mib.min(self.memory_mib),
            None => self.memory_mib,
        };
        Ok(asked.limits_around(memory_mib))
    }

    /// The sandbox that container `id` founded.
    ///
    /// # Errors
    /// When there is none.
    pub fn founded_by(root: &Path, id: &ContainerId) -> Result<Self, PodSandboxError> {
        Self::read(&Folder::of(root, id))?.ok_or_else(|| PodSandboxError::Missing { id: id.clone() })
    }

    /// Ends the machine at once. What its containers wrote to the host's files is with the host already.
    ///
    /// # Errors
    /// When the VMM cannot be killed.
    pub fn kill(&self) -> Result<(), PodSandboxError> {
        kill_and_wait(self.machine, KILL_PATIENCE).map_err(PodSandboxError::Kill)
    }
}

/// The files of the machine of the pod whose first container has this folder.
pub fn machine_files(folder: &Folder) -> MachineFiles {
    MachineFiles::of(&folder.path().join(MACHINE))
}

/// The network of the namespace that the configuration names.
fn network(config: &Value, queue_pairs: u8) -> Result<PodNetwork, PodNetworkError> {
    network_namespace(config).map_or_else(
        || Ok(PodNetwork::default()),
        |path| PodNetwork::of(path, queue_pairs),
    )
}

/// What a configuration lets its pod use: what whoever makes pods says of all its containers, or else this one's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Bytes of memory.
    pub memory: Said,
    /// Microseconds of processor time in each period.
    pub cpu_quota: Said,
    /// The period in microseconds.
    pub cpu_period: Said,
    /// MiB of memory of the machine itself.
    pub machine_memory_mib: Option<u32>,
    /// Processors of the machine itself.
    pub machine_vcpus: Option<u8>,
    /// The share of the processors where they are wanted by more.
    pub cpu_shares: Option<u64>,
}

/// A limit, and where it was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Said {
    /// None where it is not positive, or nothing was said.
    pub limit: Option<u64>,
    /// The annotation or the JSON pointer that said it, be it that there is no limit.
    pub read_from: Option<&'static str>,
}

impl Asked {
    /// What this configuration asks for.
    pub fn of(config: &Value) -> Self {
        Self {
            memory: Said::by(config, MEMORY_ANNOTATION, "/linux/resources/memory/limit"),
            cpu_quota: Said::by(config, CPU_QUOTA_ANNOTATION, "/linux/resources/cpu/quota"),
            cpu_period: Said::by(config, CPU_PERIOD_ANNOTATION, "/linux/resources/cpu/period"),
            cpu_shares: config
                .pointer("/linux/resources/cpu/shares")
                .and_then(Value::as_u64)
                .filter(|&shares| shares > 0),
            machine_memory_mib: number(config, MACHINE_MEMORY_ANNOTATION),
            machine_vcpus: number(config, MACHINE_VCPUS_ANNOTATION),
        }
    }

    /// What a machine of so much memory may use of the host with what stands beside it.
    fn limits_around(&self, memory_mib: u32) -> container::PodLimits {
        let quota = self.cpu_quota.limit;
        container::PodLimits {
            memory: Some((u64::from(memory_mib) + HOST_OVERHEAD_MIB) << 20),
            cpu_quota: quota,
            cpu_period: self.cpu_period.limit.filter(|_| quota.is_some()),
            cpu_shares: self.cpu_shares,
        }
    }

    /// The same as the size of a machine follows from it.
    pub fn limits(&self) -> PodLimits {
        let millicpus = |(quota, period): (u64, u64)| {
            u32::try_from(quota.saturating_mul(1000).div_ceil(period)).unwrap_or(u32::MAX)
        };
        PodLimits {
            memory: self.memory.limit,
            millicpus: self.cpu_quota.limit.zip(self.cpu_period.limit).map(millicpus),
            machine_memory_mib: self.machine_memory_mib,
            machine_vcpus: self.machine_vcpus,
        }
    }
}

/// The number that an annotation says. One that is none was refused when the configuration was read.
fn number<T: FromStr>(config: &Value, annotation: &str) -> Option<T> {
    config.get("annotations")?.get(annotation)?.as_str()?.parse().ok()
}

/// How fast the pod's interfaces may be.
fn network_rates(config: &Value) -> NetworkRateLimit {
    let rate = |annotation| {
        number::<NonZeroU64>(config, annotation).map(|bytes_per_second| RateLimit {
            bytes_per_second: Some(bytes_per_second),
            ..RateLimit::default()
        })
    };
    NetworkRateLimit {
        receive: rate(NETWORK_RECEIVE_ANNOTATION),
        transmit: rate(NETWORK_TRANSMIT_ANNOTATION),
    }
}

impl Said {
    /// A limit as the annotation of containerd's CRI plugin says it of a whole pod, or else as the resources do.
    fn by(config: &Value, annotation: &'static str, resource: &'static str) -> Self {
        let annotations = config.get("annotations");
        let of_pod =
            annotations.and_then(|annotations| annotations.get(annotation)?.as_str()?.parse::<i64>().ok());
        let of_container = config.pointer(resource).and_then(Value::as_i64);
        let said = of_pod
            .map(|limit| (limit, annotation))
            .or(of_container.map(|limit| (limit, resource)));
        Self {
            limit: said
                .and_then(|(limit, _)| u64::try_from(limit).ok())
                .filter(|&limit| limit > 0),
            read_from: said.map(|(_, read_from)| read_from),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn limits(config: &Value) -> PodLimits {
        Asked::of(config).limits()
    }

    #[test]
    fn where_a_limit_was_read_is_told() {
        let config = json!({
            "annotations": {"io.kubernetes.cri.sandbox-memory": "0", "io.kubernetes.cri.sandbox-cpu-quota": "x"},
            "linux": {"resources": {"memory": {"limit": 5}, "cpu": {"quota": 5}}}
        });
        let asked = Asked::of(&config);
        let unlimited = Said {
            limit: None,
            read_from: Some("io.kubernetes.cri.sandbox-memory"),
        };
        assert_eq!(asked.memory, unlimited);
        assert_eq!(asked.cpu_quota.read_from, Some("/linux/resources/cpu/quota"));
        assert_eq!(asked.cpu_period, Said::default());
    }

    #[test]
    fn a_pods_limits_win_over_its_first_containers() {
        let config = json!({
            "annotations": {
                "io.kubernetes.cri.sandbox-memory": "1048576",
                "io.kubernetes.cri.sandbox-cpu-quota": "150000",
                "io.kubernetes.cri.sandbox-cpu-period": "100000"
            },
            "linux": {"resources": {"memory": {"limit": 5}, "cpu": {"quota": 5, "period": 5}}}
        });
        let expected = PodLimits {
            memory: Some(1 << 20),
            millicpus: Some(1500),
            ..PodLimits::default()
        };
        assert_eq!(limits(&config), expected);
    }

    #[test]
    fn no_limit_and_a_negative_one_are_none() {
        let none = PodLimits::default();
        assert_eq!(limits(&json!({})), none);
        let unlimited =
            json!({"linux": {"resources": {"memory": {"limit": -1}, "cpu": {"quota": -1, "period": 9}}}});
        assert_eq!(limits(&unlimited), none);
        // As containerd says of a pod without limits.
        let zero = json!({"annotations": {"io.kubernetes.cri.sandbox-memory": "0"}});
        assert_eq!(limits(&zero), none);
    }
}

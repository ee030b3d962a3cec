//! The configuration's `linux.resources`, save for the devices: judged, but not yet in the words of a cgroup version.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources, LinuxThrottleDevice,
};

use crate::plan::{SpecError, by_key};

/// Limits, in the units of the runtime specification. None leaves the kernel's default, or what was set before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Bytes; -1 for no limit. So are the next two; the swap limit counts memory and swap together.
    pub(crate) memory_limit: Option<i64>,
    pub(crate) memory_and_swap_limit: Option<i64>,
    pub(crate) memory_reservation: Option<i64>,
    /// Buffers of TCP; obsolete, and gone from cgroup2.
    pub(crate) kernel_tcp_limit: Option<i64>,
    /// Refuse a memory limit below what is in use, rather than let the kernel reclaim and kill.
    pub(crate) check_memory_in_use: bool,
    pub(crate) use_hierarchy: bool,
    pub(crate) swappiness: Option<u64>,
    pub(crate) disable_oom_killer: Option<bool>,
    pub(crate) cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each period; -1 for no limit.
    pub(crate) cpu_quota: Option<i64>,
    pub(crate) cpu_period: Option<u64>,
    pub(crate) cpu_burst: Option<u64>,
    pub(crate) cpu_idle: Option<i64>,
    pub(crate) realtime_runtime: Option<i64>,
    pub(crate) realtime_period: Option<u64>,
    pub(crate) cpus: Option<String>,
    pub(crate) memory_nodes: Option<String>,
    /// -1 for no limit.
    pub(crate) process_limit: Option<i64>,
    pub(crate) block_io: BlockIo,
    pub(crate) hugepages: Vec<HugepageLimit>,
    /// A traffic class, as tc(8) counts them.
    pub(crate) network_class: Option<u32>,
    /// Interfaces and the priority of what leaves through them.
    pub(crate) network_priorities: Vec<(String, u32)>,
    pub(crate) rdma: Vec<RdmaLimit>,
    /// cgroup2 files and what to write to each.
    pub(crate) unified: Vec<(String, String)>,
}

/// Shares and limits of block devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockIo {
    /// 10 to 1000.
    pub(crate) weight: Option<u16>,
    pub(crate) leaf_weight: Option<u16>,
    pub(crate) devices: Vec<DeviceWeight>,
    pub(crate) throttles: Vec<Throttle>,
}

/// A share of one block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceWeight {
    /// `major:minor`.
    pub(crate) device: String,
    pub(crate) weight: Option<u16>,
    pub(crate) leaf_weight: Option<u16>,
    /// The JSON path.
    pub(crate) field: String,
}

/// A limit of one block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Throttle {
    /// `major:minor`.
    pub(crate) device: String,
    pub(crate) kind: ThrottleKind,
    /// Bytes or operations each second; 0 for no limit.
    pub(crate) rate: u64,
    /// The JSON path.
    pub(crate) field: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThrottleKind {
    ReadBytes,
    WriteBytes,
    ReadOperations,
    WriteOperations,
}

/// A limit of huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HugepageLimit {
    /// As the kernel names the files, as in `2MB`.
    pub(crate) page_size: String,
    /// Bytes; -1 for no limit.
    pub(crate) limit: i64,
    /// The JSON path.
    pub(crate) field: String,
}

/// A limit of one RDMA device. None is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RdmaLimit {
    pub(crate) device: String,
    pub(crate) handles: Option<u32>,
    pub(crate) objects: Option<u32>,
}

impl Resources {
    pub(crate) fn new(resources: &LinuxResources) -> Result<Resources, SpecError> {
        let mut plan = Resources::default();
        if let Some(memory) = resources.memory() {
            plan.read_memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            plan.read_cpu(cpu)?;
        }
        // Zero was long written for "not set", and cannot be told from a limit that is missing.
        plan.process_limit = resources
            .pids()
            .as_ref()
            .map(|pids| pids.limit())
            .filter(|&limit| limit != 0);
        if let Some(block_io) = resources.block_io() {
            plan.block_io = BlockIo::new(block_io)?;
        }
        plan.read_hugepages(resources)?;
        if let Some(network) = resources.network() {
            plan.read_network(network)?;
        }
        plan.read_rdma(resources)?;
        if let Some(unified) = resources.unified() {
            for (file, value) in by_key(unified) {
                if file.contains('/') || file.is_empty() || !file.contains('.') {
                    let field = format!("linux.resources.unified[`{file}`]");
                    return Err(SpecError::invalid(field, "is not the name of a cgroup2 file"));
                }
                plan.unified.push((file.to_owned(), value.clone()));
            }
        }
        Ok(plan)
    }

    /// Leaves out what a new cgroup has anyway, so that nothing is asked of a controller that may be missing.
    pub(super) fn without_defaults(mut self) -> Resources {
        self.disable_oom_killer = self.disable_oom_killer.filter(|&disable| disable);
        self.cpu_burst = self.cpu_burst.filter(|&burst| burst != 0);
        self.cpu_idle = self.cpu_idle.filter(|&idle| idle != 0);
        self
    }

    fn read_memory(&mut self, memory: &LinuxMemory) -> Result<(), SpecError> {
        let in_range = |value: Option<i64>, field: &str| match value {
            Some(value) if value < -1 => Err(SpecError::invalid(
                field,
                format!("{value} is not a size in bytes"),
            )),
            value => Ok(value.filter(|&value| value != 0)),
        };
        self.memory_limit = in_range(memory.limit(), "linux.resources.memory.limit")?;
        self.memory_and_swap_limit = in_range(memory.swap(), "linux.resources.memory.swap")?;
        self.memory_reservation = in_range(memory.reservation(), "linux.resources.memory.reservation")?;
        self.kernel_tcp_limit = in_range(memory.kernel_tcp(), "linux.resources.memory.kernelTCP")?;
        self.check_memory_in_use = memory.check_before_update().unwrap_or(false);
        self.use_hierarchy = memory.use_hierarchy().unwrap_or(false);
        // All bits set is -1, which was long written for "not set".
        self.swappiness = memory.swappiness().filter(|&swappiness| swappiness != u64::MAX);
        self.disable_oom_killer = memory.disable_oom_killer();
        if self.swappiness.is_some_and(|swappiness| swappiness > 100) {
            return Err(SpecError::invalid(
                "linux.resources.memory.swappiness",
                "is not within 0 to 100",
            ));
        }
        match (self.memory_limit, self.memory_and_swap_limit) {
            (None, Some(swap)) if swap > 0 => Err(SpecError::invalid(
                "linux.resources.memory.swap",
                "counts memory and swap together, so it needs linux.resources.memory.limit",
            )),
            (Some(limit), Some(swap)) if swap > 0 && swap < limit => Err(SpecError::invalid(
                "linux.resources.memory.swap",
                format!("counts memory and swap together, so it cannot be below the memory limit of {limit}"),
            )),
            (Some(-1), Some(swap)) if swap > 0 => Err(SpecError::invalid(
                "linux.resources.memory.swap",
                "cannot be limited while memory is not",
            )),
            (Some(-1), None) => {
                // As much memory as it likes, but no swap, is nothing that anybody means.
                self.memory_and_swap_limit = Some(-1);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn read_cpu(&mut self, cpu: &LinuxCpu) -> Result<(), SpecError> {
        self.cpu_shares = cpu.shares().filter(|&shares| shares != 0);
        self.cpu_quota = cpu.quota().filter(|&quota| quota != 0);
        self.cpu_period = cpu.period().filter(|&period| period != 0);
        self.cpu_burst = cpu.burst();
        self.cpu_idle = cpu.idle();
        self.realtime_runtime = cpu.realtime_runtime().filter(|&runtime| runtime != 0);
        self.realtime_period = cpu.realtime_period().filter(|&period| period != 0);
        self.cpus = cpu.cpus().clone().filter(|cpus| !cpus.is_empty());
        self.memory_nodes = cpu.mems().clone().filter(|nodes| !nodes.is_empty());
        if self.cpu_idle.is_some_and(|idle| !(0..=1).contains(&idle)) {
            return Err(SpecError::invalid(
                "linux.resources.cpu.idle",
                "is neither 0 nor 1",
            ));
        }
        Ok(())
    }

    fn read_hugepages(&mut self, resources: &LinuxResources) -> Result<(), SpecError> {
        let limits = resources.hugepage_limits().as_deref().unwrap_or_default();
        for (index, limit) in limits.iter().enumerate() {
            let field = format!("linux.resources.hugepageLimits[{index}]");
            let page_size = limit.page_size();
            if !is_page_size(page_size) {
                let problem = format!("`{page_size}` is not a size of pages such as 64KB, 2MB or 1GB");
                return Err(SpecError::invalid(format!("{field}.pageSize"), problem));
            }
            self.hugepages.push(HugepageLimit {
                page_size: page_size.clone(),
                limit: limit.limit(),
                field,
            });
        }
        Ok(())
    }

    fn read_network(&mut self, network: &LinuxNetwork) -> Result<(), SpecError> {
        self.network_class = network.class_id().filter(|&class| class != 0);
        let priorities = network.priorities().as_deref().unwrap_or_default();
        for (index, priority) in priorities.iter().enumerate() {
            let name = priority.name();
            if name.is_empty() || name.contains(char::is_whitespace) {
                let field = format!("linux.resources.network.priorities[{index}].name");
                return Err(SpecError::invalid(
                    field,
                    "is not the name of a network interface",
                ));
            }
            self.network_priorities.push((name.clone(), priority.priority()));
        }
        Ok(())
    }

    fn read_rdma(&mut self, resources: &LinuxResources) -> Result<(), SpecError> {
        for (device, limit) in resources.rdma().iter().flat_map(by_key) {
            let field = format!("linux.resources.rdma[`{device}`]");
            if device.is_empty() || device.contains(char::is_whitespace) {
                return Err(SpecError::invalid(field, "is not the name of an RDMA device"));
            }
            if limit.hca_handles().is_none() && limit.hca_objects().is_none() {
                return Err(SpecError::invalid(field, "limits neither handles nor objects"));
            }
            self.rdma.push(RdmaLimit {
                device: device.to_owned(),
                handles: limit.hca_handles(),
                objects: limit.hca_objects(),
            });
        }
        Ok(())
    }
}

impl BlockIo {
    fn new(block_io: &LinuxBlockIo) -> Result<BlockIo, SpecError> {
        const PARENT: &str = "linux.resources.blockIO";
        let mut plan = BlockIo {
            weight: weight(block_io.weight(), || format!("{PARENT}.weight"))?,
            leaf_weight: weight(block_io.leaf_weight(), || format!("{PARENT}.leafWeight"))?,
            ..BlockIo::default()
        };
        let devices = block_io.weight_device().as_deref().unwrap_or_default();
        for (index, device) in devices.iter().enumerate() {
            let field = format!("{PARENT}.weightDevice[{index}]");
            plan.devices.push(DeviceWeight {
                device: device_number(device.major(), device.minor(), &field)?,
                weight: weight(device.weight(), || format!("{field}.weight"))?,
                leaf_weight: weight(device.leaf_weight(), || format!("{field}.leafWeight"))?,
                field,
            });
        }
        let lists = [
            (
                block_io.throttle_read_bps_device(),
                ThrottleKind::ReadBytes,
                "throttleReadBpsDevice",
            ),
            (
                block_io.throttle_write_bps_device(),
                ThrottleKind::WriteBytes,
                "throttleWriteBpsDevice",
            ),
            (
                block_io.throttle_read_iops_device(),
                ThrottleKind::ReadOperations,
                "throttleReadIOPSDevice",
            ),
            (
                block_io.throttle_write_iops_device(),
                ThrottleKind::WriteOperations,
                "throttleWriteIOPSDevice",
            ),
        ];
        for (list, kind, name) in lists {
            let list: &[LinuxThrottleDevice] = list.as_deref().unwrap_or_default();
            for (index, throttle) in list.iter().enumerate() {
                let field = format!("{PARENT}.{name}[{index}]");
                plan.throttles.push(Throttle {
                    device: device_number(throttle.major(), throttle.minor(), &field)?,
                    kind,
                    rate: throttle.rate(),
                    field,
                });
            }
        }
        Ok(plan)
    }
}

/// A share of I/O; zero is "not set".
fn weight(weight: Option<u16>, field: impl FnOnce() -> String) -> Result<Option<u16>, SpecError> {
    match weight {
        None | Some(0) => Ok(None),
        Some(10..=1000) => Ok(weight),
        Some(_) => Err(SpecError::invalid(field(), "is not within 10 to 1000")),
    }
}

fn device_number(major: i64, minor: i64, field: &str) -> Result<String, SpecError> {
    for (number, name) in [(major, "major"), (minor, "minor")] {
        if u32::try_from(number).is_err() {
            let problem = format!("{number} is not a device number");
            return Err(SpecError::invalid(format!("{field}.{name}"), problem));
        }
    }
    Ok(format!("{major}:{minor}"))
}

/// A number without a leading zero and a unit.
fn is_page_size(text: &str) -> bool {
    let number = ["KB", "MB", "GB"].iter().find_map(|unit| text.strip_suffix(unit));
    number.is_some_and(|number| {
        !number.is_empty() && !number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// What is accepted and has no effect, or not everywhere, in words for the caller.
#[allow(
    deprecated,
    reason = "the specification deprecates the field, and configurations still have it"
)]
pub(super) fn ignored(resources: &LinuxResources) -> Vec<String> {
    let Some(memory) = resources.memory() else {
        return Vec::new();
    };
    let warnings = [
        (
            memory.kernel(),
            "linux.resources.memory.kernel is ignored: the kernel no longer limits its memory apart",
        ),
        (
            memory.kernel_tcp(),
            "linux.resources.memory.kernelTCP is obsolete, and ignored where the kernel has no \
             memory.kmem.tcp.limit_in_bytes",
        ),
    ];
    warnings
        .into_iter()
        .filter(|(limit, _)| limit.is_some_and(|limit| limit != 0))
        .map(|(_, warning)| warning.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(resources: &str) -> Result<Resources, SpecError> {
        Resources::new(&serde_json::from_str(resources).unwrap())
    }

    #[test]
    fn values_without_sense_are_refused_by_their_place() {
        for (resources, field) in [
            (r#"{"memory":{"limit":-2}}"#, "memory.limit"),
            (r#"{"memory":{"swap":1000}}"#, "memory.swap"),
            (r#"{"memory":{"limit":1000,"swap":999}}"#, "memory.swap"),
            (r#"{"memory":{"swappiness":101}}"#, "memory.swappiness"),
            (r#"{"cpu":{"idle":2}}"#, "cpu.idle"),
            (r#"{"unified":{"../x.y":"1"}}"#, "unified[`../x.y`]"),
            (r#"{"blockIO":{"weight":9}}"#, "blockIO.weight"),
            (
                r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"leafWeight":1001}]}}"#,
                "blockIO.weightDevice[0].leafWeight",
            ),
            (
                r#"{"blockIO":{"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":1},{"major":-1,"minor":0,"rate":1}]}}"#,
                "blockIO.throttleReadIOPSDevice[1].major",
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2M","limit":1}]}"#,
                "hugepageLimits[0].pageSize",
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"02MB","limit":1}]}"#,
                "hugepageLimits[0].pageSize",
            ),
            (
                r#"{"network":{"priorities":[{"name":"a b","priority":1}]}}"#,
                "network.priorities[0].name",
            ),
            (r#"{"rdma":{"mlx5_0":{}}}"#, "rdma[`mlx5_0`]"),
        ] {
            assert_eq!(
                plan(resources).unwrap_err().field(),
                format!("linux.resources.{field}"),
                "{resources}"
            );
        }
    }

    #[test]
    fn what_engines_write_for_not_set_asks_for_nothing() {
        let unset = r#"{
            "memory": {"limit":0,"swap":0,"reservation":0,"kernel":0,"kernelTCP":0,"swappiness":18446744073709551615,
                       "disableOOMKiller":false,"useHierarchy":false,"checkBeforeUpdate":false},
            "cpu": {"shares":0,"quota":0,"period":0,"burst":0,"idle":0,"realtimeRuntime":0,"realtimePeriod":0,
                    "cpus":"","mems":""},
            "pids": {"limit":0},
            "blockIO": {"weight":0,"leafWeight":0,"weightDevice":[],"throttleReadBpsDevice":[]},
            "hugepageLimits": [], "network": {"classID":0,"priorities":[]}, "rdma": {}, "unified": {}
        }"#;
        assert_eq!(plan(unset).unwrap().without_defaults(), Resources::default());
        assert!(ignored(&serde_json::from_str(unset).unwrap()).is_empty());
    }

    #[test]
    fn obsolete_limits_are_named() {
        let resources = serde_json::from_str(r#"{"memory":{"kernel":4096,"kernelTCP":-1}}"#).unwrap();
        let warnings = ignored(&resources);
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].starts_with("linux.resources.memory.kernel "));
        let plan = Resources::new(&resources).unwrap();
        assert_eq!(
            plan,
            Resources {
                kernel_tcp_limit: Some(-1),
                ..Resources::default()
            }
        );
    }

    #[test]
    fn memory_without_limit_is_swap_without_limit_unless_something_else_is_said() {
        let unlimited = plan(r#"{"memory":{"limit":-1}}"#).unwrap();
        assert_eq!(unlimited.memory_and_swap_limit, Some(-1));
    }
}

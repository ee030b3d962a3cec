//! The configuration's `linux.cgroupsPath` and `linux.resources`.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxCpu, LinuxMemory, LinuxResources};

use super::device_rules::{self, DeviceRule};
use crate::id::ContainerId;
use crate::plan::SpecError;

/// The cgroup below which containers are whose configuration names no absolute path.
pub(crate) const OWN_PARENT: &str = "bulkhead";

/// Where the container's cgroups are and what they limit.
#[derive(Debug)]
pub(crate) struct CgroupPlan {
    /// Absolute within each hierarchy.
    pub(crate) path: PathBuf,
    pub(crate) resources: Resources,
    /// In order; a later rule overrides an earlier one.
    pub(crate) device_rules: Vec<DeviceRule>,
}

/// Limits, in the units of the runtime specification. None leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    /// Bytes; -1 for no limit. So are the next two; the swap limit counts memory and swap together.
    pub(crate) memory_limit: Option<i64>,
    pub(crate) memory_and_swap_limit: Option<i64>,
    pub(crate) memory_reservation: Option<i64>,
    pub(crate) swappiness: Option<u64>,
    pub(crate) disable_oom_killer: bool,
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
    /// cgroup2 files and what to write to each.
    pub(crate) unified: Vec<(String, String)>,
}

impl CgroupPlan {
    pub(crate) fn new(linux: &Linux, id: &ContainerId) -> Result<CgroupPlan, SpecError> {
        let default = LinuxResources::default();
        let resources = linux.resources().as_ref();
        Ok(CgroupPlan {
            path: path(linux.cgroups_path().as_deref(), id)?,
            resources: Resources::new(resources.unwrap_or(&default))?,
            device_rules: device_rules::plan(
                resources
                    .and_then(|resources| resources.devices().as_deref())
                    .unwrap_or_default(),
            )?,
        })
    }
}

/// An absolute path counts from the root of each hierarchy. The specification leaves it to the runtime what a
/// relative one counts from: here it is our own parent, where a container without a path is too.
fn path(path: Option<&Path>, id: &ContainerId) -> Result<PathBuf, SpecError> {
    let own_parent = Path::new("/").join(OWN_PARENT);
    let path = match path.filter(|path| !path.as_os_str().is_empty()) {
        None => own_parent.join(id),
        Some(path) => own_parent.join(path),
    };
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(SpecError::invalid("linux.cgroupsPath", "must not hold `..`"));
    }
    let path: PathBuf = path.components().collect();
    if path == Path::new("/") || path == own_parent {
        return Err(SpecError::invalid(
            "linux.cgroupsPath",
            "must name a cgroup of the container's own",
        ));
    }
    Ok(path)
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
        // Zero was long written for "not set".
        plan.process_limit = resources
            .pids()
            .as_ref()
            .map(|pids| pids.limit())
            .filter(|&limit| limit != 0);
        if let Some(unified) = resources.unified() {
            for (file, value) in unified {
                if file.contains('/') || file.is_empty() || !file.contains('.') {
                    let field = format!("linux.resources.unified[`{file}`]");
                    return Err(SpecError::invalid(field, "is not the name of a cgroup2 file"));
                }
                plan.unified.push((file.clone(), value.clone()));
            }
            plan.unified.sort_unstable();
        }
        Ok(plan)
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
        self.swappiness = memory.swappiness();
        self.disable_oom_killer = memory.disable_oom_killer().unwrap_or(false);
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
            _ => {
                // The kernel memory limits are deprecated in the specification and gone from the kernel; the
                // checks asked for by `checkBeforeUpdate` concern updates.
                Ok(())
            }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(linux: &str) -> Result<CgroupPlan, SpecError> {
        CgroupPlan::new(&serde_json::from_str(linux).unwrap(), &"box".parse().unwrap())
    }

    #[test]
    fn absent_and_relative_paths_are_below_our_own_parent_and_absolute_ones_are_not() {
        for (linux, path) in [
            ("{}", "/bulkhead/box"),
            (r#"{"cgroupsPath":"a/b"}"#, "/bulkhead/a/b"),
            (r#"{"cgroupsPath":"/a//b/"}"#, "/a/b"),
        ] {
            assert_eq!(plan(linux).unwrap().path, Path::new(path));
        }
    }

    #[test]
    fn paths_and_limits_without_sense_are_refused_by_their_place() {
        for (linux, field) in [
            (r#"{"cgroupsPath":"/a/../.."}"#, "linux.cgroupsPath"),
            (r#"{"cgroupsPath":"/"}"#, "linux.cgroupsPath"),
            (
                r#"{"resources":{"memory":{"limit":-2}}}"#,
                "linux.resources.memory.limit",
            ),
            (
                r#"{"resources":{"memory":{"swap":1000}}}"#,
                "linux.resources.memory.swap",
            ),
            (
                r#"{"resources":{"memory":{"limit":1000,"swap":999}}}"#,
                "linux.resources.memory.swap",
            ),
            (
                r#"{"resources":{"memory":{"swappiness":101}}}"#,
                "linux.resources.memory.swappiness",
            ),
            (r#"{"resources":{"cpu":{"idle":2}}}"#, "linux.resources.cpu.idle"),
            (
                r#"{"resources":{"unified":{"../x.y":"1"}}}"#,
                "linux.resources.unified[`../x.y`]",
            ),
        ] {
            assert_eq!(plan(linux).unwrap_err().field(), field);
        }
    }
}

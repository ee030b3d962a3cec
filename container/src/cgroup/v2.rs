//! cgroup2 files and values.

use std::path::Path;

use rustix::fs::{self, Access};
use rustix::io::Errno;

use super::controllers::Settings;
use super::resources::{Resources, ThrottleKind};
use super::setting::Setting;
use super::v1::limit_or_max;
use super::{CgroupError, read, write};

/// Lets every cgroup from the root down to the leaf's parent pass on those of `controllers` that the kernel has there.
pub(super) fn enable_controllers(
    mount_point: &Path,
    leaf: &Path,
    controllers: &[&str],
) -> Result<(), CgroupError> {
    let available = mount_point.join("cgroup.controllers");
    let available = read(&available).map_err(|errno| CgroupError::io("read", &available, errno))?;
    let mut wanted: Vec<&str> = available
        .split_whitespace()
        .filter(|controller| controllers.contains(controller))
        .collect();
    wanted.sort_unstable();
    let mut parents: Vec<&Path> = leaf
        .ancestors()
        .skip(1)
        .take_while(|folder| *folder != mount_point)
        .collect();
    parents.push(mount_point);
    for parent in parents.into_iter().rev() {
        if wanted.is_empty() {
            break;
        }
        let file = parent.join("cgroup.subtree_control");
        wanted = enable_those_that_can_be(wanted, |text| write(&file, text))
            .map_err(|errno| CgroupError::io("enable controllers in", &file, errno))?;
    }
    Ok(())
}

/// Enables controllers by writing to a `cgroup.subtree_control`, all at once or, where the kernel takes no such set, one by
/// one. Returns those that were. Whether the others matter shows when a limit needs one of them.
fn enable_those_that_can_be(
    controllers: Vec<&str>,
    write: impl Fn(&str) -> Result<(), Errno>,
) -> Result<Vec<&str>, Errno> {
    // Processes live in this cgroup, it did not get the controller itself, or the controller does not take the processes
    // that are there, such as those that are scheduled in real time.
    let cannot_be = |errno| {
        matches!(
            errno,
            Errno::BUSY | Errno::NOENT | Errno::OPNOTSUPP | Errno::INVAL
        )
    };
    let all: Vec<String> = controllers
        .iter()
        .map(|controller| format!("+{controller}"))
        .collect();
    match write(&all.join(" ")) {
        Ok(()) => return Ok(controllers),
        Err(errno) if cannot_be(errno) => {}
        Err(errno) => return Err(errno),
    }
    let mut enabled = Vec::new();
    for (controller, word) in controllers.into_iter().zip(&all) {
        match write(word) {
            Ok(()) => enabled.push(controller),
            Err(errno) if cannot_be(errno) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(enabled)
}

/// The controllers that a cgroup has.
pub(super) fn controllers(folder: &Path) -> Result<String, CgroupError> {
    let file = folder.join("cgroup.controllers");
    read(&file).map_err(|errno| CgroupError::io("read", &file, errno))
}

/// The mount point above a cgroup: the uppermost folder that is one.
pub(super) fn root_above(leaf: &Path) -> &Path {
    let is_cgroup = |folder: &&Path| fs::access(folder.join("cgroup.controllers"), Access::EXISTS).is_ok();
    leaf.ancestors().take_while(is_cgroup).last().unwrap_or(leaf)
}

pub(super) fn memory(resources: &Resources) -> Settings {
    refuse(
        resources.swappiness.is_some(),
        "linux.resources.memory.swappiness",
    )?;
    refuse(
        resources.disable_oom_killer == Some(true),
        "linux.resources.memory.disableOOMKiller",
    )?;
    let mut settings = Vec::new();
    if let Some(limit) = resources.memory_limit {
        settings.push(Setting::new(
            "memory.max",
            limit_or_max(limit),
            "linux.resources.memory.limit",
        ));
    }
    if let Some(limit) = swap_limit(resources) {
        let setting = Setting::new("memory.swap.max", &limit, "linux.resources.memory.swap");
        // Without swap in the kernel there is no such file, and no swap to use either.
        settings.push(match limit.as_str() {
            "0" | "max" => setting.dispensable(),
            _ => setting,
        });
    }
    if let Some(limit) = resources.memory_reservation {
        settings.push(Setting::new(
            "memory.low",
            limit_or_max(limit),
            "linux.resources.memory.reservation",
        ));
    }
    Ok(settings)
}

pub(super) fn cpu(resources: &Resources) -> Settings {
    refuse(
        resources.realtime_runtime.is_some(),
        "linux.resources.cpu.realtimeRuntime",
    )?;
    refuse(
        resources.realtime_period.is_some(),
        "linux.resources.cpu.realtimePeriod",
    )?;
    let mut settings = Vec::new();
    if let Some(shares) = resources.cpu_shares {
        settings.push(Setting::new(
            "cpu.weight",
            weight_of_shares(shares),
            "linux.resources.cpu.shares",
        ));
    }
    if let Some(value) = cpu_max(resources) {
        settings.push(Setting::new("cpu.max", value, "linux.resources.cpu.quota"));
    }
    if let Some(burst) = resources.cpu_burst {
        settings.push(Setting::new("cpu.max.burst", burst, "linux.resources.cpu.burst"));
    }
    if let Some(idle) = resources.cpu_idle {
        settings.push(Setting::new("cpu.idle", idle, "linux.resources.cpu.idle"));
    }
    Ok(settings)
}

/// Weights are BFQ's where its scheduler is there, and otherwise those of the I/O cost model, on another scale.
pub(super) fn block_io(resources: &Resources) -> Settings {
    let block_io = &resources.block_io;
    refuse(
        block_io.leaf_weight.is_some(),
        "linux.resources.blockIO.leafWeight",
    )?;
    let mut settings = Vec::new();
    if let Some(weight) = block_io.weight {
        let field = "linux.resources.blockIO.weight";
        let io_weight = io_weight_of_block_weight(weight);
        settings.push(Setting::new("io.bfq.weight", weight, field).or("io.weight", io_weight));
    }
    for device in &block_io.devices {
        if device.leaf_weight.is_some() {
            return Err(lacking(format!("{}.leafWeight", device.field)));
        }
        if let Some(weight) = device.weight {
            let value = format!("{} {weight}", device.device);
            let io_weight = format!("{} {}", device.device, io_weight_of_block_weight(weight));
            settings.push(
                Setting::new("io.bfq.weight", value, device.field.clone())
                    .or("io.weight", io_weight)
                    .of_a_device("default"),
            );
        }
    }
    for throttle in &block_io.throttles {
        let key = match throttle.kind {
            ThrottleKind::ReadBytes => "rbps",
            ThrottleKind::WriteBytes => "wbps",
            ThrottleKind::ReadOperations => "riops",
            ThrottleKind::WriteOperations => "wiops",
        };
        let rate = match throttle.rate {
            0 => "max".to_owned(),
            rate => rate.to_string(),
        };
        let value = format!("{} {key}={rate}", throttle.device);
        settings.push(
            Setting::new("io.max", value, throttle.field.clone())
                .of_a_device("rbps=max wbps=max riops=max wiops=max"),
        );
    }
    Ok(settings)
}

/// Both what is in use and, where the kernel has that (Linux 5.7), what is reserved.
pub(super) fn hugepages(resources: &Resources) -> Settings {
    let mut settings = Vec::new();
    for limit in &resources.hugepages {
        let size = &limit.page_size;
        let files = [format!("hugetlb.{size}.max"), format!("hugetlb.{size}.rsvd.max")];
        let value = limit_or_max(limit.limit);
        let [used, reserved] = files.map(|file| Setting::new(file, &value, limit.field.clone()));
        settings.extend([used, reserved.dispensable()]);
    }
    Ok(settings)
}

pub(super) fn network_class(resources: &Resources) -> Settings {
    refuse(
        resources.network_class.is_some(),
        "linux.resources.network.classID",
    )?;
    Ok(Vec::new())
}

pub(super) fn network_priorities(resources: &Resources) -> Settings {
    refuse(
        !resources.network_priorities.is_empty(),
        "linux.resources.network.priorities",
    )?;
    Ok(Vec::new())
}

fn refuse(asked_for: bool, field: &'static str) -> Result<(), CgroupError> {
    if asked_for {
        Err(lacking(field.to_owned()))
    } else {
        Ok(())
    }
}

fn lacking(field: String) -> CgroupError {
    CgroupError::NotExpressible {
        field,
        problem: "does not exist in cgroup2".to_owned(),
    }
}

/// Version 2 limits swap alone, the specification memory and swap together.
fn swap_limit(resources: &Resources) -> Option<String> {
    match (resources.memory_and_swap_limit?, resources.memory_limit) {
        (both, _) if both < 0 => Some("max".to_owned()),
        (both, Some(memory)) => Some(both.saturating_sub(memory).to_string()),
        (_, None) => None,
    }
}

fn cpu_max(resources: &Resources) -> Option<String> {
    const DEFAULT_PERIOD: u64 = 100_000;
    if resources.cpu_quota.is_none() && resources.cpu_period.is_none() {
        return None;
    }
    let quota = resources.cpu_quota.map_or("max".to_owned(), limit_or_max);
    Some(format!(
        "{quota} {}",
        resources.cpu_period.unwrap_or(DEFAULT_PERIOD)
    ))
}

/// Shares (2 to 262144, default 1024) as a weight (1 to 10000, default 100). The curve is the one OCI runtimes agreed
/// on in 2025: it meets both ranges at their ends and maps the one default to the other, which a straight line does not.
fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

/// A block weight (10 to 1000) as a weight of I/O (1 to 10000), on a straight line.
fn io_weight_of_block_weight(weight: u16) -> u64 {
    1 + u64::from(weight.saturating_sub(10)) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn written(settings: Settings) -> Vec<(String, String)> {
        settings
            .unwrap()
            .into_iter()
            .map(|setting| (setting.file, setting.value))
            .collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    #[test]
    fn swap_is_what_remains_of_memory_and_swap_together() {
        let resources = Resources {
            memory_limit: Some(1000),
            memory_and_swap_limit: Some(1500),
            memory_reservation: Some(-1),
            ..Resources::default()
        };
        let expected = [
            pair("memory.max", "1000"),
            pair("memory.swap.max", "500"),
            pair("memory.low", "max"),
        ];
        assert_eq!(written(memory(&resources)), expected);
    }

    #[test]
    fn quota_and_period_share_a_file_and_each_has_a_default() {
        let quota = Resources {
            cpu_quota: Some(50_000),
            ..Resources::default()
        };
        assert_eq!(written(cpu(&quota)), [pair("cpu.max", "50000 100000")]);
        let period = Resources {
            cpu_period: Some(20_000),
            ..Resources::default()
        };
        assert_eq!(written(cpu(&period)), [pair("cpu.max", "max 20000")]);
    }

    #[test]
    fn shares_meet_weights_at_both_ends_and_at_the_default() {
        let weights = [0, 2, 1024, 262_144, u64::MAX].map(weight_of_shares);
        assert_eq!(weights, [1, 1, 100, 10_000, 10_000]);
        let mut previous = 0;
        for shares in (2..262_144).step_by(997) {
            let weight = weight_of_shares(shares);
            assert!(weight >= previous && weight <= 10_000);
            previous = weight;
        }
    }

    #[test]
    fn what_version_2_lacks_is_refused_by_its_place() {
        for (resources, field) in [
            (r#"{"memory":{"swappiness":1}}"#, "memory.swappiness"),
            (
                r#"{"memory":{"disableOOMKiller":true}}"#,
                "memory.disableOOMKiller",
            ),
            (r#"{"cpu":{"realtimePeriod":1000}}"#, "cpu.realtimePeriod"),
            (r#"{"cpu":{"realtimeRuntime":500}}"#, "cpu.realtimeRuntime"),
            (r#"{"blockIO":{"leafWeight":500}}"#, "blockIO.leafWeight"),
            (
                r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"leafWeight":500}]}}"#,
                "blockIO.weightDevice[0].leafWeight",
            ),
            (r#"{"network":{"classID":1}}"#, "network.classID"),
            (
                r#"{"network":{"priorities":[{"name":"lo","priority":1}]}}"#,
                "network.priorities",
            ),
        ] {
            let plan = Resources::new(&serde_json::from_str(resources).unwrap()).unwrap();
            let refused = [memory, cpu, block_io, network_class, network_priorities]
                .iter()
                .find_map(|settings| settings(&plan).err())
                .unwrap();
            assert_eq!(
                refused.to_string(),
                format!("linux.resources.{field}: does not exist in cgroup2")
            );
        }
    }

    #[test]
    fn block_devices_are_weighed_by_either_scheduler_and_throttled_in_one_file() {
        let resources = r#"{"blockIO":{"weight":1000,"weightDevice":[{"major":8,"minor":0,"weight":10}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}],
            "throttleWriteBpsDevice":[{"major":8,"minor":1,"rate":2}],
            "throttleReadIOPSDevice":[{"major":8,"minor":2,"rate":3}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":3,"rate":0}]}}"#;
        let resources = Resources::new(&serde_json::from_str(resources).unwrap()).unwrap();
        let expected = [
            pair("io.bfq.weight", "1000"),
            pair("io.bfq.weight", "8:0 10"),
            pair("io.max", "8:0 rbps=1"),
            pair("io.max", "8:1 wbps=2"),
            pair("io.max", "8:2 riops=3"),
            pair("io.max", "8:3 wiops=max"),
        ];
        assert_eq!(written(block_io(&resources)), expected);
        assert_eq!([10, 500, 1000].map(io_weight_of_block_weight), [1, 4950, 10_000]);
    }

    #[test]
    fn huge_pages_without_limit_are_max() {
        let resources = r#"{"hugepageLimits":[{"pageSize":"1GB","limit":-1}]}"#;
        let resources = Resources::new(&serde_json::from_str(resources).unwrap()).unwrap();
        let expected = [
            pair("hugetlb.1GB.max", "max"),
            pair("hugetlb.1GB.rsvd.max", "max"),
        ];
        assert_eq!(written(hugepages(&resources)), expected);
    }

    #[test]
    fn a_controller_that_cannot_be_had_keeps_no_other_away() {
        let written = std::cell::RefCell::new(Vec::new());
        let write = |text: &str| match text {
            text if text.contains("+cpu ") || text == "+cpu" => Err(Errno::INVAL),
            "+io" => Err(Errno::BUSY),
            text => {
                written.borrow_mut().push(text.to_owned());
                Ok(())
            }
        };
        let enabled = enable_those_that_can_be(vec!["cpu", "io", "memory", "pids"], write).unwrap();
        assert_eq!(enabled, ["memory", "pids"]);
        // In a cgroup below, which does not have the others.
        assert_eq!(
            enable_those_that_can_be(enabled, write).unwrap(),
            ["memory", "pids"]
        );
        assert_eq!(written.into_inner(), ["+memory", "+pids", "+memory +pids"]);
        let read_only = enable_those_that_can_be(vec!["cpu"], |_| Err(Errno::ROFS));
        assert_eq!(read_only, Err(Errno::ROFS));
    }

    #[test]
    fn controllers_are_enabled_from_the_root_to_the_parent_and_not_in_the_leaf() {
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join("a/b");
        fs::create_dir_all(&leaf).unwrap();
        fs::write(root.path().join("cgroup.controllers"), "rdma memory cpu\n").unwrap();
        for folder in [root.path(), &root.path().join("a"), &leaf] {
            fs::write(folder.join("cgroup.subtree_control"), "").unwrap();
        }
        enable_controllers(root.path(), &leaf, &["memory", "cpu", "io"]).unwrap();
        fs::write(leaf.join("cgroup.controllers"), "").unwrap();
        fs::write(root.path().join("a/cgroup.controllers"), "").unwrap();
        assert_eq!(root_above(&leaf), root.path());
        for (folder, expected) in [("", "+cpu +memory"), ("a", "+cpu +memory"), ("a/b", "")] {
            let file = root.path().join(folder).join("cgroup.subtree_control");
            assert_eq!(fs::read_to_string(file).unwrap(), expected);
        }
    }
}

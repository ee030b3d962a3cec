//! cgroup2 files and values.

use std::path::Path;

use rustix::io::Errno;

use super::plan::Resources;
use super::v1::limit_or_max;
use super::{CgroupError, Setting, read, write};

/// The controllers a container is given wherever the kernel has them, for its limits and its statistics.
const CONTROLLERS: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// Lets every cgroup from the root down to the leaf's parent pass its controllers on.
pub(super) fn enable_controllers(mount_point: &Path, leaf: &Path) -> Result<(), CgroupError> {
    let available = mount_point.join("cgroup.controllers");
    let available = read(&available).map_err(|errno| CgroupError::io("read", &available, errno))?;
    let mut wanted: Vec<String> = available
        .split_whitespace()
        .filter(|controller| CONTROLLERS.contains(controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    wanted.sort_unstable();
    let wanted = wanted.join(" ");
    let mut parents: Vec<&Path> = leaf
        .ancestors()
        .skip(1)
        .take_while(|folder| *folder != mount_point)
        .collect();
    parents.push(mount_point);
    for parent in parents.into_iter().rev() {
        let file = parent.join("cgroup.subtree_control");
        match write(&file, &wanted) {
            Ok(()) => {}
            // Processes live in this cgroup, or it did not get the controllers itself. Whether that matters shows
            // when a limit is written.
            Err(Errno::BUSY | Errno::NOENT | Errno::OPNOTSUPP) => break,
            Err(errno) => return Err(CgroupError::io("enable controllers in", &file, errno)),
        }
    }
    Ok(())
}

/// What to write for `resources`.
pub(super) fn settings(resources: &Resources) -> Result<Vec<Setting>, CgroupError> {
    refuse_what_version_2_lacks(resources)?;
    let mut settings = Vec::new();
    let mut set = |controller, file: &str, value: Option<String>, field| {
        if let Some(value) = value {
            settings.push(Setting {
                controller,
                file: file.to_owned(),
                value,
                field,
            });
        }
    };
    set(
        "memory",
        "memory.max",
        resources.memory_limit.map(limit_or_max),
        "linux.resources.memory.limit",
    );
    set(
        "memory",
        "memory.swap.max",
        swap_limit(resources),
        "linux.resources.memory.swap",
    );
    set(
        "memory",
        "memory.low",
        resources.memory_reservation.map(limit_or_max),
        "linux.resources.memory.reservation",
    );
    set(
        "cpu",
        "cpu.weight",
        resources
            .cpu_shares
            .map(|shares| weight_of_shares(shares).to_string()),
        "linux.resources.cpu.shares",
    );
    set("cpu", "cpu.max", cpu_max(resources), "linux.resources.cpu.quota");
    set(
        "cpu",
        "cpu.max.burst",
        resources.cpu_burst.map(|burst| burst.to_string()),
        "linux.resources.cpu.burst",
    );
    set(
        "cpu",
        "cpu.idle",
        resources.cpu_idle.map(|idle| idle.to_string()),
        "linux.resources.cpu.idle",
    );
    set(
        "cpuset",
        "cpuset.cpus",
        resources.cpus.clone(),
        "linux.resources.cpu.cpus",
    );
    set(
        "cpuset",
        "cpuset.mems",
        resources.memory_nodes.clone(),
        "linux.resources.cpu.mems",
    );
    set(
        "pids",
        "pids.max",
        resources.process_limit.map(limit_or_max),
        "linux.resources.pids.limit",
    );
    for (file, value) in &resources.unified {
        set("cgroup2", file, Some(value.clone()), "linux.resources.unified");
    }
    Ok(settings)
}

fn refuse_what_version_2_lacks(resources: &Resources) -> Result<(), CgroupError> {
    let lacking = [
        (
            resources.swappiness.is_some(),
            "linux.resources.memory.swappiness",
        ),
        (
            resources.disable_oom_killer,
            "linux.resources.memory.disableOOMKiller",
        ),
        (
            resources.realtime_runtime.is_some(),
            "linux.resources.cpu.realtimeRuntime",
        ),
        (
            resources.realtime_period.is_some(),
            "linux.resources.cpu.realtimePeriod",
        ),
    ];
    match lacking.iter().find(|(asked_for, _)| *asked_for) {
        Some((_, field)) => Err(CgroupError::NotExpressible {
            field,
            problem: "does not exist in cgroup2".to_owned(),
        }),
        None => Ok(()),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn written(resources: &Resources) -> Vec<(String, String)> {
        settings(resources)
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
        assert_eq!(written(&resources), expected);
    }

    #[test]
    fn quota_and_period_share_a_file_and_each_has_a_default() {
        let quota = Resources {
            cpu_quota: Some(50_000),
            ..Resources::default()
        };
        assert_eq!(written(&quota), [pair("cpu.max", "50000 100000")]);
        let period = Resources {
            cpu_period: Some(20_000),
            ..Resources::default()
        };
        assert_eq!(written(&period), [pair("cpu.max", "max 20000")]);
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
    fn what_version_2_lacks_is_refused() {
        let resources = Resources {
            swappiness: Some(1),
            ..Resources::default()
        };
        assert!(matches!(
            settings(&resources),
            Err(CgroupError::NotExpressible { .. })
        ));
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
        enable_controllers(root.path(), &leaf).unwrap();
        for (folder, expected) in [("", "+cpu +memory"), ("a", "+cpu +memory"), ("a/b", "")] {
            let file = root.path().join(folder).join("cgroup.subtree_control");
            assert_eq!(fs::read_to_string(file).unwrap(), expected);
        }
    }
}

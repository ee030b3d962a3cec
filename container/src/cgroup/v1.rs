//! Version 1 files and values.

use std::path::Path;

use rustix::io::Errno;

use super::device_rules::{DeviceRule, Devices};
use super::plan::Resources;
use super::{CgroupError, Setting, read, write};

/// What to write for `resources`, in the order the kernel needs.
pub(super) fn settings(resources: &Resources) -> Result<Vec<Setting>, CgroupError> {
    if let Some((file, _)) = resources.unified.first() {
        return Err(CgroupError::NotExpressible {
            field: "linux.resources.unified",
            problem: format!("`{file}` is a file of cgroup2, and the controllers here are on version 1"),
        });
    }
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
    let text = |value: Option<i64>| value.map(|value| value.to_string());
    let unsigned = |value: Option<u64>| value.map(|value| value.to_string());
    // The limit of memory and swap together may never be below that of memory, so memory comes first.
    set(
        "memory",
        "memory.limit_in_bytes",
        text(resources.memory_limit),
        "linux.resources.memory.limit",
    );
    set(
        "memory",
        "memory.memsw.limit_in_bytes",
        text(resources.memory_and_swap_limit),
        "linux.resources.memory.swap",
    );
    set(
        "memory",
        "memory.soft_limit_in_bytes",
        text(resources.memory_reservation),
        "linux.resources.memory.reservation",
    );
    set(
        "memory",
        "memory.swappiness",
        unsigned(resources.swappiness),
        "linux.resources.memory.swappiness",
    );
    set(
        "memory",
        "memory.oom_control",
        resources.disable_oom_killer.then(|| "1".to_owned()),
        "linux.resources.memory.disableOOMKiller",
    );
    set(
        "cpu",
        "cpu.shares",
        unsigned(resources.cpu_shares),
        "linux.resources.cpu.shares",
    );
    // The quota is checked against the period, and the burst against the quota.
    set(
        "cpu",
        "cpu.cfs_period_us",
        unsigned(resources.cpu_period),
        "linux.resources.cpu.period",
    );
    set(
        "cpu",
        "cpu.cfs_quota_us",
        text(resources.cpu_quota),
        "linux.resources.cpu.quota",
    );
    set(
        "cpu",
        "cpu.cfs_burst_us",
        unsigned(resources.cpu_burst),
        "linux.resources.cpu.burst",
    );
    set(
        "cpu",
        "cpu.rt_period_us",
        unsigned(resources.realtime_period),
        "linux.resources.cpu.realtimePeriod",
    );
    set(
        "cpu",
        "cpu.rt_runtime_us",
        text(resources.realtime_runtime),
        "linux.resources.cpu.realtimeRuntime",
    );
    set(
        "cpu",
        "cpu.idle",
        text(resources.cpu_idle),
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
    Ok(settings)
}

/// A count, or `max` for none.
pub(super) fn limit_or_max(limit: i64) -> String {
    if limit < 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

/// A new version 1 cpuset has no CPUs and no memory and takes no process: give each new one its parent's.
pub(super) fn inherit_cpuset(mount_point: &Path, leaf: &Path) -> Result<(), CgroupError> {
    let mut below_root: Vec<&Path> = leaf
        .ancestors()
        .take_while(|folder| *folder != mount_point)
        .collect();
    below_root.reverse();
    let mut parent = mount_point;
    for folder in below_root {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = folder.join(file);
            let present = read(&own).map_err(|errno| CgroupError::io("read", &own, errno))?;
            if present.trim().is_empty() {
                let source = parent.join(file);
                let inherited = read(&source).map_err(|errno| CgroupError::io("read", &source, errno))?;
                write(&own, inherited.trim()).map_err(|errno| CgroupError::io("write", &own, errno))?;
            }
        }
        parent = folder;
    }
    Ok(())
}

/// Writes the device rules. Version 1 keeps a list of exceptions to one default, so a denial can only take back
/// what was allowed in the same words.
pub(super) fn limit_devices(folder: &Path, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    for (index, rule) in rules.iter().enumerate() {
        let earlier = rules.get(..index).unwrap_or_default();
        if !rule.allow && rule.devices != Devices::All && takes_back_a_part(rule, earlier) {
            return Err(CgroupError::NotExpressible {
                field: "linux.resources.devices",
                problem: format!(
                    "denying `{rule}` after allowing more than that cannot be said in cgroup version 1"
                ),
            });
        }
        let file = folder.join(if rule.allow {
            "devices.allow"
        } else {
            "devices.deny"
        });
        let value = rule.to_string();
        write(&file, &value).map_err(|errno: Errno| CgroupError::Setting {
            field: "linux.resources.devices",
            value,
            path: file,
            source: errno.into(),
        })?;
    }
    Ok(())
}

/// Whether `denied` is covered by an earlier, wider permission, while the default is to deny.
fn takes_back_a_part(denied: &DeviceRule, earlier: &[DeviceRule]) -> bool {
    let since = earlier
        .iter()
        .rposition(|rule| rule.devices == Devices::All)
        .unwrap_or(0);
    let since_default = earlier.get(since..).unwrap_or_default();
    if since_default
        .first()
        .is_some_and(|rule| rule.allow && rule.devices == Devices::All)
    {
        return false;
    }
    since_default
        .iter()
        .any(|rule| rule.allow && rule.devices != denied.devices && overlap(rule, denied))
}

fn overlap(one: &DeviceRule, other: &DeviceRule) -> bool {
    let number = |one: Option<u32>, other: Option<u32>| one.is_none() || other.is_none() || one == other;
    match (one.devices, other.devices) {
        (
            Devices::Some { kind, major, minor },
            Devices::Some {
                kind: other_kind,
                major: other_major,
                minor: other_minor,
            },
        ) => {
            kind == other_kind
                && number(major, other_major)
                && number(minor, other_minor)
                && one.access.0 & other.access.0 != 0
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::device_rules;
    use super::*;

    fn written(resources: &Resources) -> Vec<(String, String)> {
        settings(resources)
            .unwrap()
            .into_iter()
            .map(|setting| (setting.file, setting.value))
            .collect()
    }

    #[test]
    fn memory_is_limited_before_memory_and_swap_and_the_period_set_before_the_quota() {
        let resources = Resources {
            memory_limit: Some(1 << 20),
            memory_and_swap_limit: Some(2 << 20),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            process_limit: Some(-1),
            ..Resources::default()
        };
        let expected = [
            ("memory.limit_in_bytes", "1048576"),
            ("memory.memsw.limit_in_bytes", "2097152"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "50000"),
            ("pids.max", "max"),
        ];
        assert_eq!(
            written(&resources),
            expected.map(|(file, value)| (file.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn no_limits_write_nothing() {
        assert!(written(&Resources::default()).is_empty());
    }

    #[test]
    fn cgroup2_files_are_refused() {
        let resources = Resources {
            unified: vec![("memory.high".into(), "1".into())],
            ..Resources::default()
        };
        assert!(matches!(
            settings(&resources),
            Err(CgroupError::NotExpressible { .. })
        ));
    }

    #[test]
    fn a_new_cpuset_gets_what_its_parent_has_and_a_filled_one_keeps_its_own() {
        let root = tempfile::tempdir().unwrap();
        let leaf = root.path().join("a/b");
        fs::create_dir_all(&leaf).unwrap();
        for (folder, cpus) in [
            (root.path(), "0-1\n"),
            (&root.path().join("a"), "1\n"),
            (&leaf, "\n"),
        ] {
            fs::write(folder.join("cpuset.cpus"), cpus).unwrap();
            fs::write(folder.join("cpuset.mems"), "0\n").unwrap();
        }
        inherit_cpuset(root.path(), &leaf).unwrap();
        assert_eq!(fs::read_to_string(leaf.join("cpuset.cpus")).unwrap().trim(), "1");
    }

    #[test]
    fn a_denial_inside_a_wider_permission_is_refused_and_after_allowing_all_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["devices.allow", "devices.deny"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let limit = |json: &str| {
            let rules: Vec<oci_spec::runtime::LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
            limit_devices(folder.path(), &device_rules::plan(&rules).unwrap())
        };
        let inside =
            r#"[{"allow":true,"type":"c","major":10},{"allow":false,"type":"c","major":10,"minor":1}]"#;
        assert!(matches!(limit(inside), Err(CgroupError::NotExpressible { .. })));
        assert!(limit(r#"[{"allow":true},{"allow":false,"type":"c","major":10,"minor":1}]"#).is_ok());
    }
}

//! Version 1 files and values.

use std::path::Path;

use rustix::io::Errno;

use super::controllers::Settings;
use super::device_rules::{DeviceRule, Devices};
use super::resources::{RdmaLimit, Resources, ThrottleKind};
use super::setting::Setting;
use super::{CgroupError, read, write};

pub(super) fn memory(resources: &Resources) -> Settings {
    let mut settings = Vec::new();
    if resources.use_hierarchy {
        settings.push(Setting::new(
            "memory.use_hierarchy",
            1,
            "linux.resources.memory.useHierarchy",
        ));
    }
    if let Some(limit) = resources.memory_limit {
        settings.push(Setting::new(
            "memory.limit_in_bytes",
            limit,
            "linux.resources.memory.limit",
        ));
    }
    if let Some(limit) = resources.memory_and_swap_limit {
        let setting = Setting::new(
            "memory.memsw.limit_in_bytes",
            limit,
            "linux.resources.memory.swap",
        );
        settings.push(if limit < 0 { setting.dispensable() } else { setting });
    }
    if let Some(limit) = resources.memory_reservation {
        settings.push(Setting::new(
            "memory.soft_limit_in_bytes",
            limit,
            "linux.resources.memory.reservation",
        ));
    }
    if let Some(limit) = resources.kernel_tcp_limit {
        let field = "linux.resources.memory.kernelTCP";
        settings.push(Setting::new("memory.kmem.tcp.limit_in_bytes", limit, field).dispensable());
    }
    if let Some(swappiness) = resources.swappiness {
        settings.push(Setting::new(
            "memory.swappiness",
            swappiness,
            "linux.resources.memory.swappiness",
        ));
    }
    if let Some(disable) = resources.disable_oom_killer {
        settings.push(Setting::new(
            "memory.oom_control",
            u8::from(disable),
            "linux.resources.memory.disableOOMKiller",
        ));
    }
    Ok(settings)
}

pub(super) fn cpu(resources: &Resources) -> Settings {
    let mut settings = Vec::new();
    let mut set = |file, value: Option<String>, field| {
        settings.extend(value.map(|value| Setting::new(file, value, field)));
    };
    let signed = |value: Option<i64>| value.map(|value| value.to_string());
    let unsigned = |value: Option<u64>| value.map(|value| value.to_string());
    set(
        "cpu.shares",
        unsigned(resources.cpu_shares),
        "linux.resources.cpu.shares",
    );
    set(
        "cpu.cfs_period_us",
        unsigned(resources.cpu_period),
        "linux.resources.cpu.period",
    );
    set(
        "cpu.cfs_quota_us",
        signed(resources.cpu_quota),
        "linux.resources.cpu.quota",
    );
    set(
        "cpu.cfs_burst_us",
        unsigned(resources.cpu_burst),
        "linux.resources.cpu.burst",
    );
    set(
        "cpu.rt_period_us",
        unsigned(resources.realtime_period),
        "linux.resources.cpu.realtimePeriod",
    );
    set(
        "cpu.rt_runtime_us",
        signed(resources.realtime_runtime),
        "linux.resources.cpu.realtimeRuntime",
    );
    set("cpu.idle", signed(resources.cpu_idle), "linux.resources.cpu.idle");
    Ok(settings)
}

/// The same in both versions.
pub(super) fn cpuset(resources: &Resources) -> Settings {
    let cpus = resources
        .cpus
        .as_ref()
        .map(|cpus| Setting::new("cpuset.cpus", cpus, "linux.resources.cpu.cpus"));
    let nodes = resources
        .memory_nodes
        .as_ref()
        .map(|nodes| Setting::new("cpuset.mems", nodes, "linux.resources.cpu.mems"));
    Ok(cpus.into_iter().chain(nodes).collect())
}

/// The same in both versions.
pub(super) fn pids(resources: &Resources) -> Settings {
    let limit = resources
        .process_limit
        .map(|limit| Setting::new("pids.max", limit_or_max(limit), "linux.resources.pids.limit"));
    Ok(limit.into_iter().collect())
}

/// Weights are those of CFQ up to Linux 4.20, and of BFQ since 5.0.
pub(super) fn block_io(resources: &Resources) -> Settings {
    let block_io = &resources.block_io;
    let mut settings = Vec::new();
    if let Some(weight) = block_io.weight {
        let field = "linux.resources.blockIO.weight";
        settings.push(Setting::new("blkio.weight", weight, field).or("blkio.bfq.weight", weight));
    }
    if let Some(weight) = block_io.leaf_weight {
        let field = "linux.resources.blockIO.leafWeight";
        settings.push(Setting::new("blkio.leaf_weight", weight, field));
    }
    for device in &block_io.devices {
        if let Some(weight) = device.weight {
            let value = format!("{} {weight}", device.device);
            settings.push(
                Setting::new("blkio.weight_device", &value, device.field.clone())
                    .or("blkio.bfq.weight_device", value)
                    .of_a_device("default"),
            );
        }
        if let Some(weight) = device.leaf_weight {
            let value = format!("{} {weight}", device.device);
            settings
                .push(Setting::new("blkio.leaf_weight_device", value, device.field.clone()).of_a_device("0"));
        }
    }
    for throttle in &block_io.throttles {
        let file = match throttle.kind {
            ThrottleKind::ReadBytes => "blkio.throttle.read_bps_device",
            ThrottleKind::WriteBytes => "blkio.throttle.write_bps_device",
            ThrottleKind::ReadOperations => "blkio.throttle.read_iops_device",
            ThrottleKind::WriteOperations => "blkio.throttle.write_iops_device",
        };
        let value = format!("{} {}", throttle.device, throttle.rate);
        settings.push(Setting::new(file, value, throttle.field.clone()).of_a_device("0"));
    }
    Ok(settings)
}

/// Both what is in use and, where the kernel has that (Linux 5.7), what is reserved.
pub(super) fn hugepages(resources: &Resources) -> Settings {
    let mut settings = Vec::new();
    for limit in &resources.hugepages {
        let size = &limit.page_size;
        let files = [
            format!("hugetlb.{size}.limit_in_bytes"),
            format!("hugetlb.{size}.rsvd.limit_in_bytes"),
        ];
        let [used, reserved] = files.map(|file| Setting::new(file, limit.limit, limit.field.clone()));
        settings.extend([used, reserved.dispensable()]);
    }
    Ok(settings)
}

pub(super) fn network_class(resources: &Resources) -> Settings {
    let class = resources
        .network_class
        .map(|class| Setting::new("net_cls.classid", class, "linux.resources.network.classID"));
    Ok(class.into_iter().collect())
}

pub(super) fn network_priorities(resources: &Resources) -> Settings {
    let setting = |(index, (interface, priority)): (usize, &(String, u32))| {
        let field = format!("linux.resources.network.priorities[{index}]");
        Setting::new("net_prio.ifpriomap", format!("{interface} {priority}"), field).of_a_device("0")
    };
    Ok(resources
        .network_priorities
        .iter()
        .enumerate()
        .map(setting)
        .collect())
}

/// The same in both versions.
pub(super) fn rdma(resources: &Resources) -> Settings {
    let setting = |limit: &RdmaLimit| {
        let mut value = limit.device.clone();
        for (name, bound) in [("hca_handle", limit.handles), ("hca_object", limit.objects)] {
            if let Some(bound) = bound {
                value.push_str(&format!(" {name}={bound}"));
            }
        }
        Setting::new(
            "rdma.max",
            value,
            format!("linux.resources.rdma[`{}`]", limit.device),
        )
        .of_a_device("hca_handle=max hca_object=max")
    };
    Ok(resources.rdma.iter().map(setting).collect())
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
                field: "linux.resources.devices".to_owned(),
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
            field: "linux.resources.devices".to_owned(),
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

    fn written(settings: Settings) -> Vec<(String, String)> {
        settings
            .unwrap()
            .into_iter()
            .map(|setting| (setting.file, setting.value))
            .collect()
    }

    fn pairs<const N: usize>(pairs: [(&str, &str); N]) -> [(String, String); N] {
        pairs.map(|(file, value)| (file.to_owned(), value.to_owned()))
    }

    #[test]
    fn no_limits_write_nothing() {
        let none = Resources::default();
        for settings in [
            memory,
            cpu,
            cpuset,
            pids,
            block_io,
            hugepages,
            network_class,
            network_priorities,
            rdma,
        ] {
            assert!(settings(&none).unwrap().is_empty());
        }
    }

    #[test]
    fn each_limit_of_a_block_device_has_a_file() {
        let resources = r#"{"blockIO":{"weight":500,"leafWeight":300,
            "weightDevice":[{"major":8,"minor":0,"weight":600,"leafWeight":10}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}],
            "throttleWriteBpsDevice":[{"major":8,"minor":1,"rate":2}],
            "throttleReadIOPSDevice":[{"major":8,"minor":2,"rate":3}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":3,"rate":0}]}}"#;
        let resources = Resources::new(&serde_json::from_str(resources).unwrap()).unwrap();
        let expected = [
            ("blkio.weight", "500"),
            ("blkio.leaf_weight", "300"),
            ("blkio.weight_device", "8:0 600"),
            ("blkio.leaf_weight_device", "8:0 10"),
            ("blkio.throttle.read_bps_device", "8:0 1"),
            ("blkio.throttle.write_bps_device", "8:1 2"),
            ("blkio.throttle.read_iops_device", "8:2 3"),
            ("blkio.throttle.write_iops_device", "8:3 0"),
        ];
        assert_eq!(written(block_io(&resources)), pairs(expected));
    }

    #[test]
    fn networks_huge_pages_and_rdma_devices_are_limited_by_name() {
        let resources = r#"{"network":{"classID":1048577,"priorities":[{"name":"lo","priority":7}]},
            "hugepageLimits":[{"pageSize":"2MB","limit":4194304}],
            "rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000},"mlx4_0":{"hcaObjects":1}}}"#;
        let resources = Resources::new(&serde_json::from_str(resources).unwrap()).unwrap();
        assert_eq!(
            written(network_class(&resources)),
            pairs([("net_cls.classid", "1048577")])
        );
        assert_eq!(
            written(network_priorities(&resources)),
            pairs([("net_prio.ifpriomap", "lo 7")])
        );
        assert_eq!(
            written(hugepages(&resources)),
            pairs([
                ("hugetlb.2MB.limit_in_bytes", "4194304"),
                ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
            ])
        );
        assert_eq!(
            written(rdma(&resources)),
            pairs([
                ("rdma.max", "mlx4_0 hca_object=1"),
                ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
            ])
        );
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

//! Statistics of version 1 controllers.

use std::path::Path;

use super::files::{device, hugepage_sizes, list, named, number, numbers, text};
use super::{
    BlockIoEntry, CpuStatistics, CpusetStatistics, HugepageStatistics, MemoryStatistics, MemoryUse,
    ProcessStatistics, Statistics, Throttling,
};
use crate::cgroup::{Cgroup, CgroupError};

pub(super) fn read(cgroup: &Cgroup, statistics: &mut Statistics) -> Result<(), CgroupError> {
    if let Some(folder) = cgroup.version1("cpu") {
        statistics.cpu.throttling = throttling(folder)?;
    }
    if let Some(folder) = cgroup.version1("cpuacct") {
        read_cpu_time(folder, &mut statistics.cpu)?;
    }
    if let Some(folder) = cgroup.version1("cpuset") {
        statistics.cpuset = cpuset(folder)?;
    }
    if let Some(folder) = cgroup.version1("memory") {
        statistics.memory = MemoryStatistics {
            psi: statistics.memory.psi,
            ..memory(folder)?
        };
    }
    if let Some(folder) = cgroup.version1("pids") {
        statistics.pids = processes(folder)?;
    }
    if let Some(folder) = cgroup.version1("blkio") {
        let blkio = &mut statistics.blkio;
        blkio.io_service_bytes_recursive = block_io(folder, "io_service_bytes")?;
        blkio.io_serviced_recursive = block_io(folder, "io_serviced")?;
    }
    if let Some(folder) = cgroup.version1("hugetlb") {
        for size in hugepage_sizes() {
            let value = |what| number(folder, &format!("hugetlb.{size}.{what}"));
            if let Some(usage) = value("usage_in_bytes")? {
                let pages = HugepageStatistics {
                    usage,
                    max: value("max_usage_in_bytes")?.unwrap_or(0),
                    failcnt: value("failcnt")?.unwrap_or(0),
                };
                statistics.hugetlb.insert(size, pages);
            }
        }
    }
    Ok(())
}

fn throttling(folder: &Path) -> Result<Throttling, CgroupError> {
    let stat = named(folder, "cpu.stat")?;
    let value = |name| stat.get(name).copied().unwrap_or(0);
    Ok(Throttling {
        periods: value("nr_periods"),
        throttled_periods: value("nr_throttled"),
        throttled_time: value("throttled_time"),
    })
}

fn read_cpu_time(folder: &Path, cpu: &mut CpuStatistics) -> Result<(), CgroupError> {
    let usage = &mut cpu.usage;
    usage.total = number(folder, "cpuacct.usage")?.unwrap_or(0);
    usage.user = number(folder, "cpuacct.usage_user")?.unwrap_or(0);
    usage.kernel = number(folder, "cpuacct.usage_sys")?.unwrap_or(0);
    usage.percpu = numbers(folder, "cpuacct.usage_percpu")?;
    usage.percpu_user = numbers(folder, "cpuacct.usage_percpu_user")?;
    usage.percpu_kernel = numbers(folder, "cpuacct.usage_percpu_sys")?;
    Ok(())
}

fn cpuset(folder: &Path) -> Result<CpusetStatistics, CgroupError> {
    let switch = |name: &str| Ok(number(folder, &format!("cpuset.{name}"))?.unwrap_or(0));
    Ok(CpusetStatistics {
        cpus: list(folder, "cpuset.cpus")?,
        cpu_exclusive: switch("cpu_exclusive")?,
        mems: list(folder, "cpuset.mems")?,
        mem_hardwall: switch("mem_hardwall")?,
        mem_exclusive: switch("mem_exclusive")?,
        memory_migrate: switch("memory_migrate")?,
        memory_spread_page: switch("memory_spread_page")?,
        memory_spread_slab: switch("memory_spread_slab")?,
        memory_pressure: switch("memory_pressure")?,
        sched_load_balance: switch("sched_load_balance")?,
        sched_relax_domain_level: text(folder, "cpuset.sched_relax_domain_level")?
            .trim()
            .parse()
            .unwrap_or(0),
    })
}

fn memory(folder: &Path) -> Result<MemoryStatistics, CgroupError> {
    let raw = named(folder, "memory.stat")?;
    let usage_of = |kind: &str| -> Result<MemoryUse, CgroupError> {
        let value = |what| Ok(number(folder, &format!("memory{kind}.{what}"))?.unwrap_or(0));
        Ok(MemoryUse {
            limit: value("limit_in_bytes")?,
            usage: value("usage_in_bytes")?,
            max: value("max_usage_in_bytes")?,
            failcnt: value("failcnt")?,
        })
    };
    let oom = named(folder, "memory.oom_control")?;
    Ok(MemoryStatistics {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: usage_of("")?,
        swap: usage_of(".memsw")?,
        kernel: usage_of(".kmem")?,
        kernel_tcp: usage_of(".kmem.tcp")?,
        raw,
        psi: None,
        out_of_memory_kills: oom.get("oom_kill").copied().unwrap_or(0),
    })
}

fn processes(folder: &Path) -> Result<ProcessStatistics, CgroupError> {
    Ok(ProcessStatistics {
        current: number(folder, "pids.current")?.unwrap_or(0),
        limit: number(folder, "pids.max")?
            .filter(|&limit| limit != u64::MAX)
            .unwrap_or(0),
    })
}

/// The counts before the I/O schedulers, which all traffic passes; those of cgroups below too, where the kernel has
/// them (Linux 4.16).
fn block_io(folder: &Path, what: &str) -> Result<Vec<BlockIoEntry>, CgroupError> {
    let mut counts = text(folder, &format!("blkio.throttle.{what}_recursive"))?;
    if counts.is_empty() {
        counts = text(folder, &format!("blkio.throttle.{what}"))?;
    }
    // The last line is a sum, without a device.
    let entry = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = device(words.next()?)?;
        Some(BlockIoEntry {
            major,
            minor,
            op: words.next()?.to_owned(),
            value: words.next()?.parse().ok()?,
        })
    };
    Ok(counts.lines().filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::super::{Hierarchy, Member};
    use super::*;

    #[test]
    fn each_controller_is_read_from_its_own_hierarchy() {
        let root = tempfile::tempdir().unwrap();
        for (controller, file, text) in [
            (
                "cpu",
                "cpu.stat",
                "nr_periods 5\nnr_throttled 2\nthrottled_time 77\n",
            ),
            ("cpuacct", "cpuacct.usage", "300\n"),
            ("cpuacct", "cpuacct.usage_user", "100\n"),
            ("cpuacct", "cpuacct.usage_sys", "200\n"),
            ("cpuacct", "cpuacct.usage_percpu", "120 180 \n"),
            ("memory", "memory.stat", "cache 4096\nrss 1\n"),
            ("memory", "memory.usage_in_bytes", "8192\n"),
            ("memory", "memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory",
                "memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
            ),
            ("memory", "memory.memsw.limit_in_bytes", "65536\n"),
            ("pids", "pids.current", "4\n"),
            ("pids", "pids.max", "max\n"),
            (
                "blkio",
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 512\n8:0 Total 512\nTotal 512\n",
            ),
        ] {
            let folder = root.path().join(controller);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(file), text).unwrap();
        }
        let member = |name: &str| Member {
            hierarchy: Hierarchy::Version1(name.to_owned()),
            path: root.path().join(name.split(',').next().unwrap()),
        };
        let cgroup = Cgroup {
            members: ["cpu", "cpuacct", "memory", "pids", "blkio"].map(member).to_vec(),
            made_parents: Vec::new(),
        };
        let statistics = cgroup.statistics().unwrap();
        assert_eq!(statistics.cpu.usage.total, 300);
        assert_eq!(
            (statistics.cpu.usage.user, statistics.cpu.usage.kernel),
            (100, 200)
        );
        assert_eq!(statistics.cpu.usage.percpu, [120, 180]);
        assert_eq!(statistics.cpu.throttling.throttled_time, 77);
        assert_eq!(statistics.memory.cache, 4096);
        assert_eq!(statistics.memory.usage.usage, 8192);
        assert_eq!(statistics.memory.usage.limited_to(), None);
        assert_eq!(statistics.memory.swap.limited_to(), Some(65536));
        assert_eq!(statistics.memory.out_of_memory_kills, 3);
        assert_eq!(statistics.memory.raw["rss"], 1);
        assert_eq!((statistics.pids.current, statistics.pids.limit), (4, 0));
        assert_eq!(statistics.blkio.io_service_bytes_recursive.len(), 2);
        let json = serde_json::to_value(&statistics).unwrap();
        assert_eq!(json["cpu"]["throttling"]["throttledPeriods"], 2);
        assert_eq!(json["blkio"]["ioServiceBytesRecursive"][0]["op"], "Read");
        assert_eq!(json["memory"]["kernelTCP"]["limit"], 0);
    }
}

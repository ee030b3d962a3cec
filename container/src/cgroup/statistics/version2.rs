//! Statistics of cgroup2.

use std::path::Path;

use super::files::{device, hugepage_sizes, named, number, text};
use super::{
    BlockIoEntry, CpuStatistics, HugepageStatistics, MemoryStatistics, MemoryUse, Pressure, PressureData,
    ProcessStatistics, Statistics,
};
use crate::cgroup::CgroupError;

/// Reads what the cgroup's `controllers` measure; pressure and CPU time are there without any.
pub(super) fn read(folder: &Path, controllers: &str, statistics: &mut Statistics) -> Result<(), CgroupError> {
    let has = |controller: &str| controllers.split_whitespace().any(|name| name == controller);
    statistics.cpu = cpu(folder)?;
    if has("memory") {
        statistics.memory = memory(folder)?;
    }
    statistics.memory.psi = pressure(folder, "memory.pressure")?;
    if has("pids") {
        statistics.pids = ProcessStatistics {
            current: number(folder, "pids.current")?.unwrap_or(0),
            limit: number(folder, "pids.max")?
                .filter(|&limit| limit != u64::MAX)
                .unwrap_or(0),
        };
    }
    if has("io") {
        read_block_io(folder, statistics)?;
    }
    statistics.blkio.psi = pressure(folder, "io.pressure")?;
    if has("hugetlb") {
        for size in hugepage_sizes() {
            if let Some(usage) = number(folder, &format!("hugetlb.{size}.current"))? {
                let events = named(folder, &format!("hugetlb.{size}.events"))?;
                let pages = HugepageStatistics {
                    usage,
                    max: 0,
                    failcnt: events.get("max").copied().unwrap_or(0),
                };
                statistics.hugetlb.insert(size, pages);
            }
        }
    }
    Ok(())
}

fn cpu(folder: &Path) -> Result<CpuStatistics, CgroupError> {
    let stat = named(folder, "cpu.stat")?;
    let value = |name| stat.get(name).copied().unwrap_or(0);
    let mut cpu = CpuStatistics {
        psi: pressure(folder, "cpu.pressure")?,
        ..CpuStatistics::default()
    };
    cpu.usage.total = value("usage_usec") * 1000;
    cpu.usage.user = value("user_usec") * 1000;
    cpu.usage.kernel = value("system_usec") * 1000;
    cpu.throttling.periods = value("nr_periods");
    cpu.throttling.throttled_periods = value("nr_throttled");
    cpu.throttling.throttled_time = value("throttled_usec") * 1000;
    Ok(cpu)
}

fn memory(folder: &Path) -> Result<MemoryStatistics, CgroupError> {
    let raw = named(folder, "memory.stat")?;
    let events = named(folder, "memory.events")?;
    let event = |name| events.get(name).copied().unwrap_or(0);
    let value = |file| Ok(number(folder, file)?.unwrap_or(0));
    let usage = MemoryUse {
        limit: number(folder, "memory.max")?.unwrap_or(u64::MAX),
        usage: value("memory.current")?,
        max: value("memory.peak")?,
        failcnt: event("max"),
    };
    // Version 2 counts swap alone.
    let swap_limit = number(folder, "memory.swap.max")?.unwrap_or(0);
    let swap = MemoryUse {
        limit: usage.limit.saturating_add(swap_limit),
        usage: usage.usage.saturating_add(value("memory.swap.current")?),
        max: 0,
        failcnt: named(folder, "memory.swap.events")?
            .get("max")
            .copied()
            .unwrap_or(0),
    };
    Ok(MemoryStatistics {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap,
        raw,
        out_of_memory_kills: event("oom_kill"),
        ..MemoryStatistics::default()
    })
}

/// A line for each device, as in `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn read_block_io(folder: &Path, statistics: &mut Statistics) -> Result<(), CgroupError> {
    for line in text(folder, "io.stat")?.lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.next().and_then(device) else {
            continue;
        };
        for word in words {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            let (op, is_bytes) = match name {
                "rbytes" => ("Read", true),
                "wbytes" => ("Write", true),
                "dbytes" => ("Discard", true),
                "rios" => ("Read", false),
                "wios" => ("Write", false),
                "dios" => ("Discard", false),
                _ => continue,
            };
            let entry = BlockIoEntry {
                major,
                minor,
                op: op.to_owned(),
                value: value.parse().unwrap_or(0),
            };
            if is_bytes {
                statistics.blkio.io_service_bytes_recursive.push(entry);
            } else {
                statistics.blkio.io_serviced_recursive.push(entry);
            }
        }
    }
    Ok(())
}

/// Two lines, as in `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`; none where the kernel does not keep count.
fn pressure(folder: &Path, file: &str) -> Result<Option<Pressure>, CgroupError> {
    let text = text(folder, file)?;
    if text.is_empty() {
        return Ok(None);
    }
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let data = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            read_pressure(data, name, value);
        }
    }
    Ok(Some(pressure))
}

fn read_pressure(data: &mut PressureData, name: &str, value: &str) {
    let share = || value.parse().unwrap_or(0.0);
    match name {
        "avg10" => data.avg10 = share(),
        "avg60" => data.avg60 = share(),
        "avg300" => data.avg300 = share(),
        "total" => data.total = value.parse().unwrap_or(0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::super::{Cgroup, Hierarchy, Member};

    #[test]
    fn a_cgroup2_folder_is_read_and_max_means_no_limit() {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("cgroup.controllers", "cpu io memory pids\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.swap.current", "100\n"),
            ("memory.swap.max", "max\n"),
            (
                "memory.events",
                "low 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n",
            ),
            ("memory.stat", "anon 1\nfile 2048\n"),
            (
                "cpu.stat",
                "usage_usec 77\nuser_usec 7\nsystem_usec 70\nnr_throttled 3\n",
            ),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.25 total=99\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
            ),
            ("pids.current", "3\n"),
            ("pids.max", "9\n"),
            (
                "io.stat",
                "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
            ),
        ] {
            fs::write(folder.path().join(file), text).unwrap();
        }
        let member = Member {
            hierarchy: Hierarchy::Unified,
            path: folder.path().to_owned(),
        };
        let cgroup = Cgroup {
            members: vec![member],
            made_parents: Vec::new(),
        };
        let statistics = cgroup.statistics().unwrap();
        assert_eq!(statistics.memory.usage.limited_to(), None);
        assert_eq!(statistics.memory.swap.usage, 4196);
        assert_eq!(statistics.memory.cache, 2048);
        assert_eq!(
            (
                statistics.memory.out_of_memory_kills,
                statistics.memory.usage.failcnt
            ),
            (1, 4)
        );
        assert_eq!(
            (statistics.cpu.usage.total, statistics.cpu.usage.kernel),
            (77_000, 70_000)
        );
        let pressure = statistics.cpu.psi.unwrap();
        assert_eq!((pressure.some.avg10, pressure.full.total), (1.5, 1));
        assert_eq!(statistics.memory.psi, None);
        assert_eq!((statistics.pids.current, statistics.pids.limit), (3, 9));
        assert_eq!(statistics.blkio.io_service_bytes_recursive[1].value, 20);
        assert_eq!(statistics.blkio.io_serviced_recursive[0].value, 1);
    }
}

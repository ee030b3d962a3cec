//! What a container uses.

use std::path::Path;

use rustix::io::Errno;

use super::{Cgroup, CgroupError, Hierarchy, read};

/// Use of resources. A value is absent where its controller is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of memory in use, page cache included.
    pub memory_current: Option<u64>,
    /// Bytes of memory allowed; absent when there is no limit.
    pub memory_limit: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    pub out_of_memory_kills: Option<u64>,
    /// Microseconds of CPU time used.
    pub cpu_usage_microseconds: Option<u64>,
    /// Processes and threads.
    pub processes_current: Option<u64>,
    /// Processes and threads allowed; absent when there is no limit.
    pub processes_limit: Option<u64>,
}

/// Version 1 says "no limit" with the largest number of whole pages.
const VERSION1_UNLIMITED: u64 = i64::MAX as u64 / 4096 * 4096;

impl Cgroup {
    /// Reads the statistics.
    pub(crate) fn statistics(&self) -> Result<Statistics, CgroupError> {
        match self.members.as_slice() {
            [only] if only.hierarchy == Hierarchy::Unified => version2(&only.path),
            _ => self.version1_statistics(),
        }
    }

    fn version1_statistics(&self) -> Result<Statistics, CgroupError> {
        let mut statistics = Statistics::default();
        if let Some(folder) = self.version1("memory") {
            statistics.memory_current = number(folder, "memory.usage_in_bytes")?;
            statistics.memory_limit =
                number(folder, "memory.limit_in_bytes")?.filter(|&limit| limit < VERSION1_UNLIMITED);
            statistics.out_of_memory_kills = keyed(folder, "memory.oom_control", "oom_kill")?;
        }
        if let Some(folder) = self.version1("cpuacct") {
            statistics.cpu_usage_microseconds =
                number(folder, "cpuacct.usage")?.map(|nanoseconds| nanoseconds / 1000);
        }
        if let Some(folder) = self.version1("pids") {
            statistics.processes_current = number(folder, "pids.current")?;
            statistics.processes_limit = number(folder, "pids.max")?;
        }
        Ok(statistics)
    }
}

fn version2(folder: &Path) -> Result<Statistics, CgroupError> {
    Ok(Statistics {
        memory_current: number(folder, "memory.current")?,
        memory_limit: number(folder, "memory.max")?,
        out_of_memory_kills: keyed(folder, "memory.events", "oom_kill")?,
        cpu_usage_microseconds: keyed(folder, "cpu.stat", "usage_usec")?,
        processes_current: number(folder, "pids.current")?,
        processes_limit: number(folder, "pids.max")?,
    })
}

/// A file that holds one number; `max` and a missing file read as none.
fn number(folder: &Path, file: &str) -> Result<Option<u64>, CgroupError> {
    Ok(text(folder, file)?.and_then(|text| text.trim().parse().ok()))
}

/// One number of a file of `name number` lines.
fn keyed(folder: &Path, file: &str, name: &str) -> Result<Option<u64>, CgroupError> {
    let text = text(folder, file)?.unwrap_or_default();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.and_then(|value| value.trim().parse().ok()))
}

fn text(folder: &Path, file: &str) -> Result<Option<String>, CgroupError> {
    let path = folder.join(file);
    match read(&path) {
        Ok(text) => Ok(Some(text)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(CgroupError::io("read", &path, errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Member;
    use super::*;

    #[test]
    fn a_cgroup2_folder_is_read_and_max_means_no_limit() {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("cpu.stat", "usage_usec 77\nuser_usec 1\n"),
            ("pids.current", "3\n"),
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
        let expected = Statistics {
            memory_current: Some(4096),
            memory_limit: None,
            out_of_memory_kills: Some(1),
            cpu_usage_microseconds: Some(77),
            processes_current: Some(3),
            processes_limit: None,
        };
        assert_eq!(cgroup.statistics().unwrap(), expected);
    }
}

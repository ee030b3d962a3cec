//! What a container uses, in the words of `runc events --stats`, which monitors read.

mod files;
mod version1;
mod version2;

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Cgroup, CgroupError, v2};

/// Use of resources. What no controller here measures is zero or empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// CPU time.
    pub cpu: CpuStatistics,
    /// Which CPUs and memory nodes the container may use; version 1 only.
    pub cpuset: CpusetStatistics,
    /// Memory.
    pub memory: MemoryStatistics,
    /// Processes and threads.
    pub pids: ProcessStatistics,
    /// Block devices.
    pub blkio: BlockIoStatistics,
    /// Huge pages by their size, as in `2MB`.
    pub hugetlb: BTreeMap<String, HugepageStatistics>,
}

/// CPU time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuStatistics {
    /// How much was used.
    pub usage: CpuUsage,
    /// How much was wanted and not allowed.
    pub throttling: Throttling,
    /// How long processes waited for a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// CPU time used, in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    /// In all.
    pub total: u64,
    /// On each CPU; version 1 only, as are the next two.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// On each CPU in the kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// On each CPU outside the kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// Outside the kernel.
    pub user: u64,
}

/// What the limit of CPU time did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods in which something ran.
    pub periods: u64,
    /// Those of them in which the quota was used up.
    pub throttled_periods: u64,
    /// Nanoseconds that were waited for the next period.
    pub throttled_time: u64,
}

/// The container's part of the machine's CPUs and memory nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpusetStatistics {
    /// The CPUs' numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    /// The next are switches, 0 or 1, under the names that cpuset(7) gives them.
    pub cpu_exclusive: u64,
    /// The memory nodes' numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    /// Whether the kernel's own memory comes from these nodes too.
    pub mem_hardwall: u64,
    /// Whether no sibling shares these nodes.
    pub mem_exclusive: u64,
    /// Whether memory moves when the nodes change.
    pub memory_migrate: u64,
    /// Whether the page cache is spread over the nodes.
    pub memory_spread_page: u64,
    /// Whether the kernel's caches are spread over the nodes.
    pub memory_spread_slab: u64,
    /// How often memory was reclaimed for want of a free page, a running average.
    pub memory_pressure: u64,
    /// Whether the scheduler balances load between the CPUs.
    pub sched_load_balance: u64,
    /// How far the scheduler looks for an idle CPU; -1 is its default.
    pub sched_relax_domain_level: i64,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStatistics {
    /// The page cache.
    pub cache: u64,
    /// All memory, page cache included.
    pub usage: MemoryUse,
    /// Memory and swap together, in both versions.
    pub swap: MemoryUse,
    /// The kernel's memory; version 1 only, as is the next.
    pub kernel: MemoryUse,
    /// Buffers of TCP.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryUse,
    /// Everything in `memory.stat`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// How long processes waited for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
    /// Processes that the kernel killed for want of memory.
    #[serde(skip)]
    pub out_of_memory_kills: u64,
}

/// Memory of one kind, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// How much is allowed; without a limit, more than any machine has.
    pub limit: u64,
    /// How much is in use.
    pub usage: u64,
    /// The most that was in use at once.
    pub max: u64,
    /// How often the limit was reached.
    pub failcnt: u64,
}

/// Version 1 says "no limit" with the largest number of whole pages, version 2 with a word that is read as the largest
/// number of all.
const UNLIMITED: u64 = i64::MAX as u64 / 65536 * 65536;

impl MemoryUse {
    /// How much is allowed, if that is limited.
    pub fn limited_to(&self) -> Option<u64> {
        Some(self.limit).filter(|&limit| limit != 0 && limit < UNLIMITED)
    }
}

/// Processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ProcessStatistics {
    /// How many there are.
    pub current: u64,
    /// How many there may be; 0 without a limit.
    pub limit: u64,
}

/// Traffic with block devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIoStatistics {
    /// Bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlockIoEntry>,
    /// Operations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlockIoEntry>,
    /// How long processes waited for devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One kind of traffic with one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockIoEntry {
    /// The device's major number.
    pub major: u64,
    /// The device's minor number.
    pub minor: u64,
    /// `Read`, `Write`, `Discard`, and in version 1 also `Sync`, `Async` and `Total`.
    pub op: String,
    /// Bytes or operations.
    pub value: u64,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HugepageStatistics {
    /// Bytes in use.
    pub usage: u64,
    /// The most bytes that were in use at once; version 1 only.
    pub max: u64,
    /// How often the limit was reached.
    pub failcnt: u64,
}

/// Time lost to waiting for a resource (the kernel's `Documentation/accounting/psi.rst`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// By some processes.
    pub some: PressureData,
    /// By all processes at once.
    pub full: PressureData,
}

/// Shares of the last seconds, in percent, and the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PressureData {
    /// Of the last 10 seconds.
    pub avg10: f64,
    /// Of the last minute.
    pub avg60: f64,
    /// Of the last 5 minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

impl Cgroup {
    /// Reads the statistics, each from the version that its controller is on.
    pub(crate) fn statistics(&self) -> Result<Statistics, CgroupError> {
        let mut statistics = Statistics::default();
        if let Some(member) = self.unified() {
            let controllers = match v2::controllers(&member.path) {
                Ok(controllers) => controllers,
                // The container ended, and its cgroups are gone.
                Err(CgroupError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    String::new()
                }
                Err(error) => return Err(error),
            };
            version2::read(&member.path, &controllers, &mut statistics)?;
        }
        version1::read(self, &mut statistics)?;
        Ok(statistics)
    }
}

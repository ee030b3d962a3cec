//! Namespaces, limits and what is hidden of the host.

use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxNamespace, LinuxNamespaceType, LinuxPids,
    LinuxResources,
};

use super::{BundleOptions, CpuCount};

/// What tells about the host or reaches its hardware and is shown empty: Docker's list.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];

/// More of the same, below folders that not every kernel has.
const MASKED_DEVICES: [&str; 1] = ["/sys/devices/virtual/powercap"];

/// What steers the host's kernel and may only be read: Docker's list.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

const NAMESPACES: [LinuxNamespaceType; 6] = [
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Cgroup,
];

pub(super) fn linux(options: &BundleOptions) -> Linux {
    let namespaces = NAMESPACES.into_iter().map(|kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(None);
        namespace
    });
    let paths = |list: &[&str]| {
        list.iter()
            .map(|path| (*path).to_owned())
            .collect::<Vec<String>>()
    };
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces.collect()))
        .set_resources(Some(resources(options)))
        .set_masked_paths(Some([paths(&MASKED), paths(&MASKED_DEVICES)].concat()))
        .set_readonly_paths(Some(paths(&READ_ONLY)));
    linux
}

fn resources(options: &BundleOptions) -> LinuxResources {
    // Devices a runtime offers by itself (`/dev/null` and its like) are exempt (runtime-spec, `config-linux.md`,
    // "Default Devices").
    let mut no_devices = LinuxDeviceCgroup::default();
    no_devices
        .set_allow(false)
        .set_typ(None)
        .set_access(Some("rwm".to_owned()));
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(vec![no_devices]));
    if let Some(limit) = options.memory.and_then(|memory| i64::try_from(memory.0).ok()) {
        let mut memory = LinuxMemory::default();
        memory.set_limit(Some(limit));
        resources.set_memory(Some(memory));
    }
    if let Some(cpus) = options.cpus {
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(Some(cpus.quota()))
            .set_period(Some(CpuCount::PERIOD));
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = options.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit.0);
        resources.set_pids(Some(pids));
    }
    resources
}

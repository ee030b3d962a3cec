//! Telling the kernel's own files from an image's.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::fstatfs;
use rustix::io::Errno;

use super::RootfsError;

/// `PROC_SUPER_MAGIC` of `<linux/magic.h>`.
const PROC_MAGIC: i64 = 0x9fa0;

/// Files of `/proc` that may be replaced, because they only inform: some users show containers their own limits there.
const REPLACEABLE: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

pub(super) fn is_procfs(file: impl AsFd) -> Result<bool, Errno> {
    Ok(fstatfs(file)?.f_type == PROC_MAGIC)
}

/// Refuses what would put other files in the place of the kernel's, by which processes are confined and looked at
/// (CVE-2019-16884, CVE-2019-19921): something else on `/proc`, or anything inside it that does more than inform.
/// `place` is where `path` leads, and `is_procfs_itself` tells of what is to be mounted there.
pub(super) fn check_mount_point(
    place: impl AsFd,
    path: &Path,
    is_procfs_itself: bool,
) -> Result<(), RootfsError> {
    let refuse = |problem| {
        Err(RootfsError::Refused {
            path: path.to_owned(),
            problem,
        })
    };
    let is_on_procfs =
        is_procfs(place).map_err(|errno| RootfsError::path("look at the mount point", path, errno))?;
    match path.to_str() {
        Some("/proc") if is_procfs_itself => Ok(()),
        Some("/proc") => refuse("only a proc file system can be mounted here"),
        Some(path) if REPLACEABLE.contains(&path) => Ok(()),
        _ if is_on_procfs => {
            refuse("is in a proc file system, where nothing may be mounted but what informs")
        }
        _ => Ok(()),
    }
}

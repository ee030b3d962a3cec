//! What may be mounted on `/proc` and inside it.

use std::os::fd::AsFd;
use std::path::Path;

use super::RootfsError;
use crate::procfs::is_procfs;

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

/// Whether files of others may take the place of this one.
pub(super) fn is_replaceable(path: &Path) -> bool {
    path.to_str().is_some_and(|path| REPLACEABLE.contains(&path))
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
        _ if is_replaceable(path) => Ok(()),
        _ if is_on_procfs => {
            refuse("is in a proc file system, where nothing may be mounted but what informs")
        }
        _ => Ok(()),
    }
}

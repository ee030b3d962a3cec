//! What can go wrong with cgroups.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Why a container's cgroups could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup file system.
    #[error("no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup")]
    NotMounted,
    /// The configuration asks for what the kernel does not offer here.
    #[error("{field}: the cgroup controller `{controller}` is not available")]
    NoController {
        /// The JSON path that asks for it.
        field: &'static str,
        /// The controller.
        controller: &'static str,
    },
    /// A value cannot be said in the version of cgroups that is mounted.
    #[error("{field}: {problem}")]
    NotExpressible {
        /// The JSON path.
        field: &'static str,
        /// Why not.
        problem: String,
    },
    /// The kernel refused a limit.
    #[error("{field}: cannot write `{value}` to {}", path.display())]
    Setting {
        /// The JSON path that asks for it.
        field: &'static str,
        /// What was written.
        value: String,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Somebody lives there.
    #[error("the cgroup {} already has processes in it: choose another linux.cgroupsPath", path.display())]
    Occupied {
        /// The cgroup.
        path: PathBuf,
    },
    /// The cgroup's processes did not die.
    #[error("{} still has processes {} seconds after they were killed", path.display(), seconds)]
    WouldNotDie {
        /// The cgroup.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The kernel did not take the program that limits devices.
    #[error("cannot {doing} the device program of {}: the kernel needs CONFIG_CGROUP_BPF", path.display())]
    DeviceProgram {
        /// What was being done.
        doing: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file of a cgroup could not be used.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl CgroupError {
    pub(super) fn io(doing: &'static str, path: &Path, errno: Errno) -> CgroupError {
        CgroupError::Io {
            doing,
            path: path.to_owned(),
            source: errno.into(),
        }
    }
}

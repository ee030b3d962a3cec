//! What can go wrong with cgroups.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::plan::SpecError;

/// Why a container's cgroups could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup file system.
    #[error("no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup")]
    NotMounted,
    /// The hierarchy was there when the cgroup's place was decided.
    #[error("cannot create the cgroup {}: its hierarchy is no longer mounted", path.display())]
    NoHierarchy {
        /// The cgroup.
        path: PathBuf,
    },
    /// The place or the limits make no sense.
    #[error(transparent)]
    Spec(SpecError),
    /// The configuration asks for what the kernel does not offer here.
    #[error("{field}: the cgroup controller `{controller}` is not available")]
    NoController {
        /// The JSON path that asks for it.
        field: String,
        /// The controller.
        controller: String,
    },
    /// A value cannot be said in the version of cgroups that is mounted.
    #[error("{field}: {problem}")]
    NotExpressible {
        /// The JSON path.
        field: String,
        /// Why not.
        problem: String,
    },
    /// The kernel refused a limit.
    #[error("{field}: cannot write `{value}` to {}", path.display())]
    Setting {
        /// The JSON path that asks for it.
        field: String,
        /// What was written.
        value: String,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The controller is there, but not this part of it.
    #[error("{field}: this kernel has no {}", path.display())]
    NoFile {
        /// The JSON path that asks for it.
        field: String,
        /// The file that is missing.
        path: PathBuf,
    },
    /// The memory limit would have processes killed, and the configuration says to check before.
    #[error("{field}: {limit} bytes are less than the {usage} that are in use")]
    MemoryInUse {
        /// The JSON path.
        field: String,
        /// The limit asked for.
        limit: i64,
        /// Bytes in use.
        usage: u64,
    },
    /// Some limits were changed before one was refused, and could not be changed back.
    #[error("not all limits could be changed, and these hold new ones: {}", paths(files))]
    NotTakenBack {
        /// The files with new values.
        files: Vec<PathBuf>,
        /// What was refused.
        #[source]
        source: Box<CgroupError>,
    },
    /// Processes in a frozen cgroup stand still.
    #[error("the cgroup {} is frozen: thaw it, or choose another linux.cgroupsPath", path.display())]
    Frozen {
        /// The cgroup.
        path: PathBuf,
    },
    /// The container's first process is not where it was put.
    #[error(
        "{} takes no process, because it passes controllers on to others, and the container's first process is not in one \
         below",
        path.display()
    )]
    LeftByFirst {
        /// The container's cgroup.
        path: PathBuf,
    },
    /// The cgroup cannot be thawed from where it is.
    #[error("{} stays frozen: a cgroup above it is", path.display())]
    FrozenAbove {
        /// The cgroup.
        path: PathBuf,
    },
    /// The cgroup's processes did not all stand still.
    #[error("{} was not frozen within {} seconds", path.display(), seconds)]
    WouldNotFreeze {
        /// The cgroup.
        path: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// No freezer.
    #[error("processes cannot be paused here: neither cgroup2 nor the version 1 freezer is mounted")]
    NoFreezer,
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
    #[error(
        "linux.resources.devices: cannot {doing} the device program of {}: the kernel needs CONFIG_CGROUP_BPF",
        path.display()
    )]
    DeviceProgram {
        /// What was being done.
        doing: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The cgroup cannot be made where the configuration has it.
    #[error("linux.cgroupsPath: cannot create the cgroup {}", path.display())]
    Place {
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

fn paths(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    paths.join(", ")
}

/// What is being done when a cgroup is made.
pub(super) const CREATE: &str = "create the cgroup";

impl CgroupError {
    /// The same where the cgroup's place is that of a container's configuration.
    pub(crate) fn of_path(self) -> CgroupError {
        match self {
            CgroupError::Io {
                doing: CREATE,
                path,
                source,
            } => CgroupError::Place { path, source },
            other => other,
        }
    }

    pub(super) fn io(doing: &'static str, path: &Path, errno: Errno) -> CgroupError {
        CgroupError::Io {
            doing,
            path: path.to_owned(),
            source: errno.into(),
        }
    }
}

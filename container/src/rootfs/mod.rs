//! Making a container's root file system: what the container's process does between its birth and the change of
//! root. Everything inside the root is reached through descriptors resolved by the kernel within that root.

mod cgroup_mount;
mod device_nodes;
mod hidden_paths;
mod in_root;
mod mounting;
mod pivot;
mod sources;

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

pub(crate) use device_nodes::make_device_folder;
pub(crate) use hidden_paths::{mask, protect};
pub(crate) use in_root::ContainerRoot;
pub(crate) use mounting::{mount_all, move_onto};
pub(crate) use pivot::{attach, pivot};
pub(crate) use sources::Sources;

/// What can go wrong on the way to a root file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot {doing} {}", path.display())]
    Path {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot {doing}")]
    Step { doing: &'static str, source: io::Error },
    #[error("mounts[{index}]: cannot {doing} {}", path.display())]
    Mount {
        index: usize,
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "cannot change the root: the caller's own root must be a mount on another, which an initramfs is not until it \
         is switched away from"
    )]
    Pivot { source: io::Error },
    #[error("{}: {problem}", path.display())]
    Refused { path: PathBuf, problem: &'static str },
}

impl RootfsError {
    fn path(doing: &'static str, path: &Path, errno: Errno) -> RootfsError {
        RootfsError::Path {
            doing,
            path: path.to_owned(),
            source: errno.into(),
        }
    }

    fn step(doing: &'static str) -> impl FnOnce(Errno) -> RootfsError {
        move |errno| RootfsError::Step {
            doing,
            source: errno.into(),
        }
    }

    /// The same about the mount at `index` of the configuration.
    fn of_mount(self, index: usize) -> RootfsError {
        match self {
            RootfsError::Path { doing, path, source } => RootfsError::Mount {
                index,
                doing,
                path,
                source,
            },
            other => other,
        }
    }
}

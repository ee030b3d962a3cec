//! Making a container's root file system: what the container's process does between its birth and the change of
//! root. Everything inside the root is reached through descriptors resolved by the kernel within that root.

mod cgroup_mount;
mod copy_up;
mod device_nodes;
mod file_system;
mod hidden_paths;
mod id_mapped;
mod in_root;
mod mounting;
mod pivot;
mod replaceable;
mod sources;

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

pub(crate) use device_nodes::{make_console, make_device_folder};
pub(crate) use hidden_paths::{mask, protect};
pub(crate) use in_root::ContainerRoot;
pub(crate) use mounting::{can_show_processes_of, mount_all};
pub(crate) use pivot::{attach, attach_in_callers_namespace, change_root, pivot};
pub(crate) use sources::{Sources, WaitingSources};

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
    #[error("cannot mount a {kind} file system on {}: {said}", path.display())]
    FileSystem {
        kind: String,
        path: PathBuf,
        said: String,
        source: io::Error,
    },
    /// Another of these about one field of the configuration.
    #[error("{field}: {message}")]
    Field {
        field: String,
        message: String,
        source: io::Error,
    },
    #[error(
        "cannot change the root: the caller's own root must be a mount on another, which an initramfs is not until it \
         is switched away from"
    )]
    Pivot { source: io::Error },
    #[error("{}: {problem}", path.display())]
    Refused { path: PathBuf, problem: &'static str },
    #[error("{field}: {}: {problem}", path.display())]
    RefusedField {
        field: String,
        path: PathBuf,
        problem: &'static str,
    },
    #[error("cannot {doing} with the id mapping {mapping}")]
    IdMapping {
        doing: &'static str,
        mapping: String,
        source: io::Error,
    },
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
        self.of(|| format!("mounts[{index}]"))
    }

    /// The same about this field of the configuration.
    fn of(self, field: impl FnOnce() -> String) -> RootfsError {
        let message = self.to_string();
        match self {
            RootfsError::Path { source, .. }
            | RootfsError::FileSystem { source, .. }
            | RootfsError::IdMapping { source, .. } => RootfsError::Field {
                field: field(),
                message,
                source,
            },
            RootfsError::Refused { path, problem } => RootfsError::RefusedField {
                field: field(),
                path,
                problem,
            },
            other => other,
        }
    }
}

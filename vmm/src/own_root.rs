//! A file system of the process's own: of all the host's files it keeps one directory in sight.
//!
//! ```text
//! /               the directory the process was started in
//! /proc           its own processes, where virtio-fs opens what it holds
//! /<shared>       what a guest may mount; its own files cannot be changed through the device
//! /<shared>/...   mounts that others make here while the machine runs, by entering this process's mount namespace
//! ```
//!
//! The mounts live in a namespace that nobody else is in, and so end with the process however it ends.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};
use rustix::thread::UnshareFlags;

/// Where the process finds its own descriptors.
const PROC: &str = "proc";

/// Nothing but the directories of processes, and of those only the ones this process may trace
/// (Documentation/filesystems/proc.rst, section 4).
const PROC_OPTIONS: &std::ffi::CStr = c"subset=pid,hidepid=ptraceable";

/// The way to the root that [`OwnRoot::enter`] makes the only one.
#[derive(Debug)]
pub struct OwnRoot(());

/// Why the process cannot have a root of its own.
#[derive(Debug, thiserror::Error)]
#[error("making a root file system of this process's own: {doing} {}", .path.display())]
pub struct OwnRootError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl OwnRoot {
    /// Makes a mount namespace for this process, which has one thread still, and in it a mount of the current directory,
    /// of `/proc`, and of each of the `shared` directories. The host's files stay in sight.
    ///
    /// # Errors
    /// When the process lacks the privilege, or a directory is not there.
    pub fn prepare<'a>(shared: impl Iterator<Item = &'a Path>) -> Result<Self, OwnRootError> {
        let here = std::env::current_dir().map_err(failed("finding", Path::new(".")))?;
        // SAFETY: this process has a single thread still, which shares nothing that the call would tear apart.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
            .map_err(failed("leaving the mount namespace of", Path::new("/")))?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(failed("parting from the mounts below", Path::new("/")))?;
        mount_bind(&here, &here).map_err(failed("binding", &here))?;
        // The old name now leads to the new mount.
        chdir(&here).map_err(failed("entering", &here))?;
        let proc = Path::new(PROC);
        match std::fs::create_dir(proc) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("creating", proc)(error));
            }
            _ => {}
        }
        let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("proc", proc, "proc", quiet, Some(PROC_OPTIONS)).map_err(failed("mounting", proc))?;
        for directory in shared {
            mount_bind(directory, directory).map_err(failed("binding", directory))?;
            let closed = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            mount_remount(directory, closed, "").map_err(failed("making read-only", directory))?;
        }
        Ok(Self(()))
    }

    /// Makes the current directory the root and loses sight of everything else. What is open stays open.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn enter(self) -> Result<(), OwnRootError> {
        let here = Path::new(".");
        // The old root lands on top of the new one, from where it is taken away (pivot_root(2), NOTES).
        pivot_root(here, here).map_err(failed("moving the root to", here))?;
        unmount(here, UnmountFlags::DETACH).map_err(failed("letting go of the host's", Path::new("/")))?;
        chdir("/").map_err(failed("entering", Path::new("/")))
    }
}

fn failed<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> OwnRootError {
    let path = path.to_owned();
    move |source| OwnRootError {
        doing,
        path,
        source: source.into(),
    }
}

//! The file systems of a fresh guest.

use std::fs;
use std::io;
use std::path::Path;

use container::CgroupError;
use rustix::mount::{MountFlags, mount, mount_move};

/// Where the new root is prepared before it covers the initramfs.
const NEW_ROOT: &str = "/root";

/// A file system of the guest's root.
struct GuestMount {
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: &'static str,
}

/// In the order they are mounted.
const MOUNTS: [GuestMount; 5] = [
    GuestMount {
        target: "proc",
        kind: "proc",
        flags: QUIET,
        options: "",
    },
    GuestMount {
        target: "sys",
        kind: "sysfs",
        flags: QUIET,
        options: "",
    },
    GuestMount {
        target: "sys/fs/cgroup",
        kind: "cgroup2",
        flags: QUIET,
        options: "nsdelegate,memory_recursiveprot",
    },
    GuestMount {
        target: "dev",
        kind: "devtmpfs",
        flags: MountFlags::NOSUID,
        options: "mode=0755",
    },
    GuestMount {
        target: "run",
        kind: "tmpfs",
        flags: QUIET,
        options: "mode=0755",
    },
];

const QUIET: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC)
    .union(MountFlags::RELATIME);

/// Why the guest has no proper root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestMountError {
    /// A folder to mount on could not be made.
    #[error("creating {path}")]
    CreateDirectory {
        /// The folder.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file system could not be mounted.
    #[error("mounting {kind} on {target}")]
    Mount {
        /// The type of file system.
        kind: &'static str,
        /// Where.
        target: String,
        /// The cause.
        #[source]
        source: rustix::io::Errno,
    },
    /// The new root could not take the old one's place.
    #[error("moving {NEW_ROOT} over the initramfs")]
    MoveRoot(#[source] rustix::io::Errno),
    /// The parent of the containers' cgroups could not be made.
    #[error("making the parent of the containers' cgroups")]
    Cgroup(#[source] CgroupError),
}

/// Mounts what a guest needs and covers the initramfs with a tmpfs: `pivot_root` works under any root but that one
/// (the kernel's Documentation/filesystems/ramfs-rootfs-initramfs.rst), and each container pivots.
pub(crate) fn mount_all() -> Result<(), GuestMountError> {
    mount_on(
        "tmpfs",
        Path::new(NEW_ROOT),
        MountFlags::NOSUID | MountFlags::NODEV,
        "mode=0755",
    )?;
    for GuestMount {
        target,
        kind,
        flags,
        options,
    } in &MOUNTS
    {
        mount_on(kind, &Path::new(NEW_ROOT).join(target), *flags, options)?;
    }
    rustix::process::chdir(NEW_ROOT).map_err(GuestMountError::MoveRoot)?;
    mount_move(".", "/").map_err(GuestMountError::MoveRoot)?;
    rustix::process::chroot(".").map_err(GuestMountError::MoveRoot)?;
    rustix::process::chdir("/").map_err(GuestMountError::MoveRoot)?;
    // The first container would take the time for it.
    container::pass_on_controllers().map_err(GuestMountError::Cgroup)
}

/// Mounts a virtio-fs device.
///
/// # Errors
/// When the folder cannot be made or the device is not there.
pub(crate) fn mount_shared_directory(
    tag: &str,
    target: &Path,
    read_only: bool,
) -> Result<(), GuestMountError> {
    create_directory(target)?;
    let flags = if read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    // Times of access are the host's to keep, whatever a mount says of them (fuse_iget of the kernel's fs/fuse/inode.c):
    // without a word about them, binds of it say what they do on the host.
    mount(tag, target, "virtiofs", flags, None).map_err(|source| GuestMountError::Mount {
        kind: "virtiofs",
        target: target.display().to_string(),
        source,
    })
}

fn mount_on(
    kind: &'static str,
    target: &Path,
    flags: MountFlags,
    options: &str,
) -> Result<(), GuestMountError> {
    create_directory(target)?;
    let data = std::ffi::CString::new(options).unwrap_or_default();
    mount(kind, target, kind, flags, Some(data.as_c_str())).map_err(|source| GuestMountError::Mount {
        kind,
        target: target.display().to_string(),
        source,
    })
}

fn create_directory(path: &Path) -> Result<(), GuestMountError> {
    fs::create_dir_all(path).map_err(|source| GuestMountError::CreateDirectory {
        path: path.display().to_string(),
        source,
    })
}

//! `mount_setattr(2)` (Linux 5.12), which changes a detached mount before anyone can see it.

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use super::checked;

/// Per-mount attributes, values of `<linux/mount.h>`.
pub(crate) mod attribute {
    pub(crate) const RDONLY: u64 = 0x1;
    pub(crate) const NOSUID: u64 = 0x2;
    pub(crate) const NODEV: u64 = 0x4;
    pub(crate) const NOEXEC: u64 = 0x8;
    /// The field the three ways of keeping access times share; relatime is its zero.
    pub(crate) const ATIME: u64 = 0x70;
    pub(crate) const NOATIME: u64 = 0x10;
    pub(crate) const STRICTATIME: u64 = 0x20;
    pub(crate) const NODIRATIME: u64 = 0x80;
    pub(crate) const IDMAP: u64 = 0x100000;
    pub(crate) const NOSYMFOLLOW: u64 = 0x200000;
}

/// `struct mount_attr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    /// One of MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, or 0 to leave it.
    pub(crate) propagation: u64,
    /// The descriptor of the user namespace for `IDMAP`.
    pub(crate) user_namespace: u64,
}

/// Makes a detached mount read-only before it is attached anywhere, and leaves what is mounted below it as it is.
///
/// # Errors
/// When `mount` is no mount of the caller's.
pub fn set_read_only<F: AsFd>(mount: F) -> Result<(), Errno> {
    let read_only = MountAttributes {
        set: attribute::RDONLY,
        ..MountAttributes::default()
    };
    mount_setattr(mount.as_fd(), false, &read_only)
}

/// The same with all that is mounted below it: all of them or none.
///
/// # Errors
/// When `mount` is no mount of the caller's.
pub fn set_read_only_recursively<F: AsFd>(mount: F) -> Result<(), Errno> {
    let read_only = MountAttributes {
        set: attribute::RDONLY,
        ..MountAttributes::default()
    };
    mount_setattr(mount.as_fd(), true, &read_only)
}

/// Has detached mounts, all below `mount` included, take no part in what is mounted on those they are copies of.
///
/// # Errors
/// When `mount` is no mount of the caller's.
pub fn make_mounts_private<F: AsFd>(mount: F) -> Result<(), Errno> {
    let private = MountAttributes {
        propagation: libc::MS_PRIVATE,
        ..MountAttributes::default()
    };
    mount_setattr(mount.as_fd(), true, &private)
}

/// Has detached mounts, all below `mount` included, hold nothing but files to be read and written: no program runs from them,
/// no device is opened by them.
///
/// # Errors
/// When `mount` is no mount of the caller's.
pub fn make_mounts_inert<F: AsFd>(mount: F) -> Result<(), Errno> {
    let inert = MountAttributes {
        set: attribute::NOSUID | attribute::NODEV | attribute::NOEXEC,
        ..MountAttributes::default()
    };
    mount_setattr(mount.as_fd(), true, &inert)
}

/// Changes the mount that `mount` refers to and, with `recursive`, all below it: all of them or none.
pub(crate) fn mount_setattr(
    mount: impl AsFd,
    recursive: bool,
    attributes: &MountAttributes,
) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty NUL-terminated path and a structure of the size given, both alive for the call.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const *attributes,
            size_of::<MountAttributes>(),
        )
    };
    checked(returned).map(|_| ())
}

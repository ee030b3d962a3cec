//! Entering the new root and leaving the old one.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags};

use super::sources::make_read_only;
use super::{ContainerRoot, RootfsError};
use crate::kernel::calls::{
    chdir, chroot, fchdir, mount_change, mount_setattr, move_mount, pivot_root, unmount,
};
use crate::kernel::mount_setattr::MountAttributes;
use crate::plan::RootPlan;

/// Cuts this mount namespace off from the caller's and puts the detached root into it.
pub(crate) fn attach(root: OwnedFd, path: &Path) -> Result<ContainerRoot, RootfsError> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(RootfsError::step("make the mounts private"))?;
    // Where it is attached does not matter: everything but itself is about to go.
    move_mount(&root, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| RootfsError::path("attach the root file system at", path, errno))?;
    Ok(ContainerRoot::new(root))
}

/// Puts the detached root into the caller's own mount namespace, at its own place.
pub(crate) fn attach_in_callers_namespace(root: OwnedFd, path: &Path) -> Result<ContainerRoot, RootfsError> {
    let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
    move_mount(&root, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed("attach the root file system at"))?;
    // Below a shared mount it has become one too, and what is mounted in it would be in other namespaces as well.
    let private = MountAttributes {
        propagation: libc::MS_PRIVATE,
        ..MountAttributes::default()
    };
    mount_setattr(&root, true, &private).map_err(failed("set the propagation of the root file system at"))?;
    Ok(ContainerRoot::new(root))
}

/// Makes the root of this process alone the container's. Who may call chroot(2) can leave it.
pub(crate) fn change_root(root: ContainerRoot, plan: &RootPlan) -> Result<(), RootfsError> {
    enter(&root.into_descriptor(), plan)?;
    chroot(".").map_err(|errno| RootfsError::path("change the root to", &plan.path, errno))?;
    share(plan.propagation)
}

/// Goes to the new root, which is not to be written to any more if it is read-only.
fn enter(root: &OwnedFd, plan: &RootPlan) -> Result<(), RootfsError> {
    let failed = |doing| move |errno| RootfsError::path(doing, &plan.path, errno);
    if plan.read_only {
        make_read_only(root, false).map_err(failed("make read-only"))?;
    }
    fchdir(root).map_err(failed("enter"))
}

/// Makes the root of this process and of its mount namespace the container's, and lets go of the old one.
pub(crate) fn pivot(root: ContainerRoot, plan: &RootPlan) -> Result<(), RootfsError> {
    enter(&root.into_descriptor(), plan)?;
    // The old root goes on top of the new one, from where it is unmounted (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".").map_err(|errno| match errno {
        Errno::INVAL => RootfsError::Pivot { source: errno.into() },
        errno => RootfsError::path("change the root to", &plan.path, errno),
    })?;
    unmount(".", UnmountFlags::DETACH).map_err(RootfsError::step("let go of the old root"))?;
    chdir("/").map_err(RootfsError::step("enter the new root"))?;
    share(plan.propagation)
}

/// Now that the root is a mount that nobody outside has, what happens to it reaches nobody outside either, whatever its
/// propagation: that is for the mounts that the container makes.
fn share((propagation, recursive): (u64, bool)) -> Result<(), RootfsError> {
    if propagation == libc::MS_PRIVATE {
        return Ok(());
    }
    let mut flags = MountPropagationFlags::from_bits_retain(propagation as u32);
    flags.set(MountPropagationFlags::REC, recursive);
    mount_change("/", flags).map_err(RootfsError::step("set linux.rootfsPropagation"))
}

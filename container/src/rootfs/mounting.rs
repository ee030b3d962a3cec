//! The configuration's mounts, one after the other.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, mount, move_mount};

use super::in_root::path_of;
use super::{ContainerRoot, RootfsError, Sources, cgroup_mount};
use crate::cgroup::Cgroup;
use crate::kernel::mount_setattr::{MountAttributes, mount_setattr};
use crate::plan::{MountKind, MountPlan};

/// Mounts everything in order, so that later mounts see earlier ones.
pub(crate) fn mount_all(
    root: &ContainerRoot,
    mounts: &[MountPlan],
    sources: &Sources,
    cgroup: &Cgroup,
    has_cgroup_namespace: bool,
) -> Result<(), RootfsError> {
    for (mount, tree) in mounts.iter().zip(&sources.binds) {
        let mounted = match (&mount.kind, tree) {
            (MountKind::Bind { .. }, Some(tree)) => attach_bind(root, mount, tree),
            (MountKind::Cgroup, _) => cgroup_mount::mount_cgroups(root, mount, cgroup, has_cgroup_namespace),
            _ => mount_file_system(root, mount),
        };
        mounted.map_err(|error| error.of_mount(mount.index))?;
    }
    Ok(())
}

fn attach_bind(root: &ContainerRoot, mount: &MountPlan, tree: &OwnedFd) -> Result<(), RootfsError> {
    let failed = |doing| move |errno| RootfsError::path(doing, &mount.destination, errno);
    let source = fstat(tree).map_err(failed("look at the source of"))?;
    let destination = if FileType::from_raw_mode(source.st_mode) == FileType::Directory {
        root.make_folder(&mount.destination)
    } else {
        root.make_file(&mount.destination)
    };
    let destination = destination.map_err(failed("open or make the mount point"))?;
    move_onto(tree, &destination).map_err(failed("mount onto"))
}

/// Puts a detached mount where `destination` is.
pub(crate) fn move_onto(tree: &OwnedFd, destination: &OwnedFd) -> Result<(), Errno> {
    let both_are_descriptors =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", destination, "", both_are_descriptors)
}

fn mount_file_system(root: &ContainerRoot, plan: &MountPlan) -> Result<(), RootfsError> {
    let MountKind::FileSystem { kind, source, data } = &plan.kind else {
        return Ok(());
    };
    let failed = |doing| move |errno| RootfsError::path(doing, &plan.destination, errno);
    let destination = mount_point(root, kind.to_bytes(), &plan.destination)?;
    let data = if data.is_empty() {
        None
    } else {
        Some(data.as_c_str())
    };
    mount(
        source.as_c_str(),
        path_of(&destination),
        kind.as_c_str(),
        MountFlags::from_bits_retain(plan.options.mount_flags() as u32),
        data,
    )
    .map_err(failed("mount onto"))?;
    // A new mount below a private one is private.
    match plan.options.propagation {
        None | Some((libc::MS_PRIVATE, _)) => Ok(()),
        Some((propagation, recursive)) => {
            let mounted = root
                .open(&plan.destination, OFlags::PATH)
                .map_err(failed("open the mount on"))?;
            let attributes = MountAttributes {
                propagation,
                ..MountAttributes::default()
            };
            mount_setattr(&mounted, recursive, &attributes).map_err(failed("set the propagation of"))
        }
    }
}

/// Where a file system goes. The kernel's own are trusted by their path, so an image must not be able to move them
/// elsewhere with a symbolic link.
fn mount_point(root: &ContainerRoot, kind: &[u8], path: &Path) -> Result<OwnedFd, RootfsError> {
    let failed = |errno| RootfsError::path("open or make the mount point", path, errno);
    if kind != b"proc" && kind != b"sysfs" {
        return root.make_folder(path).map_err(failed);
    }
    match root.open_without_links(path, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(folder) => Ok(folder),
        Err(Errno::NOENT) => {
            root.make_folder(path).map_err(failed)?;
            root.open_without_links(path, OFlags::PATH | OFlags::DIRECTORY)
                .map_err(failed)
        }
        Err(Errno::LOOP) => Err(RootfsError::Refused {
            path: path.to_owned(),
            problem: "the image has a symbolic link where the kernel's files must be",
        }),
        Err(errno) => Err(failed(errno)),
    }
}

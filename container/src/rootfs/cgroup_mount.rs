//! The container's view of its own cgroups, for a mount of type `cgroup` or `cgroup2`.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, OFlags, symlinkat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, open_tree};

use super::in_root::path_of;
use super::mounting::move_onto;
use super::sources::clone_flags;
use super::{ContainerRoot, RootfsError, sources};
use crate::cgroup::{Cgroup, Hierarchy, Member};
use crate::kernel::mount_setattr::attribute;
use crate::plan::MountPlan;

/// Mounts the one cgroup2 tree at the destination, or a folder with one mount for each version 1 hierarchy.
pub(super) fn mount_cgroups(
    root: &ContainerRoot,
    plan: &MountPlan,
    cgroup: &Cgroup,
    has_namespace: bool,
) -> Result<(), RootfsError> {
    let destination = plan.destination.as_path();
    let failed = |doing| move |errno| RootfsError::path(doing, destination, errno);
    let folder = root
        .make_folder(destination)
        .map_err(failed("open or make the mount point"))?;
    let flags = MountFlags::from_bits_retain(plan.options.mount_flags() as u32);
    if let [
        only @ Member {
            hierarchy: Hierarchy::Unified,
            ..
        },
    ] = cgroup.members.as_slice()
    {
        return mount_member(only, &folder, flags, has_namespace).map_err(failed("mount cgroups onto"));
    }

    // The folder is filled before it becomes read-only.
    mount(
        c"tmpfs",
        path_of(&folder),
        c"tmpfs",
        flags.difference(MountFlags::RDONLY),
        Some(c"mode=755"),
    )
    .map_err(failed("mount onto"))?;
    let folder = root
        .open(destination, OFlags::PATH | OFlags::DIRECTORY)
        .map_err(failed("open the mount on"))?;
    for member in &cgroup.members {
        let name = name(&member.hierarchy);
        let path = &destination.join(&name);
        let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
        let place = root.make_folder(path).map_err(failed("make"))?;
        mount_member(member, &place, flags, has_namespace).map_err(failed("mount cgroups onto"))?;
        for alias in name.split(',').filter(|alias| *alias != name) {
            let path = destination.join(alias);
            symlinkat(name.as_str(), &folder, alias)
                .map_err(|errno| RootfsError::path("link", &path, errno))?;
        }
    }
    if plan.options.attributes.set & attribute::RDONLY != 0 {
        sources::make_read_only(&folder, false).map_err(failed("make read-only"))?;
    }
    Ok(())
}

/// In a cgroup namespace of the container's own, a fresh mount shows its cgroup as the root; otherwise the cgroup
/// itself is bound, which hides the ones above it.
fn mount_member(
    member: &Member,
    place: &OwnedFd,
    flags: MountFlags,
    has_namespace: bool,
) -> Result<(), Errno> {
    if !has_namespace {
        return bind_member(&member.path, place, flags);
    }
    match &member.hierarchy {
        Hierarchy::Unified => mount(c"cgroup2", path_of(place), c"cgroup2", flags, None),
        Hierarchy::Version1(controllers) => {
            let data = std::ffi::CString::new(controllers.as_str()).map_err(|_| Errno::INVAL)?;
            mount(c"cgroup", path_of(place), c"cgroup", flags, data.as_c_str())
        }
    }
}

fn bind_member(cgroup: &Path, place: &OwnedFd, flags: MountFlags) -> Result<(), Errno> {
    let tree = open_tree(CWD, cgroup, clone_flags(false))?;
    if flags.contains(MountFlags::RDONLY) {
        sources::make_read_only(&tree, false)?;
    }
    move_onto(&tree, place)
}

/// The folder of a version 1 hierarchy: its controllers, or the name without `name=`.
fn name(hierarchy: &Hierarchy) -> String {
    match hierarchy {
        Hierarchy::Unified => "unified".to_owned(),
        Hierarchy::Version1(controllers) => controllers
            .strip_prefix("name=")
            .unwrap_or(controllers)
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_shown_under_their_usual_names() {
        assert_eq!(name(&Hierarchy::Unified), "unified");
        assert_eq!(name(&Hierarchy::Version1("name=systemd".into())), "systemd");
        assert_eq!(name(&Hierarchy::Version1("cpu,cpuacct".into())), "cpu,cpuacct");
    }
}

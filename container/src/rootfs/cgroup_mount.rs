//! The container's view of its own cgroups, for a mount of type `cgroup` or `cgroup2`.

use std::borrow::Cow;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use rustix::mount::open_tree;

use super::file_system::{self, Refusal};
use super::mounting::{attach, refused};
use super::sources::{change, clone_flags, make_read_only};
use super::{ContainerRoot, RootfsError};
use crate::cgroup::{Cgroup, Hierarchy, Member};
use crate::kernel::mount_setattr::attribute;
use crate::plan::{MountOptions, MountPlan};

/// Mounts the one cgroup2 tree at the destination, or a folder with one mount for each version 1 hierarchy. With
/// `unified_only`, a host with both has only its cgroup2 tree shown.
pub(super) fn mount_cgroups(
    root: &ContainerRoot,
    plan: &MountPlan,
    unified_only: bool,
    cgroup: &Cgroup,
    has_namespace: bool,
) -> Result<(), RootfsError> {
    let destination = plan.destination.as_path();
    let failed = |doing| move |errno| RootfsError::path(doing, destination, errno);
    let place = root
        .make_folder(destination)
        .map_err(failed("open or make the mount point"))?;
    let unified = cgroup
        .members
        .iter()
        .find(|member| member.hierarchy == Hierarchy::Unified);
    if unified_only || matches!(cgroup.members.as_slice(), [only] if only.hierarchy == Hierarchy::Unified) {
        let tree = match unified {
            Some(member) => mount_member(member, &plan.options, has_namespace, destination)?,
            // No hierarchy of the host's, but the kernel has one.
            None => new_mount(c"cgroup2", &plan.options, destination)?,
        };
        return attach(&tree, &place, destination);
    }

    // The folder is filled before anybody can see it, and then becomes read-only.
    let mut of_folder = MountOptions {
        data: vec!["mode=755".to_owned()],
        ..plan.options.clone()
    };
    of_folder.superblock = 0;
    let attributes = of_folder.new_attributes() & !attribute::RDONLY;
    let folder = file_system::make(c"tmpfs", c"tmpfs", &of_folder, false, attributes, None)
        .map_err(|refusal| refused(c"tmpfs", destination, refusal))?;
    attach(&folder, &place, destination)?;
    for member in &cgroup.members {
        let name = name(&member.hierarchy);
        let path = &destination.join(&name);
        let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
        mkdirat(&folder, &name, Mode::from_raw_mode(0o755)).map_err(failed("make"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(&folder, &name, flags, Mode::empty()).map_err(failed("open"))?;
        let tree = mount_member(member, &plan.options, has_namespace, path)?;
        attach(&tree, &place, path)?;
        for alias in name.split(',').filter(|alias| *alias != name) {
            let path = destination.join(alias);
            symlinkat(name.as_str(), &folder, alias)
                .map_err(|errno| RootfsError::path("link", &path, errno))?;
        }
    }
    if plan.options.is_read_only() {
        make_read_only(&folder, false).map_err(failed("make read-only"))?;
    }
    Ok(())
}

/// In a cgroup namespace of the container's own, a fresh mount shows its cgroup as the root; otherwise the cgroup
/// itself is bound, which hides the ones above it. It also is where the namespace is of another user namespace.
fn mount_member(
    member: &Member,
    options: &MountOptions,
    has_namespace: bool,
    path: &Path,
) -> Result<OwnedFd, RootfsError> {
    if !has_namespace {
        return bind_member(&member.path, options);
    }
    let (kind, options) = match &member.hierarchy {
        Hierarchy::Unified => (c"cgroup2", Cow::Borrowed(options)),
        Hierarchy::Version1(controllers) => {
            let data = controllers.split(',').map(str::to_owned).collect();
            let options = MountOptions {
                data,
                ..options.clone()
            };
            (c"cgroup", Cow::Owned(options))
        }
    };
    match file_system::make(kind, kind, &options, false, options.new_attributes(), None) {
        Err(Refusal {
            errno: Errno::PERM, ..
        }) => bind_member(&member.path, &options),
        made => made.map_err(|refusal| refused(kind, path, refusal)),
    }
}

fn new_mount(kind: &CStr, options: &MountOptions, path: &Path) -> Result<OwnedFd, RootfsError> {
    // The file system is the host's too, so that only the mount is read-only.
    file_system::make(kind, kind, options, false, options.new_attributes(), None)
        .map_err(|refusal: Refusal| refused(kind, path, refusal))
}

fn bind_member(cgroup: &Path, options: &MountOptions) -> Result<OwnedFd, RootfsError> {
    let failed = |doing| move |errno| RootfsError::path(doing, cgroup, errno);
    let tree = open_tree(CWD, cgroup, clone_flags(false)).map_err(failed("open the cgroup"))?;
    change(&tree, options, false, Some((libc::MS_PRIVATE, false))).map_err(failed("set the options of"))?;
    Ok(tree)
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

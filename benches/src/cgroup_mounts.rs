//! Cgroup mounts that every contender understands.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount,
    open_tree,
};
use rustix::thread::UnshareFlags;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Enters a mount namespace in which a host of version 1 hierarchies shows those and nothing beside them: crun refuses
/// a host that mounts version 2 as well, as systemd's hybrid layout does. Nothing changes for anyone else.
///
/// # Errors
/// Without root's privileges.
pub(crate) fn show_version_1_alone() -> anyhow::Result<()> {
    // SAFETY: the process has one thread, which shares nothing that the call would tear apart.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.context("making a mount namespace")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("keeping our mounts to ourselves")?;
    if Path::new(CGROUPS).join("cgroup.controllers").exists() {
        return Ok(());
    }
    let mut hierarchies = Vec::new();
    for entry in fs::read_dir(CGROUPS)? {
        let entry = entry?;
        let is_version_1 = entry.path().join("tasks").exists();
        if entry.file_type()?.is_dir() && is_version_1 {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            hierarchies.push((entry.path(), open_tree(CWD, entry.path(), flags)?));
        }
    }
    mount("cgroup", CGROUPS, "tmpfs", MountFlags::empty(), None)?;
    for (path, tree) in hierarchies {
        fs::create_dir(&path)?;
        move_mount(tree, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    Ok(())
}

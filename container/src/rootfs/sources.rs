//! What the container is made of, taken from the caller's tree of mounts before the container exists.
//!
//! Each is a detached copy of a mount (open_tree(2)), already with its final attributes and propagation. The
//! container's process only has to move it into place: there is no moment in which a read-only mount can be written
//! to, and the paths are resolved with the caller's permissions, not those of a mapped root.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::RootfsError;
use crate::kernel::mount_setattr::{MountAttributes, attribute, mount_setattr};
use crate::plan::{MountKind, MountOptions, MountPlan, Plan, RootPlan};

/// Detached mounts.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) root: OwnedFd,
    /// One for each mount of the configuration; none where it is not a bind mount.
    pub(crate) binds: Vec<Option<OwnedFd>>,
}

impl Sources {
    pub(crate) fn open(plan: &Plan) -> Result<Sources, RootfsError> {
        let binds = plan.mounts.iter().map(open_bind).collect::<Result<_, _>>()?;
        Ok(Sources {
            root: open_root(&plan.root)?,
            binds,
        })
    }
}

fn open_root(plan: &RootPlan) -> Result<OwnedFd, RootfsError> {
    let failed = |doing| move |errno| RootfsError::path(doing, &plan.path, errno);
    let root = clone_tree(&plan.path, true).map_err(failed("open the root file system"))?;
    let (propagation, recursive) = plan.propagation;
    let attributes = MountAttributes {
        propagation,
        ..MountAttributes::default()
    };
    mount_setattr(&root, recursive, &attributes)
        .map_err(failed("set the propagation of the root file system"))?;
    Ok(root)
}

fn open_bind(mount: &MountPlan) -> Result<Option<OwnedFd>, RootfsError> {
    let MountKind::Bind { source, recursive } = &mount.kind else {
        return Ok(None);
    };
    let failed = |doing| move |errno| RootfsError::path(doing, source, errno).of_mount(mount.index);
    let tree = clone_tree(source, *recursive).map_err(failed("open the bind mount's source"))?;
    change(&tree, &mount.options, *recursive).map_err(failed("set the options of"))?;
    Ok(Some(tree))
}

/// Applies options to a detached mount. What happens to a mount elsewhere reaches the container, and the other way
/// round, only if the configuration says so.
fn change(tree: &OwnedFd, options: &MountOptions, recursive: bool) -> Result<(), Errno> {
    let (propagation, all_below) = options.propagation.unwrap_or((libc::MS_PRIVATE, recursive));
    let shared_call = MountAttributes {
        set: options.recursive_attributes.set,
        clear: options.recursive_attributes.clear,
        propagation,
        user_namespace: 0,
    };
    let top_only = MountAttributes {
        set: options.attributes.set,
        clear: options.attributes.clear,
        ..MountAttributes::default()
    };
    if options.recursive_attributes.is_empty() && all_below == recursive && !recursive {
        // One mount: everything at once.
        return mount_setattr(
            tree,
            false,
            &MountAttributes {
                propagation,
                ..top_only
            },
        );
    }
    mount_setattr(
        tree,
        all_below || !options.recursive_attributes.is_empty(),
        &shared_call,
    )?;
    if options.attributes.is_empty() {
        Ok(())
    } else {
        mount_setattr(tree, false, &top_only)
    }
}

/// Makes a mount read-only.
pub(super) fn make_read_only(tree: &OwnedFd, recursive: bool) -> Result<(), Errno> {
    let attributes = MountAttributes {
        set: attribute::RDONLY,
        ..MountAttributes::default()
    };
    mount_setattr(tree, recursive, &attributes)
}

fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    open_tree(CWD, path, clone_flags(recursive))
}

pub(super) fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags | OpenTreeFlags::AT_RECURSIVE
    } else {
        flags
    }
}

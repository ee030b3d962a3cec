//! What the container is made of, taken from the caller's tree of mounts, by the caller.
//!
//! Each is a detached copy of a mount (open_tree(2)), already with its final attributes and propagation. The
//! container's process only has to move it into place: there is no moment in which a read-only mount can be written
//! to, and the paths are resolved with the caller's permissions, not those of a mapped root.
//!
//! Since Linux 6.8 a mount namespace lists its mounts in the order in which they were made, and copies are made here. So
//! that it is the configuration's, what follows a mount that only the container's process can make is copied when that is
//! made, and the process asks for it. It is found and opened before there is a process, as everything is.

use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, fstat};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::RootfsError;
use super::id_mapped::Mappings;
use crate::kernel::calls::{mount_setattr, open_tree};
use crate::kernel::mount_setattr::{MountAttributes, attribute};
use crate::plan::{AttributeChange, MountKind, MountOptions, MountPlan, Namespace, Plan};
use crate::process::channel::MOST_DESCRIPTORS;

const OPEN_SOURCE: &str = "open the bind mount's source";

/// Detached mounts.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) root: OwnedFd,
    /// One for each mount of the configuration; none where it takes nothing of the caller's, or not yet.
    pub(crate) mounts: Vec<Option<OwnedFd>>,
    /// The pid namespace that proc file systems show, if that is not the one of whoever mounts them.
    pub(crate) processes_of: Option<OwnedFd>,
}

/// The sources of bind mounts that are copied when their turn comes, by their places among the plan's mounts.
#[derive(Debug, Default)]
pub(crate) struct WaitingSources(Vec<(usize, OwnedFd)>);

impl Sources {
    /// What the plan takes of the caller's, and what of it has to wait.
    pub(crate) fn open(plan: &Plan) -> Result<(Sources, WaitingSources), RootfsError> {
        let mut waiting = Vec::new();
        let mut mappings = Mappings::default();
        // Without a mount namespace of its own, what is mounted for the container is in the way of later paths.
        let can_wait = plan.namespaces.creates(Namespace::Mount);
        let mut has_others_before = false;
        let open = |(place, mount): (usize, &MountPlan)| {
            has_others_before |= matches!(
                mount.kind,
                MountKind::FileSystem { .. } | MountKind::Cgroup { .. }
            );
            if let MountKind::Bind { source, .. } = &mount.kind
                && can_wait
                && has_others_before
            {
                let found = open_tree(CWD, source.as_path(), OpenTreeFlags::OPEN_TREE_CLOEXEC)
                    .map_err(|errno| RootfsError::path(OPEN_SOURCE, source, errno))
                    .map_err(|error| error.of_mount(mount.index))?;
                waiting.push((place, found));
                return Ok(None);
            }
            open_mount(mount, None, plan.root.propagation, &mut mappings)
                .map_err(|error| error.of_mount(mount.index))
        };
        let mounts = plan
            .mounts
            .iter()
            .enumerate()
            .map(open)
            .collect::<Result<_, _>>()?;
        let sources = Sources {
            mounts,
            root: open_root(&plan.root.path).map_err(|error| error.of(|| "root.path".to_owned()))?,
            processes_of: None,
        };
        Ok((sources, WaitingSources(waiting)))
    }
}

impl WaitingSources {
    /// Copies of those from the place `first` among the plan's mounts on, up to the next mount that is none, or as many as
    /// fit into a packet. Each has one turn: who asks for it again gets nothing.
    pub(crate) fn copy_in_turn(&mut self, plan: &Plan, first: usize) -> Result<Vec<OwnedFd>, RootfsError> {
        let mut mappings = Mappings::default();
        let mut copies = Vec::new();
        for (place, mount) in plan.mounts.iter().enumerate().skip(first).take(MOST_DESCRIPTORS) {
            let Some(index) = self.0.iter().position(|(of, _)| *of == place) else {
                break;
            };
            let (_, source) = self.0.swap_remove(index);
            let copy = open_mount(mount, Some(&source), plan.root.propagation, &mut mappings)
                .map_err(|error| error.of_mount(mount.index))?;
            copies.extend(copy);
        }
        Ok(copies)
    }

    /// The numbers of their descriptors, which are of use to the caller alone.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().map(|(_, source)| source.as_raw_fd())
    }
}

/// The root is nobody's peer until it has become the root: what is mounted in it while it is made belongs to the
/// container alone.
fn open_root(path: &Path) -> Result<OwnedFd, RootfsError> {
    let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
    let root = clone_tree(path, true).map_err(failed("open the root file system"))?;
    let stat = fstat(&root).map_err(failed("look at the root file system"))?;
    // A file can be mounted as well as a folder, and then nothing in it is found.
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(RootfsError::Refused {
            path: path.to_owned(),
            problem: "is not a folder",
        });
    }
    let attributes = MountAttributes {
        propagation: libc::MS_PRIVATE,
        ..MountAttributes::default()
    };
    mount_setattr(&root, true, &attributes).map_err(failed("set the propagation of the root file system"))?;
    Ok(root)
}

/// A copy of what the mount is of, found already or to be found by its path.
fn open_mount(
    mount: &MountPlan,
    found: Option<&OwnedFd>,
    root_propagation: (u64, bool),
    mappings: &mut Mappings,
) -> Result<Option<OwnedFd>, RootfsError> {
    let (source, recursive, id_mapping) = match &mount.kind {
        MountKind::Bind {
            source,
            recursive,
            id_mapping,
        } => (source.as_path(), *recursive, id_mapping.as_ref()),
        MountKind::FileSystem { or_callers: true, .. } => return open_callers_sysfs().map(Some),
        _ => return Ok(None),
    };
    let failed = |doing| move |errno| RootfsError::path(doing, source, errno);
    let tree = match found {
        Some(found) => open_tree(found, "", clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH),
        None => clone_tree(source, recursive),
    };
    let tree = tree.map_err(failed(OPEN_SOURCE))?;
    if let Some(id_mapping) = id_mapping {
        mappings.apply(&tree, source, id_mapping)?;
    }
    let propagation = propagation_of_bind(&mount.options, recursive, root_propagation);
    change(&tree, &mount.options, recursive, Some(propagation)).map_err(failed("set the options of"))?;
    Ok(Some(tree))
}

/// What happens to a mount elsewhere reaches the container, and the other way round, only if the configuration says
/// so: of the mount, or of the root with all below it.
fn propagation_of_bind(
    options: &MountOptions,
    recursive: bool,
    (of_root, with_all_below): (u64, bool),
) -> (u64, bool) {
    options.propagation.unwrap_or(match of_root {
        libc::MS_SHARED | libc::MS_SLAVE if with_all_below => (of_root, recursive),
        _ => (libc::MS_PRIVATE, recursive),
    })
}

/// `/sys` as the caller sees it, with all that is mounted there, read-only.
fn open_callers_sysfs() -> Result<OwnedFd, RootfsError> {
    let path = Path::new("/sys");
    let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
    let tree = clone_tree(path, true).map_err(failed("open"))?;
    let attributes = MountAttributes {
        set: attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC,
        propagation: libc::MS_PRIVATE,
        ..MountAttributes::default()
    };
    mount_setattr(&tree, true, &attributes).map_err(failed("make read-only"))?;
    Ok(tree)
}

/// Applies options to a mount, and to those below it what is for them.
pub(super) fn change(
    tree: &OwnedFd,
    options: &MountOptions,
    recursive: bool,
    propagation: Option<(u64, bool)>,
) -> Result<(), Errno> {
    let (propagation, all_below) = propagation.unwrap_or((0, recursive));
    let top = options.attributes;
    let below = options.recursive_attributes;
    if below.is_empty() && !all_below {
        // One mount: everything at once.
        return set(tree, false, top, propagation);
    }
    if below.is_empty() || all_below {
        set(tree, true, below, propagation)?;
    } else {
        set(tree, true, below, 0)?;
        set(tree, false, AttributeChange::default(), propagation)?;
    }
    set(tree, false, top, 0)
}

fn set(tree: &OwnedFd, recursive: bool, change: AttributeChange, propagation: u64) -> Result<(), Errno> {
    let attributes = MountAttributes {
        set: change.set,
        clear: change.clear,
        propagation,
        user_namespace: 0,
    };
    if attributes == MountAttributes::default() {
        return Ok(());
    }
    mount_setattr(tree, recursive, &attributes)
}

/// For a device of the caller's that is shown to a container: it can be written to, since that goes to the device, but
/// the node's mode and owner are everybody's and cannot be changed.
pub(super) fn keep_as_it_is(node: &OwnedFd) -> Result<(), Errno> {
    let attributes = MountAttributes {
        set: attribute::RDONLY | attribute::NOSUID | attribute::NOEXEC,
        ..MountAttributes::default()
    };
    mount_setattr(node, false, &attributes)
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

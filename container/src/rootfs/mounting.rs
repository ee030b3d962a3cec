//! The configuration's mounts, one after the other.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, OFlags, StatxAttributes, StatxFlags, fstat, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, mount};

use super::copy_up::copy_up;
use super::file_system::{self, Refusal};
use super::in_root::path_of;
use super::replaceable::check_mount_point;
use super::sources::{change, make_read_only};
use super::{ContainerRoot, RootfsError, Sources, cgroup_mount};
use crate::cgroup::Cgroup;
use crate::kernel::calls::{mount_setattr, move_mount};
use crate::kernel::mount_setattr::{MountAttributes, attribute};
use crate::plan::{MountKind, MountOptions, MountPlan};
use crate::procfs::is_procfs;

/// Mounts that become read-only when everything has its place in them.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct Unsealed(Vec<Filled>);

#[derive(Debug)]
struct Filled {
    index: usize,
    path: PathBuf,
    mount: OwnedFd,
}

impl Unsealed {
    pub(crate) fn seal(self) -> Result<(), RootfsError> {
        for Filled { index, path, mount } in self.0 {
            make_read_only(&mount, false)
                .map_err(|errno| RootfsError::path("make read-only", &path, errno).of_mount(index))?;
        }
        Ok(())
    }
}

/// Whether every proc file system among the mounts can show the processes of a namespace that its maker is not in.
pub(crate) fn can_show_processes_of(namespace: &OwnedFd, mounts: &[MountPlan]) -> bool {
    let is_proc = |plan: &&MountPlan| matches!(&plan.kind, MountKind::FileSystem { kind, .. } if kind.as_c_str() == c"proc");
    let mut procs = mounts.iter().filter(is_proc).peekable();
    procs.peek().is_none()
        || procs.all(|plan| file_system::can_be_configured(&plan.options))
            && file_system::can_show_processes_of(namespace)
}

/// Mounts everything in order, so that later mounts see earlier ones. What has not been opened yet comes from the caller,
/// who is asked for bind mounts by the first that is needed, and gives those that follow it too.
pub(crate) fn mount_all(
    root: &ContainerRoot,
    mounts: &[MountPlan],
    sources: &Sources,
    ask_caller: impl Fn(usize) -> Result<Vec<OwnedFd>, Errno>,
    cgroup: &Cgroup,
    has_cgroup_namespace: bool,
) -> Result<Unsealed, RootfsError> {
    let mut unsealed = Unsealed::default();
    let mut given = Vec::new().into_iter();
    for (position, (plan, source)) in mounts.iter().zip(&sources.mounts).enumerate() {
        let mounted = match (&plan.kind, source) {
            (MountKind::Bind { .. }, Some(tree)) => attach_bind(root, &plan.destination, tree).map(|()| None),
            (MountKind::Bind { .. }, None) => {
                let failed = RootfsError::step("get the bind mounts' sources from the caller");
                if given.len() == 0 {
                    match ask_caller(position) {
                        Ok(trees) => given = trees.into_iter(),
                        Err(errno) => return Err(failed(errno)),
                    }
                }
                match given.next() {
                    Some(tree) => attach_bind(root, &plan.destination, &tree).map(|()| None),
                    None => return Err(failed(Errno::BADMSG)),
                }
            }
            (
                MountKind::FileSystem {
                    kind, source: name, ..
                },
                callers,
            ) => {
                let processes_of = sources
                    .processes_of
                    .as_ref()
                    .filter(|_| kind.as_c_str() == c"proc");
                mount_file_system(root, plan, kind, name, callers.as_ref(), processes_of)
            }
            (MountKind::Cgroup { unified_only }, _) => {
                cgroup_mount::mount_cgroups(root, plan, *unified_only, cgroup, has_cgroup_namespace)
                    .map(|()| None)
            }
            (MountKind::Remount { bind }, _) => remount(root, plan, *bind).map(|()| None),
        };
        let to_be_sealed = mounted.map_err(|error| error.of_mount(plan.index))?;
        unsealed.0.extend(to_be_sealed.map(|mount| Filled {
            index: plan.index,
            path: plan.destination.clone(),
            mount,
        }));
    }
    Ok(unsealed)
}

fn attach_bind(root: &ContainerRoot, path: &Path, tree: &OwnedFd) -> Result<(), RootfsError> {
    let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
    let source = fstat(tree).map_err(failed("look at the source of"))?;
    let place = if FileType::from_raw_mode(source.st_mode) == FileType::Directory {
        return attach(tree, &mount_point(root, c"", path)?, path);
    } else {
        root.make_file(path)
    };
    let place = place.map_err(failed("open or make the mount point"))?;
    attach(tree, &place, path)
}

/// Puts a detached mount where `place` is, to which `path` led.
pub(super) fn attach(tree: &OwnedFd, place: &OwnedFd, path: &Path) -> Result<(), RootfsError> {
    let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
    check_mount_point(
        place,
        path,
        is_procfs(tree).map_err(failed("look at what to mount on"))?,
    )?;
    move_onto(tree, place).map_err(failed("mount onto"))
}

/// Puts a detached mount where `destination` is.
pub(super) fn move_onto(tree: &OwnedFd, destination: &OwnedFd) -> Result<(), Errno> {
    let both_are_descriptors =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", destination, "", both_are_descriptors)
}

/// Mounts a new file system, or in its place, where the container may have none, what the caller has. Returns the mount
/// if it has to become read-only later.
fn mount_file_system(
    root: &ContainerRoot,
    plan: &MountPlan,
    kind: &CStr,
    source: &CStr,
    callers: Option<&OwnedFd>,
    processes_of: Option<&OwnedFd>,
) -> Result<Option<OwnedFd>, RootfsError> {
    let path = plan.destination.as_path();
    let mut options = Cow::Borrowed(&plan.options);
    if kind == c"tmpfs"
        && let Some(mode) = mode_of_folder(root, plan)?
    {
        options.to_mut().data.push(format!("mode={mode:o}"));
    }
    let place = mount_point(root, kind, path)?;
    if !file_system::can_be_configured(&options) {
        let mounted = mount_by_path(root, path, &place, kind, source, &options)?;
        set_propagation(&mounted, &options, path)?;
        return Ok(None);
    }
    let seal_later = plan.is_filled_later() && options.is_read_only();
    let mut attributes = options.new_attributes();
    if seal_later {
        attributes &= !attribute::RDONLY;
    }
    let read_only = options.is_read_only() && !seal_later;
    let tree = match (
        file_system::make(kind, source, &options, read_only, attributes, processes_of),
        callers,
    ) {
        (Ok(tree), _) => tree,
        (
            Err(Refusal {
                errno: Errno::PERM, ..
            }),
            Some(callers),
        ) => return attach(callers, &place, path).map(|()| None),
        (Err(refusal), _) => return Err(refused(kind, path, refusal)),
    };
    if options.copy_up {
        copy_up(&place, &tree).map_err(|errno| RootfsError::path("copy what is in", path, errno))?;
    }
    set_propagation(&tree, &options, path)?;
    attach(&tree, &place, path)?;
    Ok(seal_later.then_some(tree))
}

pub(super) fn refused(kind: &CStr, path: &Path, Refusal { said, errno }: Refusal) -> RootfsError {
    RootfsError::FileSystem {
        kind: kind.to_string_lossy().into_owned(),
        path: path.to_owned(),
        said,
        source: errno.into(),
    }
}

/// The mode that a tmpfs takes over from what the image has in its place, unless it is given one.
fn mode_of_folder(root: &ContainerRoot, plan: &MountPlan) -> Result<Option<u32>, RootfsError> {
    if plan.options.data.iter().any(|word| word.starts_with("mode=")) {
        return Ok(None);
    }
    let stat = match root.open(&plan.destination, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOENT) => return Ok(None),
        folder => folder.and_then(fstat),
    };
    match stat {
        Ok(stat) => Ok(Some(stat.st_mode & 0o7777)),
        Err(errno) => Err(RootfsError::path("look at", &plan.destination, errno)),
    }
}

/// For options that only mount(2) takes. It mounts onto a descriptor too, but gives none back: the mount is looked up
/// once more, and has to be one that was not there before.
fn mount_by_path(
    root: &ContainerRoot,
    path: &Path,
    place: &OwnedFd,
    kind: &CStr,
    source: &CStr,
    options: &MountOptions,
) -> Result<OwnedFd, RootfsError> {
    let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
    check_mount_point(place, path, kind == c"proc")?;
    let data = CString::new(options.data.join(",")).map_err(|_| failed("mount onto")(Errno::INVAL))?;
    let flags = MountFlags::from_bits_retain(options.mount_flags() as u32);
    mount(source, path_of(place), kind, flags, data.as_c_str()).map_err(failed("mount onto"))?;
    let mounted = root
        .open(path, OFlags::PATH)
        .map_err(failed("open the mount on"))?;
    let id = |file: &OwnedFd| -> Result<(bool, u64), Errno> {
        let statx = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        let is_root = statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
        Ok((is_root, statx.stx_mnt_id))
    };
    let look = || -> Result<bool, Errno> {
        let (is_root, mount_id) = id(&mounted)?;
        Ok(is_root && mount_id != id(place)?.1)
    };
    match look().map_err(failed("look at the mount on"))? {
        true => Ok(mounted),
        false => Err(RootfsError::Refused {
            path: path.to_owned(),
            problem: "has become something else while it was mounted",
        }),
    }
}

/// A new mount belongs to the container alone if nothing else is said.
fn set_propagation(tree: &OwnedFd, options: &MountOptions, path: &Path) -> Result<(), RootfsError> {
    let Some((propagation, recursive)) = options.propagation else {
        return Ok(());
    };
    let attributes = MountAttributes {
        propagation,
        ..MountAttributes::default()
    };
    mount_setattr(tree, recursive, &attributes)
        .map_err(|errno| RootfsError::path("set the propagation of", path, errno))
}

/// Changes what is mounted already: its mounts' attributes and, without `bind`, the options of its file system.
fn remount(root: &ContainerRoot, plan: &MountPlan, bind: bool) -> Result<(), RootfsError> {
    let path = plan.destination.as_path();
    let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
    // Through a link of the image's it could be a mount of somebody else's.
    let mounted = root
        .open_without_links(path, OFlags::PATH)
        .map_err(failed("open, without links,"))?;
    if !bind {
        file_system::reconfigure(&mounted, &plan.options)
            .map_err(|refusal| refused(c"mounted", path, refusal))?;
    }
    change(&mounted, &plan.options, false, plan.options.propagation).map_err(|errno| match errno {
        Errno::INVAL => RootfsError::Refused {
            path: path.to_owned(),
            problem: "cannot be remounted: nothing is mounted there",
        },
        errno => failed("change the options of the mount on")(errno),
    })
}

/// What linux.maskedPaths and linux.readonlyPaths are below, whatever is mounted there.
fn is_trusted_by_path(path: &Path) -> bool {
    path == Path::new("/proc") || path == Path::new("/sys")
}

/// Where a file system goes. The kernel's own are trusted by their path, so an image must not be able to move them
/// elsewhere with a symbolic link.
fn mount_point(root: &ContainerRoot, kind: &CStr, path: &Path) -> Result<OwnedFd, RootfsError> {
    let failed = |errno| RootfsError::path("open or make the mount point", path, errno);
    if kind != c"proc" && kind != c"sysfs" && !is_trusted_by_path(path) {
        return root.make_folder(path).map_err(failed);
    }
    match root.make_folder_without_links(path) {
        Ok(folder) => Ok(folder),
        Err(Errno::LOOP) => Err(RootfsError::Refused {
            path: path.to_owned(),
            problem: "must be mounted on ordinary directory, and the image has a symbolic link there",
        }),
        Err(errno) => Err(failed(errno)),
    }
}

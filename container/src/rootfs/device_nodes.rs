//! The nodes and links in `/dev`.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, chownat, fstat, mknodat, openat, readlinkat, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::mounting::move_onto;
use super::sources::{clone_flags, keep_as_it_is};
use super::{ContainerRoot, RootfsError};
use crate::plan::DeviceNode;
use crate::procfs::is_procfs;

/// Links that programs expect (runtime specification, "Dev symbolic links"). Where the kernel shows its memory, there
/// is also one to that.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Makes the nodes and links. With `bind`, as in a user namespace, which may not make nodes, the caller's are bound.
/// The caller has set its umask to nothing.
pub(crate) fn make_device_folder(
    root: &ContainerRoot,
    nodes: &[DeviceNode],
    bind: bool,
) -> Result<(), RootfsError> {
    let folder = Path::new("/dev");
    let failed = |errno| RootfsError::path("open or make the folder", folder, errno);
    // What is made and removed here is so with the caller's rights, so it has to be the container's own folder.
    let dev = root.make_folder_without_links(folder).map_err(failed)?;
    for node in nodes {
        let failed = |errno| {
            let error = RootfsError::path("make the device", &node.path, errno);
            match node.index {
                Some(index) => error.of(|| format!("linux.devices[{index}]")),
                None => error,
            }
        };
        // Nearly all are directly in /dev.
        let made = match node.path.strip_prefix(folder) {
            Ok(name) if name.components().count() == 1 => make_node(&dev, name.as_os_str(), node, bind),
            _ => root
                .make_parent(&node.path)
                .and_then(|(parent, name)| make_node(&parent, &name, node, bind)),
        };
        made.map_err(failed)?;
    }
    let kernel_memory = ("/proc/kcore", "core");
    let links = LINKS
        .into_iter()
        .chain(rustix::fs::access(kernel_memory.0, Access::EXISTS).map(|()| kernel_memory));
    for (target, name) in links {
        let failed = |errno| RootfsError::path("make the link", &PathBuf::from("/dev").join(name), errno);
        make_link(&dev, target, name).map_err(failed)?;
    }
    Ok(())
}

fn make_node(folder: &OwnedFd, name: &OsStr, node: &DeviceNode, bind: bool) -> Result<(), Errno> {
    let is_device = node.kind.file_type() != FileType::Fifo;
    if bind && is_device {
        return bind_node(folder, name, node);
    }
    match mknodat(folder, name, node.kind.file_type(), node.mode, node.number) {
        Ok(()) => {}
        // Without CAP_MKNOD, or where the caller itself is in a user namespace.
        Err(Errno::PERM) if is_device => return bind_node(folder, name, node),
        Err(Errno::EXIST) if is_the_node(folder, name, node)? => return Ok(()),
        Err(errno) => return Err(errno),
    }
    match node.owner {
        Some((uid, gid)) => chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW),
        None => Ok(()),
    }
}

/// Whether an image brought just this node.
fn is_the_node(folder: &OwnedFd, name: &OsStr, node: &DeviceNode) -> Result<bool, Errno> {
    let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == node.kind.file_type() && stat.st_rdev == node.number)
}

/// Makes a terminal the container's `/dev/console`.
pub(crate) fn make_console(root: &ContainerRoot, terminal: &OwnedFd) -> Result<(), RootfsError> {
    let make = || -> Result<(), Errno> {
        let dev = root.make_folder(Path::new("/dev"))?;
        let place = make_place(&dev, OsStr::new("console"))?;
        let tree = open_tree(terminal, "", clone_flags(false) | OpenTreeFlags::AT_EMPTY_PATH)?;
        move_onto(&tree, &place)
    };
    make().map_err(|errno| RootfsError::path("make the terminal", Path::new("/dev/console"), errno))
}

/// A file for something to be bound over. A link is not followed: an image could have it lead to a file of the
/// kernel's, which would be hidden from those who are to protect it (CVE-2025-52565).
fn make_place(folder: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    match mknodat(folder, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let place = openat(
        folder,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    match FileType::from_raw_mode(fstat(&place)?.st_mode) {
        FileType::Symlink => Err(Errno::LOOP),
        _ if is_procfs(&place)? => Err(Errno::PERM),
        _ => Ok(place),
    }
}

/// Puts the caller's node of the same path over an empty file.
fn bind_node(folder: &OwnedFd, name: &OsStr, node: &DeviceNode) -> Result<(), Errno> {
    let place = make_place(folder, name)?;
    let tree = open_tree(CWD, &node.path, clone_flags(false))?;
    let stat = fstat(&tree)?;
    if FileType::from_raw_mode(stat.st_mode) != node.kind.file_type() || stat.st_rdev != node.number {
        return Err(Errno::NODEV);
    }
    keep_as_it_is(&tree)?;
    move_onto(&tree, &place)
}

fn make_link(folder: &OwnedFd, target: &str, name: &str) -> Result<(), Errno> {
    match symlinkat(target, folder, name) {
        Err(Errno::EXIST) => {}
        result => return result,
    }
    // What the image has there stays if it is this link. A node at ptmx would be the caller's terminals.
    if readlinkat(folder, name, Vec::new()).is_ok_and(|present| present.as_bytes() == target.as_bytes()) {
        return Ok(());
    }
    unlinkat(folder, name, AtFlags::empty())?;
    symlinkat(target, folder, name)
}

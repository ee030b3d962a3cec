//! `linux.maskedPaths` and `linux.readonlyPaths`. Paths that do not exist need no hiding.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, open_tree};

use super::in_root::path_of;
use super::mounting::move_onto;
use super::sources::{clone_flags, make_read_only};
use super::{ContainerRoot, RootfsError};

/// Makes the paths unreadable: a file becomes `/dev/null`, a folder an empty one.
pub(crate) fn mask(root: &ContainerRoot, paths: &[PathBuf]) -> Result<(), RootfsError> {
    // One empty folder serves for all.
    let mut empty_folder: Option<OwnedFd> = None;
    for path in paths {
        let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
        let Some(target) = open_existing(root, path)? else {
            continue;
        };
        let stat = fstat(&target).map_err(failed("look at"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            mount_bind("/dev/null", path_of(&target)).map_err(failed("mask"))?;
        } else if let Some(empty) = &empty_folder {
            mount_bind(path_of(empty), path_of(&target)).map_err(failed("mask"))?;
        } else {
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount(c"tmpfs", path_of(&target), c"tmpfs", flags, Some(c"mode=755")).map_err(failed("mask"))?;
            empty_folder = Some(root.open(path, OFlags::PATH).map_err(failed("open"))?);
        }
    }
    Ok(())
}

/// Makes the paths, and what is mounted below them, read-only.
pub(crate) fn protect(root: &ContainerRoot, paths: &[PathBuf]) -> Result<(), RootfsError> {
    for path in paths {
        let Some(target) = open_existing(root, path)? else {
            continue;
        };
        let protect = || -> Result<(), Errno> {
            let tree = open_tree(
                &target,
                "",
                clone_flags(true) | rustix::mount::OpenTreeFlags::AT_EMPTY_PATH,
            )?;
            make_read_only(&tree, true)?;
            move_onto(&tree, &target)
        };
        protect().map_err(|errno| RootfsError::path("make read-only", path, errno))?;
    }
    Ok(())
}

fn open_existing(root: &ContainerRoot, path: &Path) -> Result<Option<OwnedFd>, RootfsError> {
    match root.open(path, OFlags::PATH) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(RootfsError::path("open", path, errno)),
    }
}

//! `linux.maskedPaths` and `linux.readonlyPaths`. Paths that do not exist need no hiding.
//!
//! What hides is the caller's and known to be what it should before it is used: an image or another container decides
//! neither what is mounted nor where (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881).

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, makedev, openat};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::mounting::{move_onto, refused};
use super::replaceable::is_replaceable;
use super::sources::{clone_flags, keep_as_it_is, make_read_only};
use super::{ContainerRoot, RootfsError, file_system};
use crate::kernel::calls::open_tree;
use crate::kernel::mount_setattr::attribute;
use crate::plan::{ListedPath, MountOptions};
use crate::procfs::is_procfs;

/// Makes the paths unreadable: a file becomes `/dev/null`, a folder an empty one.
pub(crate) fn mask(root: &ContainerRoot, paths: &[ListedPath]) -> Result<(), RootfsError> {
    let mut covers = Covers::default();
    for ListedPath { index, path } in paths {
        covers
            .cover(root, path)
            .map_err(|error| error.of(|| format!("linux.maskedPaths[{index}]")))?;
    }
    Ok(())
}

/// What hides. One of each serves for all.
#[derive(Default)]
struct Covers {
    null: Option<OwnedFd>,
    empty_folder: Option<OwnedFd>,
}

impl Covers {
    fn cover(&mut self, root: &ContainerRoot, path: &Path) -> Result<(), RootfsError> {
        let Some(target) = open_existing(root, path)? else {
            return Ok(());
        };
        let stat = fstat(&target).map_err(|errno| RootfsError::path("look at", path, errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.cover_folder(&target, path),
            _ => self.cover_file(&target, path),
        }
    }

    fn cover_file(&mut self, target: &OwnedFd, path: &Path) -> Result<(), RootfsError> {
        let null = match &self.null {
            Some(null) => null,
            None => self.null.insert(open_null()?),
        };
        copy_of(null, false)
            .and_then(|tree| {
                keep_as_it_is(&tree)?;
                move_onto(&tree, target)
            })
            .map_err(|errno| RootfsError::path("mask", path, errno))
    }

    fn cover_folder(&mut self, target: &OwnedFd, path: &Path) -> Result<(), RootfsError> {
        let failed = |errno| RootfsError::path("mask", path, errno);
        if let Some(empty) = &self.empty_folder {
            let tree = copy_of(empty, false).map_err(failed)?;
            return move_onto(&tree, target).map_err(failed);
        }
        let options = MountOptions {
            data: vec![
                "mode=755".to_owned(),
                "nr_inodes=2".to_owned(),
                "size=4k".to_owned(),
            ],
            ..MountOptions::default()
        };
        let attributes = attribute::RDONLY | attribute::NOSUID | attribute::NODEV | attribute::NOEXEC;
        let empty = file_system::make(c"tmpfs", c"tmpfs", &options, true, attributes, None)
            .map_err(|refusal| refused(c"tmpfs", path, refusal))?;
        move_onto(&empty, target).map_err(failed)?;
        self.empty_folder = Some(empty);
        Ok(())
    }
}

/// The caller's null device, if that is what it is.
fn open_null() -> Result<OwnedFd, RootfsError> {
    let path = Path::new("/dev/null");
    let failed = |doing| move |errno| RootfsError::path(doing, path, errno);
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let null = openat(CWD, path, flags, Mode::empty()).map_err(failed("open"))?;
    let stat = fstat(&null).map_err(failed("look at"))?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if is_device && stat.st_rdev == makedev(1, 3) {
        return Ok(null);
    }
    Err(RootfsError::Refused {
        path: path.to_owned(),
        problem: "is not the null device, and hides nothing",
    })
}

/// Makes the paths, and what is mounted below them, read-only.
pub(crate) fn protect(root: &ContainerRoot, paths: &[ListedPath]) -> Result<(), RootfsError> {
    for ListedPath { index, path } in paths {
        protect_one(root, path).map_err(|error| error.of(|| format!("linux.readonlyPaths[{index}]")))?;
    }
    Ok(())
}

fn protect_one(root: &ContainerRoot, path: &Path) -> Result<(), RootfsError> {
    let Some(target) = open_existing(root, path)? else {
        return Ok(());
    };
    let protect = || -> Result<(), Errno> {
        let tree = copy_of(&target, true)?;
        make_read_only(&tree, true)?;
        move_onto(&tree, &target)
    };
    protect().map_err(|errno| RootfsError::path("make read-only", path, errno))
}

fn copy_of(file: &OwnedFd, recursive: bool) -> Result<OwnedFd, Errno> {
    open_tree(file, "", clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)
}

/// Opens what is at the path. Where the kernel's `/proc` is, what is named inside it has to be the kernel's too: with
/// anything else the path would look hidden, and the file would not be.
fn open_existing(root: &ContainerRoot, path: &Path) -> Result<Option<OwnedFd>, RootfsError> {
    let target = match root.open(path, OFlags::PATH) {
        Ok(target) => target,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(RootfsError::path("open", path, errno)),
    };
    let proc = Path::new("/proc");
    if !path.starts_with(proc) || is_replaceable(path) {
        return Ok(Some(target));
    }
    let leads_out = || -> Result<bool, Errno> {
        Ok(!is_procfs(&target)? && root.open(proc, OFlags::PATH).and_then(is_procfs)?)
    };
    match leads_out().map_err(|errno| RootfsError::path("look at", path, errno))? {
        false => Ok(Some(target)),
        true => Err(RootfsError::Refused {
            path: path.to_owned(),
            problem: "leads out of the proc file system",
        }),
    }
}

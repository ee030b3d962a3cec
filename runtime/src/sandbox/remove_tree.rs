//! Removing a folder without ever reaching through a mount: below a sandbox's folder there may be a forgotten bind of
//! a user's own files.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

/// Deeper than anything we make.
const DEEPEST: usize = 64;

/// Removes the folder at `path` and all below it that lies on the same mount.
///
/// # Errors
/// At the first mount, and where something cannot be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let directory = open_directory(CWD, path, ResolveFlags::empty())?;
    empty(directory.as_fd(), DEEPEST)?;
    Ok(rustix::fs::rmdir(path)?)
}

fn empty(directory: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| io::Error::other("the folders are nested too deeply"))?;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        if entry.file_type() == FileType::Directory {
            remove_directory(directory, name, depth)?;
        } else {
            unlinkat(directory, name, AtFlags::empty())?;
        }
    }
    Ok(())
}

fn remove_directory(parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<()> {
    let within = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let directory = match open_directory(parent, name, within) {
        Err(Errno::XDEV) => {
            let name = name.to_string_lossy();
            return Err(io::Error::other(format!("something is still mounted on {name}")));
        }
        directory => directory?,
    };
    empty(directory.as_fd(), depth)?;
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn open_directory<P: rustix::path::Arg>(
    parent: BorrowedFd<'_>,
    path: P,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::RDONLY;
    openat2(parent, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn everything_below_goes_and_what_links_point_to_stays() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        let inside = tempfile::tempdir().unwrap();
        let tree = inside.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/file"), "").unwrap();
        symlink(outside.path(), tree.join("a/link")).unwrap();

        remove_tree(&tree).unwrap();

        assert!(!tree.exists());
        assert!(outside.path().join("kept").exists());
    }

    #[test]
    fn a_folder_that_is_itself_a_link_is_refused() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        let link = inside.path().join("link");
        symlink(outside.path(), &link).unwrap();

        assert!(remove_tree(&link).is_err());
        assert!(outside.path().exists());
    }

    #[test]
    fn a_mount_below_stops_the_removal_and_keeps_its_files() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: mounting needs root");
            return;
        }
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "").unwrap();
        let inside = tempfile::tempdir().unwrap();
        let tree = inside.path().join("tree");
        fs::create_dir_all(tree.join("bind")).unwrap();
        // A mount namespace of this thread's own: nothing is left behind whatever happens.
        let (outside_path, tree_path) = (outside.path().to_owned(), tree.clone());
        let removal = std::thread::spawn(move || {
            // SAFETY: only this thread's view of mounts and its file system attributes become its own.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
            use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount_bind(&outside_path, tree_path.join("bind")).unwrap();
            remove_tree(&tree_path).map_err(|error| error.to_string())
        })
        .join()
        .unwrap();

        assert_eq!(removal, Err("something is still mounted on bind".to_owned()));
        assert!(outside.path().join("kept").exists());
    }
}

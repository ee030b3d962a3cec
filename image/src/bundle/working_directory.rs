//! Makes the directory a process starts in.

use std::io;
use std::path::Path;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::BundleError;

const MODE: Mode = Mode::from_bits_retain(0o755);

/// Makes `path` in the root file system `root`, with its missing parents, unless it is there. Links are followed
/// inside the root; a link to nowhere is an error, because making its target is not what the image asked for.
pub(super) fn make(root: OwnedFd, path: &Path) -> Result<(), BundleError> {
    let failed = |source: io::Error| BundleError::WorkingDirectory {
        path: path.to_owned(),
        source,
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let ancestors: Vec<&Path> = path.ancestors().collect();
    let mut existing = None;
    let mut missing = Vec::new();
    for ancestor in ancestors {
        match rustix::fs::openat2(&root, ancestor, flags, Mode::empty(), resolve) {
            Ok(folder) => {
                existing = Some(folder);
                break;
            }
            Err(Errno::NOENT) => missing.extend(ancestor.file_name()),
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    let mut here = existing.unwrap_or(root);
    for name in missing.into_iter().rev() {
        // Independent of the caller's umask.
        rustix::fs::mkdirat(&here, name, MODE)
            .and_then(|()| rustix::fs::openat(&here, name, flags | OFlags::NOFOLLOW, Mode::empty()))
            .and_then(|folder| {
                rustix::fs::chmodat(&here, name, MODE, rustix::fs::AtFlags::empty()).map(|()| folder)
            })
            .map(|folder| here = folder)
            .map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn make_in(root: &Path, path: &str) -> Result<(), BundleError> {
        make(File::open(root).unwrap().into(), Path::new(path))
    }

    #[test]
    fn missing_folders_are_made_with_mode_0755() {
        let root = tempfile::tempdir().unwrap();
        make_in(root.path(), "/a/b/c").unwrap();
        let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode("a"), mode("a/b"), mode("a/b/c")], [0o755; 3]);
    }

    #[test]
    fn what_exists_is_left_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        make_in(root.path(), "/").unwrap();
        fs::create_dir(root.path().join("a")).unwrap();
        fs::set_permissions(root.path().join("a"), fs::Permissions::from_mode(0o700)).unwrap();
        make_in(root.path(), "/a").unwrap();
        assert_eq!(
            fs::metadata(root.path().join("a")).unwrap().permissions().mode() & 0o7777,
            0o700
        );
    }

    #[test]
    fn links_lead_inside_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("out")).unwrap();
        make_in(root.path(), "/out/x").unwrap_err();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        fs::create_dir(root.path().join("real")).unwrap();
        symlink("/real", root.path().join("in")).unwrap();
        make_in(root.path(), "/in/x").unwrap();
        assert!(root.path().join("real/x").is_dir());
    }

    #[test]
    fn a_file_on_the_way_is_an_error_that_names_the_directory() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        for path in ["/file", "/file/x"] {
            let error = make_in(root.path(), path).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}

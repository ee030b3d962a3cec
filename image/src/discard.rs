//! Removes trees of any depth.
//!
//! What a container wrote can be nested deeper than a path is long or a process has descriptors, and a removal that
//! follows it down fails exactly there. So nothing is followed: a tree is first renamed into one folder, which makes
//! it disappear at once, and then each folder found in it is renamed up beside it. Memory, stack and descriptors
//! needed are constant. What a killed process leaves is removed by the next.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

/// Rounds a folder is read anew because it was not empty in the end: someone else may be emptying it too.
const ROUNDS: usize = 16;

/// The folder into which trees are thrown.
///
/// It is opened for each use: a descriptor from before its holder entered another mount namespace would belong to
/// another mount of the same file system, and the kernel renames within one mount only.
#[derive(Debug)]
pub(crate) struct Discard {
    path: PathBuf,
}

impl Discard {
    pub(crate) fn new(path: PathBuf) -> Discard {
        Discard { path }
    }

    /// Makes `name`, of any type, disappear from `parent` at once. [`Discard::empty`] gives back its space.
    pub(crate) fn take(&self, parent: impl AsFd, name: &[u8]) -> io::Result<()> {
        Opened::at(&self.path)?.take(parent, name)
    }

    /// Removes everything that was thrown away, by whichever process.
    pub(crate) fn empty(&self) -> io::Result<()> {
        Opened::at(&self.path)?.empty()
    }
}

/// The opened folder.
struct Opened(OwnedFd);

impl Opened {
    fn at(path: &Path) -> io::Result<Opened> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Opened(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    fn take(&self, parent: impl AsFd, name: &[u8]) -> io::Result<()> {
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = TAKEN.fetch_add(1, Ordering::Relaxed);
            let place = format!("{}-{number}", std::process::id());
            match rustix::fs::renameat_with(&parent, name, &self.0, place, RenameFlags::NOREPLACE) {
                // Left by a process of the same number that was killed.
                Err(Errno::EXIST) => {}
                result => return Ok(result?),
            }
        }
    }

    fn empty(&self) -> io::Result<()> {
        // Each round removes what it sees, and brings up one level of what was below.
        loop {
            let mut seen = false;
            let mut result = Ok(());
            for_each_name(&self.0, |name| {
                seen = true;
                // One that resists does not keep the others.
                if let Err(error) = self.remove(name) {
                    result = Err(error);
                }
            })?;
            result?;
            if !seen {
                return Ok(());
            }
        }
    }

    fn remove(&self, name: &CStr) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for _ in 0..ROUNDS {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let folder = match rustix::fs::openat(&self.0, name, flags, Mode::empty()) {
                Ok(folder) => folder,
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            let mut result = Ok(());
            for_each_name(&folder, |child| {
                let removed = match rustix::fs::unlinkat(&folder, child, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(()),
                    Err(Errno::ISDIR) => match self.take(&folder, child.to_bytes()) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                        taken => taken,
                    },
                    Err(errno) => Err(errno.into()),
                };
                if removed.is_err() {
                    result = removed;
                }
            })?;
            result?;
            match rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::NOTEMPTY) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::Error::other(
            "a folder that is being removed does not stay empty",
        ))
    }
}

/// Calls `act` for each name in `folder` but `.` and `..`.
fn for_each_name(folder: &OwnedFd, mut act: impl FnMut(&CStr)) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            act(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("discard")).unwrap();
        fs::create_dir(place.path().join("tree")).unwrap();
        let parent = fs::File::open(place.path()).unwrap();
        let mut here = OwnedFd::from(fs::File::open(place.path().join("tree")).unwrap());
        for _ in 0..3000 {
            rustix::fs::mkdirat(&here, "folder", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/etc", &here, "link").unwrap();
            here = rustix::fs::openat(&here, "folder", OFlags::PATH, Mode::empty()).unwrap();
        }
        let discard = Discard::new(place.path().join("discard"));
        discard.take(&parent, b"tree").unwrap();
        assert!(!place.path().join("tree").exists());
        discard.empty().unwrap();
        assert_eq!(fs::read_dir(place.path().join("discard")).unwrap().count(), 0);
        assert!(Path::new("/etc/passwd").exists());
    }

    #[test]
    fn what_a_killed_process_left_is_removed_too() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join("1-0/a/b")).unwrap();
        fs::write(place.path().join("1-1"), "x").unwrap();
        Discard::new(place.path().to_owned()).empty().unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn taking_what_is_not_there_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let discard = Discard::new(place.path().to_owned());
        let error = discard
            .take(fs::File::open(place.path()).unwrap(), b"nothing")
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}

//! The host's folders and files that containers of one machine have as bind mounts. Each is mounted once, whoever has it:
//! to the guest's kernel two mounts would be two files, through which a socket or a FIFO cannot be met, and which a lock or
//! a shared mapping does not have in common.
//!
//! ```text
//! export/@volumes/<name>      where the host's folder or file is mounted; no container's id has an `@`
//! volumes/<name>/<container>  an empty file for each container that has it, out of the guest's sight
//! volumes/<name>/@mounted     another one from when it is mounted on
//! ```
//!
//! Containers share a mount where they ask for the same file through the same mount of the host, and to the same depth and
//! degree of being read-only: one that may only read has no mount to write by.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, StatxFlags, flock, statvfs, statx};
use rustix::io::Errno;

use super::machine_files::MachineFiles;

/// Where the volumes are, in the folder that the guest sees.
pub(super) const FOLDER: &str = "@volumes";

/// Beside those of the containers.
const MOUNTED: &str = "@mounted";

/// Why a volume could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", .path.display())]
pub struct VolumeError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn failed<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError {
        action,
        path,
        source: source.into(),
    }
}

/// The volumes of one machine, which nobody else changes while this exists.
#[derive(Debug)]
pub(super) struct SharedVolumes {
    exported: PathBuf,
    users: PathBuf,
    _lock: File,
}

/// A container's use of a volume.
#[derive(Debug)]
pub(super) struct Use {
    /// Where it is, or is to be, mounted.
    pub(super) target: PathBuf,
    /// Its name in [`FOLDER`].
    pub(super) name: String,
    /// Whether it is mounted there.
    pub(super) is_mounted: bool,
}

impl SharedVolumes {
    /// Waits for its turn, which nobody has for long.
    ///
    /// # Errors
    /// When the folders cannot be made.
    pub(super) fn lock(files: &MachineFiles) -> Result<Self, VolumeError> {
        let exported = files.export().join(FOLDER);
        let users = files.volumes();
        // Not the folders above them: those of a machine that has been deleted are not to come back.
        for folder in [&exported, &users] {
            match fs::create_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("creating", folder)(error));
                }
                _ => {}
            }
        }
        let lock = File::open(&users).map_err(failed("opening", &users))?;
        while let Err(errno) = flock(&lock, FlockOperation::LockExclusive) {
            if errno != Errno::INTR {
                return Err(failed("locking", &users)(errno));
            }
        }
        Ok(Self {
            exported,
            users,
            _lock: lock,
        })
    }

    /// Notes that the container has what is at `source`, asked for in a `manner` of its own.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be noted.
    pub(super) fn add(&self, container: &str, source: &Path, manner: &str) -> Result<Use, VolumeError> {
        let name = name_of(source, manner).map_err(failed("looking at", source))?;
        let users = self.users.join(&name);
        let user = users.join(container);
        fs::create_dir_all(&users)
            .and_then(|()| File::create(&user))
            .map_err(failed("creating", &user))?;
        let mounted = users.join(MOUNTED);
        Ok(Use {
            target: self.exported.join(&name),
            is_mounted: mounted.try_exists().map_err(failed("looking at", &mounted))?,
            name,
        })
    }

    /// Notes that a volume is mounted. One whose maker died before is mounted again by the next.
    ///
    /// # Errors
    /// When it cannot be noted.
    pub(super) fn note_mounted(&self, name: &str) -> Result<(), VolumeError> {
        let mounted = self.users.join(name).join(MOUNTED);
        File::create(&mounted)
            .map(drop)
            .map_err(failed("creating", &mounted))
    }

    /// Takes a container's volumes away, and the mounts of those that nobody has any more: a folder or file that is removed
    /// takes what is mounted on it in other namespaces along (vfs_rmdir and vfs_unlink, since Linux 3.18).
    ///
    /// # Errors
    /// When one cannot be removed. The others are.
    pub(super) fn remove(&self, container: &str) -> Result<(), VolumeError> {
        let mut result = Ok(());
        for entry in fs::read_dir(&self.users).map_err(failed("listing", &self.users))? {
            let name = entry.map_err(failed("listing", &self.users))?.file_name();
            let removed = self.remove_one(&self.users.join(&name), &self.exported.join(&name), container);
            result = result.and(removed);
        }
        result
    }

    fn remove_one(&self, users: &Path, target: &Path, container: &str) -> Result<(), VolumeError> {
        let user = users.join(container);
        match fs::remove_file(&user) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(failed("removing", &user))?,
        }
        let mut left = fs::read_dir(users).map_err(failed("listing", users))?;
        if left.any(|entry| entry.is_ok_and(|entry| entry.file_name() != MOUNTED)) {
            return Ok(());
        }
        let mounted = users.join(MOUNTED);
        match fs::remove_file(&mounted) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing", &mounted)(error));
            }
            _ => fs::remove_dir(users).map_err(failed("removing", users))?,
        }
        let removed = match fs::symlink_metadata(target) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir(target),
            Ok(_) => fs::remove_file(target),
            Err(error) => Err(error),
        };
        match removed {
            // It was never mounted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map_err(failed("removing", target)),
        }
    }
}

/// The same for the same file, found through the same mount with the same attributes, and asked for in the same manner.
fn name_of(source: &Path, manner: &str) -> io::Result<String> {
    let metadata = fs::metadata(source)?;
    let mount = statx(CWD, source, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id;
    let attributes = statvfs(source)?.f_flag.bits();
    let (device, file) = (metadata.dev(), metadata.ino());
    Ok(format!("{mount:x}-{attributes:x}-{device:x}-{file:x}-{manner}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> (tempfile::TempDir, MachineFiles) {
        let folder = tempfile::tempdir().unwrap();
        let files = MachineFiles::of(folder.path());
        fs::create_dir(files.export()).unwrap();
        (folder, files)
    }

    fn add(volumes: &SharedVolumes, container: &str, source: &Path, manner: &str) -> Use {
        let added = volumes.add(container, source, manner).unwrap();
        if !added.is_mounted {
            fs::create_dir(&added.target).unwrap();
            volumes.note_mounted(&added.name).unwrap();
        }
        added
    }

    #[test]
    fn a_volume_is_one_for_all_and_goes_with_the_last_of_them() {
        let (folder, files) = machine();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        fs::create_dir(&one).unwrap();
        fs::create_dir(&other).unwrap();
        let volumes = SharedVolumes::lock(&files).unwrap();
        let first = add(&volumes, "a", &one, "rw");
        assert!(!first.is_mounted);
        for again in [
            add(&volumes, "a", &one, "rw"),
            add(&volumes, "b", &folder.path().join("other/../one"), "rw"),
        ] {
            assert_eq!((again.is_mounted, &again.target), (true, &first.target));
        }
        let read_only = add(&volumes, "b", &one, "ro");
        let elsewhere = add(&volumes, "b", &other, "rw");
        assert!(!read_only.is_mounted && !elsewhere.is_mounted);

        volumes.remove("a").unwrap();
        assert!(first.target.exists());
        volumes.remove("b").unwrap();
        assert_eq!(fs::read_dir(files.export().join(FOLDER)).unwrap().count(), 0);
        assert_eq!(fs::read_dir(files.volumes()).unwrap().count(), 0);
        volumes.remove("b").unwrap();
        assert!(!add(&volumes, "c", &one, "rw").is_mounted);
    }

    #[test]
    fn what_was_noted_and_never_mounted_is_removed_too() {
        let (folder, files) = machine();
        let volumes = SharedVolumes::lock(&files).unwrap();
        let error = volumes
            .add("a", &folder.path().join("missing"), "rw")
            .unwrap_err();
        assert!(error.to_string().starts_with("looking at "), "{error}");
        volumes.add("a", folder.path(), "rw").unwrap();
        volumes.remove("a").unwrap();
        assert_eq!(fs::read_dir(files.volumes()).unwrap().count(), 0);
    }

    #[test]
    fn nobody_else_has_them_meanwhile() {
        let (_folder, files) = machine();
        let held = SharedVolumes::lock(&files).unwrap();
        let file = File::open(files.volumes()).unwrap();
        assert_eq!(
            flock(&file, FlockOperation::NonBlockingLockExclusive),
            Err(Errno::WOULDBLOCK)
        );
        drop(held);
        assert_eq!(flock(&file, FlockOperation::NonBlockingLockExclusive), Ok(()));
    }
}

//! The host's side of a disk: found first, and then opened as what was found.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, makedev, minor, open};
use serde::{Deserialize, Serialize};

use super::DiskError;
use super::asked::AskedDisk;

/// The unit of a disk's size.
const SECTOR: u64 = 512;

/// Which disk it is, however it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Identity {
    /// An image.
    File {
        /// The file system it is in.
        device: u64,
        /// Its number there.
        inode: u64,
    },
    /// A block device.
    Device {
        /// Its number.
        number: u64,
    },
}

/// A disk that nobody has opened for transfers yet.
#[derive(Debug)]
pub(super) struct FoundSource {
    place: OwnedFd,
    identity: Identity,
}

/// A disk that is ours, as its lock says.
#[derive(Debug)]
pub(super) struct OpenedSource(File);

impl OpenedSource {
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl FoundSource {
    /// Finds what a configuration names. Nothing is opened by it but the way there: to open a pipe is to wait for its other
    /// end, and to open some devices is to use them.
    pub(super) fn find(disk: &AskedDisk) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open {
            field: disk.field.clone(),
            path: disk.path.clone(),
            read_only: disk.read_only,
            source,
        };
        if let Some((major, minor)) = disk.number {
            return node_of(makedev(major, minor), Some(&disk.path)).ok_or_else(|| DiskError::NoDevice {
                field: disk.field.clone(),
                major,
                minor,
                path: disk.path.clone(),
            });
        }
        let (place, status) = locate(&disk.path).map_err(failed)?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => {
                check_size(disk, u64::try_from(status.st_size).unwrap_or(0)).map(|()| Self {
                    place,
                    identity: Identity::File {
                        device: status.st_dev,
                        inode: status.st_ino,
                    },
                })
            }
            // A lock is of a node: all have to lock the same one.
            FileType::BlockDevice => Ok(node_of(status.st_rdev, None).unwrap_or(Self {
                place,
                identity: Identity::Device {
                    number: status.st_rdev,
                },
            })),
            _ => Err(DiskError::Kind {
                field: disk.field.clone(),
                path: disk.path.clone(),
            }),
        }
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Opens and locks it, whatever is called so by now.
    pub(super) fn open(&self, disk: &AskedDisk) -> Result<OpenedSource, DiskError> {
        let failed = |source| DiskError::Open {
            field: disk.field.clone(),
            path: disk.path.clone(),
            read_only: disk.read_only,
            source,
        };
        let busy = || DiskError::Busy {
            field: disk.field.clone(),
            path: disk.path.clone(),
        };
        let mut options = OpenOptions::new();
        options.read(true).write(!disk.read_only);
        if let (Identity::Device { .. }, false) = (self.identity, disk.read_only) {
            // Refused while the host has it mounted (open(2), O_EXCL).
            options.custom_flags(libc::O_EXCL);
        }
        let again = format!("/proc/self/fd/{}", self.place.as_raw_fd());
        let mut file = options.open(again).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY | libc::ETXTBSY) => busy(),
            _ => failed(error),
        })?;
        let locked = match disk.read_only {
            true => file.try_lock_shared(),
            false => file.try_lock(),
        };
        locked.map_err(|error| match error {
            TryLockError::WouldBlock => busy(),
            TryLockError::Error(error) => failed(error),
        })?;
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        check_size(disk, bytes)?;
        Ok(OpenedSource(file))
    }
}

fn check_size(disk: &AskedDisk, bytes: u64) -> Result<(), DiskError> {
    if bytes > 0 && bytes.is_multiple_of(SECTOR) {
        return Ok(());
    }
    Err(DiskError::Size {
        field: disk.field.clone(),
        path: disk.path.clone(),
        bytes,
    })
}

fn locate(path: &Path) -> io::Result<(OwnedFd, Stat)> {
    let place = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let status = fstat(&place)?;
    Ok((place, status))
}

/// The node of the block device of this number: the one in /dev by the kernel's own name, or else the one at `other`.
fn node_of(number: u64, other: Option<&Path>) -> Option<FoundSource> {
    let event = format!("/sys/dev/block/{}:{}/uevent", major(number), minor(number));
    let event = fs::read_to_string(event).unwrap_or_default();
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let own = name.map(|name| Path::new("/dev").join(name));
    let nodes: [Option<PathBuf>; 2] = [own, other.map(Path::to_owned)];
    nodes.into_iter().flatten().find_map(|node| {
        let (place, status) = locate(&node).ok()?;
        let is_it =
            FileType::from_raw_mode(status.st_mode) == FileType::BlockDevice && status.st_rdev == number;
        is_it.then_some(FoundSource {
            place,
            identity: Identity::Device { number },
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::asked::Place;
    use super::super::limits::DiskLimits;
    use super::*;

    fn asked(path: &Path, read_only: bool) -> AskedDisk {
        AskedDisk {
            field: "mounts[3].source".into(),
            place: Place::Mount(3),
            path: path.to_owned(),
            number: None,
            read_only,
            file_system: Some("ext4".into()),
            limits: DiskLimits::default(),
        }
    }

    fn refusal(path: &Path, read_only: bool) -> String {
        let disk = asked(path, read_only);
        let opened = FoundSource::find(&disk).and_then(|found| found.open(&disk));
        let error = anyhow::Error::new(opened.unwrap_err());
        let error = format!("{error:#}");
        assert!(error.starts_with("mounts[3].source: "), "{error}");
        error
    }

    #[test]
    fn what_is_no_disk_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        for (path, expected) in [
            (folder.path(), "neither a file nor a block device"),
            (&pipe, "neither a file nor a block device"),
            (Path::new("/dev/null"), "neither a file nor a block device"),
            (&folder.path().join("none"), "No such file"),
        ] {
            for read_only in [true, false] {
                let error = refusal(path, read_only);
                assert!(error.contains(expected), "{error}");
            }
        }
        let half = folder.path().join("half");
        for bytes in [0, 511, 700] {
            fs::write(&half, vec![0; bytes]).unwrap();
            assert!(refusal(&half, false).contains(&format!("has {bytes} bytes")));
        }
    }

    #[test]
    fn a_disk_is_the_one_that_was_found_whatever_its_name_leads_to_by_now() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        fs::write(&first, [1; 512]).unwrap();
        fs::write(&second, [2; 1024]).unwrap();
        let link = folder.path().join("link");
        symlink(&first, &link).unwrap();
        let disk = asked(&link, false);
        let found = FoundSource::find(&disk).unwrap();
        assert_eq!(
            found.identity(),
            FoundSource::find(&asked(&first, true)).unwrap().identity()
        );
        fs::remove_file(&link).unwrap();
        symlink(&second, &link).unwrap();
        let opened = found.open(&disk).unwrap();
        assert_eq!(opened.0.metadata().unwrap().len(), 512);
    }

    #[test]
    fn a_disk_has_one_writer_or_many_readers() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(512).unwrap();
        let open = |read_only| {
            let disk = asked(image.path(), read_only);
            FoundSource::find(&disk).and_then(|found| found.open(&disk))
        };
        let readers = [open(true).unwrap(), open(true).unwrap()];
        assert!(refusal(image.path(), false).contains("is in use"));
        drop(readers);
        let _writer = open(false).unwrap();
        assert!(refusal(image.path(), true).contains("is in use"));
    }

    #[test]
    fn a_device_is_found_by_its_number_and_by_no_other() {
        let disk = AskedDisk {
            number: Some((4000, 77)),
            ..asked(Path::new("/dev/null"), false)
        };
        let error = FoundSource::find(&disk).unwrap_err().to_string();
        assert!(error.contains("no block device 4000:77"), "{error}");
    }
}

//! Disks that come and go while the guest runs: the machine has slots for them, which the kernel knows as disks of no
//! size.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::sandbox::{AddDiskRequest, AddDiskResponse};
use rustix::fs::{major, minor};
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::time::{Instant, sleep};

/// `BLKROSET` and `BLKFLSBUF` (the kernel's include/uapi/linux/fs.h).
const BLKROSET: Opcode = 0x125d;
const BLKFLSBUF: Opcode = 0x1261;

/// Where the kernel tells of its disks, and how it calls those of virtio.
const DISKS: &str = "/sys/block";
const PREFIX: &str = "vd";

/// Where the roots of containers are mounted until these take them over.
const MOUNT_POINTS: &str = "/run/bulkhead/disks";

/// How long the kernel may take to know a disk's new size, or to write back what belongs to one. It may be emulated, and
/// the disk slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often it is looked.
const STEP: Duration = Duration::from_millis(20);

/// Why a disk is not there, or still is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The kernel does not show it.
    #[error("the guest's kernel has not found the disk {id:?} of {sectors} sectors within {} s", PATIENCE.as_secs())]
    Missing {
        /// What it is called.
        id: String,
        /// Its size.
        sectors: u64,
    },
    /// The kernel cannot mount it.
    #[error("the guest's kernel has no file system {file_system:?} for disks: it has {known}")]
    FileSystem {
        /// What was asked for.
        file_system: String,
        /// What there is.
        known: String,
    },
    /// Somebody uses it still.
    #[error("the disk {id:?} is still in use after {} s", PATIENCE.as_secs())]
    Busy {
        /// What it is called.
        id: String,
    },
    /// It would be mounted elsewhere.
    #[error("{id:?} is no name of a disk")]
    Name {
        /// What it is called.
        id: String,
    },
    /// A step failed.
    #[error("{doing} {}", .path.display())]
    Step {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Waits for a disk, and mounts it if it is to be.
pub(crate) async fn add(request: &AddDiskRequest) -> Result<AddDiskResponse, DiskError> {
    let AddDiskRequest {
        id,
        sectors,
        read_only,
        file_system,
        ..
    } = request;
    if !file_system.is_empty() {
        check_file_system(file_system)?;
    }
    let deadline = Instant::now() + PATIENCE;
    let device = loop {
        match find(id)? {
            Some((device, size)) if size == *sectors => break device,
            _ if Instant::now() < deadline => sleep(STEP).await,
            _ => {
                return Err(DiskError::Missing {
                    id: id.clone(),
                    sectors: *sectors,
                });
            }
        }
    };
    let file = File::open(&device).map_err(step("opening", &device))?;
    set_read_only(&file, *read_only).map_err(step("setting whether there may be writes to", &device))?;
    let number = file.metadata().map_err(step("looking at", &device))?.rdev();
    let mut mount_point = PathBuf::new();
    if request.mount {
        mount_point = mount_point_of(id)?;
        fs::create_dir_all(&mount_point).map_err(step("creating", &mount_point))?;
        let flags = match read_only {
            true => MountFlags::RDONLY,
            false => MountFlags::empty(),
        };
        mount(&device, &mount_point, file_system.as_str(), flags, None)
            .map_err(step("mounting the root's disk on", &mount_point))?;
    }
    Ok(AddDiskResponse {
        path: device.display().to_string(),
        major: major(number),
        minor: minor(number),
        mount_point: mount_point.display().to_string(),
        ..AddDiskResponse::default()
    })
}

/// Whether a container's root is where those are that are disks.
pub(crate) fn is_root(root: &Path) -> bool {
    root.parent() == Some(Path::new(MOUNT_POINTS))
}

/// Leaves a root to the container that was made of it, which has a copy of the mount: what it writes is written back when
/// it ends, and not by us.
pub(crate) fn hand_over(root: &Path) -> Result<(), DiskError> {
    if !is_root(root) {
        return Ok(());
    }
    unmount(root, UnmountFlags::DETACH).map_err(step("unmounting", root))?;
    match fs::remove_dir(root) {
        // Another container is made of the same disk.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        removed => removed.map_err(step("removing", root)),
    }
}

/// Waits until nobody has a disk mounted, and all is on it. What is mounted goes with its containers, but not at once.
pub(crate) async fn remove(id: &str) -> Result<(), DiskError> {
    // Its container did not come to be.
    let left = mount_point_of(id)?;
    match unmount(&left, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(step("unmounting", &left)(errno)),
    }
    match fs::remove_dir(&left) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(step("removing", &left)(error)),
        _ => {}
    }
    let Some((device, _)) = find(id)? else {
        return Ok(());
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        // A block device that is mounted cannot be opened so (open(2), O_EXCL).
        match OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(&device)
        {
            Ok(file) => {
                // Of one that everybody has closed nothing is left to be written.
                file.sync_all().map_err(step("flushing", &device))?;
                // SAFETY: the request takes no argument, and changes no memory of ours.
                unsafe { ioctl(&file, NoArg::<BLKFLSBUF>::new()) }.map_err(step("forgetting", &device))?;
                return set_read_only(&file, false).map_err(step("allowing writes to", &device));
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                sleep(STEP).await;
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(DiskError::Busy { id: id.to_owned() });
            }
            Err(error) => return Err(step("opening", &device)(error)),
        }
    }
}

/// The node and the size in sectors of the disk that is called so. Empty slots are not asked, because each would need a
/// thread to answer.
fn find(id: &str) -> Result<Option<(PathBuf, u64)>, DiskError> {
    let listing = || step::<io::Error>("listing", Path::new(DISKS));
    for entry in fs::read_dir(DISKS).map_err(listing())? {
        let entry = entry.map_err(listing())?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let read = |name: &str| {
            let path = entry.path().join(name);
            fs::read_to_string(&path).map_err(step("reading", &path))
        };
        let sectors: u64 = read("size")?.trim().parse().unwrap_or(0);
        if sectors > 0 && read("serial")?.trim() == id {
            return Ok(Some((Path::new("/dev").join(entry.file_name()), sectors)));
        }
    }
    Ok(None)
}

fn check_file_system(asked: &str) -> Result<(), DiskError> {
    const LIST: &str = "/proc/filesystems";
    let list = fs::read_to_string(LIST).map_err(step("reading", Path::new(LIST)))?;
    // Those that need no disk are marked.
    let known: Vec<&str> = list.lines().filter_map(|line| line.strip_prefix('\t')).collect();
    if known.contains(&asked) {
        return Ok(());
    }
    Err(DiskError::FileSystem {
        file_system: asked.to_owned(),
        known: known.join(", "),
    })
}

fn mount_point_of(id: &str) -> Result<PathBuf, DiskError> {
    let is_name = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match is_name {
        true => Ok(Path::new(MOUNT_POINTS).join(id)),
        false => Err(DiskError::Name { id: id.to_owned() }),
    }
}

fn set_read_only(disk: &File, read_only: bool) -> Result<(), Errno> {
    // SAFETY: the request reads one number where the argument points, and changes no memory of ours.
    unsafe { ioctl(disk, Setter::<BLKROSET, libc::c_int>::new(read_only.into())) }
}

fn step<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Step {
        doing,
        path,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_mounted_where_no_other_is() {
        assert_eq!(mount_point_of("7f").unwrap(), Path::new("/run/bulkhead/disks/7f"));
        for id in ["", ".", "..", "a/b", "/", "a\0"] {
            assert!(mount_point_of(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn only_roots_that_were_mounted_here_are_handed_over() {
        for root in [
            "/",
            "rootfs",
            "/run/bulkhead/disks",
            "/run/bulkhead/shared/a/rootfs",
        ] {
            hand_over(Path::new(root)).unwrap();
        }
    }

    #[test]
    fn a_file_system_that_needs_no_disk_is_none_for_one() {
        let error = check_file_system("proc").unwrap_err().to_string();
        assert!(
            error.contains("no file system \"proc\" for disks: it has "),
            "{error}"
        );
        assert!(check_file_system("").is_err());
    }
}

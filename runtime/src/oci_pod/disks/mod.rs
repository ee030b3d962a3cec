//! Disks of containers: mounts of a file system that is in an image or on a block device of the host, block devices among
//! `linux.devices`, and a root that is one. Behind the shared-kernel wall the host's kernel mounts them; here the guest's
//! does, from a slot of the pod's machine (`vmm::devices::virtio::blk`).
//!
//! Which container uses which slot is written down with the pod's first container, before anything is attached. Containers
//! of a pod that ask for the same disk in the same way share a slot, as they would share the file system of one kernel.

mod asked;
mod limits;
mod record;
mod source;

use std::io;
use std::path::{Path, PathBuf};

use protocol::sandbox::AddDiskRequest;
use rustix::io::Errno;
use serde_json::{Value, json};
use vmm::devices::virtio::blk::NewDisk;

use self::asked::{AskedDisk, Place};
use self::record::{Record, RecordLock};
use self::source::FoundSource;
use super::folder::{Folder, FolderError};
use crate::annotations::{ROOT_SOURCE_ANNOTATION, ROOT_TYPE_ANNOTATION};
use crate::micro_vm::MicroVm;
use crate::micro_vm::start::DISK_SLOTS;
use crate::sandbox::SandboxError;
use crate::unused_name::unused_name;

pub use self::record::are_attached;

/// Why a container cannot have a disk, or a disk not be taken out again.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is nothing that could be one.
    #[error("{field}: {} {} as a disk", if *.read_only { "reading" } else { "using" }, .path.display())]
    Open {
        /// Where the configuration names it.
        field: String,
        /// What it names.
        path: PathBuf,
        /// Whether it was only to be read.
        read_only: bool,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is a folder, a pipe or the like.
    #[error("{field}: {} is neither a file nor a block device, and so no disk", .path.display())]
    Kind {
        /// Where the configuration names it.
        field: String,
        /// What it names.
        path: PathBuf,
    },
    /// Somebody else writes it, or reads it while it is to be written.
    #[error(
        "{field}: {} is in use by another machine or program: a disk that is written has one user; those that all only \
         read it can share it",
        .path.display()
    )]
    Busy {
        /// Where the configuration names it.
        field: String,
        /// What it names.
        path: PathBuf,
    },
    /// It is not made of sectors.
    #[error("{field}: {} has {bytes} bytes: a disk has a multiple of 512, and at least that many", .path.display())]
    Size {
        /// Where the configuration names it.
        field: String,
        /// What it names.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The host has no such block device.
    #[error("{field}: the host has no block device {major}:{minor} in /dev or at {}", .path.display())]
    NoDevice {
        /// Where the configuration names it.
        field: String,
        /// Its number.
        major: u32,
        /// Its number.
        minor: u32,
        /// Where the container is to have it.
        path: PathBuf,
    },
    /// There is no room.
    #[error("{field}: the pod's microVM has room for {DISK_SLOTS} disks at a time, and all of it is taken")]
    TooMany {
        /// Where the configuration names it.
        field: String,
    },
    /// Half of a root.
    #[error(
        "annotation {ROOT_SOURCE_ANNOTATION} says which disk the root is, and {ROOT_TYPE_ANNOTATION} with which file \
         system: they go together"
    )]
    HalfARoot,
    /// A root that cannot be written.
    #[error("annotation {ROOT_TYPE_ANNOTATION}: {file_system} cannot be written: set root.readonly")]
    WritableRoot {
        /// The file system.
        file_system: String,
    },
    /// A limit for a disk that is not the container's.
    #[error(
        "linux.resources.blockIO.{field}: {major}:{minor} is no disk of the container's; behind the microvm wall only those \
         can be limited, by the number of the block device that each is"
    )]
    NotOurs {
        /// Where the configuration says it.
        field: String,
        /// The device's number.
        major: u32,
        /// The device's number.
        minor: u32,
    },
    /// What is written down of the pod's disks cannot be read or written.
    #[error(transparent)]
    Record(#[from] FolderError),
    /// Others of the pod cannot be waited for.
    #[error("locking {}", .path.display())]
    Lock {
        /// The file that is locked.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The host gives no random bytes.
    #[error("drawing random bytes for a name")]
    Random(#[source] Errno),
    /// The machine refuses it.
    #[error("{field}")]
    Attach {
        /// Where the configuration names it.
        field: String,
        /// The cause.
        #[source]
        source: SandboxError,
    },
    /// The machine does not give it back.
    #[error("taking the disk {id} out of the microVM")]
    Detach {
        /// What the guest knows it by.
        id: String,
        /// The cause.
        #[source]
        source: SandboxError,
    },
}

/// A disk of a container, as its guest has it.
#[derive(Debug)]
struct GuestDisk {
    path: String,
    major: u32,
    minor: u32,
    mount_point: String,
}

/// Attaches the disks that a container's configuration asks for to its pod's machine, and has the configuration name them
/// as the guest does. `folder` is that of the pod's first container; relative paths are of `bundle`. Gives where the root
/// is mounted in the guest, if it is a disk.
///
/// # Errors
/// When a disk cannot be had. What was attached is [released](release) with the container.
pub async fn attach(
    machine: &MicroVm,
    folder: &Folder,
    container: &str,
    bundle: &Path,
    config: &mut Value,
) -> Result<Option<String>, DiskError> {
    let mut asked = asked::asked(config, bundle)?;
    limits::take(config, &mut asked)?;
    let mut attached = Vec::new();
    if !asked.is_empty() {
        let _lock = RecordLock::take(folder)?;
        for disk in asked {
            let guest_disk = attach_one(machine, folder, container, &disk).await?;
            attached.push((disk, guest_disk));
        }
    }
    let mut root = None;
    for (disk, guest) in &attached {
        match disk.place {
            Place::Root => root = Some(guest.mount_point.clone()),
            Place::Mount(index) => set(config, &format!("/mounts/{index}"), "source", json!(guest.path)),
            Place::Device(index) => {
                let device = format!("/linux/devices/{index}");
                set(config, &device, "major", json!(guest.major));
                set(config, &device, "minor", json!(guest.minor));
            }
        }
    }
    let numbers: Vec<_> = attached
        .iter()
        .filter_map(|(disk, guest)| Some((disk.place.device()?, disk.number?, (guest.major, guest.minor))))
        .collect();
    asked::leave_no_other_device(config, &numbers);
    for (disk, guest) in &attached {
        if let Place::Mount(_) = disk.place {
            asked::allow(config, (guest.major, guest.minor), disk.read_only);
        }
    }
    Ok(root)
}

/// Refuses what can be told to be wrong before there is a machine. Nothing is opened for it, so that a disk may turn out to be
/// in use later.
///
/// # Errors
/// With the first disk that a container of this configuration cannot have.
pub fn check(config: &Value, bundle: &Path) -> Result<(), DiskError> {
    let mut asked = asked::asked(config, bundle)?;
    limits::take(&mut config.clone(), &mut asked)?;
    asked
        .iter()
        .try_for_each(|disk| FoundSource::find(disk).map(drop))
}

fn set(config: &mut Value, pointer: &str, member: &str, value: Value) {
    if let Some(object) = config.pointer_mut(pointer).and_then(Value::as_object_mut) {
        object.insert(member.to_owned(), value);
    }
}

async fn attach_one(
    machine: &MicroVm,
    folder: &Folder,
    container: &str,
    disk: &AskedDisk,
) -> Result<GuestDisk, DiskError> {
    let failed = |source| DiskError::Attach {
        field: disk.field.clone(),
        source,
    };
    let found = FoundSource::find(disk)?;
    let mut record = Record::read(folder)?;
    let (id, sectors) = match record.join(found.identity(), disk, container) {
        Some(known) => {
            record.write(folder)?;
            known
        }
        None => {
            let opened = found.open(disk)?;
            let id = unused_name().map_err(DiskError::Random)?;
            let slot = record.claim(found.identity(), disk, container, &id);
            let slot = slot.ok_or_else(|| DiskError::TooMany {
                field: disk.field.clone(),
            })?;
            // Before it is there: whoever deletes the container takes it out, whether it has got there or not.
            record.write(folder)?;
            let new = NewDisk {
                id: id.clone(),
                read_only: disk.read_only,
                read_limit: disk.limits.read,
                write_limit: disk.limits.write,
            };
            let sectors = machine.attach_disk(slot, new, opened.descriptor()).await;
            let sectors = sectors.map_err(failed)?;
            record.set_sectors(slot, sectors);
            record.write(folder)?;
            (id, sectors)
        }
    };
    let request = AddDiskRequest {
        id,
        sectors,
        read_only: disk.read_only,
        file_system: disk.file_system.clone().unwrap_or_default(),
        mount: disk.place == Place::Root,
        ..AddDiskRequest::default()
    };
    let added = machine.add_disk(&request).await.map_err(failed)?;
    Ok(GuestDisk {
        path: added.path,
        major: added.major,
        minor: added.minor,
        mount_point: added.mount_point,
    })
}

/// Takes the disks out of a pod's machine that the container was the last to use. They are out also where the guest could
/// not say that all that was written to them is on them, which is an error; another call then has nothing to do.
///
/// # Errors
/// With the first disk that was not taken out in peace.
pub async fn release(machine: &MicroVm, folder: &Folder, container: &str) -> Result<(), DiskError> {
    if !are_attached(folder) {
        return Ok(());
    }
    let _lock = RecordLock::take(folder)?;
    let mut record = Record::read(folder)?;
    let mut result = Ok(());
    for (slot, id) in record.leave(container) {
        let removed = machine.remove_disk(&id).await;
        let detached = machine.detach_disk(slot).await;
        if detached.is_ok() {
            record.free(slot);
        }
        result = result.and(
            removed
                .and(detached)
                .map_err(|source| DiskError::Detach { id, source }),
        );
    }
    record.write(folder)?;
    result
}

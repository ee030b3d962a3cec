//! Which disk is in which slot of a pod's machine, and for whom.

use std::fs::{File, OpenOptions};

use std::os::unix::fs::OpenOptionsExt as _;

use serde::{Deserialize, Serialize};

use super::DiskError;
use super::asked::AskedDisk;
use super::limits::DiskLimits;
use super::source::Identity;
use crate::micro_vm::start::DISK_SLOTS;
use crate::oci_pod::folder::{Folder, FolderError};

/// The record's file in the folder of the pod's first container.
const RECORD: &str = "disks.json";

/// The file there that is locked while the record is worked on. The folder has a lock of its own, which whoever makes the
/// first container holds meanwhile.
const LOCK: &str = "disks.lock";

/// The disks of a pod.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    slots: Vec<UsedSlot>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsedSlot {
    slot: u8,
    /// What the guest knows the disk by.
    id: String,
    source: Identity,
    read_only: bool,
    limits: DiskLimits,
    /// None until it is attached.
    sectors: Option<u64>,
    /// The ids of those who use it.
    containers: Vec<String>,
}

/// The exclusive right to work on a record; given back by the kernel when its holder dies.
#[derive(Debug)]
pub(super) struct RecordLock(#[expect(dead_code, reason = "held for its lock")] File);

impl RecordLock {
    /// Waits for whoever works on the record. Each step of that work has its deadline.
    pub(super) fn take(folder: &Folder) -> Result<Self, DiskError> {
        let path = folder.path().join(LOCK);
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path);
        let locked = opened.and_then(|file| file.lock().map(|()| Self(file)));
        locked.map_err(|source| DiskError::Lock { path, source })
    }
}

/// Whether disks are attached to the machine of the pod whose first container has this folder, or were to be.
pub fn are_attached(folder: &Folder) -> bool {
    // One that cannot be read may name some.
    Record::read(folder).map_or(true, |record| !record.slots.is_empty())
}

impl Record {
    pub(super) fn read(folder: &Folder) -> Result<Self, FolderError> {
        Ok(folder.read(RECORD)?.unwrap_or_default())
    }

    pub(super) fn write(&self, folder: &Folder) -> Result<(), FolderError> {
        folder.write(RECORD, self)
    }

    /// Makes a container a user of what is attached already and is the same disk, to be used in the same way. Gives its name
    /// and its sectors.
    pub(super) fn join(
        &mut self,
        source: Identity,
        disk: &AskedDisk,
        container: &str,
    ) -> Option<(String, u64)> {
        let same = |used: &&mut UsedSlot| {
            used.source == source && used.read_only == disk.read_only && used.limits == disk.limits
        };
        let used = self.slots.iter_mut().find(same)?;
        let sectors = used.sectors?;
        if !used.containers.iter().any(|id| id == container) {
            used.containers.push(container.to_owned());
        }
        Some((used.id.clone(), sectors))
    }

    /// Takes a free slot for a disk.
    pub(super) fn claim(
        &mut self,
        source: Identity,
        disk: &AskedDisk,
        container: &str,
        id: &str,
    ) -> Option<u8> {
        let is_free = |slot: &u8| self.slots.iter().all(|used| used.slot != *slot);
        let slot = (0..DISK_SLOTS).find(is_free)?;
        self.slots.push(UsedSlot {
            slot,
            id: id.to_owned(),
            source,
            read_only: disk.read_only,
            limits: disk.limits,
            sectors: None,
            containers: vec![container.to_owned()],
        });
        Some(slot)
    }

    /// Notes that the slot's disk is attached.
    pub(super) fn set_sectors(&mut self, slot: u8, sectors: u64) {
        for used in self.slots.iter_mut().filter(|used| used.slot == slot) {
            used.sectors = Some(sectors);
        }
    }

    /// Makes a container a user of nothing. Gives the slots, and the names of their disks, that nobody uses any more.
    pub(super) fn leave(&mut self, container: &str) -> Vec<(u8, String)> {
        for used in &mut self.slots {
            used.containers.retain(|id| id != container);
        }
        let unused = self.slots.iter().filter(|used| used.containers.is_empty());
        unused.map(|used| (used.slot, used.id.clone())).collect()
    }

    /// Notes that the slot is empty.
    pub(super) fn free(&mut self, slot: u8) {
        self.slots.retain(|used| used.slot != slot);
    }
}

#[cfg(test)]
mod tests {
    use super::super::asked::Place;
    use super::super::limits::DiskLimits;
    use super::*;

    fn disk(read_only: bool) -> AskedDisk {
        AskedDisk {
            field: "mounts[0].source".into(),
            place: Place::Mount(0),
            path: "/disk".into(),
            number: None,
            read_only,
            file_system: None,
            limits: DiskLimits::default(),
        }
    }

    #[test]
    fn containers_of_a_pod_share_a_disk_until_the_last_has_left() {
        let source = Identity::Device { number: 7 };
        let mut record = Record::default();
        assert_eq!(record.join(source, &disk(true), "one"), None);
        assert_eq!(record.claim(source, &disk(true), "one", "a"), Some(0));
        // It is not attached yet.
        assert_eq!(record.join(source, &disk(true), "two"), None);
        record.set_sectors(0, 9);
        for _ in 0..2 {
            assert_eq!(record.join(source, &disk(true), "two"), Some(("a".into(), 9)));
        }
        assert_eq!(record.join(source, &disk(false), "two"), None);
        assert_eq!(record.leave("one"), []);
        assert_eq!(record.leave("two"), [(0, "a".into())]);
        // Still to be taken out.
        assert_eq!(record.leave("two"), [(0, "a".into())]);
        record.free(0);
        assert_eq!(record, Record::default());
    }

    #[test]
    fn slots_are_used_again_and_run_out() {
        let mut record = Record::default();
        let claim =
            |record: &mut Record, number| record.claim(Identity::Device { number }, &disk(false), "one", "a");
        for slot in 0..DISK_SLOTS {
            assert_eq!(claim(&mut record, slot.into()), Some(slot));
        }
        assert_eq!(claim(&mut record, 100), None);
        record.free(1);
        assert_eq!(claim(&mut record, 100), Some(1));
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_locked_by_one_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::create(root.path(), &"pod".parse().unwrap()).unwrap();
        assert!(!are_attached(&folder));
        let mut record = Record::default();
        record.claim(Identity::File { device: 1, inode: 2 }, &disk(true), "one", "a");
        record.write(&folder).unwrap();
        assert_eq!(Record::read(&folder).unwrap(), record);
        assert!(are_attached(&folder));
        let held = RecordLock::take(&folder).unwrap();
        let another = File::open(folder.path().join(LOCK)).unwrap();
        assert!(another.try_lock().is_err());
        drop(held);
        another.try_lock().unwrap();
    }
}

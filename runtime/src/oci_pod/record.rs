//! What is written down of a container, enough for any command to find it, say what it does, and clean up after it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use container::{ContainerId, OciState, PodCgroup, ProcessIdentity, Status};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::folder::{Folder, FolderError};

/// The record's file in the container's folder.
pub const RECORD: &str = "container.json";

/// A container behind the microVM wall.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestContainer {
    /// Its id.
    pub id: String,
    /// The id of the container whose sandbox it is in, which is its own if it is the first.
    pub sandbox: String,
    /// The folder of its bundle.
    pub bundle: PathBuf,
    /// Its root file system on the host.
    pub rootfs: PathBuf,
    /// The version of the specification that its configuration names.
    pub oci_version: String,
    /// Its configuration's annotations.
    pub annotations: BTreeMap<String, String>,
    /// When it was created, in nanoseconds since the epoch.
    pub created_at: u64,
    /// Who created it.
    pub owner: u32,
    /// The name of its folder among what the guest sees of the host.
    pub shared_folder: String,
    /// Where its attendant is on the host, and its VMM if it founded its sandbox.
    pub cgroup: PodCgroup,
    /// How far it has come.
    pub stage: Stage,
    /// Whether it is frozen.
    pub paused: bool,
    /// The process that stands for it on the host.
    pub attendant: Option<ProcessIdentity>,
    /// Its init process as the guest's root pid namespace numbers it; 0 until it is created.
    pub guest_pid: u32,
}

/// How far a container has come. That it has ended is not written down: its attendant has then ended too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It is being made, or whoever made it was ended.
    Creating,
    /// It waits for its start.
    Created,
    /// It was started.
    Started,
}

impl GuestContainer {
    /// Reads the record in the folder; `None` where there is none, as in that of a container on the host's kernel.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn read(folder: &Folder) -> Result<Option<Self>, FolderError> {
        folder.read(RECORD)
    }

    /// Whether container `id` stands behind this wall.
    pub fn exists(root: &Path, id: &ContainerId) -> bool {
        root.join(id).join(RECORD).exists()
    }

    /// Whether no other container below `root` is in the sandbox of container `id`, as far as can be read.
    ///
    /// # Errors
    /// When one's record cannot be read: it may be of that sandbox.
    pub fn is_alone(root: &Path, id: &str) -> Result<bool, FolderError> {
        let failed = |source| FolderError::Io {
            doing: "list",
            path: root.to_owned(),
            source,
        };
        for entry in std::fs::read_dir(root).map_err(failed)? {
            let folder = Folder::at(&entry.map_err(failed)?.path());
            if Self::read(&folder)?.is_some_and(|other| other.sandbox == id && other.id != id) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether another container that is in the sandbox whose first container has this folder has not ended, `id` being ours.
    /// One that cannot be read or looked at may be one.
    pub fn others_live(sandbox: &Folder, id: &str) -> bool {
        let path = sandbox.path();
        let (Some(root), Some(founder)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
            return true;
        };
        let Ok(entries) = std::fs::read_dir(root) else {
            return true;
        };
        entries.into_iter().any(|entry| {
            let Ok(entry) = entry else { return true };
            match Self::read(&Folder::at(&entry.path())) {
                Ok(Some(other)) if other.sandbox == founder && other.id != id => {
                    !matches!(other.status(), Ok(Status::Stopped))
                }
                Ok(_) => false,
                Err(_) => true,
            }
        })
    }

    /// Writes the record to the folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Folder) -> Result<(), FolderError> {
        folder.write(RECORD, self)
    }

    /// Where the container is in its life.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn status(&self) -> Result<Status, Errno> {
        let attended = match self.attendant {
            Some(attendant) => attendant.is_alive()?,
            None => false,
        };
        Ok(match self.stage {
            Stage::Creating => Status::Creating,
            _ if !attended => Status::Stopped,
            _ if self.paused => Status::Paused,
            Stage::Created => Status::Created,
            Stage::Started => Status::Running,
        })
    }

    /// The state that the specification defines. Its process is the attendant.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn state(&self) -> Result<OciState, Errno> {
        let status = self.status()?;
        let pid = self.attendant.map(|attendant| attendant.pid);
        Ok(OciState {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            status,
            pid: pid.filter(|_| !matches!(status, Status::Stopped | Status::Creating)),
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone(),
        })
    }

    /// When it was created.
    pub fn created(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.created_at)
    }
}

#[cfg(test)]
mod tests {
    use container::PodLimits;

    use super::*;

    fn container(stage: Stage, attendant: Option<ProcessIdentity>) -> GuestContainer {
        GuestContainer {
            id: "web".into(),
            sandbox: "web".into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            oci_version: "1.0.2".into(),
            annotations: BTreeMap::new(),
            created_at: 1,
            owner: 0,
            shared_folder: "0".into(),
            cgroup: PodCgroup::locate(None, &"web".parse().unwrap(), PodLimits::default()).unwrap(),
            stage,
            paused: false,
            attendant,
            guest_pid: 7,
        }
    }

    #[test]
    fn a_container_is_alone_until_another_joins_its_sandbox() {
        let root = tempfile::tempdir().unwrap();
        let write = |id: &str, sandbox: &str| {
            let folder = Folder::create(root.path(), &id.parse().unwrap()).unwrap();
            let record = GuestContainer {
                id: id.to_owned(),
                sandbox: sandbox.to_owned(),
                ..container(Stage::Created, None)
            };
            record.write(&folder).unwrap();
        };
        write("web", "web");
        write("other", "other");
        // As that of a container on the host's kernel.
        Folder::create(root.path(), &"third".parse().unwrap()).unwrap();
        let is_alone = || GuestContainer::is_alone(root.path(), "web");
        assert!(is_alone().unwrap());
        write("side", "web");
        assert!(!is_alone().unwrap());
        std::fs::write(root.path().join("side").join(RECORD), "{").unwrap();
        assert!(is_alone().is_err());
    }

    #[test]
    fn a_container_is_what_its_stage_and_its_attendant_say() {
        let alive = ProcessIdentity::of(std::process::id().cast_signed()).unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = ProcessIdentity::of(child.id().cast_signed()).unwrap();
        child.wait().unwrap();
        for (stage, attendant, status) in [
            (Stage::Creating, None, Status::Creating),
            (Stage::Creating, Some(alive), Status::Creating),
            (Stage::Created, Some(alive), Status::Created),
            (Stage::Started, Some(alive), Status::Running),
            (Stage::Created, Some(dead), Status::Stopped),
            (Stage::Started, Some(dead), Status::Stopped),
        ] {
            let container = container(stage, attendant);
            assert_eq!(container.status().unwrap(), status, "{container:?}");
        }
        let paused = GuestContainer {
            paused: true,
            ..container(Stage::Started, Some(alive))
        };
        assert_eq!(paused.status().unwrap(), Status::Paused);
        assert_eq!(paused.state().unwrap().pid, Some(alive.pid));
        assert_eq!(container(Stage::Started, Some(dead)).state().unwrap().pid, None);
    }
}

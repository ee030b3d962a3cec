//! A container's root file system: the image's layers, shared, below a writable layer of its own.

mod overlay;

use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::digest::Digest;
use crate::layer;
use crate::store::{CONTAINERS, Image, Store};

/// Why a root file system could not be made, mounted or removed.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The id could be something else than a name.
    #[error(
        "`{0}` cannot name a container: use 1 to 255 letters, digits, `_`, `+`, `-` and `.`, not just `.` or `..`"
    )]
    InvalidId(String),
    /// A container of this id exists.
    #[error("container {id} has a writable layer already: remove it first or choose another id")]
    Exists {
        /// The id.
        id: String,
    },
    /// No container of this id exists.
    #[error("container {id} has no writable layer")]
    Missing {
        /// The id.
        id: String,
    },
    /// The record of a container's layers is not readable.
    #[error("the record {} of container {id} is damaged: remove the container", path.display())]
    Record {
        /// The id.
        id: String,
        /// The record.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The file system refused.
    #[error("{action} {}", path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the mount.
    #[error("mounting the root file system of container {id} at {}{}", target.display(), said(kernel))]
    Mount {
        /// The id.
        id: String,
        /// Where to.
        target: PathBuf,
        /// What the kernel said about it, if anything.
        kernel: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn said(kernel: &str) -> String {
    if kernel.is_empty() {
        String::new()
    } else {
        format!(" (the kernel says: {kernel})")
    }
}

/// What a container's writable layer stands on. It is enough to mount it again after a crash, and tells which
/// layers are in use.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The image's manifest.
    image: Digest,
    /// Chain ids of the layers, the lowest first.
    layers: Vec<Digest>,
}

/// A container's writable layer in the store. It stays until it is removed, whatever becomes of this value.
#[derive(Debug)]
pub struct ContainerLayer<'a> {
    store: &'a Store,
    id: String,
    folder: PathBuf,
    /// The image's layers, the lowest first.
    layers: Vec<PathBuf>,
}

const UPPER: &str = "upper";
const WORK: &str = "work";
const RECORD: &str = "container.json";

impl Store {
    /// Makes an empty writable layer over the layers of `image`.
    ///
    /// # Errors
    /// [`RootfsError::Exists`] if there is one of this id, which is left as it was.
    pub fn create_container(&self, id: &str, image: &Image) -> Result<ContainerLayer<'_>, RootfsError> {
        let folder = self.container_folder(id)?;
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| RootfsError::File { action, path, source }
        };
        match rustix::fs::mkdir(&folder, Mode::RWXU) {
            Err(Errno::EXIST) => return Err(RootfsError::Exists { id: id.to_owned() }),
            made => made.map_err(|errno| failed("making", &folder)(errno.into()))?,
        }
        let container = ContainerLayer {
            store: self,
            id: id.to_owned(),
            folder,
            layers: image.layers.clone(),
        };
        let made = container.fill(&Record {
            image: image.digest,
            layers: image.chain.clone(),
        });
        if made.is_err() {
            // What is half made is worth nothing, and its own error says more than one of the removal.
            let _ = container.discard();
        }
        made.map(|()| container)
    }

    /// The writable layer of a container made before, perhaps by another process.
    ///
    /// # Errors
    /// [`RootfsError::Missing`] if there is none.
    pub fn container(&self, id: &str) -> Result<ContainerLayer<'_>, RootfsError> {
        let folder = self.container_folder(id)?;
        let path = folder.join(RECORD);
        let content = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RootfsError::Missing { id: id.to_owned() });
            }
            Err(source) => {
                return Err(RootfsError::File {
                    action: "reading",
                    path,
                    source,
                });
            }
            Ok(content) => content,
        };
        let record: Record = serde_json::from_slice(&content).map_err(|source| RootfsError::Record {
            id: id.to_owned(),
            path,
            source,
        })?;
        let layers = record
            .layers
            .iter()
            .map(|layer| self.layer_folder(layer))
            .collect();
        Ok(ContainerLayer {
            store: self,
            id: id.to_owned(),
            folder,
            layers,
        })
    }

    /// Removes the writable layer of a container, in whatever state a crash may have left it. That there is none
    /// is no error. Unmount its root file system first.
    ///
    /// # Errors
    /// [`RootfsError::File`] if the file system refuses, for example because a file was made immutable.
    pub fn remove_container(&self, id: &str) -> Result<(), RootfsError> {
        let folder = self.container_folder(id)?;
        ContainerLayer {
            store: self,
            id: id.to_owned(),
            folder,
            layers: Vec::new(),
        }
        .discard()
    }

    /// The ids of all containers with a writable layer, sorted.
    ///
    /// # Errors
    /// [`RootfsError::File`] if the folder cannot be read.
    pub fn containers(&self) -> Result<Vec<String>, RootfsError> {
        let folder = self.root().join(CONTAINERS);
        let failed = |source| RootfsError::File {
            action: "reading",
            path: folder.clone(),
            source,
        };
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            ids.extend(entry.map_err(failed)?.file_name().into_string());
        }
        ids.sort();
        Ok(ids)
    }

    fn container_folder(&self, id: &str) -> Result<PathBuf, RootfsError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        let valid = (1..=255).contains(&id.len()) && id.bytes().all(allowed) && id != "." && id != "..";
        if valid {
            Ok(self.root().join(CONTAINERS).join(id))
        } else {
            Err(RootfsError::InvalidId(id.escape_debug().to_string()))
        }
    }
}

impl ContainerLayer<'_> {
    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The folder that holds what the container wrote.
    pub fn upper(&self) -> PathBuf {
        self.folder.join(UPPER)
    }

    /// Joins the writable layer with the image's layers at the existing folder `target`.
    ///
    /// Mount one writable layer once at a time: what two mounts of it do to each other is undefined, and the kernel
    /// only warns in its log.
    ///
    /// # Errors
    /// [`RootfsError::Mount`], with what the kernel logged, if it refuses.
    pub fn mount_at(&self, target: impl AsRef<Path>) -> Result<RootfsMount, RootfsError> {
        let target = std::path::absolute(target.as_ref()).map_err(|source| RootfsError::File {
            action: "finding",
            path: target.as_ref().to_owned(),
            source,
        })?;
        let lower = self.lower()?;
        let overlay = overlay::Overlay {
            lower: &lower,
            upper: open_folder(&self.upper())?,
            work: open_folder(&self.folder.join(WORK))?,
        };
        overlay.mount_at(&target).map_err(|refused| RootfsError::Mount {
            id: self.id.clone(),
            target: target.clone(),
            kernel: refused.kernel,
            source: refused.source,
        })?;
        Ok(RootfsMount { target, armed: true })
    }

    /// Removes the writable layer and everything the container wrote. Unmount its root file system first.
    ///
    /// # Errors
    /// [`RootfsError::File`] if the file system refuses; [`Store::remove_container`] can then be tried again.
    pub fn remove(self) -> Result<(), RootfsError> {
        self.discard()
    }

    /// The image's layers, the topmost first, down to the first whose root hides all below: the kernel heeds an
    /// opaque mark in folders, but not in a layer's root.
    fn lower(&self) -> Result<Vec<OwnedFd>, RootfsError> {
        let mut lower = Vec::with_capacity(self.layers.len());
        for path in self.layers.iter().rev() {
            let layer = open_folder(path)?;
            let opaque = layer::is_opaque(&layer).map_err(|source| RootfsError::File {
                action: "reading",
                path: path.clone(),
                source,
            })?;
            lower.push(layer);
            if opaque {
                break;
            }
        }
        Ok(lower)
    }

    fn fill(&self, record: &Record) -> Result<(), RootfsError> {
        let failed = |action, path: PathBuf| move |source| RootfsError::File { action, path, source };
        for name in [UPPER, WORK] {
            let path = self.folder.join(name);
            rustix::fs::mkdir(&path, Mode::RWXU).map_err(|errno| failed("making", path)(errno.into()))?;
        }
        // The writable layer's root is what the container sees as the root's owner and mode.
        if let Some(top) = self.layers.last() {
            let (from, to) = (open_folder(top)?, open_folder(&self.upper())?);
            layer::copy_folder_metadata(from, to).map_err(failed("preparing", self.upper()))?;
        }
        let path = self.folder.join(RECORD);
        serde_json::to_vec(record)
            .map_err(io::Error::other)
            .and_then(|content| std::fs::write(&path, content))
            .map_err(failed("writing", path))
    }

    fn discard(&self) -> Result<(), RootfsError> {
        let failed = |action| {
            let path = self.folder.clone();
            move |source| RootfsError::File { action, path, source }
        };
        match self
            .store
            .discard()
            .take(CWD, self.folder.as_os_str().as_encoded_bytes())
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            taken => taken.map_err(failed("discarding"))?,
        }
        self.store
            .discard()
            .empty()
            .map_err(failed("removing what was discarded of"))
    }
}

/// A mounted root file system, unmounted when dropped.
#[derive(Debug)]
#[must_use = "dropping it unmounts the root file system"]
pub struct RootfsMount {
    target: PathBuf,
    armed: bool,
}

impl RootfsMount {
    /// Takes over a mount made before, perhaps by another process: to unmount it.
    pub fn adopt(target: impl Into<PathBuf>) -> RootfsMount {
        RootfsMount {
            target: target.into(),
            armed: true,
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Leaves the mount to whoever comes next, who can [`RootfsMount::adopt`] it.
    pub fn keep(mut self) -> PathBuf {
        self.armed = false;
        std::mem::take(&mut self.target)
    }

    /// Unmounts it. That nothing is mounted there is no error. Processes that still use it keep it until they end,
    /// but nobody else finds it any more.
    ///
    /// # Errors
    /// [`RootfsError::File`] if the kernel refuses.
    pub fn unmount(mut self) -> Result<(), RootfsError> {
        self.armed = false;
        detach(&self.target).map_err(|source| RootfsError::File {
            action: "unmounting",
            path: self.target.clone(),
            source,
        })
    }
}

impl Drop for RootfsMount {
    fn drop(&mut self) {
        if self.armed {
            // Nobody is left to tell. `unmount` is the way that reports.
            let _ = detach(&self.target);
        }
    }
}

fn detach(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Nothing is mounted there, or there is no such folder.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd, RootfsError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| RootfsError::File {
        action: "opening",
        path: path.to_owned(),
        source: errno.into(),
    })
}

//! The one folder a guest sees of its host, and what is put there for each container:
//!
//! ```text
//! export/                     what virtio-fs serves; the guest can change nothing here
//!     <container>/rootfs          its root file system
//!     @volumes/<name>             a bind of each host path that containers may see (`shared_volumes.rs`)
//! ```
//!
//! The folders are the host's to see; the mounts on them exist in the VMM's mount namespace alone, which is entered to
//! make them, and end with it. A guest can write where a container can write, and nowhere else on the host.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::thread;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};
use serde_json::{Value, json};

use super::machine_files::MachineFiles;
use super::shared_volumes::{self, SharedVolumes, VolumeError};

/// The virtio-fs tag of the folder.
pub const TAG: &str = "bulkhead";

/// Where the guest mounts the folder.
pub const GUEST_MOUNT_POINT: &str = "/run/bulkhead/shared";

/// The folder of one machine.
#[derive(Debug)]
pub struct SharedDirectory<'a> {
    files: &'a MachineFiles,
    vmm: BorrowedFd<'a>,
}

/// Why something could not be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// A folder or file could not be made or examined.
    #[error("{action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A mount could not be made.
    #[error("{action} {}", .path.display())]
    Mount {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: rustix::io::Errno,
    },
    /// The VMM's mount namespace could not be entered.
    #[error("entering the mount namespace of the VMM")]
    Enter(#[source] Errno),
    /// No thread could be started to enter it.
    #[error("starting a thread for the mount namespace of the VMM")]
    Thread(#[source] io::Error),
    /// The configuration is not an OCI configuration.
    #[error("config.json: {0}: is required")]
    Configuration(&'static str),
    /// What a bind mount has for its source.
    #[error("mounts[{index}].source")]
    Volume {
        /// Its place.
        index: usize,
        /// The cause.
        #[source]
        source: Box<ShareError>,
    },
    /// What containers have in common could not be changed.
    #[error(transparent)]
    Common(#[from] VolumeError),
    /// A container's name would be a path.
    #[error("{0:?} is no name of a container's folder")]
    Name(String),
}

/// A mount that is attached nowhere yet, and where in the VMM's root it goes.
struct Attachment {
    tree: OwnedFd,
    target: PathBuf,
}

impl<'a> SharedDirectory<'a> {
    /// The folder of the machine of these files, whose VMM is the process of this pidfd.
    pub fn new(files: &'a MachineFiles, vmm: BorrowedFd<'a>) -> Self {
        Self { files, vmm }
    }

    /// Shares what a container of the bundle in `bundle` has of the host, and returns its configuration with every path
    /// as the guest sees it. Fields that are not ours to change stay as they are, known or not. A root that is in the guest
    /// already, `guest_root`, is not shared.
    ///
    /// # Errors
    /// When a source does not exist or cannot be bound. Nothing is shared then.
    pub fn share(
        &self,
        container: &str,
        bundle: &Path,
        config: &Value,
        guest_root: Option<&str>,
    ) -> Result<Value, ShareError> {
        let folder = folder(&self.files.export(), container)?;
        let volumes = SharedVolumes::lock(self.files)?;
        // Not the folders above it: those of a machine that has been deleted are not to come back.
        fs::create_dir(&folder).map_err(io_error("creating", &folder))?;
        let shared = self.share_below(&folder, &volumes, container, bundle, config, guest_root);
        if shared.is_err() {
            // What could not be made is the thing to tell.
            let _ = withdraw(&folder, &volumes, container);
        }
        shared
    }

    fn share_below(
        &self,
        folder: &Path,
        volumes: &SharedVolumes,
        container: &str,
        bundle: &Path,
        config: &Value,
        guest_root: Option<&str>,
    ) -> Result<Value, ShareError> {
        let mut config = config.clone();
        let guest = Path::new(GUEST_MOUNT_POINT);
        let root = config.get_mut("root").and_then(Value::as_object_mut);
        let root = root.ok_or(ShareError::Configuration("root"))?;
        let mut attachments = Vec::new();
        let mut new = Vec::new();
        if let Some(guest_root) = guest_root {
            root.insert("path".into(), json!(guest_root));
        } else {
            let path = root.get("path").and_then(Value::as_str);
            let source = bundle.join(path.ok_or(ShareError::Configuration("root.path"))?);
            root.insert("path".into(), json!(guest.join(container).join("rootfs")));
            let target = folder.join("rootfs");
            attachments.push(detached(&source, &target, Depth::Tree, Writable::AsItIs)?);
        }
        let mounts = config.get_mut("mounts").and_then(Value::as_array_mut);
        for (index, mount) in mounts
            .into_iter()
            .flatten()
            .enumerate()
            .filter(|(_, mount)| is_bind(mount))
        {
            let source = mount.get("source").and_then(Value::as_str);
            let source = bundle.join(source.ok_or(ShareError::Configuration("mounts[].source"))?);
            let (depth, writable) = asked_of(mount);
            let volume = |source| ShareError::Volume {
                index,
                source: Box::new(source),
            };
            let manner = format!("{depth:?}-{writable:?}");
            let shared = volumes.add(container, &source, &manner);
            let shared = shared.map_err(|error| volume(error.into()))?;
            if let Some(mount) = mount.as_object_mut() {
                let path = guest.join(shared_volumes::FOLDER).join(&shared.name);
                mount.insert("source".into(), json!(path));
            }
            if !shared.is_mounted && !new.contains(&shared.name) {
                attachments.push(detached(&source, &shared.target, depth, writable).map_err(volume)?);
                new.push(shared.name);
            }
        }
        for attachment in &mut attachments {
            // As the VMM sees it, whose root is the folder that holds the exported one.
            if let Ok(below) = attachment.target.strip_prefix(self.files.directory()) {
                attachment.target = Path::new("/").join(below);
            }
        }
        self.in_mount_namespace(|| attachments.into_iter().try_for_each(Attachment::attach))?;
        for name in new {
            volumes.note_mounted(&name)?;
        }
        Ok(config)
    }

    /// Takes away everything a container was given, its root included, but for the volumes that others have too.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn withdraw(files: &MachineFiles, container: &str) -> Result<(), ShareError> {
        let folder = folder(&files.export(), container)?;
        if !files.export().exists() {
            return Ok(());
        }
        withdraw(&folder, &SharedVolumes::lock(files)?, container)
    }

    /// Does something where the VMM's root is `/`, on a thread of its own: a thread that has once parted from the others
    /// does not come back.
    fn in_mount_namespace<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, ShareError> + Send,
    ) -> Result<T, ShareError> {
        thread::scope(|scope| {
            let inside = thread::Builder::new().name("mounting".to_owned());
            let inside = inside.spawn_scoped(scope, || {
                // SAFETY: what the thread stops sharing is its root and current folder, which nothing in it relies on.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.map_err(ShareError::Enter)?;
                move_into_thread_name_spaces(self.vmm, ThreadNameSpaceType::MOUNT)
                    .map_err(ShareError::Enter)?;
                work()
            });
            let inside = inside.map_err(ShareError::Thread)?;
            inside
                .join()
                .unwrap_or_else(|_| Err(ShareError::Thread(io::Error::other("the thread panicked"))))
        })
    }
}

impl Attachment {
    fn attach(self) -> Result<(), ShareError> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&self.tree, "", CWD, &self.target, flags).map_err(mounting("binding", &self.target))
    }
}

/// A folder that is removed takes what is mounted on it in other namespaces along (vfs_rmdir, since Linux 3.18).
fn withdraw(folder: &Path, volumes: &SharedVolumes, container: &str) -> Result<(), ShareError> {
    let removed = match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing", folder)(error)),
        _ => Ok(()),
    };
    removed.and(volumes.remove(container).map_err(ShareError::from))
}

fn folder(export: &Path, container: &str) -> Result<PathBuf, ShareError> {
    let mut parts = Path::new(container).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(_)), None) => Ok(export.join(container)),
        _ => Err(ShareError::Name(container.to_owned())),
    }
}

/// How much of what is mounted below a source comes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Nothing.
    Mount,
    /// All of it.
    Tree,
}

/// Where a guest may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writable {
    /// Where the host may.
    AsItIs,
    /// In mounts below the source only, as `ro` has it.
    BelowTheTop,
    /// Nowhere, as `rro` has it.
    Nowhere,
}

/// A copy of the mounts at `source`, a folder or a single file, and a `target` made to match.
fn detached(
    source: &Path,
    target: &Path,
    depth: Depth,
    writable: Writable,
) -> Result<Attachment, ShareError> {
    let metadata = fs::metadata(source).map_err(io_error("sharing", source))?;
    if metadata.is_dir() {
        create_directory(target)?;
    } else {
        create_directory(target.parent().unwrap_or(target))?;
        fs::File::create(target).map_err(io_error("creating", target))?;
    }
    Ok(Attachment {
        tree: copied(source, depth, writable)?,
        target: target.to_owned(),
    })
}

/// A copy of the mounts at `source`, attached nowhere.
fn copied(source: &Path, depth: Depth, writable: Writable) -> Result<OwnedFd, ShareError> {
    let mut copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    copy.set(OpenTreeFlags::AT_RECURSIVE, depth == Depth::Tree);
    let tree = open_tree(CWD, source, copy).map_err(mounting("opening", source))?;
    // A copy of a shared mount would go on sharing: what the host mounts there later would appear in the guest.
    container::make_mounts_private(&tree).map_err(mounting("parting from the host's", source))?;
    // Before it is attached: what appears in the exported folder is read-only from its first moment.
    match writable {
        Writable::AsItIs => Ok(()),
        Writable::BelowTheTop => container::set_read_only(&tree),
        Writable::Nowhere => container::set_read_only_recursively(&tree),
    }
    .map_err(mounting("making read-only", source))?;
    Ok(tree)
}

/// A copy of the mounts of a container's root, attached nowhere.
///
/// # Errors
/// When there is no such folder.
pub(crate) fn copy_of_root(source: &Path, read_only: bool) -> Result<OwnedFd, ShareError> {
    let writable = if read_only {
        Writable::BelowTheTop
    } else {
        Writable::AsItIs
    };
    copied(source, Depth::Tree, writable)
}

/// The same of what a bind mount of a configuration asks for.
///
/// # Errors
/// When there is no such folder or file.
pub(crate) fn copy_for_bind(mount: &Value, source: &Path) -> Result<OwnedFd, ShareError> {
    let (depth, writable) = asked_of(mount);
    copied(source, depth, writable)
}

/// How a bind mount of a configuration is to be made.
fn asked_of(mount: &Value) -> (Depth, Writable) {
    let depth = if has_option(mount, &["rbind"]) {
        Depth::Tree
    } else {
        Depth::Mount
    };
    let writable = if has_option(mount, &["rro"]) {
        Writable::Nowhere
    } else if has_option(mount, &["ro"]) {
        Writable::BelowTheTop
    } else {
        Writable::AsItIs
    };
    (depth, writable)
}

/// Whether a mount shows files of the host. A remount changes one that is there, and has no source.
pub(crate) fn is_bind(mount: &Value) -> bool {
    let is_bind = mount.get("type").and_then(Value::as_str) == Some("bind");
    (is_bind || has_option(mount, &["bind", "rbind"])) && !has_option(mount, &["remount"])
}

/// Whether a mount has one of these options.
pub(crate) fn has_option(mount: &Value, names: &[&str]) -> bool {
    let options = mount.get("options").and_then(Value::as_array);
    options
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .any(|option| names.contains(&option))
}

fn create_directory(path: &Path) -> Result<(), ShareError> {
    fs::create_dir_all(path).map_err(io_error("creating", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ShareError {
    let path = path.to_owned();
    move |source| ShareError::Io { action, path, source }
}

fn mounting(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> ShareError {
    let path = path.to_owned();
    move |source| ShareError::Mount { action, path, source }
}

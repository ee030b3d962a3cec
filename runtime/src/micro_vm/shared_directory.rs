//! The one folder a guest sees of its host, and what is put there for each container:
//!
//! ```text
//! vm/shared/              ours to arrange
//!     <container>/rootfs      its root file system, mounted here by whoever made it
//!     <container>/volumes/<n> a bind of each host path it may see
//! vm/export/              the same mounts, seen through a read-only top: what virtio-fs serves
//! ```
//!
//! A guest can write where a container can write, and nowhere else on the host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use serde_json::{Value, json};

/// The virtio-fs tag of the folder.
pub const TAG: &str = "bulkhead";

/// Where the guest mounts the folder.
pub const GUEST_MOUNT_POINT: &str = "/run/bulkhead/shared";

/// The folder of one machine. Its mounts live in the supervisor's own mount namespace; they end with it, or with this
/// value.
#[derive(Debug)]
pub struct SharedDirectory {
    shared: PathBuf,
    export: PathBuf,
    dismantled: bool,
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
    /// The configuration is not an OCI configuration.
    #[error("the configuration's {0} is missing or of the wrong kind")]
    Configuration(&'static str),
}

impl SharedDirectory {
    /// Makes the two folders below `machine` and joins them, so that what is mounted in one appears in the other.
    ///
    /// # Errors
    /// When a folder or mount cannot be made.
    pub fn create(machine: &Path) -> Result<Self, ShareError> {
        let directory = Self {
            shared: machine.join("shared"),
            export: machine.join("export"),
            dismantled: false,
        };
        for path in [&directory.shared, &directory.export] {
            create_directory(path)?;
        }
        let Self { shared, export, .. } = &directory;
        mount_bind(shared, shared).map_err(mounting("binding", shared))?;
        mount_change(shared, MountPropagationFlags::SHARED).map_err(mounting("sharing", shared))?;
        mount_bind_recursive(shared, export).map_err(mounting("binding", export))?;
        let read_only = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(export, read_only, "").map_err(mounting("making read-only", export))?;
        Ok(directory)
    }

    /// What virtio-fs is to serve.
    pub fn export(&self) -> &Path {
        &self.export
    }

    /// Where a container's root is to be mounted, made if it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn rootfs(&self, container: &str) -> Result<PathBuf, ShareError> {
        let path = self.shared.join(container).join("rootfs");
        create_directory(&path)?;
        Ok(path)
    }

    /// Shares what a container's configuration binds from the host, and returns the configuration with every path as
    /// the guest sees it. Fields that are not ours to change stay as they are, known or not.
    ///
    /// # Errors
    /// When a source does not exist or cannot be bound.
    pub fn share(&self, container: &str, config: &Value) -> Result<Value, ShareError> {
        let mut config = config.clone();
        let guest = Path::new(GUEST_MOUNT_POINT).join(container);
        let root = config.get_mut("root").and_then(Value::as_object_mut);
        let root = root.ok_or(ShareError::Configuration("root"))?;
        root.insert("path".into(), json!(guest.join("rootfs")));
        let mounts = config.get_mut("mounts").and_then(Value::as_array_mut);
        for (index, mount) in mounts
            .into_iter()
            .flatten()
            .enumerate()
            .filter(|(_, mount)| is_bind(mount))
        {
            let source = mount.get("source").and_then(Value::as_str);
            let source = PathBuf::from(source.ok_or(ShareError::Configuration("mounts[].source"))?);
            let volume = Path::new("volumes").join(index.to_string());
            let read_only = has_option(mount, &["ro"]);
            bind(&source, &self.shared.join(container).join(&volume), read_only)?;
            if let Some(mount) = mount.as_object_mut() {
                mount.insert("source".into(), json!(guest.join(&volume)));
            }
        }
        Ok(config)
    }

    /// Takes away everything a container was given, its root included.
    ///
    /// # Errors
    /// When a mount cannot be removed.
    pub fn withdraw(&self, container: &str) -> Result<(), ShareError> {
        let volumes = self.shared.join(container).join("volumes");
        let entries = match fs::read_dir(&volumes) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(io_error("listing", &volumes))?,
        };
        for entry in entries {
            let volume = entry.map_err(io_error("listing", &volumes))?.path();
            unmount(&volume, UnmountFlags::DETACH).map_err(mounting("unmounting", &volume))?;
        }
        Ok(())
    }

    /// Takes the two folders apart once the machine has gone.
    ///
    /// # Errors
    /// When a mount cannot be removed.
    pub fn dismantle(&mut self) -> Result<(), ShareError> {
        self.dismantled = true;
        for path in [&self.export, &self.shared] {
            match unmount(path, UnmountFlags::DETACH) {
                // Creation was cut short before this one.
                Err(rustix::io::Errno::INVAL) => {}
                result => result.map_err(mounting("unmounting", path))?,
            }
        }
        Ok(())
    }
}

impl Drop for SharedDirectory {
    fn drop(&mut self) {
        if !self.dismantled
            && let Err(error) = self.dismantle()
        {
            eprintln!("bulkhead: {:#}", anyhow::Error::new(error));
        }
    }
}

/// Binds `source`, a folder or a single file, to `target`, which is made to match.
fn bind(source: &Path, target: &Path, read_only: bool) -> Result<(), ShareError> {
    let metadata = fs::metadata(source).map_err(io_error("sharing", source))?;
    if metadata.is_dir() {
        create_directory(target)?;
    } else {
        create_directory(target.parent().unwrap_or(target))?;
        fs::File::create(target).map_err(io_error("creating", target))?;
    }
    let tree = rustix::mount::open_tree(
        rustix::fs::CWD,
        source,
        rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE
            | rustix::mount::OpenTreeFlags::AT_RECURSIVE
            | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(mounting("opening", source))?;
    if read_only {
        // Before it is attached: what appears in the exported folder is read-only from its first moment.
        container::set_read_only(&tree).map_err(mounting("making read-only", source))?;
    }
    rustix::mount::move_mount(
        tree,
        "",
        rustix::fs::CWD,
        target,
        rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(mounting("binding", target))
}

fn is_bind(mount: &Value) -> bool {
    mount.get("type").and_then(Value::as_str) == Some("bind") || has_option(mount, &["bind", "rbind"])
}

fn has_option(mount: &Value, names: &[&str]) -> bool {
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

//! Shared memory that several containers of a pod have at `/dev/shm`: a tmpfs of the guest's, which goes with the last of
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

/// Where they are mounted, each by its name.
const MOUNT_POINTS: &str = "/run/bulkhead/memory";

/// Where containers have it.
const DESTINATION: &str = "/dev/shm";

const FLAGS: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Why a container does not have the memory it is to share.
#[derive(Debug, thiserror::Error)]
pub(super) enum SharedMemoryError {
    /// It would be mounted elsewhere.
    #[error("{name:?} is no name of shared memory")]
    Name {
        /// What it is called.
        name: String,
    },
    /// The configuration has no place for it.
    #[error("mounts: there is no tmpfs on {DESTINATION} that could be shared")]
    NoMount,
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

/// Whether the source of a bind mount is where those are that containers share.
pub(super) fn is_source(source: &Path) -> bool {
    source.parent() == Some(Path::new(MOUNT_POINTS))
}

/// Who has which.
#[derive(Debug, Default)]
pub(super) struct SharedMemories {
    users: BTreeMap<String, BTreeSet<String>>,
}

impl SharedMemories {
    /// Has the container bind the memory of this name where its configuration has a tmpfs of its own. The first one's
    /// options are those of all.
    pub(super) fn join(
        &mut self,
        name: &str,
        container: &str,
        config: &mut Value,
    ) -> Result<(), SharedMemoryError> {
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if !is_name {
            return Err(SharedMemoryError::Name {
                name: name.to_owned(),
            });
        }
        let of_its_own = private_mount(config).ok_or(SharedMemoryError::NoMount)?;
        let path = Path::new(MOUNT_POINTS).join(name);
        if !self.users.contains_key(name) {
            make(&path, of_its_own)?;
        }
        *of_its_own = json!({
            "destination": DESTINATION, "type": "bind", "source": path,
            "options": ["bind", "nosuid", "nodev", "noexec"],
        });
        let users = self.users.entry(name.to_owned()).or_default();
        users.insert(container.to_owned());
        Ok(())
    }

    /// Forgets a container, and with the last one its memory.
    pub(super) fn leave(&mut self, container: &str) -> Result<(), SharedMemoryError> {
        let mut left = Vec::new();
        self.users.retain(|name, users| {
            let was_last = users.remove(container) && users.is_empty();
            if was_last {
                left.push(Path::new(MOUNT_POINTS).join(name));
            }
            !was_last
        });
        for path in left {
            unmount(&path, UnmountFlags::DETACH).map_err(step("unmounting", &path))?;
            fs::remove_dir(&path).map_err(step("removing", &path))?;
        }
        Ok(())
    }
}

/// The mount that the container would have to itself.
fn private_mount(config: &mut Value) -> Option<&mut Value> {
    let mounts = config.get_mut("mounts")?.as_array_mut()?;
    mounts
        .iter_mut()
        .find(|mount| mount["destination"] == DESTINATION && mount["type"] == "tmpfs")
}

/// Mounts a tmpfs with the size and mode of the one it stands for.
fn make(path: &Path, like: &Value) -> Result<(), SharedMemoryError> {
    let options: Vec<&str> = like["options"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|option| option.starts_with("size=") || option.starts_with("mode="))
        .collect();
    fs::create_dir_all(path).map_err(step("creating", path))?;
    let mounted = CString::new(options.join(","))
        .map_err(io::Error::from)
        .and_then(|data| Ok(mount("shm", path, "tmpfs", FLAGS, data.as_c_str())?));
    mounted.map_err(|source| {
        // Empty, it harms nobody; that there is no memory is the thing to tell.
        let _ = fs::remove_dir(path);
        step("mounting a tmpfs on", path)(source)
    })
}

fn step<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> SharedMemoryError {
    let path = path.to_owned();
    move |source| SharedMemoryError::Step {
        doing,
        path,
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_no_name_that_leads_elsewhere() {
        let mut config = json!({ "mounts": [{ "destination": "/dev/shm", "type": "tmpfs" }] });
        for name in ["", "..", "a/b", "/", "x"] {
            let joined = SharedMemories::default().join(name, "one", &mut config);
            assert!(matches!(joined, Err(SharedMemoryError::Name { .. })), "{name:?}");
        }
    }

    #[test]
    fn without_a_tmpfs_there_is_nothing_to_share() {
        for mounts in [
            json!([]),
            json!([{ "destination": "/dev/shm", "type": "bind", "source": "/x" }]),
            json!([{ "destination": "/tmp", "type": "tmpfs" }]),
        ] {
            let joined = SharedMemories::default().join("1-2", "one", &mut json!({ "mounts": mounts }));
            assert!(matches!(joined, Err(SharedMemoryError::NoMount)));
        }
    }
}

//! Memory that several containers of a pod share, at `/dev/shm` or as a volume: a tmpfs of the guest's, which goes with the
//! last of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use protocol::task::SharedMemory;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

/// Where they are mounted, each by its name.
const MOUNT_POINTS: &str = "/run/bulkhead/memory";

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
    #[error("mounts: there is no tmpfs on {destination} that could be shared")]
    NoMount {
        /// Where it would be.
        destination: String,
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
    /// size, owner and mode are those of all.
    pub(super) fn join(
        &mut self,
        memory: &SharedMemory,
        container: &str,
        config: &mut Value,
    ) -> Result<(), SharedMemoryError> {
        let name = &memory.name;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if !is_name {
            return Err(SharedMemoryError::Name { name: name.clone() });
        }
        let of_its_own =
            private_mount(config, &memory.destination).ok_or_else(|| SharedMemoryError::NoMount {
                destination: memory.destination.clone(),
            })?;
        let options = of_its_own["options"].as_array().into_iter().flatten();
        // Those with a value are the file system's, the others those of this container's mount.
        let (values, mut words): (Vec<&str>, Vec<&str>) = options
            .filter_map(Value::as_str)
            .partition(|option| option.contains('='));
        let path = Path::new(MOUNT_POINTS).join(name);
        if !self.users.contains_key(name) {
            make(&path, &values)?;
        }
        words.push("bind");
        *of_its_own = json!({
            "destination": memory.destination, "type": "bind", "source": path, "options": words,
        });
        let users = self.users.entry(name.clone()).or_default();
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
fn private_mount<'a>(config: &'a mut Value, destination: &str) -> Option<&'a mut Value> {
    let mounts = config.get_mut("mounts")?.as_array_mut()?;
    mounts
        .iter_mut()
        .find(|mount| mount["destination"] == destination && mount["type"] == "tmpfs")
}

/// Mounts a tmpfs of this size, owner and mode. What may be done with its files is each container's mount's to say.
fn make(path: &Path, options: &[&str]) -> Result<(), SharedMemoryError> {
    fs::create_dir_all(path).map_err(step("creating", path))?;
    let mounted = CString::new(options.join(","))
        .map_err(io::Error::from)
        .and_then(|data| Ok(mount("shm", path, "tmpfs", MountFlags::empty(), data.as_c_str())?));
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

    fn memory(destination: &str, name: &str) -> SharedMemory {
        SharedMemory {
            destination: destination.into(),
            name: name.into(),
            ..SharedMemory::default()
        }
    }

    #[test]
    fn memory_has_no_name_that_leads_elsewhere() {
        let mut config = json!({ "mounts": [{ "destination": "/dev/shm", "type": "tmpfs" }] });
        for name in ["", "..", "a/b", "/", "x"] {
            let joined = SharedMemories::default().join(&memory("/dev/shm", name), "one", &mut config);
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
            let mut config = json!({ "mounts": mounts });
            let joined = SharedMemories::default().join(&memory("/dev/shm", "1-2"), "one", &mut config);
            assert!(matches!(joined, Err(SharedMemoryError::NoMount { .. })));
        }
    }
}

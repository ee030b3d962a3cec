//! What is memory on the host and is to be memory of the guest: files that containers of a pod share there as they would on
//! the host, at the speed of memory, where pages that two processes map are the same pages.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::statfs;
use serde_json::{Value, json};

use crate::micro_vm::task::SharedMemory;

/// TMPFS_MAGIC of linux/magic.h.
const TMPFS: i64 = 0x0102_1994;

/// Where a container has its shared memory.
const SHARED_MEMORY: &str = "/dev/shm";

/// The folder in which a kubelet keeps the volumes of a pod that are of the kind `emptyDir`.
const EMPTY_DIRS: &str = "kubernetes.io~empty-dir";

/// Makes a tmpfs of a bind mount of `source`, if that is the host's shared memory, or a volume of a kubelet's that is to be
/// in memory (`emptyDir` with the medium `Memory`) and has nothing in it yet. The tmpfs is as large as the host's.
/// Containers that have the same folder on the host have the same memory in the guest: who mounts a folder *in* such a
/// volume (`subPath`) has the host's, and does not meet them there.
pub fn become_the_guests(mount: &mut Value, source: &Path) -> Option<SharedMemory> {
    let file_system = statfs(source).ok()?;
    let folder = fs::metadata(source).ok()?;
    if file_system.f_type != TMPFS || !folder.is_dir() {
        return None;
    }
    let bytes = file_system
        .f_blocks
        .saturating_mul(u64::try_from(file_system.f_bsize).unwrap_or(0));
    let destination = mount.get("destination")?.as_str()?.to_owned();
    let mut options = if destination == SHARED_MEMORY {
        vec![
            "nosuid".into(),
            "noexec".into(),
            "nodev".into(),
            "mode=1777".into(),
        ]
    } else if is_empty_dir_in_memory(source, &folder) {
        // The kubelet gives it to the pod's group.
        let mut options = vec![
            format!("mode={:o}", folder.mode() & 0o7777),
            format!("uid={}", folder.uid()),
            format!("gid={}", folder.gid()),
        ];
        let given = mount.get("options").and_then(Value::as_array);
        let words = given.into_iter().flatten().filter_map(Value::as_str);
        options.extend(
            words
                .filter(|word| ["ro", "nosuid", "noexec", "nodev"].contains(word))
                .map(str::to_owned),
        );
        options
    } else {
        return None;
    };
    options.push(format!("size={bytes}"));
    let mount = mount.as_object_mut()?;
    mount.insert("type".into(), json!("tmpfs"));
    mount.insert("source".into(), json!("shm"));
    mount.insert("options".into(), json!(options));
    Some(SharedMemory {
        destination,
        name: format!("{:x}-{:x}", folder.dev(), folder.ino()),
    })
}

fn is_empty_dir_in_memory(source: &Path, folder: &fs::Metadata) -> bool {
    let parent = source.parent();
    parent.and_then(Path::file_name) == Some(OsStr::new(EMPTY_DIRS))
        // A folder of another file system than the one above is where that was mounted.
        && parent.and_then(|parent| fs::metadata(parent).ok()).is_some_and(|parent| parent.dev() != folder.dev())
        && fs::read_dir(source).is_ok_and(|mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_as_large_as_on_the_host_and_the_same_by_whatever_path() {
        // A tmpfs on every host that runs programs.
        let mount = json!({"type": "bind", "destination": "/dev/shm", "source": "/dev/shm"});
        let (mut first, mut second) = (mount.clone(), mount);
        let shared = become_the_guests(&mut first, Path::new("/dev/shm")).unwrap();
        let again = become_the_guests(&mut second, Path::new("/dev/../dev/shm/."));
        assert_eq!(again.as_ref(), Some(&shared));
        assert_eq!(shared.destination, "/dev/shm");
        assert_eq!(first["type"], "tmpfs");
        let options = first["options"].to_string();
        assert!(
            options.contains("size=") && !options.contains("size=0"),
            "{options}"
        );
    }

    #[test]
    fn other_binds_stay_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join(EMPTY_DIRS).join("cache");
        fs::create_dir_all(&volume).unwrap();
        for (source, destination) in [
            // On a disk, or no mount point.
            (volume.as_path(), "/cache"),
            // Memory, and no volume of that kind.
            (Path::new("/dev/shm"), "/cache"),
            (Path::new("/proc"), "/dev/shm"),
            (Path::new("/no/such/folder"), "/dev/shm"),
        ] {
            let mount = json!({"type": "bind", "destination": destination, "source": source});
            let mut same = mount.clone();
            assert_eq!(become_the_guests(&mut same, source), None, "{mount}");
            assert_eq!(same, mount);
        }
    }
}

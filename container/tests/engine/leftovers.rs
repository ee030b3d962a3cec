//! What a test left behind, looked for from outside.

use std::fs;
use std::path::Path;

/// What was there before a test.
pub(crate) struct Outside {
    mounts: usize,
}

impl Outside {
    pub(crate) fn look() -> Outside {
        Outside { mounts: mounts() }
    }
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count()
}

/// Everything of the test whose folder this is. Its containers are named after the folder, so that other tests and
/// other users of the machine do not count.
pub(crate) fn find(folder: &Path, before: &Outside) -> Vec<String> {
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let mut left = Vec::new();
    cgroups_named(Path::new("/sys/fs/cgroup"), &name, 4, &mut left);
    let states = folder.join("states");
    for entry in fs::read_dir(&states).into_iter().flatten() {
        left.push(format!("state {}", entry.unwrap().path().display()));
    }
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let root = fs::read_link(process.path().join("root")).unwrap_or_default();
        let cgroup = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        // One that ended is no longer the container's but its new parent's, who may take its time.
        let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        if stat.contains(") Z ") {
            continue;
        }
        // An attendant is told where the states are.
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let names_the_test = String::from_utf8_lossy(&command).contains(&name);
        if root.starts_with(folder) || cgroup.contains(&name) || names_the_test {
            left.push(format!("process {}", process.file_name().to_string_lossy()));
        }
    }
    let now = mounts();
    if now != before.mounts {
        left.push(format!("{now} mounts where there were {}", before.mounts));
    }
    left
}

fn cgroups_named(folder: &Path, name: &str, depth: u32, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(format!("cgroup {}", entry.path().display()));
            } else if depth > 0 {
                cgroups_named(&entry.path(), name, depth - 1, found);
            }
        }
    }
}

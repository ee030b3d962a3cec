//! What a test may not leave behind: processes, mounts, cgroups, sockets, files.

use std::fs;
use std::path::{Path, PathBuf};

/// Everything found that belongs to the installation in `directory`, in words.
pub fn of(directory: &Path, run_root: &Path, root: &Path) -> Vec<String> {
    let mut left = Vec::new();
    left.extend(processes(directory));
    left.extend(mounts(directory));
    left.extend(cgroups(directory));
    left.extend(entries(&run_root.join("sandboxes"), "sandbox"));
    left.extend(entries(&root.join("containers"), "writable layer"));
    left
}

/// Processes that were started with the folder, hold a file of it, or live in a mount of it. Only the mount namespaces
/// of its own containers and supervisors show its mounts.
pub(crate) fn processes(directory: &Path) -> Vec<String> {
    let marker = directory.to_string_lossy();
    let own = std::process::id();
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        if pid == own {
            continue;
        }
        // A process that ends while we look is none that is left.
        let read = |name: &str| {
            let bytes = fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let command = read("cmdline");
        let holds = || {
            let descriptors = fs::read_dir(entry.path().join("fd"))
                .into_iter()
                .flatten()
                .flatten();
            descriptors
                .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
                .any(|target| target.to_string_lossy().contains(&*marker))
        };
        if command.contains(&*marker) || read("mountinfo").contains(&*marker) || holds() {
            left.push(format!("process {pid}: {command}"));
        }
    }
    left
}

fn mounts(directory: &Path) -> Vec<String> {
    let marker = directory.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    mounts
        .lines()
        .filter(|line| line.contains(&*marker))
        .map(|line| format!("mount: {line}"))
        .collect()
}

/// Groups of any hierarchy whose name ends as our containers' names do.
fn cgroups(directory: &Path) -> Vec<String> {
    let unique = super::unique(directory);
    let mut left = Vec::new();
    let mut folders = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().ends_with(&unique) {
                left.push(format!("cgroup: {}", entry.path().display()));
            } else if depth < 4 {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    left
}

fn entries(folder: &Path, what: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| format!("{what}: {}", entry.path().display()))
        .collect()
}

//! Where this host shows a container's cgroups, and how its version of them says what the tests look for.

use std::fs;
use std::path::{Path, PathBuf};

use container::ContainerId;
use rustix::mount::{MountFlags, mount};

const ROOT: &str = "/sys/fs/cgroup";

/// To where the container's cgroup, in either version, limits its processes.
pub(crate) const GO_TO_CGROUP: &str = "cd /sys/fs/cgroup; [ ! -d pids ] || cd pids";

/// Whether there is cgroup2 and nothing beside it, as in a guest and on newer hosts.
pub(crate) fn is_cgroup2_alone() -> bool {
    fs::exists(Path::new(ROOT).join("cgroup.controllers")).unwrap()
}

/// Whether cgroup2, which is there alone, has this controller.
pub(crate) fn cgroup2_has(controller: &str) -> bool {
    let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap();
    controllers.split_whitespace().any(|name| name == controller)
}

/// Puts cgroup2 alone on /sys/fs/cgroup of this test's own mount namespace, where it is not yet. That of a machine with
/// version 1 has hardly a controller to limit with, but it has processes, devices and a freezer.
pub(crate) fn show_cgroup2_alone() {
    if !is_cgroup2_alone() {
        mount("cgroup2", ROOT, "cgroup2", MountFlags::empty(), None).unwrap();
    }
}

/// A cgroup by its path, in a controller's hierarchy if it has one of its own.
pub(crate) fn cgroup_at(controller: &str, path: &str) -> PathBuf {
    let root = match is_cgroup2_alone() {
        true => PathBuf::from(ROOT),
        false => Path::new(ROOT).join(controller),
    };
    root.join(path.trim_start_matches('/'))
}

/// The cgroup of a container without a path of its own.
pub(crate) fn own_cgroup(controller: &str, id: &ContainerId) -> PathBuf {
    cgroup_at(controller, &format!("bulkhead-{id}"))
}

/// The lines of a file `/proc/PID/cgroup` that are of hierarchies mounted here: there may be others in other namespaces.
pub(crate) fn lines_of_mounted(text: &str) -> Vec<&str> {
    let is_mounted = |line: &&str| {
        let name = line.split(':').nth(1).unwrap();
        fs::exists(Path::new(ROOT).join(name.trim_start_matches("name="))).unwrap()
    };
    text.lines().filter(is_mounted).collect()
}

/// A file in which a cgroup says whether its processes stand still, and what to write to it.
pub(crate) struct Freezer {
    pub(crate) file: &'static str,
    pub(crate) frozen: &'static str,
    thawed: &'static str,
}

impl Freezer {
    pub(crate) fn of_this_host() -> Freezer {
        match is_cgroup2_alone() {
            true => Freezer {
                file: "cgroup.freeze",
                frozen: "1",
                thawed: "0",
            },
            false => Freezer {
                file: "freezer.state",
                frozen: "FROZEN",
                thawed: "THAWED",
            },
        }
    }

    pub(crate) fn freeze(&self, cgroup: &Path) {
        fs::write(cgroup.join(self.file), self.frozen).unwrap();
    }

    pub(crate) fn thaw(&self, cgroup: &Path) {
        fs::write(cgroup.join(self.file), self.thawed).unwrap();
    }
}

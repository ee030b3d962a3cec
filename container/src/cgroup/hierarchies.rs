//! Which cgroup hierarchies are mounted, and where.

use std::path::{Path, PathBuf};

use rustix::fs;
use serde::{Deserialize, Serialize};

use super::CgroupError;

/// Where distributions, containers and our own guest mount cgroups.
const CONVENTIONAL: &str = "/sys/fs/cgroup";
// `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` of `<linux/magic.h>`.
const VERSION1_MAGIC: i64 = 0x27_e0eb;
const CGROUP2_MAGIC: i64 = 0x6367_7270;

/// One tree of cgroups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Hierarchy {
    /// The cgroup2 tree, with or without controllers.
    Unified,
    /// A version 1 tree and its controllers, as in `cpu,cpuacct`, or its name, as in `name=systemd`.
    Version1(String),
}

impl Hierarchy {
    /// Whether it can be reached there: other mounts can hide one.
    fn is_visible_at(&self, mount_point: &Path) -> bool {
        let magic = match self {
            Hierarchy::Unified => CGROUP2_MAGIC,
            Hierarchy::Version1(_) => VERSION1_MAGIC,
        };
        fs::statfs(mount_point).is_ok_and(|statfs| statfs.f_type == magic)
    }
}

/// The mounted hierarchies with their mount points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchies(Vec<(Hierarchy, PathBuf)>);

impl Hierarchies {
    /// Looks at what this process sees mounted. Where cgroup2 is on `/sys/fs/cgroup`, that is one system call.
    pub(crate) fn mounted() -> Result<Hierarchies, CgroupError> {
        let conventional = Path::new(CONVENTIONAL);
        if Hierarchy::Unified.is_visible_at(conventional) {
            return Ok(Hierarchies(vec![(Hierarchy::Unified, conventional.to_owned())]));
        }
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = super::read(path).map_err(|errno| CgroupError::io("read", path, errno))?;
        let mut hierarchies: Vec<(Hierarchy, PathBuf)> = Vec::new();
        for (hierarchy, mount_point) in parse(&mountinfo) {
            let is_new = !hierarchies.iter().any(|(known, _)| *known == hierarchy);
            if is_new && hierarchy.is_visible_at(&mount_point) {
                hierarchies.push((hierarchy, mount_point));
            }
        }
        if hierarchies.is_empty() {
            Err(CgroupError::NotMounted)
        } else {
            Ok(Hierarchies(hierarchies))
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Hierarchy, &Path)> {
        self.0
            .iter()
            .map(|(hierarchy, mount_point)| (hierarchy, mount_point.as_path()))
    }

    /// Where the hierarchy is mounted.
    pub(crate) fn mount_point(&self, hierarchy: &Hierarchy) -> Option<&Path> {
        self.iter()
            .find_map(|(known, mount_point)| (known == hierarchy).then_some(mount_point))
    }

    #[cfg(test)]
    pub(crate) fn at(hierarchies: Vec<(Hierarchy, PathBuf)>) -> Hierarchies {
        Hierarchies(hierarchies)
    }
}

/// A cgroup hierarchy as this process sees it mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedCgroups {
    /// 1 or 2.
    pub version: u8,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The controllers that are to be had there, or the name of a version 1 hierarchy without any, as in `name=systemd`.
    pub controllers: Vec<String>,
}

/// The hierarchies that containers' cgroups are made in.
///
/// # Errors
/// When there are none, or they cannot be looked at.
pub fn mounted_cgroups() -> Result<Vec<MountedCgroups>, CgroupError> {
    described(&Hierarchies::mounted()?)
}

fn described(hierarchies: &Hierarchies) -> Result<Vec<MountedCgroups>, CgroupError> {
    let mounted = hierarchies.iter().map(|(hierarchy, mount_point)| {
        let (version, controllers) = match hierarchy {
            Hierarchy::Version1(controllers) => (1, controllers.split(',').map(str::to_owned).collect()),
            Hierarchy::Unified => {
                let path = mount_point.join("cgroup.controllers");
                let text = super::read(&path).map_err(|errno| CgroupError::io("read", &path, errno))?;
                (2, text.split_whitespace().map(str::to_owned).collect())
            }
        };
        Ok(MountedCgroups {
            version,
            mount_point: mount_point.to_owned(),
            controllers,
        })
    });
    mounted.collect()
}

/// The cgroup mounts in mountinfo (proc(5)), in its order.
fn parse(mountinfo: &str) -> Vec<(Hierarchy, PathBuf)> {
    let mut found: Vec<(Hierarchy, PathBuf)> = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mount_point) = before.split(' ').nth(4) else {
            continue;
        };
        let mut fields = after.split(' ');
        let hierarchy = match fields.next() {
            Some("cgroup2") => Hierarchy::Unified,
            Some("cgroup") => match controllers(fields.nth(1).unwrap_or_default()) {
                Some(controllers) => Hierarchy::Version1(controllers),
                None => continue,
            },
            _ => continue,
        };
        found.push((hierarchy, PathBuf::from(unescape(mount_point))));
    }
    found
}

/// The controllers, or the name, among a version 1 hierarchy's mount options.
fn controllers(options: &str) -> Option<String> {
    const OTHER_OPTIONS: [&str; 8] = [
        "rw",
        "ro",
        "xattr",
        "noprefix",
        "clone_children",
        "cpuset_v2_mode",
        "all",
        "none",
    ];
    let words = options.split(',').filter(|word| {
        !OTHER_OPTIONS.contains(word) && !word.starts_with("release_agent=") && !word.is_empty()
    });
    let words: Vec<&str> = words.collect();
    if words.is_empty() {
        None
    } else {
        Some(words.join(","))
    }
}

/// Spaces, tabs, newlines and backslashes are written as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escaped, plain)| {
            text.replace(escaped, plain)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchy_is_described_with_its_controllers() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cgroup.controllers"), "cpu memory\n").unwrap();
        let version1 = Hierarchy::Version1("pids,freezer".to_owned());
        let unified = (Hierarchy::Unified, folder.path().to_owned());
        let hierarchies = Hierarchies::at(vec![(version1, "/v1".into()), unified]);
        let described = described(&hierarchies).unwrap();
        let shown: Vec<(u8, String)> = described
            .iter()
            .map(|cgroups| (cgroups.version, cgroups.controllers.join(" ")))
            .collect();
        assert_eq!(
            shown,
            [(1, "pids freezer".to_owned()), (2, "cpu memory".to_owned())]
        );
    }

    #[test]
    fn a_version_2_hierarchy_without_its_file_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let hierarchies = Hierarchies::at(vec![(Hierarchy::Unified, folder.path().to_owned())]);
        let error = described(&hierarchies).unwrap_err().to_string();
        assert!(error.contains("cgroup.controllers"), "{error}");
    }

    #[test]
    fn a_hybrid_layout_yields_every_mount_with_its_controllers_or_name() {
        let mountinfo = "\
20 1 0:5 / /sys rw - sysfs sysfs rw
21 20 0:6 / /sys/fs/cgroup rw - tmpfs tmpfs rw
22 21 0:7 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:4 - cgroup cgroup rw,cpu,cpuacct
23 21 0:8 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,release_agent=/x,name=systemd
24 21 0:9 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
25 1 0:7 / /other\\040place rw - cgroup cgroup rw,pids
";
        assert_eq!(
            parse(mountinfo),
            [
                (
                    Hierarchy::Version1("cpu,cpuacct".into()),
                    "/sys/fs/cgroup/cpu,cpuacct".into()
                ),
                (
                    Hierarchy::Version1("name=systemd".into()),
                    "/sys/fs/cgroup/systemd".into()
                ),
                (Hierarchy::Unified, "/sys/fs/cgroup/unified".into()),
                (Hierarchy::Version1("pids".into()), "/other place".into()),
            ]
        );
    }

    #[test]
    fn a_system_without_cgroups_yields_none() {
        assert!(parse("20 1 0:5 / / rw - ext4 /dev/vda rw\nnonsense\n").is_empty());
    }
}

//! A container's cgroups, version 1 and 2 behind one face. Names and semantics are those of the kernel's
//! `Documentation/admin-guide/cgroup-v1` and `cgroup-v2.rst`.

mod below;
mod controllers;
mod device_program;
mod device_rules;
mod error;
mod events;
mod freezer;
mod hierarchies;
mod oom;
mod plan;
mod pod;
mod processes;
mod removal;
mod resources;
mod setting;
mod statistics;
mod tree;
mod update;
mod v1;
mod v2;

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, Access, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use error::CgroupError;
pub use hierarchies::{MountedCgroups, mounted_cgroups};
pub use oom::OutOfMemoryWatch;
pub use pod::{PodCgroup, PodLimits};
pub use statistics::{
    BlockIoEntry, BlockIoStatistics, CpuStatistics, CpuUsage, CpusetStatistics, HugepageStatistics,
    MemoryStatistics, MemoryUse, Pressure, PressureData, ProcessStatistics, Statistics, Throttling,
};

pub(crate) use hierarchies::{Hierarchies, Hierarchy};
pub(crate) use plan::{CgroupPlan, OWN_PREFIX};
pub(crate) use update::{LimitChange, recorded};

/// The cgroups of one container: one in each hierarchy. It is written down before any of them is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cgroup {
    pub(crate) members: Vec<Member>,
    /// The parents that did not exist before, deepest first.
    made_parents: Vec<PathBuf>,
}

/// The container's cgroup in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Member {
    pub(crate) hierarchy: Hierarchy,
    /// The cgroup's folder.
    pub(crate) path: PathBuf,
}

impl Cgroup {
    /// Decides where the cgroups will be and which parents are missing; makes nothing. A cgroup that exists is taken
    /// over if no process is in it and it is not frozen.
    pub(crate) fn locate(hierarchies: &Hierarchies, path: &Path) -> Result<Cgroup, CgroupError> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let mut made_parents = Vec::new();
        let mut members = Vec::new();
        for (hierarchy, mount_point) in hierarchies.iter() {
            let leaf = mount_point.join(relative);
            for parent in leaf
                .ancestors()
                .skip(1)
                .take_while(|parent| *parent != mount_point)
            {
                if fs::access(parent, Access::EXISTS).is_ok() {
                    break;
                }
                made_parents.push(parent.to_owned());
            }
            if fs::access(&leaf, Access::EXISTS).is_ok() {
                processes::refuse_if_occupied(&leaf)?;
                freezer::refuse_if_frozen(&leaf)?;
            }
            members.push(Member {
                hierarchy: hierarchy.clone(),
                path: leaf,
            });
        }
        Ok(Cgroup {
            members,
            made_parents,
        })
    }

    /// Makes the cgroups, all or none.
    pub(crate) fn make(&self, hierarchies: &Hierarchies) -> Result<(), CgroupError> {
        self.make_unified(hierarchies)?;
        self.make_version1(hierarchies)
    }

    /// Makes the one on the cgroup2 hierarchy, if there is one.
    pub(crate) fn make_unified(&self, hierarchies: &Hierarchies) -> Result<(), CgroupError> {
        self.make_those(hierarchies, |hierarchy| *hierarchy == Hierarchy::Unified)
    }

    /// Makes those on version 1 hierarchies; if that fails, none of any kind is left.
    pub(crate) fn make_version1(&self, hierarchies: &Hierarchies) -> Result<(), CgroupError> {
        self.make_those(hierarchies, |hierarchy| *hierarchy != Hierarchy::Unified)
    }

    /// Whether any is on a version 1 hierarchy.
    pub(crate) fn has_version1(&self) -> bool {
        self.members
            .iter()
            .any(|member| member.hierarchy != Hierarchy::Unified)
    }

    fn make_those(
        &self,
        hierarchies: &Hierarchies,
        are_these: impl Fn(&Hierarchy) -> bool,
    ) -> Result<(), CgroupError> {
        let these = self.members.iter().filter(|member| are_these(&member.hierarchy));
        self.try_to_make(hierarchies, these).inspect_err(|_| {
            for folder in self
                .members
                .iter()
                .map(|member| &member.path)
                .chain(&self.made_parents)
            {
                // One that somebody moved into meanwhile is theirs now, and stays.
                let _ = fs::rmdir(folder);
            }
        })
    }

    fn try_to_make<'a>(
        &self,
        hierarchies: &Hierarchies,
        members: impl Iterator<Item = &'a Member>,
    ) -> Result<(), CgroupError> {
        for member in members {
            let mount_point =
                hierarchies
                    .mount_point(&member.hierarchy)
                    .ok_or_else(|| CgroupError::NoHierarchy {
                        path: member.path.clone(),
                    })?;
            make_with_parents(&member.path)?;
            match &member.hierarchy {
                Hierarchy::Unified if self.members.len() == 1 => {
                    v2::enable_controllers(mount_point, &member.path, &controllers::version2_names())?;
                }
                // Beside version 1, the few controllers of cgroup2 are passed on where a limit needs them.
                Hierarchy::Unified => {}
                Hierarchy::Version1(controllers) if controllers == "cpuset" => {
                    v1::inherit_cpuset(mount_point, &member.path)?;
                }
                Hierarchy::Version1(_) => {}
            }
        }
        Ok(())
    }

    /// Sets the limits.
    pub(crate) fn limit(&self, plan: &CgroupPlan) -> Result<(), CgroupError> {
        setting::apply(&self.settings(&plan.resources)?)?;
        match self.unified().filter(|_| self.members.len() == 1) {
            Some(member) => device_program::attach(&member.path, &plan.device_rules),
            None => match self.version1("devices") {
                Some(folder) => v1::limit_devices(folder, &plan.device_rules),
                None => Err(CgroupError::NoController {
                    field: "linux.resources.devices".to_owned(),
                    controller: "devices".to_owned(),
                }),
            },
        }
    }

    /// The cgroup on the cgroup2 hierarchy, opened for clone3(2).
    pub(crate) fn open_unified(&self) -> Result<Option<OwnedFd>, CgroupError> {
        let Some(member) = self.unified() else {
            return Ok(None);
        };
        open_folder(&member.path).map(Some)
    }

    /// The files through which a process of one thread enters the version 1 cgroups by writing `0`. Through `tasks`
    /// it moves that thread only, for which the kernel needs not wait until no process anywhere forks or ends; through
    /// `cgroup.procs` it would wait for some milliseconds.
    pub(crate) fn open_entrances(&self) -> Result<Vec<OwnedFd>, CgroupError> {
        self.members
            .iter()
            .filter(|member| member.hierarchy != Hierarchy::Unified)
            .map(|member| {
                let path = member.path.join("tasks");
                fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|errno| CgroupError::io("open", &path, errno))
            })
            .collect()
    }

    fn unified(&self) -> Option<&Member> {
        self.members
            .iter()
            .find(|member| member.hierarchy == Hierarchy::Unified)
    }

    fn version1(&self, controller: &str) -> Option<&Path> {
        let is_there = |member: &&Member| match &member.hierarchy {
            Hierarchy::Unified => false,
            Hierarchy::Version1(controllers) => controllers.split(',').any(|name| name == controller),
        };
        self.members
            .iter()
            .find(is_there)
            .map(|member| member.path.as_path())
    }
}

/// Has cgroup2, where it is alone, pass on at its root the controllers that limits of containers take, ahead of the first
/// container, which is then made sooner.
///
/// # Errors
/// When there is no hierarchy, or its files cannot be read or written.
pub fn pass_on_controllers() -> Result<(), CgroupError> {
    let hierarchies = Hierarchies::mounted()?;
    let mut mounted = hierarchies.iter();
    if let (Some((Hierarchy::Unified, root)), None) = (mounted.next(), mounted.next()) {
        let child = root.join(OWN_PREFIX);
        v2::enable_controllers(root, &child, &controllers::version2_names())?;
    }
    Ok(())
}

/// Makes a cgroup and the parents it lacks. A parent can vanish in between, when the last container in it is deleted.
fn make_with_parents(folder: &Path) -> Result<(), CgroupError> {
    const ATTEMPTS: u32 = 10;
    let mut attempt = 0;
    loop {
        match fs::mkdir(folder, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => return Ok(()),
            Err(Errno::NOENT) if attempt < ATTEMPTS => {
                attempt += 1;
                make_with_parents(folder.parent().unwrap_or(folder))?;
            }
            Err(errno) => return Err(CgroupError::io(error::CREATE, folder, errno)),
        }
    }
}

fn open_folder(path: &Path) -> Result<OwnedFd, CgroupError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(path, flags, Mode::empty()).map_err(|errno| CgroupError::io("open", path, errno))
}

fn write(path: &Path, value: &str) -> Result<(), Errno> {
    let file = fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    // The kernel takes a value in one write or not at all.
    rustix::io::write(&file, value.as_bytes()).map(|_| ())
}

fn read(path: &Path) -> Result<String, Errno> {
    let io_error = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut file = std::fs::File::open(path).map_err(io_error)?;
    // The kernel's files have no length to begin with, and each of many small reads would ask it for all that is before.
    let mut text = String::with_capacity(4096);
    file.read_to_string(&mut text).map_err(io_error)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs as files;

    use super::*;

    fn hierarchies(root: &Path) -> Hierarchies {
        let mount = |name: &str| {
            let path = root.join(name);
            files::create_dir_all(&path).unwrap();
            (Hierarchy::Version1(name.to_owned()), path)
        };
        Hierarchies::at(vec![mount("memory"), mount("pids")])
    }

    #[test]
    fn exactly_the_folders_that_were_made_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let hierarchies = hierarchies(root.path());
        files::create_dir(root.path().join("memory/theirs")).unwrap();
        let cgroup = Cgroup::locate(&hierarchies, Path::new("/theirs/ours/leaf")).unwrap();
        cgroup.make(&hierarchies).unwrap();
        assert!(root.path().join("pids/theirs/ours/leaf").is_dir());
        cgroup.remove().unwrap();
        cgroup.remove().unwrap();
        assert!(root.path().join("memory/theirs").is_dir());
        assert!(!root.path().join("memory/theirs/ours").exists());
        assert!(!root.path().join("pids/theirs").exists());
    }

    #[test]
    fn a_limit_without_its_controller_is_refused_by_its_place() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::locate(&hierarchies(root.path()), Path::new("/x")).unwrap();
        let linux = r#"{"resources":{"cpu":{"shares":512}}}"#;
        let plan = CgroupPlan::new(&serde_json::from_str(linux).unwrap(), &"x".parse().unwrap()).unwrap();
        let error = cgroup.limit(&plan).unwrap_err();
        assert!(
            error.to_string().starts_with("linux.resources.cpu.shares"),
            "{error}"
        );
    }
}

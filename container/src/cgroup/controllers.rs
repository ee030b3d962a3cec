//! Which controller sets what, and in which hierarchy each is.

use std::path::{Path, PathBuf};

use super::resources::Resources;
use super::setting::Setting;
use super::{Cgroup, CgroupError, v1, v2};

/// What to write into one cgroup.
pub(super) type Settings = Result<Vec<Setting>, CgroupError>;

/// A controller, by its name in either version, and what it is told.
struct Controller {
    version1: &'static str,
    version2: &'static str,
    version1_settings: fn(&Resources) -> Settings,
    version2_settings: fn(&Resources) -> Settings,
}

const CONTROLLERS: [Controller; 9] = [
    controller("memory", "memory", v1::memory, v2::memory),
    controller("cpu", "cpu", v1::cpu, v2::cpu),
    controller("cpuset", "cpuset", v1::cpuset, v1::cpuset),
    controller("pids", "pids", v1::pids, v1::pids),
    controller("blkio", "io", v1::block_io, v2::block_io),
    controller("hugetlb", "hugetlb", v1::hugepages, v2::hugepages),
    controller("net_cls", "net_cls", v1::network_class, v2::network_class),
    controller(
        "net_prio",
        "net_prio",
        v1::network_priorities,
        v2::network_priorities,
    ),
    controller("rdma", "rdma", v1::rdma, v1::rdma),
];

const fn controller(
    version1: &'static str,
    version2: &'static str,
    version1_settings: fn(&Resources) -> Settings,
    version2_settings: fn(&Resources) -> Settings,
) -> Controller {
    Controller {
        version1,
        version2,
        version1_settings,
        version2_settings,
    }
}

/// The names of all controllers in version 2, for a tree that has them all.
pub(super) fn version2_names() -> [&'static str; CONTROLLERS.len()] {
    CONTROLLERS.map(|controller| controller.version2)
}

/// Which cgroup2 controllers the container's cgroup there has. It is read when it is first needed.
struct Unified<'a> {
    folder: &'a Path,
    has_all: bool,
    available: Option<String>,
}

impl Unified<'_> {
    /// Beside version 1 hierarchies, controllers of cgroup2 are passed on to the container when it needs them.
    fn has(&mut self, controller: &str) -> Result<bool, CgroupError> {
        let is_in = |text: &str| text.split_whitespace().any(|name| name == controller);
        if self.available.as_deref().is_some_and(is_in) {
            return Ok(true);
        }
        if !self.has_all {
            v2::enable_controllers(v2::root_above(self.folder), self.folder, &[controller])?;
        } else if self.available.is_some() {
            return Ok(false);
        }
        let available = self.available.insert(v2::controllers(self.folder)?);
        Ok(is_in(available))
    }
}

impl Cgroup {
    /// What to write for `resources`, and into which folder, each controller where it is mounted.
    pub(super) fn settings(&self, resources: &Resources) -> Result<Vec<(PathBuf, Setting)>, CgroupError> {
        let mut unified = self.unified().map(|member| Unified {
            folder: &member.path,
            has_all: self.members.len() == 1,
            available: None,
        });
        let mut writes = Vec::new();
        for controller in &CONTROLLERS {
            let version1 = self.version1(controller.version1);
            let settings = match (version1, &unified) {
                (None, Some(unified)) if unified.has_all => (controller.version2_settings)(resources)?,
                _ => (controller.version1_settings)(resources)?,
            };
            let Some(first) = settings.first() else { continue };
            let missing = |controller: &str| CgroupError::NoController {
                field: first.field.to_string(),
                controller: controller.to_owned(),
            };
            let (folder, settings) = match (version1, &mut unified) {
                (Some(folder), _) => (folder, settings),
                (None, Some(unified)) => {
                    if !unified.has(controller.version2)? {
                        return Err(missing(controller.version2));
                    }
                    (unified.folder, (controller.version2_settings)(resources)?)
                }
                (None, None) => return Err(missing(controller.version1)),
            };
            writes.extend(settings.into_iter().map(|setting| (folder.to_owned(), setting)));
        }
        for (file, value) in &resources.unified {
            let field = format!("linux.resources.unified[`{file}`]");
            let folder = self.unified_folder(file, &field, &mut unified)?;
            writes.push((folder.to_owned(), Setting::new(file, value, field)));
        }
        Ok(writes)
    }

    /// Where a file of cgroup2 is, if its controller is there and not on version 1.
    fn unified_folder<'a>(
        &self,
        file: &str,
        field: &str,
        unified: &mut Option<Unified<'a>>,
    ) -> Result<&'a Path, CgroupError> {
        let controller = file.split('.').next().unwrap_or_default();
        let version1_name = CONTROLLERS
            .iter()
            .find(|known| known.version2 == controller)
            .map_or(controller, |known| known.version1);
        match unified {
            Some(unified) if self.version1(version1_name).is_none() => {
                // The files of the cgroup itself belong to no controller.
                if controller == "cgroup" || unified.has(controller)? {
                    Ok(unified.folder)
                } else {
                    Err(CgroupError::NoController {
                        field: field.to_owned(),
                        controller: controller.to_owned(),
                    })
                }
            }
            _ => Err(CgroupError::NotExpressible {
                field: field.to_owned(),
                problem: "is a file of cgroup2, and its controller is on version 1 here".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Hierarchy, Member};
    use super::*;

    /// A cgroup in each of the version 1 hierarchies, and perhaps one with these controllers in cgroup2.
    fn cgroup(root: &Path, version1: &[&str], version2: Option<&str>) -> Cgroup {
        let mut members: Vec<Member> = version1
            .iter()
            .map(|name| Member {
                hierarchy: Hierarchy::Version1((*name).to_owned()),
                path: root.join(name).join("leaf"),
            })
            .collect();
        if let Some(controllers) = version2 {
            let path = root.join("unified/leaf");
            fs::create_dir_all(&path).unwrap();
            for folder in [root.join("unified"), path.clone()] {
                fs::write(folder.join("cgroup.controllers"), controllers).unwrap();
                fs::write(folder.join("cgroup.subtree_control"), "").unwrap();
            }
            members.push(Member {
                hierarchy: Hierarchy::Unified,
                path,
            });
        }
        Cgroup {
            members,
            made_parents: Vec::new(),
        }
    }

    fn files(cgroup: &Cgroup, resources: &str) -> Result<Vec<String>, String> {
        let resources = Resources::new(&serde_json::from_str(resources).unwrap()).unwrap();
        let settings = cgroup.settings(&resources).map_err(|error| error.to_string())?;
        Ok(settings
            .into_iter()
            .map(|(folder, setting)| {
                let hierarchy = folder.parent().unwrap().file_name().unwrap();
                format!("{}/{}", hierarchy.to_string_lossy(), setting.file)
            })
            .collect())
    }

    const MEMORY_AND_HUGEPAGES: &str =
        r#"{"memory":{"limit":4096,"swappiness":1},"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#;

    #[test]
    fn each_controller_is_told_where_it_is() {
        let root = tempfile::tempdir().unwrap();
        let hybrid = cgroup(root.path(), &["memory"], Some("hugetlb\n"));
        assert_eq!(
            files(&hybrid, MEMORY_AND_HUGEPAGES).unwrap(),
            [
                "memory/memory.limit_in_bytes",
                "memory/memory.swappiness",
                "unified/hugetlb.2MB.max",
                "unified/hugetlb.2MB.rsvd.max"
            ]
        );
        let passed_on = fs::read_to_string(root.path().join("unified/cgroup.subtree_control")).unwrap();
        assert_eq!(passed_on, "+hugetlb");
    }

    #[test]
    fn a_missing_controller_is_named_with_what_asks_for_it() {
        let root = tempfile::tempdir().unwrap();
        for version2 in [None, Some("cpu\n")] {
            let version1 = cgroup(root.path(), &["memory"], version2);
            let error = files(&version1, MEMORY_AND_HUGEPAGES).unwrap_err();
            assert_eq!(
                error,
                "linux.resources.hugepageLimits[0]: the cgroup controller `hugetlb` is not available"
            );
        }
        let unified = cgroup(root.path(), &[], Some("memory cpu\n"));
        let error = files(&unified, r#"{"cpu":{"cpus":"0"}}"#).unwrap_err();
        assert!(
            error.contains("cpu.cpus: the cgroup controller `cpuset`"),
            "{error}"
        );
    }

    #[test]
    fn files_of_cgroup2_are_written_where_their_controller_is_on_it() {
        let root = tempfile::tempdir().unwrap();
        let unified = r#"{"unified":{"memory.high":"1","hugetlb.2MB.max":"0","cgroup.max.depth":"3"}}"#;
        let alone = cgroup(root.path(), &[], Some("memory hugetlb\n"));
        assert_eq!(files(&alone, unified).unwrap().len(), 3);
        let hybrid = cgroup(root.path(), &["memory"], Some("hugetlb\n"));
        let error = files(&hybrid, unified).unwrap_err();
        assert!(
            error.contains("`memory.high`") && error.contains("version 1"),
            "{error}"
        );
        let version1 = cgroup(root.path(), &["memory"], None);
        assert!(files(&version1, r#"{"unified":{"hugetlb.2MB.max":"0"}}"#).is_err());
        let error = files(&alone, r#"{"unified":{"io.max":"8:0 rbps=1"}}"#).unwrap_err();
        assert!(error.contains("the cgroup controller `io`"), "{error}");
    }
}

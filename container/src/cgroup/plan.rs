//! The configuration's `linux.cgroupsPath`, and all that is set in the cgroups there.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxResources};

use super::device_rules::{self, DeviceRule};
use super::resources::{self, Resources};
use crate::id::ContainerId;
use crate::plan::SpecError;

/// What the cgroups of containers begin with whose configuration names none.
pub(crate) const OWN_PREFIX: &str = "bulkhead";

/// Where the container's cgroups are and what they limit.
#[derive(Debug)]
pub(crate) struct CgroupPlan {
    /// Absolute within each hierarchy.
    pub(crate) path: PathBuf,
    pub(crate) resources: Resources,
    /// In order; a later rule overrides an earlier one.
    pub(crate) device_rules: Vec<DeviceRule>,
    /// What is accepted and has no effect.
    pub(crate) warnings: Vec<String>,
}

impl CgroupPlan {
    pub(crate) fn new(linux: &Linux, id: &ContainerId) -> Result<CgroupPlan, SpecError> {
        let default = LinuxResources::default();
        let resources = linux.resources().as_ref().unwrap_or(&default);
        Ok(CgroupPlan {
            path: path(linux.cgroups_path().as_deref(), id)?,
            resources: Resources::new(resources)?.without_defaults(),
            device_rules: device_rules::plan(resources.devices().as_deref().unwrap_or_default())?,
            warnings: resources::ignored(resources),
        })
    }
}

/// An absolute path counts from the root of each hierarchy. The specification leaves it to the runtime what a
/// relative one counts from, which is that root too, where others that begin there have it, and where a container without
/// a path is: also at the root, since a parent that comes and goes with its only child would be half of what its cgroups
/// cost.
pub(super) fn path(path: Option<&Path>, id: &ContainerId) -> Result<PathBuf, SpecError> {
    let root = Path::new("/");
    let path = match path.filter(|path| !path.as_os_str().is_empty()) {
        None => root.join(format!("{OWN_PREFIX}-{id}")),
        Some(path) => root.join(path),
    };
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(SpecError::invalid("linux.cgroupsPath", "must not hold `..`"));
    }
    let path: PathBuf = path.components().collect();
    if path == root {
        return Err(SpecError::invalid(
            "linux.cgroupsPath",
            "must name a cgroup of the container's own",
        ));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(linux: &str) -> Result<CgroupPlan, SpecError> {
        CgroupPlan::new(&serde_json::from_str(linux).unwrap(), &"box".parse().unwrap())
    }

    #[test]
    fn relative_paths_count_from_the_root_like_absolute_ones() {
        for (linux, path) in [
            ("{}", "/bulkhead-box"),
            (r#"{"cgroupsPath":"a/b"}"#, "/a/b"),
            (r#"{"cgroupsPath":"/a//b/"}"#, "/a/b"),
        ] {
            assert_eq!(plan(linux).unwrap().path, Path::new(path));
        }
    }

    #[test]
    fn paths_without_sense_are_refused_by_their_place() {
        for path in ["/a/../..", "/", "."] {
            let linux = format!(r#"{{"cgroupsPath":"{path}"}}"#);
            assert_eq!(plan(&linux).unwrap_err().field(), "linux.cgroupsPath");
        }
    }
}

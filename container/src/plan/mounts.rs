//! The configuration's `mounts`.

use std::ffi::CString;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use super::mount_options::Bind;
use super::spec_error::c_string;
use super::{MountOptions, SpecError};

/// One mount, in the order of the configuration.
#[derive(Debug)]
pub(crate) struct MountPlan {
    /// Its place in `mounts`, for messages.
    pub(crate) index: usize,
    /// Where, inside the container's root.
    pub(crate) destination: PathBuf,
    pub(crate) kind: MountKind,
    pub(crate) options: MountOptions,
}

/// What is mounted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MountKind {
    /// A part of the caller's tree of files.
    Bind { source: PathBuf, recursive: bool },
    /// A file system of its own.
    FileSystem {
        kind: CString,
        source: CString,
        data: CString,
    },
    /// The container's own cgroups, whatever their version.
    Cgroup,
}

impl MountPlan {
    /// Whether this puts somebody else's files where the default devices would be made.
    pub(crate) fn replaces_device_folder(&self) -> bool {
        matches!(self.kind, MountKind::Bind { .. }) && self.destination == Path::new("/dev")
    }
}

pub(super) fn plan(bundle: &Path, mounts: &[Mount]) -> Result<Vec<MountPlan>, SpecError> {
    mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| plan_one(bundle, index, mount))
        .collect()
}

fn plan_one(bundle: &Path, index: usize, mount: &Mount) -> Result<MountPlan, SpecError> {
    for (mappings, name) in [
        (mount.uid_mappings(), "uidMappings"),
        (mount.gid_mappings(), "gidMappings"),
    ] {
        if mappings.as_ref().is_some_and(|mappings| !mappings.is_empty()) {
            return Err(SpecError::unsupported(format!("mounts[{index}].{name}")));
        }
    }
    let words = mount.options().as_deref().unwrap_or_default();
    let mut options = MountOptions::parse(words, |word| format!("mounts[{index}].options[{word}]"))?;
    let kind = mount.typ().as_deref().unwrap_or_default();
    if kind == "bind" && options.bind.is_none() {
        options.bind = Some(Bind::One);
    }
    let kind = match (options.bind, kind) {
        (Some(bind), _) => bind_mount(bundle, index, mount, &options, bind)?,
        (None, "") => return Err(SpecError::missing(format!("mounts[{index}].type"))),
        (None, "cgroup" | "cgroup2") => MountKind::Cgroup,
        (None, kind) => {
            let field = |name: &str| format!("mounts[{index}].{name}");
            let source = mount
                .source()
                .as_ref()
                .map_or(kind, |source| source.to_str().unwrap_or(kind));
            MountKind::FileSystem {
                kind: c_string(|| field("type"), kind)?,
                source: c_string(|| field("source"), source)?,
                data: c_string(|| field("options"), options.data.as_str())?,
            }
        }
    };
    Ok(MountPlan {
        index,
        destination: destination(index, mount.destination())?,
        kind,
        options,
    })
}

fn bind_mount(
    bundle: &Path,
    index: usize,
    mount: &Mount,
    options: &MountOptions,
    bind: Bind,
) -> Result<MountKind, SpecError> {
    let source = mount
        .source()
        .as_ref()
        .filter(|source| !source.as_os_str().is_empty());
    let source = source.ok_or_else(|| SpecError::missing(format!("mounts[{index}].source")))?;
    if !options.data.is_empty() {
        let problem = format!("`{}` means nothing on a bind mount", options.data);
        return Err(SpecError::invalid(format!("mounts[{index}].options"), problem));
    }
    Ok(MountKind::Bind {
        source: bundle.join(source),
        recursive: bind == Bind::Recursive,
    })
}

/// The destination without `.` and doubled slashes. `..` stays: what it means depends on symbolic links, and the
/// kernel resolves both inside the root.
fn destination(index: usize, path: &Path) -> Result<PathBuf, SpecError> {
    let mut destination = PathBuf::from("/");
    destination.extend(
        path.components()
            .filter(|part| !matches!(part, Component::RootDir | Component::CurDir)),
    );
    if destination == Path::new("/") {
        let problem = "is the root itself, which `root` describes";
        return Err(SpecError::invalid(
            format!("mounts[{index}].destination"),
            problem,
        ));
    }
    Ok(destination)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_json(mounts: &str) -> Result<Vec<MountPlan>, SpecError> {
        let mounts: Vec<Mount> = serde_json::from_str(mounts).unwrap();
        plan(Path::new("/bundle"), &mounts)
    }

    #[test]
    fn a_relative_bind_source_is_relative_to_the_bundle() {
        let plan = plan_json(r#"[{"destination":"/x","source":"data","options":["rbind"]}]"#).unwrap();
        let bind = MountKind::Bind {
            source: "/bundle/data".into(),
            recursive: true,
        };
        assert_eq!(plan[0].kind, bind);
    }

    #[test]
    fn a_bind_over_dev_replaces_the_device_folder_and_a_tmpfs_does_not() {
        let bind = plan_json(r#"[{"destination":"//dev/.","source":"/dev","type":"bind"}]"#).unwrap();
        assert!(bind[0].replaces_device_folder());
        let tmpfs = plan_json(r#"[{"destination":"/dev","source":"tmpfs","type":"tmpfs"}]"#).unwrap();
        assert!(!tmpfs[0].replaces_device_folder());
    }

    #[test]
    fn mounts_without_meaning_are_refused_by_their_place() {
        for (mounts, field) in [
            (r#"[{"destination":"/x"}]"#, "mounts[0].type"),
            (r#"[{"destination":"/x","options":["bind"]}]"#, "mounts[0].source"),
            (r#"[{"destination":"/","type":"tmpfs"}]"#, "mounts[0].destination"),
            (
                r#"[{"destination":"/x","source":"/y","options":["bind","size=1m"]}]"#,
                "mounts[0].options",
            ),
            (
                r#"[{"destination":"/x","source":"/y","options":["bind"],
                     "uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#,
                "mounts[0].uidMappings",
            ),
        ] {
            assert_eq!(plan_json(mounts).unwrap_err().field(), field);
        }
    }
}

//! The configuration's `mounts`.

use std::ffi::CString;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;

use super::mount_options::Bind;
use super::namespaces::IdMapping;
use super::spec_error::c_string;
use super::{MountOptions, Namespace, NamespacePlan, SpecError};

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
    Bind {
        source: PathBuf,
        recursive: bool,
        id_mapping: Option<IdMapped>,
    },
    /// A file system of its own.
    FileSystem {
        kind: CString,
        source: CString,
        /// The caller's `/sys` is bound where the container may not have one of its own.
        or_callers: bool,
    },
    /// Other options for what is mounted already; with `bind` only for the mount, not for its file system.
    Remount { bind: bool },
    /// The container's own cgroups: those of cgroup2 alone, or whatever there is.
    Cgroup { unified_only: bool },
}

/// A mount whose files belong to others than on its file system.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IdMapped {
    pub(crate) mapping: MappingOfMount,
    /// Whether what is mounted below is mapped too.
    pub(crate) recursive: bool,
}

/// Which ids become which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MappingOfMount {
    /// Those of the file system, as `container`, to those of the host.
    Ids {
        uids: Vec<IdMapping>,
        gids: Vec<IdMapping>,
    },
    /// As in the user namespace of this file.
    Namespace(PathBuf),
}

impl MountPlan {
    /// Whether this puts somebody else's files where the default devices would be made.
    pub(crate) fn replaces_device_folder(&self) -> bool {
        matches!(self.kind, MountKind::Bind { .. }) && self.destination == Path::new("/dev")
    }

    /// Whether other things have to be made on this mount, once it is there, before it can become read-only: mount
    /// points on a tmpfs, devices in `/dev`.
    pub(crate) fn is_filled_later(&self) -> bool {
        match &self.kind {
            MountKind::FileSystem { kind, .. } => {
                kind.as_c_str() == c"tmpfs" || self.destination == Path::new("/dev")
            }
            MountKind::Bind { .. } | MountKind::Remount { .. } | MountKind::Cgroup { .. } => false,
        }
    }
}

pub(super) fn plan(
    bundle: &Path,
    mounts: &[Mount],
    namespaces: &NamespacePlan,
) -> Result<Vec<MountPlan>, SpecError> {
    mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| plan_one(bundle, index, mount, namespaces))
        .collect()
}

fn plan_one(
    bundle: &Path,
    index: usize,
    mount: &Mount,
    namespaces: &NamespacePlan,
) -> Result<MountPlan, SpecError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let mut options = MountOptions::parse(mount.options().as_deref().unwrap_or_default());
    let kind = mount.typ().as_deref().unwrap_or_default();
    if kind == "bind" && options.bind.is_none() {
        options.bind = Some(Bind::One);
    }
    let id_mapping = id_mapping(index, mount, &options, namespaces)?;
    if options.copy_up && (options.bind.is_some() || kind != "tmpfs") {
        return Err(SpecError::invalid(
            field("options"),
            "only a tmpfs can have `tmpcopyup`",
        ));
    }
    let kind = match (options.bind, kind) {
        _ if options.remount => remount(index, &options)?,
        (Some(bind), _) => bind_mount(bundle, index, mount, &options, bind, id_mapping)?,
        (None, "") => return Err(SpecError::missing(field("type"))),
        (None, kind @ ("cgroup" | "cgroup2")) => {
            only_known_data(
                index,
                &options,
                &["nsdelegate", "memory_recursiveprot", "memory_localevents"],
            )?;
            MountKind::Cgroup {
                unified_only: kind == "cgroup2",
            }
        }
        (None, kind) => {
            let source = mount
                .source()
                .as_ref()
                .map_or(kind, |source| source.to_str().unwrap_or(kind));
            c_string(|| field("options"), options.data.join(","))?;
            MountKind::FileSystem {
                kind: c_string(|| field("type"), kind)?,
                source: c_string(|| field("source"), source)?,
                or_callers: kind == "sysfs"
                    && namespaces.isolates(Namespace::User)
                    && !namespaces.creates(Namespace::Network),
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
    id_mapping: Option<IdMapped>,
) -> Result<MountKind, SpecError> {
    let source = mount
        .source()
        .as_ref()
        .filter(|source| !source.as_os_str().is_empty());
    let source = source.ok_or_else(|| SpecError::missing(format!("mounts[{index}].source")))?;
    // A file system's own settings are ignored, as the kernel does; a bare word could be a misspelt protection.
    if let Some(word) = options.data.iter().find(|word| !word.contains('=')) {
        return Err(meaningless(index, word));
    }
    Ok(MountKind::Bind {
        source: bundle.join(source),
        recursive: bind == Bind::Recursive,
        id_mapping,
    })
}

fn remount(index: usize, options: &MountOptions) -> Result<MountKind, SpecError> {
    if options.bind.is_some() {
        only_known_data(index, options, &[])?;
    }
    Ok(MountKind::Remount {
        bind: options.bind.is_some(),
    })
}

/// Refuses words that would have to be the file system's and cannot be.
fn only_known_data(index: usize, options: &MountOptions, known: &[&str]) -> Result<(), SpecError> {
    match options.data.iter().find(|word| !known.contains(&word.as_str())) {
        None => Ok(()),
        Some(word) => Err(meaningless(index, word)),
    }
}

fn meaningless(index: usize, word: &str) -> SpecError {
    SpecError::invalid(
        format!("mounts[{index}].options"),
        format!("`{word}` means nothing on such a mount"),
    )
}

/// The mount's own mapping, or with `idmap` or `ridmap` alone, that of the container's user namespace.
fn id_mapping(
    index: usize,
    mount: &Mount,
    options: &MountOptions,
    namespaces: &NamespacePlan,
) -> Result<Option<IdMapped>, SpecError> {
    let field = |name: &str| format!("mounts[{index}].{name}");
    let uids = IdMapping::all(&field("uidMappings"), mount.uid_mappings())?;
    let gids = IdMapping::all(&field("gidMappings"), mount.gid_mappings())?;
    let recursive = options.id_mapping == Some(Bind::Recursive);
    let mapping = match (uids.is_empty(), gids.is_empty()) {
        (true, true) if options.id_mapping.is_none() => return Ok(None),
        (true, true) => namespaces.mapping_of_mounts().ok_or_else(|| {
            let problem = "`idmap` needs uidMappings and gidMappings, or a container with a user namespace";
            SpecError::invalid(field("options"), problem)
        })?,
        (true, false) => {
            return Err(SpecError::invalid(
                field("uidMappings"),
                "is required with gidMappings",
            ));
        }
        (false, true) => {
            return Err(SpecError::invalid(
                field("gidMappings"),
                "is required with uidMappings",
            ));
        }
        (false, false) => MappingOfMount::Ids { uids, gids },
    };
    if options.bind.is_none() || options.remount {
        let place = if options.id_mapping.is_some() {
            "options"
        } else {
            "uidMappings"
        };
        return Err(SpecError::invalid(
            field(place),
            "only a bind mount can be id-mapped",
        ));
    }
    Ok(Some(IdMapped { mapping, recursive }))
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

/// Destinations that are relative, which the runtime specification no longer allows.
pub(super) fn warnings(mounts: &[Mount]) -> Vec<String> {
    let is_relative = |(_, mount): &(usize, &Mount)| mount.destination().is_relative();
    let warn = |(index, mount): (usize, &Mount)| {
        let path = mount.destination().display();
        format!("mounts[{index}].destination: `{path}` is relative, and taken from /: write an absolute path")
    };
    mounts.iter().enumerate().filter(is_relative).map(warn).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_json(mounts: &str) -> Result<Vec<MountPlan>, SpecError> {
        plan_with(mounts, r#"[{"type":"mount"}]"#)
    }

    fn plan_with(mounts: &str, namespaces: &str) -> Result<Vec<MountPlan>, SpecError> {
        let mounts: Vec<Mount> = serde_json::from_str(mounts).unwrap();
        let linux = format!(
            r#"{{"namespaces":{namespaces},"uidMappings":{UIDS},"gidMappings":[{{"containerID":0,"hostID":7,"size":9}}]}}"#
        );
        let linux = if namespaces.contains("user") {
            linux
        } else {
            format!(r#"{{"namespaces":{namespaces}}}"#)
        };
        let namespaces = NamespacePlan::new(&serde_json::from_str(&linux).unwrap()).unwrap();
        plan(Path::new("/bundle"), &mounts, &namespaces)
    }

    const UIDS: &str = r#"[{"containerID":0,"hostID":5,"size":9}]"#;

    fn ids(container: u32, host: u32, size: u32) -> Vec<IdMapping> {
        vec![IdMapping {
            container,
            host,
            size,
        }]
    }

    #[test]
    fn a_relative_bind_source_is_relative_to_the_bundle() {
        let plan = plan_json(r#"[{"destination":"/x","source":"data","options":["rbind"]}]"#).unwrap();
        let bind = MountKind::Bind {
            source: "/bundle/data".into(),
            recursive: true,
            id_mapping: None,
        };
        assert_eq!(plan[0].kind, bind);
    }

    #[test]
    fn a_relative_destination_begins_at_the_root() {
        let plan = plan_json(r#"[{"destination":"var//run/.","type":"tmpfs"}]"#).unwrap();
        assert_eq!(plan[0].destination, Path::new("/var/run"));
    }

    #[test]
    fn a_bind_over_dev_replaces_the_device_folder_and_a_tmpfs_does_not() {
        let bind = plan_json(r#"[{"destination":"//dev/.","source":"/dev","type":"bind"}]"#).unwrap();
        assert!(bind[0].replaces_device_folder());
        let tmpfs = plan_json(r#"[{"destination":"/dev","source":"tmpfs","type":"tmpfs"}]"#).unwrap();
        assert!(!tmpfs[0].replaces_device_folder());
    }

    #[test]
    fn a_mount_is_mapped_by_its_own_mappings_or_the_containers() {
        let mapping =
            |mounts: &str, namespaces: &str| match plan_with(mounts, namespaces).unwrap().remove(0).kind {
                MountKind::Bind { id_mapping, .. } => id_mapping.unwrap(),
                kind => panic!("{kind:?}"),
            };
        let own = format!(
            r#"[{{"destination":"/x","source":"/y","options":["bind"],"uidMappings":{UIDS},"gidMappings":{UIDS}}}]"#
        );
        assert_eq!(
            mapping(&own, r#"[{"type":"mount"}]"#),
            IdMapped {
                mapping: MappingOfMount::Ids {
                    uids: ids(0, 5, 9),
                    gids: ids(0, 5, 9)
                },
                recursive: false
            }
        );
        let word_only = r#"[{"destination":"/x","source":"/y","options":["rbind","ridmap"]}]"#;
        assert_eq!(
            mapping(word_only, r#"[{"type":"mount"},{"type":"user"}]"#),
            IdMapped {
                mapping: MappingOfMount::Ids {
                    uids: ids(0, 5, 9),
                    gids: ids(0, 7, 9)
                },
                recursive: true
            }
        );
    }

    #[test]
    fn mounts_without_meaning_are_refused_by_their_place() {
        for (mounts, field) in [
            (r#"[{"destination":"/x"}]"#, "mounts[0].type"),
            (r#"[{"destination":"/x","options":["bind"]}]"#, "mounts[0].source"),
            (r#"[{"destination":"/","type":"tmpfs"}]"#, "mounts[0].destination"),
            (
                r#"[{"destination":"/x","source":"/y","options":["bind","noexe"]}]"#,
                "mounts[0].options",
            ),
            (
                r#"[{"destination":"/x","source":"/y","options":["bind"],
                     "uidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#,
                "mounts[0].gidMappings",
            ),
            (
                r#"[{"destination":"/x","type":"tmpfs",
                     "uidMappings":[{"containerID":0,"hostID":1,"size":1}],
                     "gidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#,
                "mounts[0].uidMappings",
            ),
            (
                r#"[{"destination":"/x","source":"/y","options":["bind"],
                     "uidMappings":[{"containerID":0,"hostID":1,"size":0}],
                     "gidMappings":[{"containerID":0,"hostID":1,"size":1}]}]"#,
                "mounts[0].uidMappings[0].size",
            ),
            (
                r#"[{"destination":"/x","source":"/y","options":["bind","idmap"]}]"#,
                "mounts[0].options",
            ),
            (
                r#"[{"destination":"/x","source":"/y","options":["bind","tmpcopyup"]}]"#,
                "mounts[0].options",
            ),
            (
                r#"[{"destination":"/x","options":["bind","remount","size=1m"]}]"#,
                "mounts[0].options",
            ),
            (
                r#"[{"destination":"/x","type":"cgroup","options":["cpu"]}]"#,
                "mounts[0].options",
            ),
        ] {
            assert_eq!(plan_json(mounts).unwrap_err().field(), field);
        }
    }
}

//! The configuration, judged and translated before anything is touched.
//!
//! A [`Plan`] holds what the container's first process will do, in the kernel's own terms. Making it needs no
//! privilege and opens nothing, so every mistake in a configuration is found, with its JSON path, while there is
//! nothing to undo.

mod capabilities;
mod devices;
mod execution;
mod hooks;
mod labels;
mod map_order;
mod mount_options;
mod mounts;
mod namespaces;
mod net_devices;
mod number_list;
mod process;
mod rlimits;
mod scheduling;
mod spec_error;
mod sysctl;
mod unsupported;

use std::path::PathBuf;

pub(crate) use capabilities::{CAPABILITIES, CapabilityPlan};
pub(crate) use devices::DeviceNode;
pub(crate) use execution::ExecutionPlan;
pub(crate) use hooks::{HOOKS, Hook, HookPlan};
pub(crate) use labels::LabelPlan;
pub(crate) use map_order::by_key;
use mount_options::propagation_flag;
pub(crate) use mount_options::{AttributeChange, MS_LAZYTIME, MountOptions, mount_option_words};
pub(crate) use mounts::{IdMapped, MappingOfMount, MountKind, MountPlan};
pub(crate) use namespaces::{
    IdMapping, JoinedNamespace, Namespace, NamespacePlan, id_map, id_on_the_host, parse_id_map,
};
pub(crate) use net_devices::NetDevice;
pub(crate) use process::{ProcessPlan, UserPlan, WindowSize};
pub(crate) use rlimits::ResourceLimit;
pub(crate) use scheduling::SchedulingPlan;
pub use spec_error::SpecError;
pub(crate) use sysctl::kind as sysctl_kind;

use crate::bundle::Bundle;
use crate::cgroup::CgroupPlan;
use crate::id::ContainerId;
use crate::seccomp::SeccompPlan;

/// Everything a container's configuration asks for.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) root: RootPlan,
    pub(crate) namespaces: NamespacePlan,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) mounts: Vec<MountPlan>,
    /// What the mounts that are made for the container are labelled with, which is among their options too.
    pub(crate) mount_label: Option<String>,
    /// None when the configuration brings a `/dev` of its own, which is then left as it is.
    pub(crate) devices: Option<Vec<DeviceNode>>,
    pub(crate) masked_paths: Vec<ListedPath>,
    pub(crate) read_only_paths: Vec<ListedPath>,
    /// Files below `/proc/sys` and what to write to each.
    pub(crate) sysctl: Vec<(PathBuf, String)>,
    pub(crate) process: ProcessPlan,
    pub(crate) seccomp: Option<SeccompPlan>,
    pub(crate) execution: ExecutionPlan,
    pub(crate) cgroup: CgroupPlan,
    pub(crate) hooks: HookPlan,
    pub(crate) net_devices: Vec<NetDevice>,
    /// What is honoured and should still be changed.
    pub(crate) warnings: Vec<String>,
}

/// A path inside the container.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ListedPath {
    /// Its place in the configuration's list, for messages.
    pub(crate) index: usize,
    pub(crate) path: PathBuf,
}

/// The root file system.
#[derive(Debug)]
pub(crate) struct RootPlan {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    /// One of MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE, and whether for all mounts below too.
    pub(crate) propagation: (u64, bool),
}

impl Plan {
    pub(crate) fn new(bundle: &Bundle, id: &ContainerId) -> Result<Plan, SpecError> {
        let spec = bundle.spec();
        version(spec.version())?;
        unsupported::refuse(spec)?;
        let linux = spec.linux().as_ref().ok_or_else(|| SpecError::missing("linux"))?;
        let namespaces = NamespacePlan::new(linux)?;
        let mut warnings = mounts::warnings(spec.mounts().as_deref().unwrap_or_default());
        let masked_paths = absolute("linux.maskedPaths", linux.masked_paths())?;
        let read_only_paths = absolute("linux.readonlyPaths", linux.readonly_paths())?;
        if !namespaces.isolates(Namespace::Mount) {
            for (paths, field) in [
                (&masked_paths, "linux.maskedPaths"),
                (&read_only_paths, "linux.readonlyPaths"),
            ] {
                if !paths.is_empty() {
                    let problem =
                        "needs a mount namespace that is not the caller's: what hides could be unmounted";
                    return Err(SpecError::invalid(field, problem));
                }
            }
            warnings.push(
                "linux.namespaces: without a mount namespace the container's mounts are the caller's, and only \
                 chroot(2) keeps it in its root"
                    .to_owned(),
            );
        }
        // "REQUIRED when `start` is called" (runtime specification, "Process"), and not before.
        let process = match spec.process() {
            Some(process) => ProcessPlan::new(process)?,
            None => ProcessPlan::unset(),
        };
        let mut mounts = mounts::plan(
            bundle.directory(),
            spec.mounts().as_deref().unwrap_or_default(),
            &namespaces,
        )?;
        let mount_label = labels::mount_label(linux)?;
        if let Some(label) = &mount_label {
            labels::label_mounts(&mut mounts, label);
        }
        let hostname = named(spec.hostname(), "hostname", &namespaces)?;
        let domainname = named(spec.domainname(), "domainname", &namespaces)?;
        let owns_device_folder = !mounts.iter().any(MountPlan::replaces_device_folder);
        Ok(Plan {
            root: root(bundle)?,
            hostname,
            domainname,
            devices: if owns_device_folder {
                Some(devices::plan(linux)?)
            } else {
                None
            },
            masked_paths,
            read_only_paths,
            sysctl: sysctl::plan(linux.sysctl().as_ref(), &namespaces)?,
            process,
            execution: ExecutionPlan::new(linux)?,
            seccomp: linux.seccomp().as_ref().map(SeccompPlan::new).transpose()?,
            cgroup: CgroupPlan::new(linux, id)?,
            hooks: HookPlan::new(spec)?,
            net_devices: net_devices::plan(linux, &namespaces)?,
            warnings,
            namespaces,
            mounts,
            mount_label,
        })
    }
}

/// What is written for another major version of the specification may mean something else.
fn version(version: &str) -> Result<(), SpecError> {
    let digit =
        |part: Option<&str>| part.is_some_and(|part| part.starts_with(|first: char| first.is_ascii_digit()));
    let mut parts = version.splitn(3, '.');
    if parts.next() == Some("1") && digit(parts.next()) && digit(parts.next()) {
        Ok(())
    } else {
        let problem = format!("`{version}` is not a version 1.x.y of the runtime specification");
        Err(SpecError::invalid("ociVersion", problem))
    }
}

fn root(bundle: &Bundle) -> Result<RootPlan, SpecError> {
    let root = bundle
        .spec()
        .root()
        .as_ref()
        .ok_or_else(|| SpecError::missing("root"))?;
    if root.path().as_os_str().is_empty() {
        return Err(SpecError::missing("root.path"));
    }
    let propagation = bundle
        .spec()
        .linux()
        .as_ref()
        .and_then(|linux| linux.rootfs_propagation().as_deref());
    let propagation = match propagation {
        None | Some("") => (libc::MS_PRIVATE, true),
        Some(word) => propagation_flag(word).ok_or_else(|| {
            SpecError::invalid(
                "linux.rootfsPropagation",
                format!(
                    "`{word}` is not one of private, slave, shared, unbindable, with or without a leading r"
                ),
            )
        })?,
    };
    Ok(RootPlan {
        path: bundle.directory().join(root.path()),
        read_only: root.readonly().unwrap_or(false),
        propagation,
    })
}

/// A host or domain name, which can be set only in a UTS namespace of the container's own or one that it joins.
fn named(
    name: &Option<String>,
    field: &'static str,
    namespaces: &NamespacePlan,
) -> Result<Option<String>, SpecError> {
    let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    if !namespaces.isolates(Namespace::Uts) {
        return Err(SpecError::invalid(
            field,
            "can be set only in a uts namespace that is not the caller's",
        ));
    }
    if name.len() > 64 {
        return Err(SpecError::invalid(
            field,
            "is longer than the 64 bytes the kernel keeps",
        ));
    }
    Ok(Some(name.clone()))
}

/// Paths inside the container, each once. A relative one, against the specification, is taken from the root as other
/// runtimes do.
fn absolute(field: &str, paths: &Option<Vec<String>>) -> Result<Vec<ListedPath>, SpecError> {
    let mut absolute: Vec<ListedPath> = Vec::new();
    for (index, path) in paths.iter().flatten().enumerate() {
        if path.is_empty() || path.contains('\0') {
            return Err(SpecError::invalid(
                format!("{field}[{index}]"),
                format!("`{path}` is not a path"),
            ));
        }
        let path = PathBuf::from("/").join(path);
        if !absolute.iter().any(|listed| listed.path == path) {
            absolute.push(ListedPath { index, path });
        }
    }
    Ok(absolute)
}

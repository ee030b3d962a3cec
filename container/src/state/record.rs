//! The record in `state.json`, and the state that the OCI runtime specification lets others see.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use super::{NamespaceIdentities, ProcessIdentity, RootMount};
use crate::cgroup::Cgroup;
use crate::plan::Hook;

/// What is written of a container. It is written before anything is made, naming what will be, when the container's
/// process stands, and when its limits change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) bundle: PathBuf,
    pub(crate) oci_version: String,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) cgroup: Option<Cgroup>,
    /// The hooks that are still to run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) poststart_hooks: Vec<Hook>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) poststop_hooks: Vec<Hook>,
    /// The root file system's folder, outside.
    #[serde(default)]
    pub(crate) rootfs: PathBuf,
    /// Where the container has no mount namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) root_mount: Option<RootMount>,
    #[serde(default)]
    pub(crate) created: Option<SystemTime>,
    /// The limits, without the devices.
    #[serde(default)]
    pub(crate) resources: LinuxResources,
    /// None in what was written before the container's process was set up.
    pub(crate) init: Option<ProcessIdentity>,
    /// Those that a process that joins has to be in.
    #[serde(default, skip_serializing_if = "NamespaceIdentities::is_empty")]
    pub(crate) namespaces: NamespaceIdentities,
}

/// Where a container is in its life (runtime specification, "State").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is being made, or its maker died over it.
    Creating,
    /// Its process stands and waits to be started.
    Created,
    /// Its process runs the program.
    Running,
    /// Its processes stand still, whoever stopped them.
    Paused,
    /// Its process ended.
    Stopped,
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// The state of a container as the runtime specification defines it, ready to be written as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciState {
    /// The version of the runtime specification the container was configured with.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Where it is in its life.
    pub status: Status,
    /// Its process, as the caller sees it; absent once it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The folder of its configuration.
    pub bundle: PathBuf,
    /// The annotations of its configuration.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub annotations: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_written_with_the_names_of_the_specification() {
        let state = OciState {
            oci_version: "1.0.2".into(),
            id: "web".into(),
            status: Status::Running,
            pid: Some(42),
            bundle: "/b".into(),
            annotations: BTreeMap::new(),
        };
        assert_eq!(
            serde_json::to_string(&state).unwrap(),
            r#"{"ociVersion":"1.0.2","id":"web","status":"running","pid":42,"bundle":"/b"}"#
        );
    }

    #[test]
    fn a_record_with_an_unknown_field_is_refused() {
        let text =
            r#"{"bundle":"/b","oci_version":"1.0.2","annotations":{},"cgroup":null,"init":null,"more":1}"#;
        assert!(serde_json::from_str::<Record>(text).is_err());
    }
}

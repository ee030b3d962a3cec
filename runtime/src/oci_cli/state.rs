//! `bulkhead-oci state`

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use container::{Container, ContainerId, OciState, StateError};
use serde::Serialize;

use super::log::{Log, chain};
use super::moment::nanoseconds;
use super::vm_state::VmState;
use super::{GlobalOptions, OciError, load, print_json};
use crate::oci_pod::folder::{Folder, FolderError};
use crate::oci_pod::machine_end::EndedMachine;
use crate::oci_pod::record::GuestContainer;
use crate::oci_pod::sandbox_record::PodSandbox;

#[derive(Debug, clap::Args)]
pub(super) struct StateArguments {
    /// The container
    #[arg(value_name = "ID")]
    id: ContainerId,
}

impl StateArguments {
    pub(super) fn run(&self, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
        let folder = Folder::of(&global.root, &self.id);
        let Some(container) = GuestContainer::read(&folder)? else {
            return print_json(&ContainerState::of(&load(global, &self.id)?)?);
        };
        let sandbox_folder = Folder::of_named(&global.root, &container.sandbox);
        let sandbox = or_none(PodSandbox::read(&sandbox_folder), log);
        let end = or_none(EndedMachine::read(&sandbox_folder), log);
        print_json(&GuestContainerState {
            state: ContainerState::of_guest(&container)?,
            vm: sandbox.map(|sandbox| VmState::of(sandbox, &container.sandbox, end)),
        })
    }
}

/// What cannot be read of a machine is no reason to keep the rest from a caller who wants to know whether a container lives.
fn or_none<T>(read: Result<Option<T>, FolderError>, log: &Log) -> Option<T> {
    read.unwrap_or_else(|error| {
        log.warning(&chain(&error));
        None
    })
}

/// The state of a container behind the microVM wall, with that of its machine.
#[derive(Serialize)]
struct GuestContainerState {
    #[serde(flatten)]
    state: ContainerState,
    /// None before there is a machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    vm: Option<VmState>,
}

/// The state that the runtime specification defines, and what runc tells beside it.
#[derive(Serialize)]
pub(super) struct ContainerState {
    #[serde(flatten)]
    pub(super) state: OciState,
    rootfs: PathBuf,
    /// RFC 3339; empty if unknown.
    pub(super) created: String,
    pub(super) owner: String,
}

impl ContainerState {
    /// The state of a container behind the microVM wall.
    pub(super) fn of_guest(container: &GuestContainer) -> Result<ContainerState, OciError> {
        Ok(ContainerState {
            state: container
                .state()
                .map_err(|errno| OciError::Attendant(errno.into()))?,
            rootfs: container.rootfs.clone(),
            created: nanoseconds(Duration::from_nanos(container.created_at)),
            owner: owner_name(container.owner),
        })
    }

    pub(super) fn of(container: &Container) -> Result<ContainerState, StateError> {
        let created = container
            .created()
            .and_then(|created| created.duration_since(UNIX_EPOCH).ok());
        Ok(ContainerState {
            state: container.state()?,
            rootfs: container.rootfs().to_owned(),
            created: created.map(nanoseconds).unwrap_or_default(),
            owner: container.owner().map(owner_name).unwrap_or_default(),
        })
    }
}

/// The name of a user of this host, or the number after `#`.
pub(super) fn owner_name(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_of(uid, &users).unwrap_or_else(|| format!("#{uid}"))
}

/// Looks a user up in the text of passwd(5).
fn name_of(uid: u32, users: &str) -> Option<String> {
    let uid = uid.to_string();
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_where_they_have_a_name() {
        let users = "root:x:0:0::/root:/bin/sh\nnonsense\nuser:x:1000:1::/:/bin/sh\n";
        assert_eq!(name_of(1000, users).as_deref(), Some("user"));
        assert_eq!(name_of(7, users), None);
        assert_eq!(owner_name(4_000_000_000), "#4000000000");
    }
}

//! `delete` of a container of which the record cannot be read, or only in parts.

use std::path::Path;
use std::sync::OnceLock;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Container, DeleteError};
use crate::cgroup::CgroupPlan;
use crate::id::ContainerId;
use crate::state::{Record, StateDirectory, StateError};

/// Deletes a container by force whose record is damaged or of another version: its state, and what the record still
/// tells of its processes and cgroups. Returns warnings of what may be left, because nothing tells of it any more.
///
/// A container with a sound record is deleted like any other.
///
/// # Errors
/// As for [`Container::delete`].
pub fn delete_damaged(state_root: &Path, id: &ContainerId) -> Result<Vec<String>, DeleteError> {
    let mut container = Container {
        id: id.clone(),
        directory: StateDirectory::open(state_root, id)?,
        record: Record::default(),
        terminal: None,
        starter: None,
        warnings: Vec::new(),
        configuration: OnceLock::new(),
    };
    match container.directory.read() {
        Err(StateError::Damaged { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => {
            container.delete(true)?;
            return Ok(container.take_warnings());
        }
    }
    let (record, warnings) = salvage(&container)?;
    container.record = record;
    let _lock = container.directory.lock()?;
    container.remove_recorded(true)?;
    Ok(warnings)
}

/// What can be read of the record, and warnings of the rest.
fn salvage(container: &Container) -> Result<(Record, Vec<String>), StateError> {
    // Nothing at all where it is no JSON.
    let text = container.directory.read_text()?.unwrap_or_default();
    let found: Value = serde_json::from_slice(&text).unwrap_or_default();
    let record = Record {
        cgroup: member(&found, "cgroup"),
        init: member(&found, "init"),
        rootfs: member(&found, "rootfs").unwrap_or_default(),
        root_mount: member(&found, "root_mount"),
        ..Record::default()
    };
    let mut warnings = Vec::new();
    let id = &container.id;
    if record.cgroup.is_none() {
        let place = match configured_place(container) {
            Some(place) => format!("at {} of each hierarchy", place.display()),
            None => "wherever linux.cgroupsPath placed them".to_owned(),
        };
        warnings.push(format!(
            "the record of container `{id}` was damaged and did not tell of its cgroups: look for them, and for processes \
             in them, {place}"
        ));
    }
    let has_no_hooks = found.is_object() && found.get("poststop_hooks").is_none();
    if !has_no_hooks {
        warnings.push(format!(
            "the record of container `{id}` was damaged: poststop hooks that it had were not run"
        ));
    }
    Ok((record, warnings))
}

/// None where it is missing or not what this version writes.
fn member<T: DeserializeOwned>(record: &Value, name: &str) -> Option<T> {
    serde_json::from_value(record.get(name)?.clone()).ok()
}

/// Where the configuration placed the cgroups. By now that may be another's place, so nothing is removed there.
fn configured_place(container: &Container) -> Option<std::path::PathBuf> {
    let configuration = container.configuration().ok()?;
    let plan = CgroupPlan::new(configuration.linux().as_ref()?, &container.id).ok()?;
    Some(plan.path)
}

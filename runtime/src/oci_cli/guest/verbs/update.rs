//! `update`: other limits for a container in its guest, and for its machine on the host where that was made for it. The
//! machine itself stays as large as it was made.

use container::Status;
use serde_json::Value;

use super::create::CONFIGURATION;
use super::found::Found;
use super::{GuestError, event_loop};
use crate::micro_vm::MicroVm;
use crate::oci_cli::log::{Log, chain};
use crate::oci_cli::update::UpdateArguments;
use crate::oci_cli::{GlobalOptions, OciError};
use crate::oci_pod::new_limits;
use crate::oci_pod::sandbox::PodSandbox;

pub(super) fn update(arguments: &UpdateArguments, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
    let changes = arguments.changes()?;
    let document = serde_json::to_value(&changes).map_err(GuestError::Request)?;
    let (mut found, _lock) = Found::lock(global, &arguments.id)?;
    found.require(
        &[Status::Created, Status::Running, Status::Paused],
        "limits can be changed of one that has not ended",
    )?;
    let config: Option<Value> = found.folder.read(CONFIGURATION)?;
    let config = new_limits::with_changes(&config.unwrap_or_default(), &document);
    new_limits::check(&found.sandbox()?, &changes, &config).map_err(GuestError::from)?;

    // The host first: what it refuses the guest is not asked for, and what the guest refuses can be taken back here.
    let before = *found.container.cgroup.limits();
    if let Some(sandbox) = PodSandbox::read(&found.folder)? {
        let limits = sandbox.new_limits_on_host(&config).map_err(GuestError::from)?;
        limit_on_host(&mut found, limits)?;
    }
    let resources = document.to_string().into_bytes();
    let update = async |machine: &MicroVm| Ok(machine.update(found.id.as_str(), resources).await?);
    let updated: Result<_, GuestError> = event_loop()?.block_on(found.call(update));
    if updated.is_err()
        && let Err(left) = limit_on_host(&mut found, before)
    {
        log.warning(&chain(&left));
    }
    let warnings = updated?;
    found.folder.write(CONFIGURATION, &config)?;
    for warning in &warnings {
        log.warning(warning);
    }
    log.debug(|| format!("changed the limits of container {}", arguments.id));
    Ok(())
}

/// Has the container's cgroup on the host limit what is in it to this, and writes it down.
fn limit_on_host(found: &mut Found, limits: container::PodLimits) -> Result<(), GuestError> {
    if *found.container.cgroup.limits() == limits {
        return Ok(());
    }
    found
        .container
        .cgroup
        .update(limits)
        .map_err(GuestError::HostLimits)?;
    Ok(found.container.write(&found.folder)?)
}

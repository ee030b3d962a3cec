//! `pause` and `resume`: one container's processes, by the freezer of its cgroup in the guest.

use container::{ContainerId, Status};

use super::found::Found;
use super::{GuestError, event_loop};
use crate::oci_cli::log::Log;
use crate::oci_cli::{GlobalOptions, OciError};

pub(super) fn pause(id: &ContainerId, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
    let (mut found, _lock) = Found::lock(global, id)?;
    found.require(
        &[Status::Created, Status::Running],
        "only one that is created or running can be paused",
    )?;
    call(&found, true)?;
    found.container.paused = true;
    found.container.write(&found.folder)?;
    log.debug(|| format!("paused container {id}"));
    Ok(())
}

pub(super) fn resume(id: &ContainerId, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
    let (mut found, _lock) = Found::lock(global, id)?;
    // One that was paused by a command which did not come to write it down is told so.
    found.require(
        &[Status::Paused, Status::Running, Status::Created],
        "only one that is paused can be resumed",
    )?;
    call(&found, false)?;
    found.container.paused = false;
    found.container.write(&found.folder)?;
    log.debug(|| format!("resumed container {id}"));
    Ok(())
}

fn call(found: &Found, pause: bool) -> Result<(), GuestError> {
    event_loop()?.block_on(async {
        let machine = found.machine().await?;
        let id = found.id.as_str();
        if pause {
            machine.pause(id).await?;
        } else {
            machine.resume(id).await?;
        }
        Ok(())
    })
}

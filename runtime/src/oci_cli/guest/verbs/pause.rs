//! `pause` and `resume`: a container's processes, by the freezer of its cgroup in the guest, and where it is alone in its
//! machine that too, so that it takes no processor time, and a guest that does not do as it is told stands still as well.

use container::{ContainerId, Status};

use super::found::Found;
use super::{GuestError, event_loop};
use crate::oci_cli::log::{Log, chain};
use crate::oci_cli::{GlobalOptions, OciError};

pub(super) fn pause(id: &ContainerId, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
    let (mut found, _lock) = Found::lock(global, id)?;
    found.require(
        &[Status::Created, Status::Running],
        "only one that is created or running can be paused",
    )?;
    event_loop()?.block_on(freeze(&mut found, log))?;
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
    event_loop()?.block_on(thaw(&mut found))?;
    log.debug(|| format!("resumed container {id}"));
    Ok(())
}

async fn freeze(found: &mut Found, log: &Log) -> Result<(), GuestError> {
    found.machine().await?.pause(found.id.as_str()).await?;
    // Before it is looked who else is in the machine: who joins it writes that down before looking here.
    note(found, true)?;
    if !found.is_alone() {
        return Ok(());
    }
    let stands_still = found.stand_still().await;
    if stands_still.is_err()
        && let Err(left) = thaw(found).await
    {
        log.warning(&chain(&left));
    }
    stands_still
}

async fn thaw(found: &mut Found) -> Result<(), GuestError> {
    if found.container.sandbox == found.id.as_str() {
        found.go_on().await?;
    }
    found.machine().await?.resume(found.id.as_str()).await?;
    note(found, false)
}

fn note(found: &mut Found, paused: bool) -> Result<(), GuestError> {
    found.container.paused = paused;
    Ok(found.container.write(&found.folder)?)
}

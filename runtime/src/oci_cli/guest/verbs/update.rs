//! `update`: other limits for a container in its guest. The guest itself stays as large as it was made.

use container::Status;

use super::found::Found;
use super::{GuestError, event_loop};
use crate::oci_cli::log::Log;
use crate::oci_cli::update::UpdateArguments;
use crate::oci_cli::{GlobalOptions, OciError};

pub(super) fn update(arguments: &UpdateArguments, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
    let changes = serde_json::to_vec(&arguments.changes()?).map_err(GuestError::Request)?;
    let (found, _lock) = Found::lock(global, &arguments.id)?;
    found.require(
        &[Status::Created, Status::Running, Status::Paused],
        "limits can be changed of one that has not ended",
    )?;
    let warnings = event_loop()?.block_on(async {
        let machine = found.machine().await?;
        Ok::<_, GuestError>(machine.update(found.id.as_str(), changes).await?)
    })?;
    for warning in &warnings {
        log.warning(warning);
    }
    log.debug(|| format!("changed the limits of container {}", arguments.id));
    Ok(())
}

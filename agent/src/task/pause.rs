//! `Pause`: every process of a container stands still.

use protocol::task::{PauseRequest, PauseResponse};
use ttrpc::Result;

use super::{TaskService, failed};

pub(super) fn pause(service: &TaskService, request: &PauseRequest) -> Result<PauseResponse> {
    service.with_container(&request.id, |kept| {
        kept.container
            .pause()
            .map_err(|error| failed("pausing the container", error))?;
        Ok(PauseResponse::default())
    })
}

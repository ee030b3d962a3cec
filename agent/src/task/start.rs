//! `Start`: runs the command.

use protocol::task::{StartRequest, StartResponse};
use ttrpc::Result;

use super::{TaskService, command_failed};

pub(super) fn start(service: &TaskService, request: &StartRequest) -> Result<StartResponse> {
    service.with_container(&request.id, |kept| {
        kept.container
            .start()
            .map_err(|error| command_failed("starting the container", error.command_failure(), error))?;
        Ok(StartResponse::default())
    })
}

//! `Update`: other limits for a container.

use oci_spec::runtime::LinuxResources;
use protocol::task::{UpdateRequest, UpdateResponse};
use ttrpc::{Code, Result};

use super::{TaskService, failed, failed_because};

pub(super) fn update(service: &TaskService, request: &UpdateRequest) -> Result<UpdateResponse> {
    let changes: LinuxResources = serde_json::from_slice(&request.resources).map_err(|error| {
        let action = format!("reading the new limits of container {}", request.id);
        failed_because(Code::INVALID_ARGUMENT, &action, error)
    })?;
    service.with_container(&request.id, |kept| {
        kept.container
            .update(&changes)
            .map_err(|error| failed("updating the container", error))?;
        Ok(UpdateResponse {
            warnings: kept.container.take_warnings(),
            ..UpdateResponse::default()
        })
    })
}

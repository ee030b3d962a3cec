//! `Stats`: what a container uses.

use protocol::task::{StatsRequest, StatsResponse};
use ttrpc::Result;

use super::{TaskService, failed};

pub(super) fn stats(service: &TaskService, request: &StatsRequest) -> Result<StatsResponse> {
    service.with_container(&request.id, |kept| {
        let statistics = kept
            .container
            .statistics()
            .map_err(|error| failed("measuring the container", error))?;
        let statistics =
            serde_json::to_vec(&statistics).map_err(|error| failed("writing the statistics", error))?;
        Ok(StatsResponse {
            statistics,
            ..StatsResponse::default()
        })
    })
}

//! `State`: what a container is doing.

use container::Status;
use protocol::task::{StateRequest, StateResponse, Status as ReportedStatus};
use ttrpc::Result;

use super::{TaskService, failed};

pub(super) fn state(service: &TaskService, request: &StateRequest) -> Result<StateResponse> {
    service.with_container(&request.id, |kept| {
        let status = kept
            .container
            .status()
            .map_err(|error| failed("looking at the container", error))?;
        let reported = match status {
            Status::Creating => ReportedStatus::CREATING,
            Status::Created => ReportedStatus::CREATED,
            Status::Running => ReportedStatus::RUNNING,
            Status::Paused => ReportedStatus::PAUSED,
            Status::Stopped => ReportedStatus::STOPPED,
        };
        let pid = if status == Status::Stopped {
            None
        } else {
            kept.container.pid()
        };
        Ok(StateResponse {
            status: reported.into(),
            pid: pid.unwrap_or_default().unsigned_abs(),
            ..StateResponse::default()
        })
    })
}

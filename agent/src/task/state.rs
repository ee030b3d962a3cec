//! `State`: what a container, or a process that was added to it, is doing.

use container::Status;
use protocol::task::{StateRequest, StateResponse, Status as ReportedStatus};
use ttrpc::Result;

use super::exec::Stage;
use super::{TaskService, failed};

pub(super) fn state(service: &TaskService, request: &StateRequest) -> Result<StateResponse> {
    service.with_container(&request.id, |kept| {
        let status = kept
            .container
            .status()
            .map_err(|error| failed("looking at the container", error))?;
        let (reported, pid) = match (request.exec_id.as_str(), status) {
            ("", Status::Creating) => (ReportedStatus::CREATING, 0),
            ("", Status::Created) => (ReportedStatus::CREATED, kept.init.number()),
            ("", Status::Running) => (ReportedStatus::RUNNING, kept.init.number()),
            ("", Status::Paused) => (ReportedStatus::PAUSED, kept.init.number()),
            ("", Status::Stopped) => (ReportedStatus::STOPPED, 0),
            (exec_id, container) => match &kept.exec(&request.id, exec_id)?.stage {
                Stage::Added(_) => (ReportedStatus::CREATED, 0),
                Stage::Started(process) if process.has_ended() => (ReportedStatus::STOPPED, 0),
                Stage::Started(process) if container == Status::Paused => {
                    (ReportedStatus::PAUSED, process.number())
                }
                Stage::Started(process) => (ReportedStatus::RUNNING, process.number()),
                Stage::Failed => (ReportedStatus::STOPPED, 0),
            },
        };
        Ok(StateResponse {
            status: reported.into(),
            pid,
            ..StateResponse::default()
        })
    })
}

//! `Resume`: the processes of a paused container go on.

use protocol::task::{ResumeRequest, ResumeResponse};
use ttrpc::Result;

use super::{TaskService, failed};

pub(super) fn resume(service: &TaskService, request: &ResumeRequest) -> Result<ResumeResponse> {
    service.with_container(&request.id, |kept| {
        kept.container
            .resume()
            .map_err(|error| failed("resuming the container", error))?;
        Ok(ResumeResponse::default())
    })
}

//! `Kill`: a signal for the init process.

use container::Signal;
use protocol::task::{KillRequest, KillResponse};
use ttrpc::{Code, Result};

use super::{TaskService, failed, refuse};

pub(super) fn kill(service: &TaskService, request: &KillRequest) -> Result<KillResponse> {
    let signal: Signal = request
        .signal
        .to_string()
        .parse()
        .map_err(|_| refuse(Code::INVALID_ARGUMENT, format!("{} is no signal", request.signal)))?;
    service.with_container(&request.id, |kept| {
        kept.container
            .kill(signal)
            .map_err(|error| failed("sending the signal", error))?;
        Ok(KillResponse::default())
    })
}

//! `Kill`: a signal for a process, or for all of a container.

use container::{KillError, Signal};
use protocol::task::{KillRequest, KillResponse};
use ttrpc::{Code, Result};

use super::{TaskService, failed, failed_because, name_of, refuse};

pub(super) fn kill(service: &TaskService, request: &KillRequest) -> Result<KillResponse> {
    let signal = i32::try_from(request.signal)
        .ok()
        .and_then(|number| Signal::try_from(number).ok())
        .ok_or_else(|| refuse(Code::INVALID_ARGUMENT, format!("{} is no signal", request.signal)))?;
    let (id, exec_id) = (&request.id, &request.exec_id);
    service.with_container(id, |kept| match (exec_id.as_str(), request.all) {
        ("", false) => kept.container.kill(signal).map_err(not_sent),
        ("", true) => kept.container.kill_all(signal).map_err(not_sent),
        (_, true) => {
            let message = format!(
                "a signal is for {} or for all processes, not both",
                name_of(id, exec_id)
            );
            Err(refuse(Code::INVALID_ARGUMENT, message))
        }
        (_, false) => {
            let name = name_of(id, exec_id);
            let running = kept
                .exec(id, exec_id)?
                .started()
                .map(|process| process.signal(signal));
            match running.transpose() {
                Ok(Some(true)) => Ok(()),
                Ok(Some(false) | None) => Err(refuse(
                    Code::FAILED_PRECONDITION,
                    format!("sending the signal: {name} is not running"),
                )),
                Err(error) => Err(failed(&format!("sending {signal} to {name}"), error)),
            }
        }
    })?;
    Ok(KillResponse::default())
}

fn not_sent(error: KillError) -> ttrpc::Error {
    let code = match error {
        KillError::NotRunning { .. } => Code::FAILED_PRECONDITION,
        _ => Code::INTERNAL,
    };
    failed_because(code, "sending the signal", error)
}

//! `Wait`: the exit, once all output is on its way.

use std::time::UNIX_EPOCH;

use protocol::task::{WaitRequest, WaitResponse};
use ttrpc::{Code, Result};

use super::{TaskService, refuse};

pub(super) async fn wait(service: &TaskService, request: &WaitRequest) -> Result<WaitResponse> {
    let (mut exit, outputs) =
        service.with_container(&request.id, |kept| Ok((kept.exit.clone(), kept.outputs.clone())))?;
    let exit = match exit.wait_for(Option::is_some).await {
        Ok(exit) => *exit,
        Err(_) => None,
    };
    let Some(exit) = exit else {
        return Err(refuse(
            Code::ABORTED,
            format!("container {} was deleted", request.id),
        ));
    };
    // Held over the draining: whoever else waits is answered no sooner.
    for output in outputs.lock().await.drain(..) {
        // A copy that was cut off has nothing more to hand on.
        let _ = output.await;
    }
    let exited_at = exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(WaitResponse {
        exit_status: exit.status,
        exited_at: i64::try_from(exited_at.as_nanos()).unwrap_or(i64::MAX),
        ..WaitResponse::default()
    })
}

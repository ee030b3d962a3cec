//! `Wait`: the exit, once all output is on its way.

use std::time::UNIX_EPOCH;

use protocol::task::{WaitRequest, WaitResponse};
use ttrpc::{Code, Result};

use super::{TaskService, name_of, refuse};

pub(super) async fn wait(service: &TaskService, request: &WaitRequest) -> Result<WaitResponse> {
    let (id, exec_id) = (&request.id, &request.exec_id);
    let mut end = service.with_container(id, |kept| {
        if exec_id.is_empty() {
            Ok(kept.end.clone())
        } else {
            Ok(kept.exec(id, exec_id)?.end.clone())
        }
    })?;
    let end = match end.wait_for(Option::is_some).await {
        Ok(end) => *end,
        Err(_) => None,
    };
    let Some(end) = end else {
        return Err(refuse(
            Code::ABORTED,
            format!("{} never ran", name_of(id, exec_id)),
        ));
    };
    let exited_at = end.exit.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(WaitResponse {
        exit_status: end.exit.status,
        exited_at: i64::try_from(exited_at.as_nanos()).unwrap_or(i64::MAX),
        out_of_memory_kills: end.out_of_memory_kills,
        ..WaitResponse::default()
    })
}

//! `ResizePty`: the terminal's size.

use protocol::task::{ResizePtyRequest, ResizePtyResponse};
use rustix::termios::{Winsize, tcsetwinsize};
use ttrpc::{Code, Result};

use super::{TaskService, failed, name_of, refuse};

pub(super) fn resize_pty(service: &TaskService, request: &ResizePtyRequest) -> Result<ResizePtyResponse> {
    let (Ok(ws_col), Ok(ws_row)) = (u16::try_from(request.width), u16::try_from(request.height)) else {
        let message = format!("{} by {} is no size of a terminal", request.width, request.height);
        return Err(refuse(Code::INVALID_ARGUMENT, message));
    };
    let (id, exec_id) = (&request.id, &request.exec_id);
    service.with_container(id, |kept| {
        let process = match exec_id.as_str() {
            "" => Some(&kept.init),
            exec_id => kept.exec(id, exec_id)?.started(),
        };
        let Some(terminal) = process.and_then(|process| process.terminal.as_ref()) else {
            return Err(refuse(
                Code::FAILED_PRECONDITION,
                format!("{} has no terminal", name_of(id, exec_id)),
            ));
        };
        let size = Winsize {
            ws_col,
            ws_row,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(terminal, size).map_err(|error| failed("resizing the terminal", error))?;
        Ok(ResizePtyResponse::default())
    })
}

//! A machine that stands still: none of its vCPUs and devices does anything, whatever its guest would have them do.

use std::time::Duration;

use vmm::control::{Request, Response};

use super::control;
use super::machine_files::MachineFiles;
use crate::sandbox::SandboxError;

/// How long the VMM may take: its vCPUs and devices finish what they are at.
const DEADLINE: Duration = Duration::from_secs(5);

/// Has the machine of these files stand still, if it does not yet.
///
/// # Errors
/// When its VMM does not answer, or cannot; the machine runs on then.
pub async fn begin(files: &MachineFiles) -> Result<(), SandboxError> {
    ask(files, &Request::Pause, "pausing the microVM", Response::Paused).await
}

/// Has it go on, if it stands still.
///
/// # Errors
/// When its VMM does not answer.
pub async fn end(files: &MachineFiles) -> Result<(), SandboxError> {
    ask(files, &Request::Resume, "resuming the microVM", Response::Resumed).await
}

async fn ask(
    files: &MachineFiles,
    request: &Request,
    action: &'static str,
    expected: Response,
) -> Result<(), SandboxError> {
    match control::ask(&files.control_socket(), request, DEADLINE).await {
        Ok(answer) if answer == expected => Ok(()),
        Ok(answer) => Err(SandboxError::new(action, format!("it answered {answer:?}"))),
        Err(error) => Err(SandboxError::new(action, error)),
    }
}

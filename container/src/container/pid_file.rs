//! The file that tells a caller's caller the pid of a process.

use std::io;
use std::path::{Path, PathBuf};

/// The pid file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the pid file {}", path.display())]
pub struct PidFileError {
    path: PathBuf,
    source: io::Error,
}

/// Writes the file whole or not at all: its reader may be waiting for it to appear.
///
/// # Errors
/// When it cannot be written or renamed.
pub fn write_pid_file(path: &Path, pid: i32) -> Result<(), PidFileError> {
    let failed = |source| PidFileError {
        path: path.to_owned(),
        source,
    };
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    std::fs::write(&next, pid.to_string()).map_err(failed)?;
    std::fs::rename(&next, path).map_err(failed)
}

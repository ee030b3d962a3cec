//! `run`: create, start, wait, delete.

use std::io;

use container::Bundle;

use super::GuestError;
use super::create::make;
use super::delete::remove;
use super::found::Found;
use super::start::run_program;
use crate::oci_cli::foreground::Foreground;
use crate::oci_cli::log::{Log, chain};
use crate::oci_cli::run::RunArguments;
use crate::oci_cli::{GlobalOptions, OciError};
use crate::terminal;

pub(in crate::oci_cli) fn run(
    arguments: &RunArguments,
    bundle: &Bundle,
    global: &GlobalOptions,
    log: &Log,
) -> Result<i32, OciError> {
    let id = &arguments.creation.id;
    let foreground = if arguments.detach {
        None
    } else {
        Some(Foreground::begin()?)
    };
    let shown = foreground.as_ref().map(|_| terminal::size(io::stdin()));
    let created = make(&arguments.creation, bundle, global, log, shown)?;
    let attendant = created
        .attendant
        .open()
        .map_err(|errno| OciError::Attendant(errno.into()))?;
    let started = {
        let (mut found, _lock) = Found::lock(global, id)?;
        run_program(&mut found)
    };
    let ran = match (started, foreground, attendant) {
        (Err(error), _, _) => Err(error.into()),
        (Ok(()), Some(foreground), Some(attendant)) => foreground.wait(&attendant, created.terminal),
        (Ok(()), _, _) => Ok(0),
    };
    if ran.is_ok() && (arguments.detach || arguments.keep) {
        return ran;
    }
    let deleted = Found::lock(global, id).and_then(|(found, _lock)| remove(&found, true, log));
    match (ran, deleted) {
        // Somebody else has deleted it.
        (Ok(code), Ok(()) | Err(GuestError::Gone(_))) => Ok(code),
        (Ok(_), Err(error)) => Err(error.into()),
        (Err(error), deleted) => {
            if let Err(left) = deleted {
                log.warning(&chain(&left));
            }
            Err(error)
        }
    }
}

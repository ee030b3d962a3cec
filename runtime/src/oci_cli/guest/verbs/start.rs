//! `start`: the program of a created container runs.

use container::{Bundle, HostHooks, ProcessIdentity, Status};

use super::found::Found;
use super::{GuestError, event_loop};
use crate::micro_vm::task::ProcessName;
use crate::oci_cli::log::Log;
use crate::oci_cli::start::StartArguments;
use crate::oci_cli::{GlobalOptions, OciError};
use crate::oci_pod::record::Stage;

pub(super) fn start(arguments: &StartArguments, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
    let (mut found, _lock) = Found::lock(global, &arguments.id)?;
    run_program(&mut found)?;
    log.debug(|| format!("started container {}", arguments.id));
    Ok(())
}

/// Runs the program of the container, whose lock is held.
pub(super) fn run_program(found: &mut Found) -> Result<(), GuestError> {
    found.require(&[Status::Created], "only one that is created can be started")?;
    event_loop()?.block_on(async {
        let machine = found.machine().await?;
        machine
            .start_process(ProcessName::init(found.id.as_str()))
            .await?;
        Ok::<_, GuestError>(())
    })?;
    found.container.stage = Stage::Started;
    found.container.write(&found.folder)?;
    let bundle = Bundle::load(found.folder.path())
        .map_err(|error| GuestError::Bundle(std::io::Error::other(error)))?;
    let state = found.container.state().map_err(|errno| GuestError::Process {
        doing: "look at",
        source: errno.into(),
    })?;
    if let Err(failed) = HostHooks::new(bundle.spec())?.run_poststart(&state) {
        // The specification has the container stopped then (runtime.md, Lifecycle).
        if let Some(attendant) = found.container.attendant {
            kill_with_its_attendant(attendant)?;
        }
        return Err(failed.into());
    }
    Ok(())
}

fn kill_with_its_attendant(attendant: ProcessIdentity) -> Result<(), GuestError> {
    let patience = std::time::Duration::from_secs(2);
    crate::kill_process::kill_and_wait(attendant, patience)
        .map_err(|source| GuestError::Process { doing: "end", source })
}

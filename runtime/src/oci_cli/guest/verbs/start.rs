//! `start`: the program of a created container runs.

use container::{Bundle, HostHooks, Status};

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
    let bundle = Bundle::load(found.folder.path())?;
    let failed = HostHooks::new(bundle.spec())?
        .run_poststart(&found.state()?)
        .err();
    if let Some(failed) = failed {
        // The specification has the container stopped then (runtime.md, Lifecycle).
        found.end_attendant()?;
        return Err(failed.into());
    }
    Ok(())
}

//! `kill`: a signal for a container's first process, or for all.

use std::time::Duration;

use container::{Signal, Status};
use tokio::time::timeout;

use super::found::{Found, LAST_MOMENTS};
use super::{GuestError, event_loop};
use crate::micro_vm::MicroVm;
use crate::micro_vm::task::ProcessName;
use crate::oci_cli::kill::KillArguments;
use crate::oci_cli::log::{Log, chain};
use crate::oci_cli::{GlobalOptions, OciError};

/// How long the agent may take to kill a container. After that its attendant is killed, which the agent follows if it
/// can: to whoever waits for the container, it has ended.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn kill(arguments: &KillArguments, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
    // Without the lock: whoever holds it may wait for just this.
    let found = Found::look(global, &arguments.id)?;
    found.require(
        &[Status::Created, Status::Running, Status::Paused],
        "container not running, so there is no process to send a signal to",
    )?;
    let sent = event_loop()?.block_on(async {
        let name = ProcessName::init(found.id.as_str());
        let number = arguments.signal.number();
        let send =
            async |machine: &MicroVm| Ok::<_, GuestError>(machine.signal(name, number, arguments.all).await?);
        if arguments.signal == Signal::KILL {
            let send = async {
                // It ends, and its machine is not to stand still before that.
                if found.container.paused && found.is_alone() {
                    found.go_on().await?;
                }
                send(&found.machine().await?).await
            };
            timeout(KILL_PATIENCE, send).await.ok()
        } else {
            Some(found.call(send).await)
        }
    });
    match sent {
        // To callers a container that they have killed has ended, and can be deleted.
        Some(Ok(())) if arguments.signal == Signal::KILL => drop(found.ends_within(LAST_MOMENTS)?),
        Some(Ok(())) => {}
        Some(Err(error)) if arguments.signal != Signal::KILL || found.status()? == Status::Stopped => {
            return Err(error.into());
        }
        unable => {
            let why = match unable {
                Some(Err(error)) => chain(&error),
                _ => format!("no answer within {} s", KILL_PATIENCE.as_secs()),
            };
            log.warning(&format!(
                "the agent did not kill the container, so it is ended from outside: {why}"
            ));
            found.end_from_outside()?;
        }
    }
    log.debug(|| format!("sent {} to container {}", arguments.signal, arguments.id));
    Ok(())
}

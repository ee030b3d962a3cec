//! `delete`: nothing of the container is left, and nothing of its sandbox if it founded it.

use std::path::Path;
use std::time::Duration;

use container::{Bundle, HostHooks, OciState, PodCgroup, ProcessIdentity, Status};
use serde_json::Value;
use tokio::time::timeout;

use super::found::{Found, KILL_PATIENCE, LAST_MOMENTS};
use super::{GuestError, event_loop};
use crate::kill_process::kill_and_wait;
use crate::micro_vm::MicroVm;
use crate::micro_vm::shared_directory::SharedDirectory;
use crate::oci_cli::delete::DeleteArguments;
use crate::oci_cli::log::{Log, chain};
use crate::oci_cli::{GlobalOptions, OciError};
use crate::oci_pod::disks;
use crate::oci_pod::folder::{Folder, FolderError};
use crate::oci_pod::owed::Owed;
use crate::oci_pod::record::{GuestContainer, RECORD};
use crate::oci_pod::sandbox::{self, PodSandbox, machine_files};

/// How long an agent may take to answer at all. Deleting goes on without one that does not.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// How long an agent that answers may take to remove a container whose sandbox lives on, or to write back what is to be on
/// disks.
const AGENT_PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn delete(arguments: &DeleteArguments, global: &GlobalOptions, log: &Log) -> Result<(), OciError> {
    let lock = Folder::of(&global.root, &arguments.id).lock();
    let found = Found::look(global, &arguments.id);
    let (_lock, found) = match (lock, found) {
        (Ok(lock), Ok(found)) => (lock, found),
        (_, Err(GuestError::Gone(_))) if arguments.force => return Ok(()),
        (Ok(_lock), Err(GuestError::Folder(damage @ FolderError::Damaged { .. }))) if arguments.force => {
            log.warning(&chain(&damage));
            return Ok(remove_damaged(&Folder::of(&global.root, &arguments.id))?);
        }
        (Err(error), _) => return Err(GuestError::from(error).into()),
        (_, Err(error)) => return Err(error.into()),
    };
    remove(&found, arguments.force, log)?;
    log.debug(|| format!("deleted container {}", arguments.id));
    Ok(())
}

/// Removes the container, whose lock is held.
pub(super) fn remove(found: &Found, force: bool, log: &Log) -> Result<(), GuestError> {
    if !force && !is_ending(found)? {
        found.require(
            &[Status::Stopped],
            "stop it first, or delete it by force, which kills it",
        )?;
    }
    found.end_attendant()?;
    match PodSandbox::read(&found.folder)? {
        Some(sandbox) => {
            if let Err(error) = write_back(found, &sandbox) {
                log.warning(&chain(&error));
            }
            sandbox.kill()?;
        }
        None => delete_from_pod(&found.container, &found.sandbox_folder, log)?,
    }
    found.container.cgroup.remove()?;
    run_poststop_hooks(&found.container, found.folder.path(), log);
    Ok(found.folder.remove()?)
}

/// Whether the container, for which an attendant stands still, is about to be stopped: callers delete one once they have
/// seen its last sign of life, and the host has yet to hear of its end.
fn is_ending(found: &Found) -> Result<bool, GuestError> {
    if !matches!(found.status()?, Status::Created | Status::Running) {
        return Ok(false);
    }
    let has_ended = event_loop()?.block_on(async {
        let look = async { Ok::<_, GuestError>(found.machine().await?.has_ended(found.id.as_str()).await?) };
        timeout(LAST_MOMENTS, look).await
    });
    match has_ended {
        Ok(Ok(false)) => Ok(false),
        // A machine that cannot be asked is perhaps ending itself.
        Ok(Ok(true) | Err(_)) => found.ends_within(LAST_MOMENTS),
        Err(_) => found.ends_within(Duration::ZERO),
    }
}

/// Has a guest that lives write back what its containers wrote to disks, which ends them.
fn write_back(found: &Found, sandbox: &PodSandbox) -> Result<(), GuestError> {
    if !disks::are_attached(&found.folder) || !sandbox.machine.is_alive().unwrap_or(true) {
        return Ok(());
    }
    event_loop()?.block_on(async {
        let answer = async {
            // It may stand still.
            found.go_on().await?;
            let machine = found.machine().await?;
            machine.has_container(found.id.as_str()).await?;
            Ok(machine)
        };
        let machine = within(ANSWER_PATIENCE, answer).await?;
        within(AGENT_PATIENCE, async { Ok(machine.shut_down().await?) }).await
    })
}

/// What a guest does, if it does it in time.
async fn within<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, GuestError>>,
) -> Result<T, GuestError> {
    let done = timeout(patience, work).await;
    done.unwrap_or(Err(GuestError::SilentAgent(patience)))
}

/// Removes a container whose record is damaged or of another version: what it still tells is ended, and what it does not is
/// not known any more.
fn remove_damaged(folder: &Folder) -> Result<(), GuestError> {
    let said = |record: &str, member: &str| -> Option<Value> {
        let text = std::fs::read(folder.path().join(record)).ok()?;
        let record: Value = serde_json::from_slice(&text).ok()?;
        record.get(member).cloned()
    };
    let processes = [said(RECORD, "attendant"), said(sandbox::RECORD, "machine")];
    for process in processes.into_iter().flatten() {
        if let Ok(process) = serde_json::from_value::<ProcessIdentity>(process) {
            kill_and_wait(process, KILL_PATIENCE)
                .map_err(|source| GuestError::Process { doing: "end", source })?;
        }
    }
    let cgroup = said(RECORD, "cgroup").and_then(|cgroup| serde_json::from_value::<PodCgroup>(cgroup).ok());
    if let Some(cgroup) = cgroup {
        cgroup.remove()?;
    }
    Ok(folder.remove()?)
}

/// Removes a container from a sandbox that goes on, if it does, and takes its files from it. A guest that does not answer
/// keeps nothing from being removed on the host: what is left in the guest is removed when it is next spoken to, or with it.
pub(super) fn delete_from_pod(
    container: &GuestContainer,
    sandbox_folder: &Folder,
    log: &Log,
) -> Result<(), GuestError> {
    let files = machine_files(sandbox_folder);
    let lives = |sandbox: &PodSandbox| sandbox.machine.is_alive().unwrap_or(true);
    if let Some(sandbox) = PodSandbox::read(sandbox_folder)?.filter(lives) {
        let owed = Owed {
            id: container.id.clone(),
            shared_folder: container.shared_folder.clone(),
        };
        let deleted = event_loop()?.block_on(async {
            let answer = async {
                let machine = MicroVm::join(sandbox.machine, &files).await?;
                machine.has_container(&owed.id).await?;
                Ok(machine)
            };
            let machine = within(ANSWER_PATIENCE, answer).await?;
            let remove = async { Ok(owed.remove(&machine, sandbox_folder).await?) };
            within(AGENT_PATIENCE, remove).await
        });
        match deleted {
            Err(error @ GuestError::SilentAgent(_)) => {
                owed.write_down(sandbox_folder)?;
                log.warning(&chain(&error));
            }
            // One that has ended meanwhile took the container along.
            deleted if lives(&sandbox) => deleted?,
            _ => {}
        }
    }
    Ok(SharedDirectory::withdraw(&files, &container.shared_folder)?)
}

/// What goes wrong there is no reason to keep a container.
pub(super) fn run_poststop_hooks(container: &GuestContainer, folder: &Path, log: &Log) {
    let hooks = match Bundle::load(folder) {
        Ok(bundle) => HostHooks::new(bundle.spec()),
        // Its creation ended before its configuration was written down.
        Err(_) => return,
    };
    let Ok(state) = container.state() else { return };
    let state = OciState {
        status: Status::Stopped,
        pid: None,
        ..state
    };
    for failure in hooks.iter().flat_map(|hooks| hooks.run_poststop(&state)) {
        log.warning(&chain(&failure));
    }
}

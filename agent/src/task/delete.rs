//! `Delete`: nothing of the container remains, or of a process that was added to it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use container::{Bundle, Signal};
use oci_spec::runtime::{Mount, Spec};
use protocol::task::DeleteRequest;
use tokio::time::{sleep, timeout};
use ttrpc::{Code, Result};

use super::{BUNDLES, TaskService, failed, name_of, refuse, shared_memory};
use crate::disks;
use crate::exit_status::ExitReceiver;

/// How long a killed process may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a process that runs is given to end by itself: callers delete it once they have seen its last sign of life,
/// which comes before its end.
const LAST_MOMENTS: Duration = Duration::from_millis(100);

/// From the end of a container to the first look for what it left in the kernel's memory, twice as long to each further
/// one; and how often to look, should the host take its time to remove it.
const FORGETTING_INTERVAL: Duration = Duration::from_millis(500);
const FORGETTING_ATTEMPTS: u32 = 6;

pub(super) async fn delete(service: &TaskService, request: &DeleteRequest) -> Result<()> {
    if request.exec_id.is_empty() {
        delete_container(service, &request.id, request.force).await
    } else {
        delete_added(service, &request.id, &request.exec_id, request.force).await
    }
}

async fn delete_container(service: &TaskService, id: &str, force: bool) -> Result<()> {
    let (exit, pid) = service.with_container(id, |kept| {
        if force && !kept.init.has_ended() {
            kept.container
                .kill_all(Signal::KILL)
                .map_err(|error| failed("killing the container's processes", error))?;
        }
        Ok((kept.init.exit.clone(), kept.init.pid))
    })?;
    // The engine waits too, but then nobody reaps: the first process of a pid namespace ends only when those that were
    // added to it have been reaped.
    if !ends_within(exit, if force { PATIENCE } else { LAST_MOMENTS }).await && force {
        return Err(refuse(
            Code::INTERNAL,
            format!(
                "the first process of container {id} was killed and is not gone after {} seconds",
                PATIENCE.as_secs()
            ),
        ));
    }
    service.with_container(id, |kept| {
        // Another call may have been faster, and another container have that id now.
        if kept.init.pid != pid {
            return Err(refuse(
                Code::NOT_FOUND,
                format!("the container that was named {id} is gone"),
            ));
        }
        // The count goes with the cgroup.
        kept.out_of_memory_kills.count();
        kept.container
            .delete(force)
            .map_err(|error| failed("deleting the container", error))
    })?;
    service.containers().remove(id);
    service
        .shared_memories()
        .leave(id)
        .map_err(|error| failed("letting go of shared memory", error))?;
    let bundle = Path::new(BUNDLES).join(id);
    // What cannot be read is about to be removed.
    let shared = Bundle::load(&bundle).map(|bundle| shared_by_host(bundle.spec()));
    for path in shared.into_iter().flatten() {
        tokio::spawn(forget(path));
    }
    match fs::remove_dir_all(bundle) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing the bundle", error)),
        _ => Ok(()),
    }
}

/// What the container had of its host, that the host takes away with it: the folder with its root, and its volumes, of which
/// others may have some too.
fn shared_by_host(spec: &Spec) -> Vec<PathBuf> {
    let root = spec.root().as_ref().map(|root| root.path().as_path());
    let folder = root.filter(|root| !disks::is_root(root)).and_then(Path::parent);
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let volumes = mounts
        .iter()
        .filter(|mount| is_bind(mount))
        .filter_map(|mount| mount.source().as_deref())
        .filter(|source| !shared_memory::is_source(source));
    folder.into_iter().chain(volumes).map(Path::to_owned).collect()
}

/// Whether a mount is of what the host shares, or of memory that containers share: nothing else of the guest is bound into
/// them.
fn is_bind(mount: &Mount) -> bool {
    let options = mount.options().as_deref().unwrap_or_default();
    mount.typ().as_deref() == Some("bind")
        || options.iter().any(|option| option == "bind" || option == "rbind")
}

/// Looks for a folder or file once the host has taken it away. The guest's kernel remembers every name in it that was ever
/// used, and the host keeps each open for as long: it finds out that they are gone, and lets go of them, when somebody
/// asks for the first of them again, in which it never believes without asking. What others have too stays.
async fn forget(path: PathBuf) {
    for attempt in 0..FORGETTING_ATTEMPTS {
        sleep(FORGETTING_INTERVAL * 2_u32.pow(attempt)).await;
        if fs::symlink_metadata(&path).is_err() {
            return;
        }
    }
}

async fn delete_added(service: &TaskService, id: &str, exec_id: &str, force: bool) -> Result<()> {
    let name = name_of(id, exec_id);
    let exit = service.with_container(id, |kept| {
        let Some(process) = kept.exec(id, exec_id)?.started() else {
            return Ok(None);
        };
        if force {
            process
                .signal(Signal::KILL)
                .map_err(|error| failed(&format!("killing {name}"), error))?;
        }
        Ok(Some(process.exit.clone()))
    })?;
    if let Some(exit) = exit
        && !ends_within(exit, if force { PATIENCE } else { LAST_MOMENTS }).await
    {
        let message = if force {
            format!(
                "{name} was killed and is not gone after {} seconds",
                PATIENCE.as_secs()
            )
        } else {
            format!("{name} is running: stop it first, or delete it by force")
        };
        return Err(refuse(Code::FAILED_PRECONDITION, message));
    }
    service.with_container(id, |kept| {
        // Unless another call was faster, and another process has that id now.
        if kept.exec(id, exec_id).is_ok_and(|exec| !exec.is_running()) {
            kept.execs.remove(exec_id);
        }
        Ok(())
    })
}

async fn ends_within(mut exit: ExitReceiver, patience: Duration) -> bool {
    timeout(patience, exit.wait_for(Option::is_some)).await.is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shared_of(root: &str, mounts: Value) -> Vec<PathBuf> {
        let config = json!({ "ociVersion": "1.0.2", "root": { "path": root }, "mounts": mounts });
        shared_by_host(&serde_json::from_value(config).unwrap())
    }

    #[test]
    fn the_hosts_are_the_roots_folder_and_the_volumes() {
        let proc = json!({ "destination": "/proc", "type": "proc", "source": "/a/b/proc" });
        let disk = json!({ "destination": "/disk", "type": "ext4", "source": "/dev/vdb" });
        let source = "/run/bulkhead/shared/@volumes/2a-0-1b-3c";
        let volume = json!({ "destination": "/v", "type": "bind", "source": source });
        let memory =
            json!({ "destination": "/dev/shm", "type": "bind", "source": "/run/bulkhead/memory/1a-1" });
        let (folder, volumes) = (PathBuf::from("/run/bulkhead/shared/7f"), PathBuf::from(source));
        let root = "/run/bulkhead/shared/7f/rootfs";
        assert_eq!(
            shared_of(root, json!([proc, memory, volume])),
            [folder, volumes.clone()]
        );
        let root = "/run/bulkhead/disks/0a";
        assert_eq!(shared_of(root, json!([proc, disk, volume])), [volumes]);
        assert_eq!(shared_of(root, json!([memory])), Vec::<PathBuf>::new());
    }
}

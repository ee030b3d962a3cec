//! `Create`: from a configuration and named streams to a container that waits for its start.

use std::fs;
use std::path::Path;

use container::{Bundle, Container, ContainerId, CreateOptions, Signal};
use protocol::task::{CreateRequest, CreateResponse};
use rustix::process::Pid;
use serde_json::Value;
use tokio::sync::watch;
use ttrpc::{Code, Result};

use crate::disks;

use super::joined_streams::{ClaimedStreams, JoinedStreams, StreamNames};
use super::out_of_memory::OutOfMemoryKills;
use super::process::{Follower, KeptProcess};
use super::{BUNDLES, KeptContainer, STATE_ROOT, TaskService, command_failed, failed, refuse};

pub(super) async fn create(service: &TaskService, request: CreateRequest) -> Result<CreateResponse> {
    let id: ContainerId = request
        .id
        .parse()
        .map_err(|error| failed("reading the container's id", error))?;
    let names = StreamNames {
        stdin: &request.stdin,
        stdout: &request.stdout,
        stderr: &request.stderr,
        leash: &request.leash,
    };
    let streams = ClaimedStreams::claim(&service.streams, names, &format!("container {id}")).await?;
    if service.containers().contains_key(id.as_str()) {
        return Err(refuse(
            Code::ALREADY_EXISTS,
            format!("a container named {id} exists already"),
        ));
    }
    let config = match request.shared_memory.as_str() {
        "" => request.config,
        name => share_memory(service, name, &id, &request.config)?,
    };
    let bundle = Path::new(BUNDLES).join(id.as_str());
    let made = fs::create_dir_all(&bundle)
        .and_then(|()| fs::write(bundle.join("config.json"), config))
        .map_err(|error| failed("writing the bundle", error))
        .and_then(|()| make(service, &id, &bundle, streams));
    if made.is_err() {
        // The engine has undone what it did; the rest is ours. A failure here must not hide the first one.
        let _ = fs::remove_dir_all(&bundle);
        let _ = service.shared_memories().leave(id.as_str());
    }
    made
}

/// The configuration with the memory of this name, which other containers may have too.
fn share_memory(service: &TaskService, name: &str, id: &ContainerId, config: &[u8]) -> Result<Vec<u8>> {
    let mut config: Value =
        serde_json::from_slice(config).map_err(|error| failed("reading the configuration", error))?;
    service
        .shared_memories()
        .join(name, id.as_str(), &mut config)
        .map_err(|error| failed("sharing memory", error))?;
    serde_json::to_vec(&config).map_err(|error| failed("writing the configuration", error))
}

/// Everything from here on happens without the event loop, which alone reaps: the exit cannot be missed.
fn make(
    service: &TaskService,
    id: &ContainerId,
    bundle: &Path,
    streams: ClaimedStreams,
) -> Result<CreateResponse> {
    let failure = |error| failed("reading the bundle", error);
    let bundle = Bundle::load(bundle).map_err(failure)?;
    let has_terminal = bundle
        .spec()
        .process()
        .as_ref()
        .and_then(|process| process.terminal())
        .unwrap_or(false);
    let (stdio, joined) =
        JoinedStreams::new(has_terminal, streams).map_err(|error| failed("joining the streams", error))?;
    // The network that the containers join is the guest's, which is there for them alone.
    let options = CreateOptions::new(Path::new(STATE_ROOT), id, &bundle)
        .stdio(stdio)
        .set_own_network(true);
    let mut container = container::create(options)
        .map_err(|error| command_failed("creating the container", error.command_failure(), error))?;
    let warnings = container.take_warnings();
    let taken = hand_over_root(&bundle).and_then(|()| take_up(service, &mut container, joined));
    let (init, out_of_memory_kills, joined) = match taken {
        Ok(taken) => taken,
        Err(error) => {
            if let Err(left) = container.delete(true) {
                let left = anyhow::Error::new(left);
                eprintln!("bulkhead-agent: deleting container {id}, which could not be kept: {left:#}");
            }
            return Err(error);
        }
    };
    let number = init.number();
    let (sender, end) = watch::channel(None);
    let follower = Follower {
        process: format!("container {id}"),
        exit: init.exit.clone(),
        outputs: joined.outputs,
        out_of_memory_kills: out_of_memory_kills.clone(),
        leash: joined.leash,
        end: sender,
    };
    let kept = KeptContainer {
        container,
        init,
        end,
        execs: Default::default(),
        out_of_memory_kills,
    };
    service.containers().insert(id.to_string(), kept);
    let (service, id) = (service.clone(), id.to_string());
    tokio::spawn(async move {
        // Asked for only while its first process has not been reaped: that id is still this container's.
        let kill = || {
            service.with_container(&id, |kept| {
                kept.container
                    .kill_all(Signal::KILL)
                    .map_err(|error| failed("killing its processes", error))
            })
        };
        follower.follow(kill).await;
    });
    Ok(CreateResponse {
        pid: number,
        warnings,
        ..CreateResponse::default()
    })
}

/// Leaves the container its root, where that is a disk of ours until then.
fn hand_over_root(bundle: &Bundle) -> Result<()> {
    let Some(root) = bundle.spec().root() else {
        return Ok(());
    };
    disks::hand_over(root.path()).map_err(|error| failed("handing the root's disk over", error))
}

/// Takes charge of what was created.
fn take_up(
    service: &TaskService,
    container: &mut Container,
    mut joined: JoinedStreams,
) -> Result<(KeptProcess, OutOfMemoryKills, JoinedStreams)> {
    let pid = container.pid().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| {
        refuse(
            Code::INTERNAL,
            format!("container {} has no process", container.id()),
        )
    })?;
    let init = KeptProcess {
        pid,
        exit: service.exits.watch(pid),
        terminal: container.take_terminal(),
    };
    if let Some(master) = &init.terminal {
        joined
            .attach(master)
            .map_err(|error| failed("joining the terminal", error))?;
    }
    let out_of_memory_kills =
        OutOfMemoryKills::of(container).map_err(|error| failed("watching the container's memory", error))?;
    Ok((init, out_of_memory_kills, joined))
}

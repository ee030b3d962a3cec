//! `Start`: runs the command.

use container::{Container, ExecOptions, Signal};
use protocol::task::{StartRequest, StartResponse};
use rustix::process::Pid;
use ttrpc::{Code, Result};

use super::exec::{AddedProcess, Stage};
use super::joined_streams::JoinedStreams;
use super::process::{EndSender, Follower, KeptProcess, signal_process};
use super::{KeptContainer, TaskService, command_failed, failed, name_of, refuse};

pub(super) fn start(service: &TaskService, request: &StartRequest) -> Result<StartResponse> {
    service.with_container(&request.id, |kept| {
        if !request.exec_id.is_empty() {
            return start_added(service, kept, request);
        }
        kept.container
            .start()
            .map_err(|error| command_failed("starting the container", error.command_failure(), error))?;
        Ok(StartResponse {
            pid: kept.init.number(),
            ..StartResponse::default()
        })
    })
}

fn start_added(
    service: &TaskService,
    kept: &mut KeptContainer,
    request: &StartRequest,
) -> Result<StartResponse> {
    let (id, exec_id) = (&request.id, &request.exec_id);
    let name = name_of(id, exec_id);
    let exec = kept.exec(id, exec_id)?;
    // Should it fail, it has failed for good: its streams are gone with it.
    let added = match std::mem::replace(&mut exec.stage, Stage::Failed) {
        Stage::Added(added) => *added,
        other => {
            exec.stage = other;
            return Err(refuse(
                Code::FAILED_PRECONDITION,
                format!("{name} was started before"),
            ));
        }
    };
    let (process, joined, end, warnings) = run(service, &kept.container, added, &name)?;
    let (pid, number, exit) = (process.pid, process.number(), process.exit.clone());
    let follower = Follower {
        process: name,
        exit: exit.clone(),
        outputs: joined.outputs,
        out_of_memory_kills: kept.out_of_memory_kills.clone(),
        leash: joined.leash,
        end,
    };
    kept.exec(id, exec_id)?.stage = Stage::Started(process);
    let (service, id, exec_id) = (service.clone(), id.clone(), exec_id.clone());
    tokio::spawn(async move {
        let kill = || signal_process(pid, &exit, Signal::KILL).map(drop);
        if follower.follow(kill).await {
            service.forget_ended(&id, &exec_id, pid);
        }
    });
    Ok(StartResponse {
        pid: number,
        warnings,
        ..StartResponse::default()
    })
}

/// Everything here happens without the event loop, which alone reaps: the exit cannot be missed.
fn run(
    service: &TaskService,
    container: &Container,
    added: AddedProcess,
    name: &str,
) -> Result<(KeptProcess, JoinedStreams, EndSender, Vec<String>)> {
    let has_terminal = added.process.terminal().unwrap_or(false);
    let (stdio, mut joined) = JoinedStreams::new(has_terminal, added.streams)
        .map_err(|error| failed(&format!("joining the streams of {name}"), error))?;
    let mut executed = container
        .exec(ExecOptions::new(&added.process).stdio(stdio))
        .map_err(|error| command_failed(&format!("running {name}"), error.command_failure(), error))?;
    let pid = Pid::from_raw(executed.pid());
    let pid = pid.ok_or_else(|| refuse(Code::INTERNAL, format!("{name} has no number")))?;
    let process = KeptProcess {
        pid,
        exit: service.exits.watch(pid),
        terminal: executed.take_terminal(),
    };
    if let Some(Err(error)) = process.terminal.as_ref().map(|master| joined.attach(master)) {
        let killed = process.signal(Signal::KILL).map(drop);
        let error = killed.err().unwrap_or(error);
        return Err(failed(&format!("joining the terminal of {name}"), error));
    }
    Ok((process, joined, added.end, executed.warnings().to_vec()))
}

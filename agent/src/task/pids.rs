//! `Pids`: the processes of a container.

use protocol::task::{PidsRequest, PidsResponse, Process};
use ttrpc::Result;

use super::{TaskService, failed};
use crate::process_table::{Boot, ProcessEntry};

/// The most processes that are told of; an answer has room for 4 MiB.
const MOST_PROCESSES: usize = 16 << 10;

/// The most bytes of commands that are told; of the rest only names are.
const MOST_COMMANDS: usize = 1 << 20;

pub(super) fn pids(service: &TaskService, request: &PidsRequest) -> Result<PidsResponse> {
    let listed = service.with_container(&request.id, |kept| {
        kept.container
            .processes()
            .map_err(|error| failed("listing the container's processes", error))
    })?;
    let boot = Boot::find();
    let mut left = MOST_COMMANDS;
    let mut processes = Vec::new();
    for pid in listed.into_iter().take(MOST_PROCESSES) {
        // One that has ended meanwhile is left out.
        let Some(entry) = ProcessEntry::read(pid) else {
            continue;
        };
        let process = describe(&boot, entry, left);
        left = left.saturating_sub(process.command.len());
        processes.push(process);
    }
    Ok(PidsResponse {
        processes,
        ..PidsResponse::default()
    })
}

/// An entry as the protocol has it, with a command of at most `room` bytes or else the name alone.
fn describe(boot: &Boot, entry: ProcessEntry, room: usize) -> Process {
    let name = format!("[{}]", entry.name);
    let command = match entry.command {
        Some(command) if command.len() <= room => command,
        _ => name,
    };
    Process {
        pid: entry.pid,
        parent: entry.parent,
        uid: entry.uid,
        started_at: boot.time_of(entry.started_at),
        cpu_time: boot.duration_of(entry.cpu_time),
        terminal: entry.terminal,
        command,
        ..Process::default()
    }
}

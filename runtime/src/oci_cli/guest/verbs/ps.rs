//! `ps`: the processes of a container. People get a table of those in the guest, as its kernel numbers them. Programs get
//! the numbers of what stands for these on the host, where they look them up, as `docker top` does.

use std::fmt::Write as _;

use container::Status;
use protocol::task::Process;

use super::found::Found;
use super::{GuestError, event_loop};
use crate::micro_vm::MicroVm;
use crate::oci_cli::ps::{Format, PsArguments};
use crate::oci_cli::{GlobalOptions, OciError, print};

pub(super) fn ps(arguments: &PsArguments, global: &GlobalOptions) -> Result<(), OciError> {
    if !arguments.ps_arguments.is_empty() {
        return Err(GuestError::PsOptions.into());
    }
    let found = Found::look(global, &arguments.id)?;
    match arguments.format {
        Format::Json => {
            let mut text =
                serde_json::to_vec(&found.attendants()?).map_err(|error| OciError::Output(error.into()))?;
            text.push(b'\n');
            print(&text)
        }
        Format::Table => print(table(&processes(&found)?).as_bytes()),
    }
}

/// The processes in the guest.
fn processes(found: &Found) -> Result<Vec<Process>, GuestError> {
    let list = async |machine: &MicroVm| Ok(machine.processes(found.id.as_str()).await?);
    let listed: Result<_, GuestError> = event_loop()?.block_on(found.call(list));
    let mut processes = match listed {
        // Its machine may have ended with it.
        Err(_) if found.status()? == Status::Stopped => Vec::new(),
        listed => listed?,
    };
    processes.sort_unstable_by_key(|process| process.pid);
    Ok(processes)
}

fn table(processes: &[Process]) -> String {
    let mut table = format!(
        "{:<8}{:>8}{:>8} {:<8}{:>9} CMD\n",
        "UID", "PID", "PPID", "TTY", "TIME"
    );
    for process in processes {
        let seconds = process.cpu_time / 1_000_000_000;
        let time = format!(
            "{:02}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        );
        let terminal = match process.terminal.as_str() {
            "" => "?",
            terminal => terminal,
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "{:<8}{:>8}{:>8} {terminal:<8}{time:>9} {}",
            process.uid, process.pid, process.parent, process.command
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_a_line_with_its_time_in_hours_minutes_and_seconds() {
        let process = Process {
            pid: 7,
            parent: 1,
            uid: 1000,
            cpu_time: 3_725_000_000_000,
            command: "sleep 1".to_owned(),
            ..Process::default()
        };
        let table = table(&[process]);
        let line: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line, ["1000", "7", "1", "?", "01:02:05", "sleep", "1"]);
    }
}

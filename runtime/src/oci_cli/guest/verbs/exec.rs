//! `exec`: one more process in a container, with an attendant of its own.

use std::os::fd::AsFd as _;

use container::{Bundle, Status};

use super::GuestError;
use super::create::open_terminal;
use super::found::Found;
use crate::oci_cli::exec::ExecArguments;
use crate::oci_cli::foreground::{Foreground, take_our_size};
use crate::oci_cli::log::Log;
use crate::oci_cli::{GlobalOptions, OciError, descriptors};
use crate::oci_pod::attendant::{Attendant, AttendantPlan, AttendantStdio, Attended, ProcessPlan};
use crate::oci_pod::guest_configuration::leave_labels_out;
use crate::oci_pod::sandbox::machine_files;
use crate::terminal::TerminalSize;
use crate::unused_name::unused_name;

pub(super) fn exec(arguments: &ExecArguments, global: &GlobalOptions, log: &Log) -> Result<i32, OciError> {
    let found = Found::look(global, &arguments.id)?;
    found.require(
        &[Status::Created, Status::Running],
        "a process can be run in one that is created or running",
    )?;
    if !descriptors::preserved(arguments.preserve_fds).is_empty() {
        return Err(GuestError::Descriptors.into());
    }
    let bundle = Bundle::load(found.folder.path())?;
    let configured = bundle.spec().process().clone().unwrap_or_default();
    let mut process = arguments.process(configured, log)?;
    container::close_on_exec_all_but_stdio_and(&mut [])
        .map_err(|errno| GuestError::Inheritance(errno.into()))?;
    let foreground = if arguments.detach {
        None
    } else {
        Some(Foreground::begin()?)
    };
    let (stdio, terminal) = if process.terminal() == Some(true) {
        if foreground.is_some() {
            take_our_size(&mut process);
        } else if arguments.console_socket.is_none() {
            return Err(GuestError::NoConsoleSocket.into());
        }
        let asked = process.console_size().as_ref().and_then(|size| {
            Some(TerminalSize {
                columns: size.width().try_into().ok()?,
                rows: size.height().try_into().ok()?,
            })
        });
        let (master, slave) = open_terminal(asked).map_err(GuestError::Terminal)?;
        (AttendantStdio::Terminal(slave), Some(master))
    } else {
        (AttendantStdio::Inherited, None)
    };
    let mut process = serde_json::to_value(&process).map_err(GuestError::Request)?;
    for warning in leave_labels_out(&mut process) {
        log.warning(&warning);
    }
    let plan = AttendantPlan {
        machine: found.sandbox()?.machine,
        files: machine_files(&found.sandbox_folder).directory().to_owned(),
        attended: Attended::Process(ProcessPlan {
            container: found.container.id.clone(),
            name: unused_name().map_err(GuestError::Random)?,
            process,
            container_attendant: found.container.attendant,
        }),
        ends_machine: false,
        has_terminal: terminal.is_some(),
    };
    let attendant = Attendant::spawn(&plan, stdio, &found.container.cgroup).map_err(GuestError::from)?;
    for warning in attendant.warnings() {
        log.warning(warning);
    }
    let identity = attendant.identity();
    let terminal = match (terminal, &arguments.console_socket) {
        (Some(master), Some(socket)) => {
            container::send_terminal(socket, master.as_fd()).map_err(GuestError::from)?;
            None
        }
        (terminal, _) => terminal,
    };
    if let Some(path) = &arguments.pid_file {
        container::write_pid_file(path, identity.pid).map_err(GuestError::from)?;
    }
    // Found before it is let go: one that has ended stays to be waited for.
    let descriptor = identity
        .open()
        .map_err(|errno| OciError::Attendant(errno.into()))?;
    let guest_pid = attendant.guest_pid();
    attendant.go_on().map_err(GuestError::from)?;
    log.debug(|| {
        format!(
            "process {guest_pid} runs in container {}, attended by process {}",
            arguments.id, identity.pid
        )
    });
    match (foreground, descriptor) {
        (Some(foreground), Some(descriptor)) => foreground.wait(&descriptor, terminal),
        _ => Ok(0),
    }
}

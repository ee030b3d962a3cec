//! A container as its users hold it, and one file for each thing done to it.

mod affinity_of_children;
mod between;
mod console;
mod create;
mod create_error;
mod create_options;
mod delete;
mod delete_damaged;
mod exec;
mod init_failure;
mod kill;
mod list;
mod maker;
mod pause;
mod pid_file;
mod pid_namespace;
mod pipes;
mod processes;
mod seccomp_agent;
mod start;
mod state;
mod update;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::OnceLock;

use oci_spec::runtime::Spec;

pub use console::{ConsoleSocketError, send_terminal};
pub use create::create;
pub use create_error::CreateError;
pub use create_options::{CreateOptions, Stdio};
pub use delete::DeleteError;
pub use delete_damaged::delete_damaged;
pub use exec::{ExecError, ExecOptions, Executed};
pub use init_failure::InitFailure;
pub use kill::KillError;
pub use list::list;
pub use pause::PauseError;
pub use pid_file::{PidFileError, write_pid_file};
pub use processes::ProcessError;
pub use seccomp_agent::SeccompAgentError;
pub use start::StartError;
pub use update::UpdateError;

use crate::id::ContainerId;
use crate::state::{Record, StateDirectory, StateError};

/// A container that exists. Dropping it changes nothing.
#[derive(Debug)]
pub struct Container {
    id: ContainerId,
    directory: StateDirectory,
    record: Record,
    terminal: Option<OwnedFd>,
    /// The connection to the process, if it waits to be started by us alone.
    starter: Option<OwnedFd>,
    warnings: Vec<String>,
    /// As it was at creation, once it was read: it does not change.
    configuration: OnceLock<Spec>,
}

impl Container {
    /// Takes up the container `id` of the folder `state_root`. One whose creation was cut short can be loaded too, so
    /// that it can be deleted.
    pub fn load(state_root: &Path, id: &ContainerId) -> Result<Container, StateError> {
        let directory = StateDirectory::open(state_root, id)?;
        let record = directory.read()?.unwrap_or_default();
        Ok(Container {
            id: id.clone(),
            directory,
            record,
            terminal: None,
            starter: None,
            warnings: Vec::new(),
            configuration: OnceLock::new(),
        })
    }

    /// The configuration that it was created with.
    fn configuration(&self) -> Result<&Spec, StateError> {
        if let Some(configuration) = self.configuration.get() {
            return Ok(configuration);
        }
        let configuration = self.directory.read_configuration()?;
        Ok(self.configuration.get_or_init(|| configuration))
    }

    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// The folder of its configuration.
    pub fn bundle(&self) -> &Path {
        &self.record.bundle
    }

    /// Its first process, by the caller's numbers, running or not; none if creation was cut short.
    pub fn pid(&self) -> Option<i32> {
        self.record.init.map(|init| init.pid)
    }

    /// The caller's end of its terminal, once, if it was created with [`Stdio::Terminal`].
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// What the last operation could not do and the specification allows to be missing, such as capabilities the caller
    /// lacks: each once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// A descriptor of its first process, to poll for its end; none when it ended and was waited for.
    pub fn pidfd(&self) -> io::Result<Option<OwnedFd>> {
        match &self.record.init {
            Some(init) => Ok(init.open()?),
            None => Ok(None),
        }
    }
}

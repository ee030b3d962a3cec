//! A pod's world behind either wall: the one interface that everything above speaks to.

pub mod directory;
pub mod record;
pub mod remove_tree;
pub mod shared_kernel;
pub mod stdio;

use std::error::Error;
use std::path::PathBuf;

use async_trait::async_trait;
use container::ProcessIdentity;

use self::stdio::ContainerStdio;
use crate::isolation::Isolation;

/// One container to be made in a sandbox.
#[derive(Debug)]
pub struct ContainerRequest {
    /// Its id, unique within the sandbox.
    pub id: String,
    /// The folder of its OCI bundle, whose `config.json` has host paths.
    pub bundle: PathBuf,
    /// What its standard descriptors are joined to.
    pub stdio: ContainerStdio,
}

/// How a container's command ended, as a shell counts it: its exit code, or 128 plus the signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus(pub u8);

/// What could not be done with a container, and why.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub struct SandboxError {
    /// What was being done, to what.
    pub action: String,
    /// Whether the container's command itself is at fault.
    pub command_failure: Option<CommandFailure>,
    /// How the command ended, where only what it wrote was lost.
    pub exit_status: Option<ExitStatus>,
    /// The cause.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// A command that could not be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandFailure {
    /// It does not exist.
    NotFound,
    /// It exists and cannot be executed.
    NotExecutable,
}

impl CommandFailure {
    /// The exit code a shell gives for it.
    pub fn exit_status(self) -> ExitStatus {
        match self {
            Self::NotFound => ExitStatus(127),
            Self::NotExecutable => ExitStatus(126),
        }
    }
}

impl SandboxError {
    /// An error whose cause needs no telling apart.
    pub fn new(action: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            action: action.into(),
            command_failure: None,
            exit_status: None,
            source: source.into(),
        }
    }

    /// What a container wrote could not be handed on, though its command ended.
    pub fn output_lost(id: &str, exit_status: ExitStatus, cause: std::io::Error) -> Self {
        Self {
            exit_status: Some(exit_status),
            ..Self::new(format!("writing the output of container {id}"), cause)
        }
    }

    /// The same with the command's failure, if it is one.
    #[must_use]
    pub fn with_command_failure(mut self, failure: Option<CommandFailure>) -> Self {
        self.command_failure = failure;
        self
    }
}

/// A pod's world: containers are made, run and removed in it, and it outlives them.
///
/// Calls follow containerd's Task API. Waiting and the calls that end a container may run at the same time.
#[async_trait(?Send)]
pub trait Sandbox {
    /// Which wall this is.
    fn isolation(&self) -> Isolation;

    /// Where the root file system of a container is to be mounted, so that the sandbox sees it.
    ///
    /// # Errors
    /// When the folder cannot be made.
    fn rootfs(&self, id: &str) -> Result<PathBuf, SandboxError>;

    /// The process on the host that is this container and no other; `None` behind a wall where there is none.
    fn host_process(&self, id: &str) -> Option<ProcessIdentity>;

    /// Makes a container up to the moment before its command runs.
    async fn create(&self, request: ContainerRequest) -> Result<(), SandboxError>;

    /// Runs the command of a created container.
    async fn start(&self, id: &str) -> Result<(), SandboxError>;

    /// Waits until the command has ended and all of its output has been handed on. Output that could not be is an
    /// error with the exit status in it.
    async fn wait(&self, id: &str) -> Result<ExitStatus, SandboxError>;

    /// Sends a signal to the container's init process.
    async fn kill(&self, id: &str, signal: i32) -> Result<(), SandboxError>;

    /// Sets the size of the container's terminal.
    async fn resize_terminal(&self, id: &str, columns: u16, rows: u16) -> Result<(), SandboxError>;

    /// Removes a container, whatever its state.
    async fn delete(&self, id: &str) -> Result<(), SandboxError>;

    /// Ends the sandbox with all that is left in it.
    async fn stop(&self) -> Result<(), SandboxError>;
}

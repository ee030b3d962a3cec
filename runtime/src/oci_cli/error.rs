//! Why a verb failed.

use std::path::PathBuf;

use container::{
    BundleError, CommandFailure, ContainerId, CreateError, DeleteError, ExecError, KillError, PauseError,
    ProcessError, ProgramError, StartError, StateError, Status, UpdateError,
};

use super::ps::PsError;
use super::spec::SpecFileError;
use super::update::ResourcesError;
use crate::annotations::AnnotationError;
use crate::oci_pod::folder::FolderError;

/// What a verb of the OCI command line ends with when it fails.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle's annotations ask for what is not there.
    #[error("config.json: annotations")]
    Annotations(#[from] AnnotationError),
    /// The program for containers behind the microVM wall could not be executed.
    #[error("cannot execute {}, which makes and finds containers behind the microvm wall", program.display())]
    HandOver {
        /// The program.
        program: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// What is written down of a container behind the microVM wall cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Whether a container behind the microVM wall lives cannot be told.
    #[error("cannot look at the container's attendant")]
    Attendant(#[source] std::io::Error),
    /// A verb failed behind the microVM wall.
    #[cfg(feature = "microvm")]
    #[error(transparent)]
    Guest(#[from] super::guest::GuestError),
    /// The container could not be created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A process could not be run in a container.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// This program would be in the container's reach.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// There is no systemd to talk to.
    #[error(
        "--systemd-cgroup is refused: cgroups are made in the file system, as with the cgroup manager `cgroupfs` of \
         podman, containerd and Docker"
    )]
    SystemdCgroup,
    /// The engine has no way to work without privileges.
    #[error("--rootless=true is refused: containers are made with root's privileges")]
    Rootless,
    /// A guest has no such thing to offer.
    #[error("{option} is refused behind the microvm wall; `--isolation shared-kernel` has it")]
    ExecInGuest {
        /// The option.
        option: &'static str,
    },
    /// There is nothing to execute.
    #[error("say what to run: a command after the container's id, or --process FILE")]
    NoCommand,
    /// No capability of that name.
    #[error("--cap {name}: not a capability")]
    Capability {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The file of a process cannot be opened.
    #[error("cannot open {}", path.display())]
    ReadProcess {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The file of a process does not hold one.
    #[error("{}: {field}: not a process as in config.json", path.display())]
    ParseProcess {
        /// The file.
        path: PathBuf,
        /// Where in the document, as in `user.uid`.
        field: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The end of the program cannot be awaited, or its terminal not be shown.
    #[error("cannot wait for the container's program")]
    Wait(#[source] std::io::Error),
    /// The container could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The signal could not be sent.
    #[error(transparent)]
    Kill(#[from] KillError),
    /// The container could not be deleted.
    #[error(transparent)]
    Delete(#[from] DeleteError),
    /// The container could not be paused or resumed.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// The container's limits could not be changed.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The limits to change cannot be read.
    #[error(transparent)]
    Resources(#[from] ResourcesError),
    /// The container's processes could not be listed or measured.
    #[error(transparent)]
    Processes(#[from] ProcessError),
    /// The command that shows processes failed.
    #[error(transparent)]
    Ps(#[from] PsError),
    /// There is nobody to tell of.
    #[error("container not running: `{id}` is {status}")]
    NotRunning {
        /// The container.
        id: ContainerId,
        /// What it is.
        status: Status,
    },
    /// The folder of states could not be read.
    #[error("cannot read the containers in {}", root.display())]
    List {
        /// The folder.
        root: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The configuration could not be written.
    #[error(transparent)]
    Configuration(#[from] SpecFileError),
    /// The container's state could not be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The answer could not be written.
    #[error("cannot write to standard output")]
    Output(#[source] std::io::Error),
}

impl OciError {
    /// What a shell is told: 127 or 126 where the container's program is what is wrong, as it would say itself.
    pub(super) fn exit_code(&self) -> u8 {
        #[cfg(feature = "microvm")]
        if let OciError::Guest(error) = self {
            return error.exit_code();
        }
        let failure = match self {
            OciError::Create(error) => error.command_failure(),
            OciError::Start(error) => error.command_failure(),
            OciError::Exec(error) => error.command_failure(),
            _ => None,
        };
        match failure {
            Some(CommandFailure::NotFound) => 127,
            Some(CommandFailure::NotExecutable) => 126,
            None => 1,
        }
    }
}

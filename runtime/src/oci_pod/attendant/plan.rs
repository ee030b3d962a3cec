//! What an attendant and its maker tell each other: a line of JSON each way, and a word.

use std::path::PathBuf;

use container::ProcessIdentity;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::micro_vm::task::ProcessName;
use crate::sandbox::{CommandFailure, SandboxError};

/// Its maker's word that the process is to be kept.
pub(super) const GO_ON: &[u8; 3] = b"go\n";

/// What an attendant is made for.
#[derive(Debug, Serialize, Deserialize)]
pub struct AttendantPlan {
    /// The VMM of the guest.
    pub machine: ProcessIdentity,
    /// The folder of the machine's files.
    pub files: PathBuf,
    /// The process.
    pub attended: Attended,
    /// Whether the machine ends with the process, if nobody else is in it then.
    pub ends_machine: bool,
    /// Whether its standard descriptors are the slave of a terminal, which is to be its own.
    pub has_terminal: bool,
}

/// The process that an attendant makes.
#[derive(Debug, Serialize, Deserialize)]
pub enum Attended {
    /// The init process of a new container.
    Container(ContainerPlan),
    /// One more process in a container.
    Process(ProcessPlan),
}

/// A container to be made.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Its id.
    pub id: String,
    /// The folder of the container that founded its sandbox, which is itself if it is the first.
    pub sandbox_folder: PathBuf,
    /// The folder that relative paths of its configuration are of.
    pub bundle: PathBuf,
    /// Its configuration, fit for the guest, with paths of the host.
    pub config: Value,
    /// The name of its folder in what the guest sees of the host.
    pub shared_folder: String,
    /// The name of the memory it shares with other containers; empty for none.
    pub shared_memory: String,
    /// The host's namespace with the pod's network; none for one with nothing in it.
    pub network: Option<PathBuf>,
}

/// A process to be added to a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// The container.
    pub container: String,
    /// The process's name in it.
    pub name: String,
    /// The process as in a configuration.
    pub process: Value,
    /// Who attends to the container, and shows clients what there is of it on the host.
    pub container_attendant: Option<ProcessIdentity>,
}

impl Attended {
    pub(super) fn name(&self) -> ProcessName<'_> {
        match self {
            Self::Container(container) => ProcessName::init(&container.id),
            Self::Process(process) => ProcessName {
                container: &process.container,
                exec: &process.name,
            },
        }
    }
}

/// How the making went.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The process is there.
    Made {
        /// Its number in the guest.
        guest_pid: u32,
        /// What was not as asked and is no error.
        warnings: Vec<String>,
    },
    /// It is not.
    Failed {
        /// Why, with all causes.
        message: String,
        /// The exit code a shell has for it, where the command itself is at fault.
        command_failure: Option<u8>,
    },
}

impl Answer {
    pub(super) fn failed(error: &SandboxError) -> Self {
        let failure = error.command_failure.map(CommandFailure::exit_status);
        Self::Failed {
            message: vmm::status::chain(error),
            command_failure: failure.map(|status| status.0),
        }
    }
}

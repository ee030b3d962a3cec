//! Why a verb failed behind the microVM wall.

use container::{
    BundleError, CgroupError, ConsoleSocketError, ContainerId, HookError, PidFileError, SpecError, Status,
};

use crate::configuration::ConfigurationError;
use crate::kvm::KvmUnusable;
use crate::micro_vm::shared_directory::ShareError;
use crate::oci_pod::attendant::AttendantError;
use crate::oci_pod::disks::DiskError;
use crate::oci_pod::folder::FolderError;
use crate::oci_pod::guest_configuration::GuestConfigurationError;
use crate::oci_pod::membership::MembershipError;
use crate::oci_pod::new_limits::NewLimitsError;
use crate::oci_pod::owed::OwedError;
use crate::oci_pod::sandbox::PodSandboxError;
use crate::sandbox::SandboxError;

/// What a verb ends with when it fails for a container behind the microVM wall.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The configuration file is wrong.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    /// There can be no microVM here.
    #[error(transparent)]
    Kvm(#[from] KvmUnusable),
    /// The bundle's configuration cannot be read.
    #[error("cannot read config.json of the bundle")]
    Configured(#[source] std::io::Error),
    /// The configuration that was written down cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The host gives no random bytes.
    #[error("drawing random bytes for a name")]
    Random(#[source] rustix::io::Errno),
    /// Its pod cannot be told.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Its configuration means nothing in a guest.
    #[error(transparent)]
    GuestConfiguration(#[from] GuestConfigurationError),
    /// A hook cannot be run.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Its files could not be taken from the guest.
    #[error("withdrawing the container's files")]
    Withdraw(#[from] ShareError),
    /// It cannot have its disks, or they could not be taken from the guest.
    #[error("the container's disks")]
    Disks(#[from] DiskError),
    /// Its cgroup on the host could not be made or removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// What may be used of the host could not be changed.
    #[error("changing what the microVM may use of the host")]
    HostLimits(#[source] CgroupError),
    /// Its machine cannot follow new limits.
    #[error(transparent)]
    NewLimits(#[from] NewLimitsError),
    /// Its sandbox could not be had.
    #[error(transparent)]
    Sandbox(#[from] PodSandboxError),
    /// There is no namespace for hooks to make its network in.
    #[error("making a network namespace for the pod")]
    NewNetwork(#[source] std::io::Error),
    /// What is written down of it could not be read or written.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The process on the host that stands for it could not be made.
    #[error(transparent)]
    Attendant(#[from] AttendantError),
    /// The agent refused, or the machine ended.
    #[error(transparent)]
    Call(#[from] SandboxError),
    /// A container is in the guest still.
    #[error(transparent)]
    Owed(#[from] OwedError),
    /// A guest is stuck.
    #[error(
        "the agent in the guest did not answer within {} s: what it has of the container goes when it answers, or with the \
         container that founded the sandbox",
        .0.as_secs()
    )]
    SilentAgent(std::time::Duration),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// Descriptors of the caller would be inherited.
    #[error("cannot keep the caller's descriptors to ourselves")]
    Inheritance(#[source] std::io::Error),
    /// Nobody would have the terminal.
    #[error(
        "process.terminal: with nobody in the foreground to show it to, --console-socket says who gets the terminal"
    )]
    NoConsoleSocket,
    /// Its terminal could not be made.
    #[error("cannot make a terminal")]
    Terminal(#[source] std::io::Error),
    /// Its terminal could not be delivered.
    #[error(transparent)]
    ConsoleSocket(#[from] ConsoleSocketError),
    /// Its pid could not be written.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// The event loop could not be started.
    #[error("starting the event loop")]
    EventLoop(#[source] std::io::Error),
    /// It was deleted while it was looked at.
    #[error("container `{0}` does not exist")]
    Gone(ContainerId),
    /// It is not in the state that the verb needs.
    #[error("container `{id}` is {status}: {needed}")]
    Status {
        /// The container.
        id: ContainerId,
        /// What it is.
        status: Status,
        /// What it would have to be.
        needed: &'static str,
    },
    /// Its attendant cannot be looked at or ended.
    #[error("cannot {doing} the container's attendant")]
    Process {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Descriptors are no good in another kernel.
    #[error(
        "--preserve-fds and LISTEN_FDS: a descriptor of the host cannot be handed into a virtual machine; \
         `--isolation shared-kernel` can"
    )]
    Descriptors,
    /// The agent answers without having an answer.
    #[error("the agent told of a want of memory that there was not")]
    NoNews,
    /// What the agent measured is nothing this version understands.
    #[error("understanding what the agent measured")]
    Statistics(#[source] serde_json::Error),
    /// What the agent is to do cannot be written.
    #[error("writing what the agent is to do")]
    Request(#[source] serde_json::Error),
    /// The program's processes are not the host's.
    #[error("options for ps(1) mean nothing for processes of a guest, which the host's ps does not see")]
    PsOptions,
}

impl GuestError {
    /// What a shell is told: 127 or 126 where the container's program is what is wrong.
    pub(in crate::oci_cli) fn exit_code(&self) -> u8 {
        let failure = match self {
            Self::Attendant(AttendantError::Failed { command_failure, .. }) => *command_failure,
            Self::Call(error) => error.command_failure.map(|failure| failure.exit_status().0),
            _ => None,
        };
        failure.unwrap_or(1)
    }
}

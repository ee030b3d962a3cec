//! Why `create` fails.

use std::io;

use rustix::io::Errno;

use super::{ConsoleSocketError, InitFailure, PidFileError, SeccompAgentError};
use crate::cgroup::CgroupError;
use crate::hook::HookError;
use crate::init::NamespaceError;
use crate::network::NetDeviceError;
use crate::plan::SpecError;
use crate::process::CommandFailure;
use crate::state::StateError;

/// Why a container could not be created. Nothing is left of it, unless the error is [`NotUndone`](Self::NotUndone).
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The configuration cannot be honoured.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The caller has several threads, and a fork of it could stand still for ever.
    #[error("a container can only be created from a process with one thread, and this one has {threads}")]
    ManyThreads {
        /// How many.
        threads: u64,
    },
    /// Streams and configuration contradict each other.
    #[error("{0}")]
    Terminal(&'static str),
    /// The id is taken, or the state cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The cgroups cannot be made.
    #[error("cannot make the container's cgroups")]
    Cgroup(#[from] CgroupError),
    /// A mount's source, or the root file system, cannot be opened.
    #[error("cannot open what the container is made of")]
    Sources(#[source] InitFailure),
    /// A namespace to join cannot be.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A network device cannot be given to the container.
    #[error(transparent)]
    NetDevice(#[from] NetDeviceError),
    /// A step outside the container's process failed.
    #[error("cannot {doing}")]
    Step {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The process was made and could not be set up.
    #[error("cannot set up the container's process")]
    Init(#[source] InitFailure),
    /// The process was made and died without a word.
    #[error("the container's process {how} while it was set up: is linux.resources.memory.limit too low?")]
    InitDied {
        /// What is known of its end.
        how: String,
    },
    /// The container's system calls could not be handed to its agent.
    #[error(transparent)]
    SeccompAgent(#[from] SeccompAgentError),
    /// The terminal could not be delivered.
    #[error(transparent)]
    ConsoleSocket(#[from] ConsoleSocketError),
    /// The pid file could not be written.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// Creation failed, and so did a hook that was told so.
    #[error("creation failed, and afterwards {hook}")]
    PoststopHook {
        /// The hook, the first if there are several.
        hook: HookError,
        /// Why creation failed.
        #[source]
        source: Box<CreateError>,
    },
    /// Creation failed and so did cleaning up; `delete` can be tried again.
    #[error("creation failed and could not be undone ({left}): delete the container by force")]
    NotUndone {
        /// What stands in the way.
        left: String,
        /// Why creation failed.
        #[source]
        source: Box<CreateError>,
    },
}

impl CreateError {
    /// Whether the program is what is wrong, and how: 127 or 126 to a shell.
    pub fn command_failure(&self) -> Option<CommandFailure> {
        match self {
            CreateError::Init(failure) => failure.command_failure(),
            CreateError::NotUndone { source, .. } | CreateError::PoststopHook { source, .. } => {
                source.command_failure()
            }
            _ => None,
        }
    }

    pub(super) fn step(doing: &'static str) -> impl FnOnce(Errno) -> CreateError {
        move |errno| CreateError::Step {
            doing,
            source: errno.into(),
        }
    }
}

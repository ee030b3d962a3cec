//! Why a process of the container could not be set up.

use std::io;

use rustix::io::Errno;

use super::CommandFailure;
use super::channel::Report;
use super::command::CommandError;
use crate::cgroup::CgroupError;
use crate::hook::HookError;
use crate::rootfs::RootfsError;

/// What went wrong in a process on its way to being the program; it is told to the caller through the channel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetUpError {
    #[error("cannot {doing}")]
    Step { doing: &'static str, source: io::Error },
    #[error("{field}: cannot {doing}")]
    Field {
        field: String,
        doing: String,
        source: io::Error,
    },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(
        "the container's first process has left the {kind} namespace that the container was created with: a process \
         can be run in none that it made or joined itself"
    )]
    NamespaceLeft { kind: &'static str },
    #[error("process.cwd: {problem}")]
    WorkingDirectory { problem: String },
    #[error("process.terminal: there is no /dev/pts/ptmx: mount a devpts on /dev/pts")]
    NoTerminals { source: io::Error },
}

impl SetUpError {
    pub(crate) fn step(doing: &'static str) -> impl FnOnce(Errno) -> SetUpError {
        move |errno| SetUpError::Step {
            doing,
            source: errno.into(),
        }
    }

    pub(crate) fn field(
        field: impl Into<String>,
        doing: impl Into<String>,
    ) -> impl FnOnce(Errno) -> SetUpError {
        move |errno| SetUpError::Field {
            field: field.into(),
            doing: doing.into(),
            source: errno.into(),
        }
    }

    /// What to tell the caller.
    pub(crate) fn report(&self) -> Report {
        let failure: Option<CommandFailure> = match self {
            SetUpError::Command(error) => Some(error.failure()),
            _ => None,
        };
        Report::Failed {
            failure,
            messages: super::messages(self),
        }
    }
}

//! Handing the system calls of a container to an agent (runtime specification, "The Container Process State").

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::PathBuf;

use rustix::io::{Errno, IoSlice};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, sendmsg};
use serde::Serialize;

use super::console::connect_to;
use crate::seccomp::{AgentPlan, take_listener};
use crate::state::OciState;

/// Why a container's system calls could not be handed to its agent.
#[derive(Debug, thiserror::Error)]
pub enum SeccompAgentError {
    /// Nobody listens.
    #[error("linux.seccomp.listenerPath: cannot reach the seccomp agent at {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The agent listens, but not at a stream socket.
    #[error("linux.seccomp.listenerPath: {} is not a stream socket", path.display())]
    NotAStream {
        /// The socket.
        path: PathBuf,
    },
    /// The listener stayed in the process.
    #[error("cannot take the listener of linux.seccomp out of the container's process")]
    Listener(#[source] io::Error),
    /// The agent did not take it.
    #[error("cannot send the listener of linux.seccomp to the agent at {}", path.display())]
    Send {
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl SeccompAgentError {
    /// Whether the process ended before its listener was taken. Then it may have said why.
    pub(super) fn process_ended(&self) -> bool {
        matches!(self, SeccompAgentError::Listener(source) if source.raw_os_error() == Some(libc::ESRCH))
    }
}

/// `ContainerProcessState` of the specification.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerProcessState<'a> {
    oci_version: &'a str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: &'a OciState,
}

/// Whether an agent is there, found out without it noticing: it may expect a state on every connection. A datagram
/// socket is refused by a stream socket somebody listens at, but differently than by one that is left over.
pub(super) fn check(agent: &AgentPlan) -> Result<(), SeccompAgentError> {
    match connect_to(&agent.path, SocketType::DGRAM) {
        Err(Errno::PROTOTYPE) => Ok(()),
        Ok(_) => Err(SeccompAgentError::NotAStream {
            path: agent.path.clone(),
        }),
        Err(errno) => Err(unreachable(agent)(errno)),
    }
}

/// Takes the listener, which is to be descriptor `number` of `process`, and sends it to the agent with the state of the
/// container. `pid` is the process's number here.
pub(super) fn hand_over(
    agent: &AgentPlan,
    state: &OciState,
    process: BorrowedFd<'_>,
    pid: i32,
    number: RawFd,
) -> Result<(), SeccompAgentError> {
    let listener =
        take_listener(process, number).map_err(|errno| SeccompAgentError::Listener(errno.into()))?;
    let failed = |source| SeccompAgentError::Send {
        path: agent.path.clone(),
        source,
    };
    let state = ContainerProcessState {
        oci_version: &state.oci_version,
        // The specification's name for the one descriptor that is sent.
        fds: ["seccompFd"],
        pid,
        metadata: agent.metadata.as_deref(),
        state,
    };
    let text = serde_json::to_vec(&state).map_err(|error| failed(error.into()))?;
    let socket = connect_to(&agent.path, SocketType::STREAM).map_err(unreachable(agent))?;

    let descriptors = [listener.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        match sendmsg(
            &socket,
            &[IoSlice::new(rest)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            // The descriptor went with the first part.
            Ok(sent) => {
                ancillary.clear();
                rest = rest.get(sent..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(())
}

fn unreachable(agent: &AgentPlan) -> impl FnOnce(Errno) -> SeccompAgentError {
    |errno| SeccompAgentError::Unreachable {
        path: agent.path.clone(),
        source: errno.into(),
    }
}

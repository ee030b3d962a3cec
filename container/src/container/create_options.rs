//! What `create` is told.

use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;

use crate::bundle::Bundle;
use crate::id::ContainerId;
use crate::process::Keyring;

/// The program's standard streams.
#[derive(Debug)]
pub enum Stdio {
    /// The caller's own.
    Inherit,
    /// These.
    Files {
        /// What the program reads.
        stdin: OwnedFd,
        /// Where its output goes.
        stdout: OwnedFd,
        /// Where its messages go.
        stderr: OwnedFd,
    },
    /// A new terminal, for a configuration with `process.terminal`; its other end is kept for
    /// [`take_terminal`](crate::Container::take_terminal).
    Terminal,
}

impl Stdio {
    /// Input, output and error, where they are files.
    pub(super) fn into_files(self) -> Option<[OwnedFd; 3]> {
        match self {
            Stdio::Files {
                stdin,
                stdout,
                stderr,
            } => Some([stdin, stdout, stderr]),
            Stdio::Inherit | Stdio::Terminal => None,
        }
    }
}

/// What to create, and how it is connected.
#[derive(Debug)]
pub struct CreateOptions<'a> {
    pub(super) state_root: &'a Path,
    pub(super) id: &'a ContainerId,
    pub(super) bundle: &'a Bundle,
    pub(super) stdio: Stdio,
    pub(super) pid_file: Option<&'a Path>,
    pub(super) console_socket: Option<&'a Path>,
    pub(super) preserved: Vec<RawFd>,
    pub(super) keyring: Keyring,
    pub(super) sets_own_network: bool,
    pub(super) start: StartedBy,
}

/// Who may start a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartedBy {
    /// Whoever finds its state.
    Anyone,
    /// Its creator alone, by the [`Container`](crate::Container) it was given.
    Creator,
}

impl<'a> CreateOptions<'a> {
    /// The container `id` of `bundle`, with its state below `state_root` and the caller's standard streams.
    pub fn new(state_root: &'a Path, id: &'a ContainerId, bundle: &'a Bundle) -> CreateOptions<'a> {
        CreateOptions {
            state_root,
            id,
            bundle,
            stdio: Stdio::Inherit,
            pid_file: None,
            console_socket: None,
            preserved: Vec::new(),
            keyring: Keyring::New,
            sets_own_network: false,
            start: StartedBy::Anyone,
        }
    }

    /// Connects the program to these streams.
    pub fn stdio(mut self, stdio: Stdio) -> CreateOptions<'a> {
        self.stdio = stdio;
        self
    }

    /// Writes the pid of the container's process to this file once it is created.
    pub fn pid_file(mut self, path: Option<&'a Path>) -> CreateOptions<'a> {
        self.pid_file = path;
        self
    }

    /// Sends the caller's end of the terminal to whoever listens at this socket.
    pub fn console_socket(mut self, path: Option<&'a Path>) -> CreateOptions<'a> {
        self.console_socket = path;
        self
    }

    /// Lets the program keep these descriptors of the caller's, which have to be open and not close-on-exec.
    pub fn preserved_descriptors(mut self, preserved: Vec<RawFd>) -> CreateOptions<'a> {
        self.preserved = preserved;
        self
    }

    /// Lets `linux.sysctl` set parameters of a network that is the caller's own, of a machine that is there for its
    /// containers alone; by default that is refused.
    pub fn set_own_network(mut self, set: bool) -> CreateOptions<'a> {
        self.sets_own_network = set;
        self
    }

    /// Lets nobody but the caller [`start`](crate::Container::start) the container, by what `create` returns; should the
    /// caller die before, its process ends. To others the container is running from its creation on. By default anyone
    /// may start it who finds its state.
    pub fn started_by_creator(mut self) -> CreateOptions<'a> {
        self.start = StartedBy::Creator;
        self
    }

    /// Leaves the program the caller's session keyring, with the caller's keys; by default it gets one of its own.
    pub fn share_keyring(mut self, share: bool) -> CreateOptions<'a> {
        self.keyring = if share { Keyring::Inherited } else { Keyring::New };
        self
    }
}

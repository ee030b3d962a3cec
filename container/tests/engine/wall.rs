//! Containers behind the wall that the tests are to be run behind.
//!
//! A test says what a container does, not how it is asked: behind the shared-kernel wall that is the engine's own
//! interface, behind the microVM wall `bulkhead-oci`, as a user of it would.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use container::{
    CommandFailure, CreateError, DeleteError, ExecError, ExecOptions, KillError, OciState, PauseError,
    ProcessError, Signal, StartError, StateError, Status, Stdio, UpdateError,
};
use oci_spec::runtime::{LinuxResources, Process};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::Value;

use crate::bundle::TestBundle;
use crate::command_line;

/// Chooses the wall: `shared-kernel`, which is the default, or `microvm`.
pub(crate) const WALL: &str = "BULKHEAD_ENGINE_WALL";

/// Set to anything, it says that this kernel is a guest's.
const SLOW: &str = "BULKHEAD_ENGINE_SLOW";

/// What stands between containers and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wall {
    SharedKernel,
    MicroVm,
}

impl Wall {
    /// The wall of this process, and of the tests that it runs.
    pub(crate) fn chosen() -> Wall {
        static CHOSEN: OnceLock<Wall> = OnceLock::new();
        *CHOSEN.get_or_init(|| match std::env::var(WALL).as_deref() {
            Err(_) | Ok("shared-kernel") => Wall::SharedKernel,
            Ok("microvm") => Wall::MicroVm,
            Ok(other) => panic!("{WALL}={other}: there are shared-kernel and microvm"),
        })
    }

    /// Whether the containers' kernel may be one that KVM emulates, on which everything takes a hundred times as long: behind
    /// the microVM wall, or where the tests themselves run in a guest and say so.
    pub(crate) fn is_slow() -> bool {
        Wall::chosen() == Wall::MicroVm || std::env::var_os(SLOW).is_some()
    }

    /// How many times to do what is done this often on a kernel that is not slow.
    pub(crate) fn times(often: usize) -> usize {
        match Wall::is_slow() {
            false => often,
            true => often.div_ceil(10),
        }
    }
}

/// A container that exists.
#[derive(Debug)]
pub(crate) enum Container {
    SharedKernel(Box<container::Container>),
    MicroVm(Box<command_line::Container>),
}

/// A process beside a container's first one. It is a child of this process.
#[derive(Debug)]
pub(crate) enum Executed {
    SharedKernel(container::Executed),
    MicroVm(command_line::Executed),
}

/// Why something was not done.
#[derive(Debug)]
pub(crate) enum Refusal<E> {
    Engine(E),
    CommandLine(command_line::Complaint),
}

impl<E> From<E> for Refusal<E> {
    fn from(error: E) -> Refusal<E> {
        Refusal::Engine(error)
    }
}

impl<E> Refusal<E> {
    /// Whether this is what the engine has this kind for, and says these words. A command line has but words.
    pub(crate) fn is(&self, kind: impl Fn(&E) -> bool, words: &str) -> bool
    where
        E: std::error::Error + 'static,
    {
        let is_kind = match self {
            Refusal::Engine(error) => kind(error),
            Refusal::CommandLine(_) => true,
        };
        is_kind && crate::bundle::chain(self).contains(words)
    }
}

impl<E: fmt::Display> fmt::Display for Refusal<E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Engine(error) => error.fmt(formatter),
            Refusal::CommandLine(complaint) => complaint.text.fmt(formatter),
        }
    }
}

impl<E: std::error::Error> std::error::Error for Refusal<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Refusal::Engine(error) => error.source(),
            Refusal::CommandLine(_) => None,
        }
    }
}

/// Errors that may be the program's.
pub(crate) trait MayBeOfTheProgram {
    fn command_failure(&self) -> Option<CommandFailure>;
}

macro_rules! may_be_of_the_program {
    ($($error:ty),*) => {$(
        impl MayBeOfTheProgram for $error {
            fn command_failure(&self) -> Option<CommandFailure> {
                <$error>::command_failure(self)
            }
        }
    )*};
}

may_be_of_the_program!(CreateError, StartError, ExecError);

impl<E: MayBeOfTheProgram> Refusal<E> {
    /// Whether the program is what is wrong, and how: 127 or 126 to a shell.
    pub(crate) fn command_failure(&self) -> Option<CommandFailure> {
        match self {
            Refusal::Engine(error) => error.command_failure(),
            Refusal::CommandLine(complaint) => [CommandFailure::NotFound, CommandFailure::NotExecutable]
                .into_iter()
                .find(|failure| failure.exit_code() == complaint.code),
        }
    }
}

impl From<container::Container> for Container {
    fn from(container: container::Container) -> Container {
        Container::SharedKernel(Box::new(container))
    }
}

impl From<command_line::Container> for Container {
    fn from(container: command_line::Container) -> Container {
        Container::MicroVm(Box::new(container))
    }
}

/// Does the same behind either wall.
macro_rules! behind_either_wall {
    ($this:expr, $container:ident => $done:expr) => {
        match $this {
            Container::SharedKernel($container) => $done.map_err(Refusal::from),
            Container::MicroVm($container) => $done.map_err(Refusal::CommandLine),
        }
    };
}

impl Container {
    /// Takes up the container of this bundle, as another caller would.
    pub(crate) fn load(bundle: &TestBundle) -> Result<Container, Refusal<StateError>> {
        match Wall::chosen() {
            Wall::SharedKernel => Ok(container::Container::load(&bundle.states(), &bundle.id)?.into()),
            Wall::MicroVm => command_line::Container::load(bundle)
                .map(Container::from)
                .map_err(Refusal::CommandLine),
        }
    }

    /// The engine's container, for what is asked of the engine alone.
    pub(crate) fn engine(&mut self) -> &mut container::Container {
        match self {
            Container::SharedKernel(container) => container,
            Container::MicroVm(_) => {
                panic!("this asks the engine itself: shared_kernel_only.rs is to list it")
            }
        }
    }

    /// The number of the process that stands for the container on the host.
    pub(crate) fn pid(&self) -> Option<i32> {
        match self {
            Container::SharedKernel(container) => container.pid(),
            Container::MicroVm(container) => container.pid,
        }
    }

    pub(crate) fn start(&self) -> Result<(), Refusal<StartError>> {
        behind_either_wall!(self, container => container.start())
    }

    pub(crate) fn status(&self) -> Result<Status, Refusal<StateError>> {
        behind_either_wall!(self, container => container.status())
    }

    pub(crate) fn state(&self) -> Result<OciState, Refusal<StateError>> {
        behind_either_wall!(self, container => container.state())
    }

    pub(crate) fn kill(&self, signal: Signal) -> Result<(), Refusal<KillError>> {
        behind_either_wall!(self, container => container.kill(signal))
    }

    pub(crate) fn kill_all(&self, signal: Signal) -> Result<(), Refusal<KillError>> {
        behind_either_wall!(self, container => container.kill_all(signal))
    }

    pub(crate) fn pause(&self) -> Result<(), Refusal<PauseError>> {
        behind_either_wall!(self, container => container.pause())
    }

    pub(crate) fn resume(&self) -> Result<(), Refusal<PauseError>> {
        behind_either_wall!(self, container => container.resume())
    }

    pub(crate) fn delete(&mut self, force: bool) -> Result<(), Refusal<DeleteError>> {
        behind_either_wall!(self, container => container.delete(force))
    }

    /// The container's processes, by the numbers of whoever's kernel it is.
    pub(crate) fn processes(&self) -> Result<Vec<i32>, Refusal<ProcessError>> {
        behind_either_wall!(self, container => container.processes())
    }

    /// What is used, as `events` tells it.
    pub(crate) fn statistics(&self) -> Result<Value, Refusal<ProcessError>> {
        match self {
            Container::SharedKernel(container) => Ok(serde_json::to_value(container.statistics()?).unwrap()),
            Container::MicroVm(container) => container.statistics().map_err(Refusal::CommandLine),
        }
    }

    pub(crate) fn update(&mut self, changes: &LinuxResources) -> Result<(), Refusal<UpdateError>> {
        behind_either_wall!(self, container => container.update(changes))
    }

    /// The process that the container's configuration describes.
    pub(crate) fn configured_process(&self) -> Result<Process, Refusal<ExecError>> {
        match self {
            Container::SharedKernel(container) => Ok(container.configured_process()?),
            Container::MicroVm(container) => Ok(container.configured_process()),
        }
    }

    pub(crate) fn exec(&self, process: &Process, stdio: Stdio) -> Result<Executed, Refusal<ExecError>> {
        match self {
            Container::SharedKernel(container) => Ok(Executed::SharedKernel(
                container.exec(ExecOptions::new(process).stdio(stdio))?,
            )),
            Container::MicroVm(container) => container
                .exec(process, stdio)
                .map(Executed::MicroVm)
                .map_err(Refusal::CommandLine),
        }
    }

    /// What the last operation warned of.
    pub(crate) fn take_warnings(&mut self) -> Vec<String> {
        match self {
            Container::SharedKernel(container) => container.take_warnings(),
            Container::MicroVm(container) => container.take_warnings(),
        }
    }

    /// The caller's end of its terminal, once.
    pub(crate) fn take_terminal(&mut self) -> Option<OwnedFd> {
        match self {
            Container::SharedKernel(container) => container.take_terminal(),
            Container::MicroVm(container) => container.terminal.take(),
        }
    }
}

impl Executed {
    pub(crate) fn pid(&self) -> i32 {
        match self {
            Executed::SharedKernel(executed) => executed.pid(),
            Executed::MicroVm(executed) => executed.pid,
        }
    }

    pub(crate) fn take_terminal(&mut self) -> Option<OwnedFd> {
        match self {
            Executed::SharedKernel(executed) => executed.take_terminal(),
            Executed::MicroVm(executed) => executed.terminal.take(),
        }
    }

    pub(crate) fn warnings(&self) -> &[String] {
        match self {
            Executed::SharedKernel(executed) => executed.warnings(),
            Executed::MicroVm(executed) => &executed.warnings,
        }
    }

    /// Waits for its end, as [`wait_for`] does.
    pub(crate) fn wait(&self) -> io::Result<i32> {
        match self {
            Executed::SharedKernel(executed) => executed.wait(),
            Executed::MicroVm(executed) => Ok(wait_for(executed.pid)),
        }
    }
}

/// Waits for a child of this process. 128 and the signal's number where one ended it, as a shell says it.
pub(crate) fn wait_for(pid: i32) -> i32 {
    let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::empty())
        .unwrap()
        .unwrap();
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or(signal).unwrap()
}

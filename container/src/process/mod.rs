//! How a process becomes a program of the container: what its first process and every one that joins later do alike,
//! once they stand in its namespaces and in its root.

pub(crate) mod channel;
mod command;
mod ending;
mod environment;
mod execution;
mod filter;
mod identity;
mod limits;
mod outside;
mod ready;
mod security_module;
mod set_up_error;
mod terminal;

use std::error::Error;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::fs::Mode;
use rustix::io::Errno;

pub use command::CommandFailure;
pub(crate) use ending::describe_end;
pub(crate) use execution::{execute_under, schedule_made};
pub(crate) use identity::{
    become_root_of_user_namespace, hide_memory, make_working_directory, open_working_directory,
};
pub(crate) use limits::{set_oom_score_adjustment, write_sysctl};
pub(crate) use outside::{Inside, Outside, take_on_outside};
pub(crate) use ready::{Ready, close_everything_but};
pub(crate) use security_module::{SecurityModules, label_the_program};
pub(crate) use set_up_error::SetUpError;
pub(crate) use terminal::{Terminal, open_terminal};

use crate::kernel::calls::{
    begin_session_keyring, close_on_exec_all_but_stdio_and, dup2_stderr, dup2_stdin, dup2_stdout, setsid,
    umask, write,
};
use crate::plan::ProcessPlan;
use crate::seccomp::SeccompPlan;

/// The exit code of a process that could not be set up; nobody sees it but in a debugger, the message is what counts.
pub(crate) const SETUP_FAILED: i32 = 125;

/// What the standard streams of a process are to be.
pub(crate) enum Streams<'a> {
    /// Those it has.
    Inherited,
    /// Input, output and error.
    Files(&'a [OwnedFd; 3]),
    /// A terminal, which also controls the session.
    Terminal(Terminal),
}

/// Which session keyring a process has: the caller's holds the caller's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keyring {
    /// An empty one of its own.
    New,
    /// The caller's.
    Inherited,
}

/// Gives this process, which has its root and namespaces, its session, streams, limits, user and capabilities. What is
/// left after that is to execute the program.
///
/// The kernel takes a system call filter from a process that is privileged or that gave up ever becoming so. The second
/// way is the better one, because the filter can wait until the execution and then only has to allow that.
pub(crate) fn take_on<'a>(
    plan: &ProcessPlan,
    streams: Streams<'_>,
    working_directory: OwnedFd,
    keyring: Keyring,
    filter: Option<&'a SeccompPlan>,
    caller: BorrowedFd<'_>,
) -> Result<Ready<'a>, SetUpError> {
    setsid().map_err(SetUpError::step("begin a session"))?;
    begin_keyring(keyring)?;
    let terminal = use_streams(streams)?;
    if terminal.is_some() {
        terminal::control()?;
    }
    limits::set_resource_limits(&plan.limits)?;
    execution::schedule(&plan.scheduling)?;
    let (early_filter, late_filter) = match plan.no_new_privileges {
        true => (None, filter),
        false => (filter, None),
    };
    let (kept, warnings) = identity::change(plan, working_directory)?;
    if let Some(early_filter) = early_filter {
        identity::put_into_effect_what_is_held()?;
        filter::load(early_filter, caller)?;
    }
    identity::keep_only(&kept, plan.no_new_privileges)?;
    umask(Mode::from_raw_mode(plan.user.umask));
    let environment = environment::complete(plan);
    let path = command::find(plan, &environment)?;
    Ok(Ready {
        path,
        arguments: plan.arguments.clone(),
        environment,
        filter: late_filter,
        terminal,
        warnings,
    })
}

fn begin_keyring(keyring: Keyring) -> Result<(), SetUpError> {
    match keyring {
        Keyring::New => begin_session_keyring().map_err(SetUpError::step("begin a session keyring")),
        Keyring::Inherited => Ok(()),
    }
}

/// Connects the standard streams. Returns the caller's end of a terminal, which does not control anything yet.
fn use_streams(streams: Streams<'_>) -> Result<Option<OwnedFd>, SetUpError> {
    match streams {
        Streams::Inherited => Ok(None),
        Streams::Files(files) => {
            use_as_stdio(files)?;
            Ok(None)
        }
        Streams::Terminal(terminal) => {
            terminal.connect()?;
            Ok(Some(terminal.into_master()))
        }
    }
}

fn use_as_stdio(stdio: &[OwnedFd; 3]) -> Result<(), SetUpError> {
    let failed = SetUpError::step("connect the standard streams");
    let connect = || -> Result<(), Errno> {
        let [stdin, stdout, stderr] = stdio;
        dup2_stdin(stdin)?;
        dup2_stdout(stdout)?;
        dup2_stderr(stderr)
    };
    connect().map_err(failed)
}

/// Enters version 1 cgroups through the files opened for that.
pub(crate) fn enter_cgroups(entrances: &[OwnedFd]) -> Result<(), SetUpError> {
    for entrance in entrances {
        write(entrance, b"0").map_err(SetUpError::step("enter a cgroup"))?;
    }
    Ok(())
}

/// Has all descriptors but those of `preserved` and the standard streams close with the execution. The container's filter
/// may be in force before that and forbid closing them.
pub(crate) fn close_with_the_execution_all_but(preserved: &[RawFd]) -> Result<(), SetUpError> {
    close_on_exec_all_but_stdio_and(&mut preserved.to_vec())
        .map_err(SetUpError::step("keep the caller's descriptors from the program"))
}

/// The numbers of the descriptors that the program keeps, and `own`.
pub(crate) fn preserved_and(preserved: &[RawFd], own: RawFd) -> Vec<RawFd> {
    [preserved, &[own]].concat()
}

/// An error and its causes, outermost first.
pub(crate) fn messages(error: &dyn Error) -> Vec<String> {
    let mut messages = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        messages.push(error.to_string());
        cause = error.source();
    }
    messages
}

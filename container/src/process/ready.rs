//! The last step: becoming the program.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::channel::Report;
use super::command::{CommandError, CommandFailure};
use super::{SetUpError, filter};
use crate::kernel::calls::{close_all_but_stdio_and, execve};
use crate::kernel::execve::StringArray;
use crate::seccomp::SeccompPlan;

/// A process that has everything but its program.
pub(crate) struct Ready<'a> {
    pub(super) path: CString,
    pub(super) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    /// What is loaded right before the execution.
    pub(super) filter: Option<&'a SeccompPlan>,
    /// The caller's end of the terminal.
    pub(crate) terminal: Option<OwnedFd>,
    /// What could not be given and the specification allows to be missing.
    pub(crate) warnings: Vec<String>,
}

impl Ready<'_> {
    /// What to tell the caller.
    pub(crate) fn report(&self) -> Report {
        Report::Ready {
            warnings: self.warnings.clone(),
        }
    }

    /// Whether the filter that had to wait until now asks an agent.
    pub(crate) fn asks_an_agent(&self) -> bool {
        self.filter.is_some_and(|filter| filter.agent.is_some())
    }

    /// Loads the filter that had to wait until now. `caller` is the socket to whoever waits for the program.
    pub(crate) fn load_filter(&self, caller: BorrowedFd<'_>) -> Result<(), SetUpError> {
        match self.filter {
            Some(filter) => filter::load(filter, caller),
            None => Ok(()),
        }
    }

    /// Executes the program. Returns only if the kernel refuses, with the exit code and what to tell.
    pub(crate) fn become_program(&self) -> (i32, Report) {
        let arguments = StringArray::new(self.arguments.iter().map(CString::as_c_str));
        let environment = StringArray::new(self.environment.iter().map(CString::as_c_str));
        let errno = execve(&self.path, &arguments, &environment);
        let failure = CommandFailure::of(errno);
        let error = CommandError::execute(&self.path, errno);
        let report = Report::Failed {
            failure: Some(failure),
            messages: super::messages(&error),
        };
        (failure.exit_code(), report)
    }
}

/// Closes everything but the standard streams and `kept`.
///
/// # Safety
/// The only descriptors this process will use again are those kept, and its owners of others are never dropped, because
/// it ends in execve or _exit.
pub(crate) unsafe fn close_everything_but(kept: &mut [RawFd]) -> Result<(), Errno> {
    // SAFETY: the caller's promise.
    unsafe { close_all_but_stdio_and(kept) }
}

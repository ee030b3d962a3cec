//! Loading the system call filter in the process that is to have it.

use std::os::fd::{BorrowedFd, IntoRawFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use super::SetUpError;
use super::channel::Report;
use crate::seccomp::{SeccompPlan, lowest_free_descriptor};

/// Loads a filter that hands no calls on.
pub(super) fn load_without_agent(filter: &SeccompPlan) -> Result<(), SetUpError> {
    let loaded = filter.load();
    loaded
        .map(|_| ())
        .map_err(SetUpError::step("load the filter of linux.seccomp"))
}

/// Loads the filter. Where it hands calls on, whoever is at the other end of `caller` first hears of the listener and
/// is waited for until it has it: an execution before that would close it.
///
/// The wait is a read(2), which every program's profile knows. Where the profile hands that on too, the agent, which
/// gets the listener meanwhile, decides about it like about any other call.
pub(super) fn load(filter: &SeccompPlan, caller: BorrowedFd<'_>) -> Result<(), SetUpError> {
    let failed = || SetUpError::step("load the filter of linux.seccomp");
    if filter.agent.is_none() {
        return load_without_agent(filter);
    }
    let number = lowest_free_descriptor().map_err(failed())?;
    let packet = Report::Listener { number }.encode();
    send(caller, &packet, SendFlags::NOSIGNAL).map_err(failed())?;
    // It closes with everything else: one more call of ours would be one more to be decided about.
    let _listener = filter.load().map_err(failed())?.map(IntoRawFd::into_raw_fd);
    let mut word = [0];
    match rustix::io::read(caller, &mut word) {
        Ok(1) => Ok(()),
        Ok(_) => Err(failed()(Errno::PIPE)),
        Err(errno) => Err(SetUpError::step(
            "wait for the listener of linux.seccomp to be taken: a profile with SCMP_ACT_NOTIFY has to allow read, or \
             hand it on",
        )(errno)),
    }
}

//! Making the container's process by way of one that joins other namespaces first.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use super::CreateError;
use crate::init::Init;
use crate::kernel::clone3::{Forked, clone3};

/// Makes the process between and, by it, the container's, in the cgroup of the unified hierarchy if there is one. None
/// when the process between could not make it; why is in its report.
///
/// # Safety
/// As for [`clone3`].
pub(super) unsafe fn fork_by_process_between(
    init: Init<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Option<(i32, OwnedFd)>, CreateError> {
    const MAKE: &str = "make a process that joins the namespaces";
    let (hear_pid, tell_pid) = pipe_with(PipeFlags::CLOEXEC).map_err(CreateError::step(MAKE))?;
    // SAFETY: the same promise, and the child only ever runs what does not come back.
    let pidfd = match unsafe { clone3(0, cgroup) }.map_err(CreateError::step(MAKE))? {
        Forked::Child => init.run_from_between(tell_pid),
        Forked::Parent { pidfd, .. } => pidfd,
    };
    drop(tell_pid);
    let pid = read_pid(&hear_pid);
    // It ends right after, whether or not it told a pid.
    while let Err(Errno::INTR) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {}
    let Some(pid) = pid.map_err(CreateError::step("hear of the container's process"))? else {
        return Ok(None);
    };
    // A child of this process: it keeps its number until this process has waited for it.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())
        .map_err(CreateError::step("get a descriptor of the container's process"))?;
    Ok(Some((pid.as_raw_pid(), pidfd)))
}

fn read_pid(pipe: &OwnedFd) -> Result<Option<Pid>, Errno> {
    let mut bytes = [0; 4];
    loop {
        // So few bytes are written at once, and so read.
        return match rustix::io::read(pipe, &mut bytes) {
            Err(Errno::INTR) => continue,
            Err(errno) => Err(errno),
            Ok(4) => Ok(Pid::from_raw(i32::from_ne_bytes(bytes))),
            Ok(_) => Ok(None),
        };
    }
}

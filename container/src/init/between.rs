//! The process between the caller and the container's first one, where a user namespace and namespaces of others come
//! together.
//!
//! It has the caller's privileges, with which it joins what exists, the user namespace last. From there it makes the
//! container's first process as another child of the caller, in new namespaces that belong to that user namespace, and
//! ends.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Init;
use crate::kernel::clone3::{Forked, clone3_for_parent};
use crate::process::{SETUP_FAILED, SetUpError};

impl Init<'_> {
    /// Runs in the forked child, and in the one that it makes, and never returns to, or unwinds into, the frames it was
    /// copied with. The pid of the container's process is written to `tell_pid`, in the caller's terms.
    pub(crate) fn run_from_between(self, tell_pid: OwnedFd) -> ! {
        let between = ManuallyDrop::new((self, tell_pid));
        let run = || {
            let (init, tell_pid) = &*between;
            match init.fork_inside() {
                Ok(Forked::Child) => {
                    // SAFETY: this copy is used by nothing here. Open, it would hide the end of the process between.
                    unsafe { rustix::io::close(tell_pid.as_raw_fd()) };
                    init.set_up_and_become()
                }
                Ok(Forked::Parent { pid, .. }) => match rustix::io::write(tell_pid, &pid.to_ne_bytes()) {
                    Ok(_) => 0,
                    // The caller died.
                    Err(_) => SETUP_FAILED,
                },
                Err(error) => {
                    init.channel.report(&error.report(), None);
                    SETUP_FAILED
                }
            }
        };
        let code = catch_unwind(AssertUnwindSafe(run)).unwrap_or(SETUP_FAILED);
        // SAFETY: ends this process at once. Destructors and exit handlers are the parent's.
        unsafe { libc::_exit(code) }
    }

    fn fork_inside(&self) -> Result<Forked, SetUpError> {
        self.enter_existing()?;
        self.joined.enter_for_children()?;
        // SAFETY: this process is a copy of the caller's one thread, and neither it nor the child comes back.
        unsafe { clone3_for_parent(self.plan.namespaces.clone_flags()) }
            .map_err(SetUpError::step("make the container's process and namespaces"))
    }
}

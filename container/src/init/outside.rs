//! The container's first process where it begins among processes of others, in a pid namespace that exists.
//!
//! It is set up by a process outside, which they do not see, and made by that as another child of the caller when there is
//! nothing left of the caller's privileges in it.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{Init, JoinedNamespaces};
use crate::kernel::pid_slot::PidSlot;
use crate::plan::{Namespace, Plan};
use crate::process::{self, SETUP_FAILED, SetUpError, Streams};
use crate::rootfs;

/// Whether that is possible. A user namespace separates the container's privileges from the host's already, and has to own
/// what is made in it; hooks that run in the container's namespaces would not be in this one; and the kernel has to know
/// how to show another's processes in `/proc` (Linux 6.17).
pub(crate) fn can_be_made_outside(plan: &Plan, joined: &JoinedNamespaces<'_>) -> bool {
    joined.pid().is_some_and(|namespace| {
        !plan.namespaces.isolates(Namespace::User)
            && plan.hooks.create_container.is_empty()
            && rootfs::can_show_processes_of(namespace, &plan.mounts)
    })
}

impl Init<'_> {
    /// Makes the process and returns the exit code: of this one, and of the one it makes, if that cannot execute its
    /// program.
    pub(super) fn make_process(
        &self,
        made: &PidSlot,
        streams: Streams<'_>,
        working_directory: OwnedFd,
    ) -> Result<i32, SetUpError> {
        self.joined.enter_for_child()?;
        let outside = ManuallyDrop::new(process::take_on_outside(
            &self.plan.process,
            streams,
            working_directory,
            self.keyring,
            self.plan.seccomp.as_ref(),
        )?);
        if !self.channel.report(&outside.report(), outside.terminal.as_ref()) {
            return Ok(SETUP_FAILED);
        }
        let own = self.channel.as_fd();
        let mut kept = process::preserved_and(&self.preserved, own.as_raw_fd());
        kept.push(self.start.as_fd().as_raw_fd());
        // SAFETY: the two sockets alone are used from here on, this process is a copy of the caller's one thread, and
        // neither it nor the child comes back.
        match unsafe { outside.make_process(&mut kept, made) }? {
            None => Ok(0),
            Some(inside) => {
                let ready = ManuallyDrop::new(inside.begin(own)?);
                Ok(self.report_wait_and_become(&ready))
            }
        }
    }
}

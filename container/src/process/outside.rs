//! How a process becomes a program of a container whose processes could look into it meanwhile.
//!
//! A process outside, which they cannot see, becomes all that the program's process is to be, and makes it then. What they
//! see is a process that has no privilege of the caller's and no descriptor of the host's from its first moment on, even
//! if they may look into any process of theirs (CAP_SYS_PTRACE).

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use oci_spec::runtime::Capability;
use rustix::fs::Mode;
use rustix::io::Errno;

use super::channel::Report;
use super::ready::close_everything_but;
use super::{
    Keyring, Ready, SetUpError, Streams, begin_keyring, command, environment, execution, filter, identity,
    limits, terminal, use_streams,
};
use crate::kernel::calls::{clone_for_parent, forget_environment, setsid, umask};
use crate::kernel::clone::Side;
use crate::kernel::pid_slot::PidSlot;
use crate::plan::{CAPABILITIES, CapabilityPlan, ProcessPlan};
use crate::seccomp::SeccompPlan;

/// A process outside that is the program's user by now, but still has the caller's capabilities.
pub(crate) struct Outside<'a> {
    plan: &'a ProcessPlan,
    filter: Option<&'a SeccompPlan>,
    kept: CapabilityPlan,
    warnings: Vec<String>,
    /// The caller's end of the terminal.
    pub(crate) terminal: Option<OwnedFd>,
}

/// What a process can only do for itself, when it was made.
pub(crate) struct Inside<'a> {
    plan: &'a ProcessPlan,
    environment: Vec<CString>,
    has_terminal: bool,
    filter: FilterOfChild<'a>,
}

/// The filter that is not inherited.
enum FilterOfChild<'a> {
    None,
    /// Loaded with the one capability that the program is not to have, and that goes with it.
    First(&'a SeccompPlan, CapabilityPlan),
    Last(&'a SeccompPlan),
}

/// Who loads the filter.
#[derive(Debug, PartialEq, Eq)]
enum Loader {
    /// The process outside, whose child inherits it.
    Outside,
    /// The program's process at its execution, for which it has the right.
    Program,
    /// The program's process, with a right that it then gives up.
    PrivilegedProgram,
}

/// Gives this process, which has the container's root and namespaces, the keyring, streams, limits and user of the process
/// that it is to make.
pub(crate) fn take_on_outside<'a>(
    plan: &'a ProcessPlan,
    streams: Streams<'_>,
    working_directory: OwnedFd,
    keyring: Keyring,
    filter: Option<&'a SeccompPlan>,
) -> Result<Outside<'a>, SetUpError> {
    begin_keyring(keyring)?;
    let terminal = use_streams(streams)?;
    limits::set_resource_limits_for_child(&plan.limits)?;
    execution::schedule_for_child(&plan.scheduling)?;
    let (kept, warnings) = identity::change(plan, working_directory)?;
    umask(Mode::from_raw_mode(plan.user.umask));
    Ok(Outside {
        plan,
        filter,
        kept,
        warnings,
        terminal,
    })
}

impl<'a> Outside<'a> {
    /// What to tell the caller.
    pub(crate) fn report(&self) -> Report {
        Report::Ready {
            warnings: self.warnings.clone(),
        }
    }

    /// Gives up what the program is not to have, and makes its process as another child of the caller, whose pid is then in
    /// `made`. Returns what is left to do to that process, and nothing to this one.
    ///
    /// # Safety
    /// The only descriptors this process and the other will use again are the standard streams and those kept; owners of
    /// others are never dropped, because both end in execve or _exit; and nothing in either uses this process's
    /// environment. It has one thread.
    pub(crate) unsafe fn make_process(
        &self,
        kept: &mut [RawFd],
        made: &PidSlot,
    ) -> Result<Option<Inside<'a>>, SetUpError> {
        made.keep_from_children()
            .map_err(SetUpError::step("keep the caller's memory from the process"))?;
        // SAFETY: the caller's promise.
        unsafe {
            close_everything_but(kept).map_err(SetUpError::step("close the caller's descriptors"))?;
            forget_environment();
        }
        let inside = self.give_up()?;
        // SAFETY: the caller's promise.
        match unsafe { clone_for_parent(made) } {
            Ok(Side::Child) => Ok(Some(inside)),
            Ok(Side::Maker) => Ok(None),
            Err(Errno::AGAIN) => Err(SetUpError::step(
                "make the process: the container has as many as it, or its user, may have",
            )(Errno::AGAIN)),
            Err(errno) => Err(SetUpError::step("make the process")(errno)),
        }
    }

    fn give_up(&self) -> Result<Inside<'a>, SetUpError> {
        let filter = match self.filter {
            None => FilterOfChild::None,
            Some(filter) => match loader(self.plan, &self.kept, filter, self.terminal.is_some()) {
                Loader::Outside => {
                    identity::put_into_effect_what_is_held()?;
                    filter::load_without_agent(filter)?;
                    FilterOfChild::None
                }
                Loader::Program => FilterOfChild::Last(filter),
                Loader::PrivilegedProgram => FilterOfChild::First(filter, self.kept),
            },
        };
        let extra = match filter {
            FilterOfChild::First(..) => bit(Capability::SysAdmin),
            _ => 0,
        };
        let kept = CapabilityPlan {
            permitted: self.kept.permitted | extra,
            effective: self.kept.effective | extra,
            ..self.kept
        };
        identity::keep_only(&kept, self.plan.no_new_privileges)?;
        Ok(Inside {
            plan: self.plan,
            environment: environment::complete(self.plan),
            has_terminal: self.terminal.is_some(),
            filter,
        })
    }
}

impl<'a> Inside<'a> {
    /// Does so in the process that was made. What is left after that is to execute the program.
    pub(crate) fn begin(&self, caller: BorrowedFd<'_>) -> Result<Ready<'a>, SetUpError> {
        setsid().map_err(SetUpError::step("begin a session"))?;
        if self.has_terminal {
            terminal::control()?;
        }
        limits::set_limit_of_processes(&self.plan.limits)?;
        let late_filter = match &self.filter {
            FilterOfChild::None => None,
            FilterOfChild::First(filter, kept) => {
                filter::load(filter, caller)?;
                identity::keep_only(kept, false)?;
                None
            }
            FilterOfChild::Last(filter) => Some(*filter),
        };
        Ok(Ready {
            // By the process itself, to which `/proc/self` means what it means to its program.
            path: command::find(self.plan, &self.environment)?,
            arguments: self.plan.arguments.clone(),
            environment: self.environment.clone(),
            filter: late_filter,
            terminal: None,
            warnings: Vec::new(),
        })
    }
}

/// The kernel takes a filter from a process that may administrate or that gave up ever becoming privileged. A process
/// outside can load it first of all, unless the filter then forbids what is left to do, or an agent is to hear of the
/// program's process.
fn loader(plan: &ProcessPlan, kept: &CapabilityPlan, filter: &SeccompPlan, has_terminal: bool) -> Loader {
    let sets_limit = limits::limit_of_processes(&plan.limits).is_some();
    if plan.no_new_privileges || kept.effective & bit(Capability::SysAdmin) != 0 {
        Loader::Program
    } else if filter.agent.is_none() && filter.lets_begin_process(has_terminal, sets_limit) {
        Loader::Outside
    } else {
        Loader::PrivilegedProgram
    }
}

fn bit(capability: Capability) -> u64 {
    let number = CAPABILITIES.iter().position(|known| *known == capability);
    number.map_or(0, |number| 1 << number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn loader_of(no_new_privileges: bool, effective: u64, profile: serde_json::Value) -> Loader {
        let process = json!({
            "user": { "uid": 0, "gid": 0 }, "args": ["true"], "cwd": "/", "noNewPrivileges": no_new_privileges
        });
        let plan = ProcessPlan::new(&serde_json::from_value(process).unwrap()).unwrap();
        let filter = SeccompPlan::new(&serde_json::from_value(profile).unwrap()).unwrap();
        let kept = CapabilityPlan {
            effective,
            ..CapabilityPlan::default()
        };
        loader(&plan, &kept, &filter, true)
    }

    #[test]
    fn the_filter_is_loaded_by_whoever_may_without_more_than_the_program_has() {
        let allowing = || json!({ "defaultAction": "SCMP_ACT_ALLOW" });
        let admin = bit(Capability::SysAdmin);
        assert_eq!(admin, 1 << 21);
        assert_eq!(loader_of(true, 0, allowing()), Loader::Program);
        assert_eq!(loader_of(false, admin, allowing()), Loader::Program);
        assert_eq!(loader_of(false, 1, allowing()), Loader::Outside);
    }

    #[test]
    fn a_filter_that_forbids_a_session_or_asks_an_agent_is_loaded_inside() {
        let denying = |name: &str| json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": [name], "action": "SCMP_ACT_ERRNO" }] });
        for name in ["clone", "setsid", "ioctl"] {
            assert_eq!(
                loader_of(false, 0, denying(name)),
                Loader::PrivilegedProgram,
                "{name}"
            );
        }
        assert_eq!(loader_of(false, 0, denying("clone3")), Loader::Outside);
        let asking = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/agent",
            "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }]
        });
        assert_eq!(loader_of(false, 0, asking), Loader::PrivilegedProgram);
    }
}

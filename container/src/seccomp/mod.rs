//! `linux.seccomp`: a profile becomes a program that the kernel runs before every system call.
//!
//! [`profile`] judges the configuration, [`decision`] says what it means for each call number of each architecture,
//! [`compiler`] and [`assembler`] make a program of that. All of it happens while the configuration is judged, so that
//! loading is one system call. What the configuration leaves open is decided as runc and libseccomp decide it: profiles
//! are written against them.

mod architecture;
mod assembler;
mod compiler;
mod decision;
mod listener;
mod profile;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxSeccomp, Spec};
use rustix::io::Errno;

use crate::kernel::seccomp::set_filter;
use crate::plan::SpecError;
use architecture::Architecture;
use profile::Profile;

pub(crate) use listener::{lowest_free_descriptor, take_listener};

/// A filter, ready to be loaded.
pub(crate) struct SeccompPlan {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
    /// Where the profile hands calls to somebody else.
    pub(crate) agent: Option<AgentPlan>,
}

/// Who decides about the calls that a profile hands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentPlan {
    /// A Unix stream socket.
    pub(crate) path: PathBuf,
    /// What the agent is told beside the container's state.
    pub(crate) metadata: Option<String>,
}

impl SeccompPlan {
    pub(crate) fn new(seccomp: &LinuxSeccomp) -> Result<SeccompPlan, SpecError> {
        let profile = Profile::new(seccomp)?;
        let architectures: Vec<Architecture> = seccomp
            .architectures()
            .iter()
            .flatten()
            .filter_map(|&arch| Architecture::named(arch))
            .collect();
        let tables = decision::tables(&profile, &architectures);
        let (graph, beginning) = compiler::compile(&tables);
        let program = assembler::assemble(&graph, beginning);
        if program.len() > assembler::LONGEST {
            let problem = format!(
                "needs a filter of {} instructions, and the kernel takes {}: name fewer calls one by one, or compare \
                 fewer arguments",
                program.len(),
                assembler::LONGEST
            );
            return Err(SpecError::invalid("linux.seccomp.syscalls", problem));
        }
        Ok(SeccompPlan {
            program,
            flags: profile::flags(seccomp, profile.notifies),
            agent: agent(seccomp, profile.notifies)?,
        })
    }

    /// Puts the filter between the calling thread and the kernel, for good. Returns the listener where the profile
    /// hands calls on.
    ///
    /// # Errors
    /// `EACCES` where neither `no_new_privs` is set nor CAP_SYS_ADMIN is effective.
    pub(crate) fn load(&self) -> Result<Option<OwnedFd>, Errno> {
        set_filter(&self.program, self.flags)
    }
}

impl fmt::Debug for SeccompPlan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SeccompPlan")
            .field("instructions", &self.program.len())
            .field("flags", &self.flags)
            .field("agent", &self.agent)
            .finish()
    }
}

impl AgentPlan {
    /// The agent of a configuration whose filter handed a call on.
    pub(crate) fn configured(configuration: &Spec) -> Option<AgentPlan> {
        let seccomp = configuration.linux().as_ref()?.seccomp().as_ref()?;
        agent(seccomp, true).ok().flatten()
    }
}

fn agent(seccomp: &LinuxSeccomp, notifies: bool) -> Result<Option<AgentPlan>, SpecError> {
    let path = seccomp
        .listener_path()
        .as_ref()
        .filter(|path| !path.as_os_str().is_empty());
    let metadata = seccomp
        .listener_metadata()
        .as_ref()
        .filter(|text| !text.is_empty());
    match path {
        None if metadata.is_some() => Err(SpecError::invalid(
            "linux.seccomp.listenerMetadata",
            "is for the agent at linux.seccomp.listenerPath, which is not set",
        )),
        None if notifies => Err(SpecError::invalid(
            "linux.seccomp.listenerPath",
            "is required by SCMP_ACT_NOTIFY",
        )),
        // The specification has it ignored where nothing notifies.
        Some(path) if notifies => Ok(Some(AgentPlan {
            path: path.clone(),
            metadata: metadata.cloned(),
        })),
        _ => Ok(None),
    }
}

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

use oci_spec::runtime::LinuxSeccomp;
use rustix::io::Errno;

use crate::kernel::calls::set_filter;
use crate::plan::SpecError;
use architecture::Architecture;
use decision::Table;
use profile::Profile;

pub(crate) use listener::{lowest_free_descriptor, take_listener};

/// A filter, ready to be loaded.
pub(crate) struct SeccompPlan {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
    lets_begin: LetsBegin,
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

/// Which steps to another process a process with the filter may take.
#[derive(Clone, Copy)]
struct LetsBegin {
    session: bool,
    terminal: bool,
    limit: bool,
}

impl LetsBegin {
    fn by(tables: &[Table]) -> LetsBegin {
        let lets = |call: libc::c_long, arguments: [u64; 6]| {
            let number = u32::try_from(call).unwrap_or(u32::MAX);
            let native = tables.first();
            native.is_some_and(|native| native.action(number, arguments).makes_the_call())
        };
        let flags = u64::from(crate::kernel::clone::FLAGS.cast_unsigned());
        LetsBegin {
            session: lets(libc::SYS_clone, [flags, 0, 0, 0, 0, 0])
                && lets(libc::SYS_setsid, [0; 6])
                && lets(libc::SYS_exit_group, [0; 6]),
            terminal: lets(libc::SYS_ioctl, [0, libc::TIOCSCTTY, 0, 0, 0, 0]),
            limit: lets(libc::SYS_prlimit64, [0, libc::RLIMIT_NPROC.into(), 0, 0, 0, 0]),
        }
    }
}

impl SeccompPlan {
    pub(crate) fn new(seccomp: &LinuxSeccomp) -> Result<SeccompPlan, SpecError> {
        let profile = Profile::new(seccomp)?;
        let tables = tables(seccomp, &profile);
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
            lets_begin: LetsBegin::by(&tables),
            flags: profile::flags(seccomp, profile.notifies),
            agent: agent(seccomp, profile.notifies)?,
        })
    }

    /// Whether a process that has it can make another, which begins a session, with a terminal or without, and perhaps
    /// limits the number of processes.
    pub(crate) fn lets_begin_process(&self, with_terminal: bool, with_limit: bool) -> bool {
        let LetsBegin {
            session,
            terminal,
            limit,
        } = self.lets_begin;
        session && (terminal || !with_terminal) && (limit || !with_limit)
    }

    /// The filter's instructions.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn program(&self) -> &[libc::sock_filter] {
        &self.program
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

fn tables(seccomp: &LinuxSeccomp, profile: &Profile<'_>) -> Vec<Table> {
    let architectures: Vec<Architecture> = seccomp
        .architectures()
        .iter()
        .flatten()
        .filter_map(|&arch| Architecture::named(arch))
        .collect();
    decision::tables(profile, &architectures)
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

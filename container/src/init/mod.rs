//! The container's first process, from its birth to its `execve`.
//!
//! It begins as a copy of the caller, sets up everything that needs privilege, gives the privilege away, tells the
//! caller how that went, and waits at a socket to be started. It is a plain sequence: every step is a call into a
//! module that can be read by itself, and the first error ends it.

mod between;
mod clocks;
mod namespaces;
#[cfg(test)]
mod order;
mod outside;
mod start;

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;

pub(crate) use namespaces::JoinedNamespaces;
pub use namespaces::{NamespaceError, check_network_namespace};
pub(crate) use outside::can_be_made_outside;
pub(crate) use start::StartSocket;

use crate::cgroup::Cgroup;
use crate::hook::{self, DefaultEnvironment};
use crate::kernel::calls::{reset_for_exec, umask};
use crate::kernel::pid_slot::PidSlot;
use crate::plan::{Namespace, Plan};
use crate::process::channel::{InitChannel, Report};
use crate::process::{self, Keyring, SETUP_FAILED, SetUpError, Streams};
use crate::rootfs::{self, Sources};
use crate::state::{OciState, Status};

/// Everything the container's process needs, opened by the caller.
pub(crate) struct Init<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) cgroup: &'a Cgroup,
    pub(crate) sources: Sources,
    pub(crate) cgroup_entrances: CgroupEntrances,
    pub(crate) joined: JoinedNamespaces<'a>,
    /// Standard input, output and error; none leaves the caller's.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    pub(crate) channel: InitChannel,
    /// The container's state, as its hooks are told it.
    pub(crate) state: OciState,
    pub(crate) start: StartSocket,
    /// Descriptors that the program keeps.
    pub(crate) preserved: Vec<RawFd>,
    pub(crate) keyring: Keyring,
    /// Where the caller finds the pid of the container's process, if another one makes it.
    pub(crate) made: Option<&'a PidSlot>,
    /// What belongs to the caller alone.
    pub(crate) not_ours: Vec<RawFd>,
}

/// How the process gets into its version 1 cgroups, which is by writing to a file of each.
pub(crate) enum CgroupEntrances {
    /// These, opened by the caller.
    Open(Vec<OwnedFd>),
    /// Those that will be there when the caller says so. Meanwhile the process makes its own namespaces, which takes as
    /// long.
    BeingMade,
}

impl Init<'_> {
    /// Runs in the forked child and never returns to, or unwinds into, the frames it was copied with.
    pub(crate) fn run(self) -> ! {
        // Its descriptors are closed by number before the program runs; dropping it would close them again.
        let init = ManuallyDrop::new(self);
        let code = catch_unwind(AssertUnwindSafe(|| init.set_up_and_become())).unwrap_or(SETUP_FAILED);
        // SAFETY: ends this process at once. Destructors and exit handlers are the parent's.
        unsafe { libc::_exit(code) }
    }

    fn set_up_and_become(&self) -> i32 {
        self.set_up_and_take_on().unwrap_or_else(|error| {
            self.channel.report(&error.report(), None);
            SETUP_FAILED
        })
    }

    fn set_up_and_take_on(&self) -> Result<i32, SetUpError> {
        let (streams, working_directory) = self.set_up()?;
        if let Some(made) = self.made {
            return self.make_process(made, streams, working_directory);
        }
        let ready = ManuallyDrop::new(process::take_on(
            &self.plan.process,
            streams,
            working_directory,
            self.keyring,
            self.plan.seccomp.as_ref(),
            self.channel.as_fd(),
        )?);
        Ok(self.report_wait_and_become(&ready))
    }

    /// Lets the caller run its hooks, and runs those that need these namespaces but the caller's paths. By now
    /// everything is mounted, and nothing depends on the namespaces' settings yet, which hooks may change.
    fn run_creation_hooks(&self) -> Result<(), SetUpError> {
        let hooks = &self.plan.hooks;
        if !hooks.interrupt_creation() {
            return Ok(());
        }
        let hooks_ran = if self.channel.report(&Report::AwaitsHooks, None) {
            self.channel.wait_for_caller()
        } else {
            Err(Errno::PIPE)
        };
        hooks_ran.map_err(SetUpError::step("wait for the caller's hooks"))?;
        Ok(hook::run_all(
            &hooks.create_container,
            &self.state_for_hooks(Status::Creating),
            DefaultEnvironment::Inherited,
        )?)
    }

    /// The state as seen from inside.
    fn state_for_hooks(&self, status: Status) -> OciState {
        OciState {
            status,
            pid: Some(rustix::process::getpid().as_raw_pid()),
            ..self.state.clone()
        }
    }

    /// Enters the cgroups and namespaces that exist, with the privileges of the caller.
    fn enter_existing(&self) -> Result<(), SetUpError> {
        // Who is there already must not look into this process, which is a copy of the caller.
        if !self.joined.is_empty() {
            process::hide_memory()?;
        }
        match &self.cgroup_entrances {
            CgroupEntrances::Open(entrances) => process::enter_cgroups(entrances)?,
            CgroupEntrances::BeingMade => {
                namespaces::make_meanwhile(&self.plan.namespaces)?;
                self.channel
                    .wait_for_caller()
                    .map_err(SetUpError::step("wait for the cgroups"))?;
                process::enter_cgroups(&self.cgroup.open_entrances()?)?;
            }
        }
        if let Some(score) = self.plan.process.oom_score_adjustment {
            process::set_oom_score_adjustment(score)?;
        }
        self.joined.enter()
    }

    /// Returns the standard streams and the working folder.
    fn set_up(&self) -> Result<(Streams<'_>, OwnedFd), SetUpError> {
        for descriptor in &self.not_ours {
            // SAFETY: these copies are used by nothing in this process. Open, they would keep the caller's lock and its
            // ends of connections to this process alive beyond the caller's death.
            unsafe { rustix::io::close(*descriptor) };
        }
        process::close_with_the_execution_all_but(&self.preserved)?;
        reset_for_exec();
        let plan = self.plan;
        if !plan.namespaces.needs_process_between() {
            self.enter_existing()?;
        }
        namespaces::make(&plan.namespaces)?;
        let has_user_namespace = plan.namespaces.isolates(Namespace::User);
        if plan.namespaces.creates(Namespace::User) {
            self.channel
                .wait_for_caller()
                .map_err(SetUpError::step("wait for the user namespace's maps"))?;
        }
        if has_user_namespace {
            // Only now: files of a process that changed its user are the host's root's, such as those of its clocks.
            process::become_root_of_user_namespace()?;
        }
        if plan.namespaces.joins(Namespace::User) {
            namespaces::check_mappings(&plan.namespaces)?;
        }
        namespaces::furnish(plan)?;

        umask(Mode::empty());
        let root_descriptor = rustix::io::fcntl_dupfd_cloexec(&self.sources.root, 3)
            .map_err(SetUpError::step("copy the root's descriptor"))?;
        let has_mount_namespace = plan.namespaces.isolates(Namespace::Mount);
        let root = if plan.namespaces.joins(Namespace::Mount) {
            // It need not have the caller's paths.
            rootfs::attach(root_descriptor, Path::new("/"))?
        } else if has_mount_namespace {
            rootfs::attach(root_descriptor, &plan.root.path)?
        } else {
            rootfs::attach_in_callers_namespace(root_descriptor, &plan.root.path)?
        };
        let has_cgroup_namespace = plan.namespaces.isolates(Namespace::Cgroup);
        let unsealed = rootfs::mount_all(
            &root,
            &plan.mounts,
            &self.sources,
            |first| self.channel.ask_for(&Report::AwaitsSources { first }),
            self.cgroup,
            has_cgroup_namespace,
        )?;
        if let Some(nodes) = &plan.devices {
            rootfs::make_device_folder(&root, nodes, has_user_namespace)?;
        }
        self.run_creation_hooks()?;
        let streams = match (plan.process.terminal, &self.stdio) {
            (Some(size), _) => {
                let terminal = process::open_terminal(&root, size, plan.process.user.uid)?;
                rootfs::make_console(&root, terminal.peer())?;
                Streams::Terminal(terminal)
            }
            (None, Some(files)) => Streams::Files(files),
            (None, None) => Streams::Inherited,
        };
        // After the hooks of the host, which are nobody's to confine, and while its `/proc` is still there.
        process::label_the_program(&plan.process.labels)?;
        process::write_sysctl(&plan.sysctl)?;
        process::make_working_directory(&root, &plan.process.working_directory)?;
        unsealed.seal()?;
        rootfs::protect(&root, &plan.read_only_paths)?;
        rootfs::mask(&root, &plan.masked_paths)?;
        // Not before: held open, a folder of `/proc/sys` would be the one beneath what protects it.
        let working_directory = process::open_working_directory(&root, &plan.process.working_directory)?;
        if has_mount_namespace {
            if self.made.is_none() {
                // If nobody hears it, what is reported at the end is not heard either.
                self.channel.report(&Report::IsInNamespaces, None);
            }
            rootfs::pivot(root, &plan.root)?;
        } else {
            rootfs::change_root(root, &plan.root)?;
        }
        process::execute_under(&plan.execution)?;
        Ok((streams, working_directory))
    }
}

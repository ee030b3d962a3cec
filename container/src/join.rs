//! A process that joins a running container, from its birth to its `execve`.
//!
//! It is made by a process in between, which is made in the container's cgroups and enters its namespaces through a
//! descriptor of its first process, all at once: nothing is looked up by a path that could mean another process by then.
//! A pid namespace is entered by children only, so processes of the container do not see the one in between. It gives all
//! privileges up, closes all descriptors of the host, makes the process that they see, as another child of the caller, and
//! ends.

#[cfg(test)]
mod order;

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::ThreadNameSpaceType;

use crate::kernel::calls::{
    chroot, fchdir, move_into_thread_name_spaces, reset_for_exec, sched_setaffinity, umask,
};
use crate::kernel::pid_slot::PidSlot;
use crate::plan::{ExecutionPlan, Namespace, NamespacePlan, ProcessPlan};
use crate::process::channel::InitChannel;
use crate::process::{self, Inside, Keyring, Outside, SETUP_FAILED, SetUpError, Streams};
use crate::rootfs::ContainerRoot;
use crate::seccomp::SeccompPlan;
use crate::state::{NamespaceIdentities, own_links};

const LOOK: &str = "look at the namespaces of the process";

/// Everything the process needs, opened by the caller.
pub(crate) struct Joining<'a> {
    pub(crate) process: &'a ProcessPlan,
    pub(crate) namespaces: &'a NamespacePlan,
    /// The namespaces that the container was created with.
    pub(crate) identities: &'a NamespaceIdentities,
    pub(crate) filter: Option<&'a SeccompPlan>,
    pub(crate) execution: &'a ExecutionPlan,
    /// The container's first process.
    pub(crate) container: BorrowedFd<'a>,
    /// Its root, which is not that of a mount namespace if the container has none.
    pub(crate) root: Option<OwnedFd>,
    /// Version 1 cgroups are entered by writing to these.
    pub(crate) cgroup_entrances: Vec<OwnedFd>,
    /// Standard input, output and error; none leaves the caller's.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    pub(crate) channel: InitChannel,
    /// Where the caller finds the pid of the process that was made.
    pub(crate) made: &'a PidSlot,
    /// Descriptors that the program keeps.
    pub(crate) preserved: Vec<RawFd>,
    /// What belongs to the caller alone.
    pub(crate) not_ours: Vec<RawFd>,
}

impl Joining<'_> {
    /// Runs in the forked child, and in the one that it makes, and never returns to, or unwinds into, the frames it was
    /// copied with.
    pub(crate) fn run(self) -> ! {
        // Its descriptors are closed by number before the program runs; dropping it would close them again.
        let joining = ManuallyDrop::new(self);
        let run = || {
            joining.make_process().unwrap_or_else(|error| {
                joining.channel.report(&error.report(), None);
                SETUP_FAILED
            })
        };
        let code = catch_unwind(AssertUnwindSafe(run)).unwrap_or(SETUP_FAILED);
        // SAFETY: ends this process at once. Destructors and exit handlers are the parent's.
        unsafe { libc::_exit(code) }
    }

    /// Returns the exit code: of this process, and of the one it makes, if that cannot execute its program.
    fn make_process(&self) -> Result<i32, SetUpError> {
        let outside = ManuallyDrop::new(self.set_up()?);
        if !self.channel.report(&outside.report(), outside.terminal.as_ref()) {
            return Ok(SETUP_FAILED);
        }
        let mut kept = process::preserved_and(&self.preserved, self.channel.as_fd().as_raw_fd());
        // SAFETY: the channel alone is used from here on, this process is a copy of the caller's one thread, and neither it
        // nor the child comes back.
        match unsafe { outside.make_process(&mut kept, self.made) }? {
            None => Ok(0),
            Some(inside) => self.become_program(&inside),
        }
    }

    /// Runs in the process that was made.
    fn become_program(&self, inside: &Inside<'_>) -> Result<i32, SetUpError> {
        let ready = ManuallyDrop::new(inside.begin(self.channel.as_fd())?);
        if !self.channel.report(&ready.report(), None) {
            return Ok(SETUP_FAILED);
        }
        // The caller takes the terminal to whoever shows it before the program can write to it.
        if self.channel.wait_for_caller().is_err() {
            return Ok(SETUP_FAILED);
        }
        ready.load_filter(self.channel.as_fd())?;
        // On success the channel closes with the execution, and that is what the caller waits for.
        let (code, report) = ready.become_program();
        self.channel.report(&report, None);
        Ok(code)
    }

    fn set_up(&self) -> Result<Outside<'_>, SetUpError> {
        for descriptor in &self.not_ours {
            // SAFETY: these copies are used by nothing in this process. Open, they would keep the caller's end of the
            // channel alive beyond the caller's death.
            unsafe { rustix::io::close(*descriptor) };
        }
        process::close_with_the_execution_all_but(&self.preserved)?;
        reset_for_exec();
        process::enter_cgroups(&self.cgroup_entrances)?;
        if let Some(cpus) = &self.process.scheduling.final_affinity {
            sched_setaffinity(None, cpus)
                .map_err(SetUpError::field("process.execCPUAffinity.final", "run there"))?;
        }
        if let Some(score) = self.process.oom_score_adjustment {
            process::set_oom_score_adjustment(score)?;
        }
        process::hide_memory()?;
        process::label_the_program(&self.process.labels)?;
        self.enter_namespaces()?;
        if let Some(root) = &self.root {
            fchdir(root)
                .and_then(|()| chroot("."))
                .map_err(SetUpError::step("enter the container's root"))?;
        }
        umask(Mode::empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty())
            .map(ContainerRoot::new)
            .map_err(SetUpError::step("open the container's root"))?;
        let streams = match (self.process.terminal, &self.stdio) {
            (Some(size), _) => Streams::Terminal(process::open_terminal(&root, size, self.process.user.uid)?),
            (None, Some(files)) => Streams::Files(files),
            (None, None) => Streams::Inherited,
        };
        let working_directory = process::open_working_directory(&root, &self.process.working_directory)?;
        process::execute_under(self.execution)?;
        process::take_on_outside(
            self.process,
            streams,
            working_directory,
            Keyring::New,
            self.filter,
        )
    }

    fn enter_namespaces(&self) -> Result<(), SetUpError> {
        // The pid namespace will be that of the process to be made.
        let kinds = self.namespaces.isolated();
        if kinds == 0 {
            return Ok(());
        }
        // Every flag is one of the kernel's, and all of them fit.
        let kinds = ThreadNameSpaceType::from_bits_retain(kinds as u32);
        let links = own_links().map_err(SetUpError::step(LOOK))?;
        move_into_thread_name_spaces(self.container, kinds).map_err(|errno| match errno {
            Errno::SRCH => SetUpError::step("enter the namespaces of the container, which has ended")(errno),
            errno => SetUpError::step("enter the container's namespaces")(errno),
        })?;
        let other = self.identities.find_other(links.as_fd());
        if let Some(kind) = other.map_err(SetUpError::step(LOOK))? {
            return Err(SetUpError::NamespaceLeft { kind: kind.name() });
        }
        if self.namespaces.isolates(Namespace::User) {
            process::become_root_of_user_namespace()?;
        }
        Ok(())
    }
}

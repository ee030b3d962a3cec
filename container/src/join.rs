//! A process that joins a running container, from its birth to its `execve`.
//!
//! It is made in the container's pid namespace and cgroups and enters the other namespaces through a descriptor of the
//! container's first process, all at once: nothing is looked up by a path that could mean another process by then. From
//! the first namespace on, processes of the container may see it, so nobody may look into it any more
//! (`PR_SET_DUMPABLE`), and what it needs of the host is open or done before.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{chroot, fchdir, umask};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces, sched_setaffinity};

use crate::kernel::signal_disposition;
use crate::plan::{ExecutionPlan, Namespace, NamespacePlan, ProcessPlan};
use crate::process::channel::InitChannel;
use crate::process::{self, Keyring, Ready, SETUP_FAILED, SetUpError, Streams, close_everything_but};
use crate::rootfs::ContainerRoot;
use crate::seccomp::SeccompPlan;

/// Everything the process needs, opened by the caller.
pub(crate) struct Joining<'a> {
    pub(crate) process: &'a ProcessPlan,
    pub(crate) namespaces: &'a NamespacePlan,
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
    /// Descriptors that the program keeps.
    pub(crate) preserved: Vec<RawFd>,
    /// What belongs to the caller alone.
    pub(crate) not_ours: [RawFd; 2],
}

impl Joining<'_> {
    /// Runs in the forked child and never returns to, or unwinds into, the frames it was copied with.
    pub(crate) fn run(self) -> ! {
        // Its descriptors are closed by number before the program runs; dropping it would close them again.
        let joining = ManuallyDrop::new(self);
        let code = catch_unwind(AssertUnwindSafe(|| joining.set_up_and_become())).unwrap_or(SETUP_FAILED);
        // SAFETY: ends this process at once. Destructors and exit handlers are the parent's.
        unsafe { libc::_exit(code) }
    }

    fn set_up_and_become(&self) -> i32 {
        let ready = match self.set_up() {
            Ok(ready) => ManuallyDrop::new(ready),
            Err(error) => {
                self.channel.report(&error.report(), None);
                return SETUP_FAILED;
            }
        };
        if !self.channel.report(&ready.report(), ready.terminal.as_ref()) {
            return SETUP_FAILED;
        }
        // The caller takes the terminal to whoever shows it before the program can write to it.
        if self.channel.wait_for_caller().is_err() {
            return SETUP_FAILED;
        }
        let mut kept = process::preserved_and(&self.preserved, self.channel.as_fd().as_raw_fd());
        // SAFETY: the channel alone is used from here on, and everything here ends in execve or _exit.
        if unsafe { close_everything_but(&mut kept) }.is_err() {
            return SETUP_FAILED;
        }
        // On success the channel closes with the execution, and that is what the caller waits for.
        let (code, report) = match ready.load_filter(self.channel.as_fd()) {
            Ok(()) => ready.become_program(),
            Err(error) => (SETUP_FAILED, error.report()),
        };
        self.channel.report(&report, None);
        code
    }

    fn set_up(&self) -> Result<Ready<'_>, SetUpError> {
        for descriptor in self.not_ours {
            // SAFETY: these copies are used by nothing in this process. Open, they would keep the caller's end of the
            // channel alive beyond the caller's death.
            unsafe { rustix::io::close(descriptor) };
        }
        process::close_with_the_execution_all_but(&self.preserved)?;
        signal_disposition::reset_for_exec();
        process::enter_cgroups(&self.cgroup_entrances)?;
        if let Some(cpus) = &self.process.scheduling.final_affinity {
            sched_setaffinity(None, cpus)
                .map_err(SetUpError::field("process.execCPUAffinity.final", "run there"))?;
        }
        if let Some(score) = self.process.oom_score_adjustment {
            process::set_oom_score_adjustment(score)?;
        }
        process::hide_memory()?;
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
        process::take_on(
            self.process,
            streams,
            working_directory,
            Keyring::New,
            self.filter,
            self.channel.as_fd(),
        )
    }

    fn enter_namespaces(&self) -> Result<(), SetUpError> {
        let kinds = self.namespaces.isolated() & !(Namespace::Pid as u64);
        if kinds == 0 {
            return Ok(());
        }
        // Every flag is one of the kernel's, and all of them fit.
        let kinds = ThreadNameSpaceType::from_bits_retain(kinds as u32);
        move_into_thread_name_spaces(self.container, kinds).map_err(|errno| match errno {
            Errno::SRCH => SetUpError::step("enter the namespaces of the container, which has ended")(errno),
            errno => SetUpError::step("enter the container's namespaces")(errno),
        })?;
        if self.namespaces.isolates(Namespace::User) {
            process::become_root_of_user_namespace()?;
        }
        Ok(())
    }
}

//! The container's first process, from its birth to its `execve`.
//!
//! It begins as a copy of the caller, sets up everything that needs privilege, gives the privilege away, tells the
//! caller how that went, and waits at a socket to be started. It is a plain sequence: every step is a call into a
//! module that can be read by itself, and the first error ends it.

pub(crate) mod channel;
mod clocks;
mod command;
mod environment;
mod identity;
mod limits;
mod namespaces;
mod start;
mod terminal;

use std::error::Error;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::umask;

pub use command::CommandFailure;
pub(crate) use namespaces::JoinedNamespaces;

use crate::cgroup::Cgroup;
use crate::kernel::{close_range, signal_disposition};
use crate::plan::{Namespace, Plan};
use crate::rootfs::{self, RootfsError, Sources};
use channel::{InitChannel, Report};

/// Everything the container's process needs, opened by the caller.
pub(crate) struct Init<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) cgroup: &'a Cgroup,
    pub(crate) sources: Sources,
    /// Version 1 cgroups are entered by writing to these.
    pub(crate) cgroup_entrances: Vec<OwnedFd>,
    pub(crate) joined: JoinedNamespaces,
    /// Standard input, output and error; none leaves the caller's.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    pub(crate) channel: InitChannel,
    /// Where to wait for being started.
    pub(crate) start: OwnedFd,
    /// What belongs to the caller alone.
    pub(crate) not_ours: [RawFd; 2],
}

/// Why the container's process could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error("cannot {doing}")]
    Step { doing: &'static str, source: io::Error },
    #[error("{field}: cannot {doing}")]
    Field {
        field: String,
        doing: String,
        source: io::Error,
    },
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Command(#[from] command::CommandError),
    #[error("process.cwd: {problem}")]
    WorkingDirectory { problem: String },
    #[error("process.terminal: there is no /dev/pts/ptmx: mount a devpts on /dev/pts")]
    NoTerminals { source: io::Error },
}

impl InitError {
    fn step(doing: &'static str) -> impl FnOnce(Errno) -> InitError {
        move |errno| InitError::Step {
            doing,
            source: errno.into(),
        }
    }

    fn field(field: impl Into<String>, doing: impl Into<String>) -> impl FnOnce(Errno) -> InitError {
        move |errno| InitError::Field {
            field: field.into(),
            doing: doing.into(),
            source: errno.into(),
        }
    }
}

/// The exit code of a process that could not be set up; nobody sees it but in a debugger, the message is what counts.
const SETUP_FAILED: i32 = 125;

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
        match self.set_up() {
            Ok(ready) => start::report_wait_and_become(&ManuallyDrop::new(ready), &self.channel, &self.start),
            Err(error) => {
                let failure = match &error {
                    InitError::Command(error) => Some(error.failure()),
                    _ => None,
                };
                self.channel.report(
                    &Report::Failed {
                        failure,
                        messages: messages(&error),
                    },
                    None,
                );
                SETUP_FAILED
            }
        }
    }

    fn set_up(&self) -> Result<start::Ready, InitError> {
        for descriptor in self.not_ours {
            // SAFETY: these copies are used by nothing in this process. Open, they would keep the caller's lock and its
            // end of the channel alive beyond the caller's death.
            unsafe { rustix::io::close(descriptor) };
        }
        signal_disposition::reset_for_exec();
        let plan = self.plan;
        let has_user_namespace = plan.namespaces.creates(Namespace::User);
        if has_user_namespace {
            self.channel
                .wait_until_mapped()
                .map_err(InitError::step("wait for the user namespace's maps"))?;
            identity::become_root_of_user_namespace()?;
        }
        enter_cgroups(&self.cgroup_entrances)?;
        namespaces::enter(&self.joined, &plan.namespaces)?;
        namespaces::furnish(plan)?;
        if let Some(score) = plan.process.oom_score_adjustment {
            limits::set_oom_score_adjustment(score)?;
        }

        umask(Mode::empty());
        let root_descriptor = rustix::io::fcntl_dupfd_cloexec(&self.sources.root, 3)
            .map_err(InitError::step("copy the root's descriptor"))?;
        let root = rootfs::attach(root_descriptor, &plan.root.path)?;
        let has_cgroup_namespace = plan.namespaces.creates(Namespace::Cgroup);
        rootfs::mount_all(
            &root,
            &plan.mounts,
            &self.sources,
            self.cgroup,
            has_cgroup_namespace,
        )?;
        if let Some(nodes) = &plan.devices {
            rootfs::make_device_folder(&root, nodes, has_user_namespace)?;
        }
        let terminal = match plan.process.terminal {
            Some(size) => Some(terminal::open(&root, size, plan.process.user.uid)?),
            None => None,
        };
        limits::write_sysctl(&plan.sysctl)?;
        let working_directory = identity::open_working_directory(&root, &plan.process.working_directory)?;
        rootfs::protect(&root, &plan.read_only_paths)?;
        rootfs::mask(&root, &plan.masked_paths)?;
        rootfs::pivot(root, &plan.root.path, plan.root.read_only)?;

        rustix::process::setsid().map_err(InitError::step("begin a session"))?;
        let terminal = match terminal {
            Some(terminal) => {
                terminal.control()?;
                Some(terminal.into_master())
            }
            None => {
                if let Some(stdio) = &self.stdio {
                    use_as_stdio(stdio)?;
                }
                None
            }
        };
        limits::set_resource_limits(&plan.process.limits)?;
        let warnings = identity::take(&plan.process, working_directory)?;
        umask(Mode::from_raw_mode(plan.process.user.umask));
        let environment = environment::complete(&plan.process);
        let path = command::find(&plan.process, &environment)?;
        Ok(start::Ready {
            path,
            arguments: plan.process.arguments.clone(),
            environment,
            terminal,
            warnings,
        })
    }
}

fn enter_cgroups(entrances: &[OwnedFd]) -> Result<(), InitError> {
    for entrance in entrances {
        rustix::io::write(entrance, b"0").map_err(InitError::step("enter a cgroup"))?;
    }
    Ok(())
}

fn use_as_stdio(stdio: &[OwnedFd; 3]) -> Result<(), InitError> {
    let failed = InitError::step("connect the standard streams");
    let connect = || -> Result<(), Errno> {
        let [stdin, stdout, stderr] = stdio;
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)
    };
    connect().map_err(failed)
}

/// Closes everything but the standard streams and `kept`.
fn close_everything_but(kept: &mut [RawFd]) -> Result<(), Errno> {
    // SAFETY: called when the only descriptors this process will use again are those kept, and its owners of others
    // are never dropped, because it ends in execve or _exit.
    unsafe { close_range::close_all_but_stdio_and(kept) }
}

/// An error and its causes, outermost first.
pub(crate) fn messages(error: &dyn Error) -> Vec<String> {
    let mut messages = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        messages.push(error.to_string());
        cause = error.source();
    }
    messages
}

/// Writes to a file of the kernel's, in one write.
fn write_file(path: &Path, value: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value).map(|_| ())
}

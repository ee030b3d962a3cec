//! `exec`: one more process in a running container.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, set_dumpable_behavior};
use rustix::thread::CpuSet;

use super::affinity_of_children::AffinityOfChildren;
use super::console::send_terminal;
use super::create::{GIVE_STREAMS, check_streams};
use super::maker::{self, Maker};
use super::pid_file::write_pid_file;
use super::pipes::{Pipes, user_to_caller};
use super::{
    ConsoleSocketError, Container, CreateError, InitFailure, PidFileError, SeccompAgentError, Stdio,
    seccomp_agent,
};
use crate::cgroup::CgroupError;
use crate::join::Joining;
use crate::kernel::clone3::{Forked, clone3};
use crate::kernel::pid_slot::PidSlot;
use crate::kernel::pidfd::send_signal;
use crate::own_program;
use crate::plan::{ExecutionPlan, Namespace, NamespacePlan, ProcessPlan, SpecError};
use crate::process::channel::{CallerChannel, PATIENCE, Report, channel};
use crate::process::{self, CommandFailure, SecurityModules, messages};
use crate::seccomp::{AgentPlan, SeccompPlan};
use crate::state::{OciState, StateError, Status};

const LET_GO_ON: &str = "let the process go on";
const HEAR: &str = "hear from the process";

/// What to run in a container, and how it is connected.
#[derive(Debug)]
pub struct ExecOptions<'a> {
    process: &'a Process,
    stdio: Stdio,
    pid_file: Option<&'a Path>,
    console_socket: Option<&'a Path>,
    preserved: Vec<RawFd>,
    cgroups: &'a [String],
    although_paused: bool,
}

/// A process that runs in a container beside the first one. It is a child of this process; dropping this changes
/// nothing about it.
#[derive(Debug)]
pub struct Executed {
    pid: i32,
    pidfd: OwnedFd,
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
    initial_affinity: Option<String>,
}

/// Why a process could not be run in a container. None is left.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Only a container with a process can be joined.
    #[error("container `{id}` is {status}: a process can be run in one that is created or running")]
    NotRunning {
        /// The container.
        id: String,
        /// What it is.
        status: Status,
    },
    /// The process, or the container's configuration, cannot be honoured.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The container's state cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The container's cgroups cannot be entered.
    #[error("cannot enter the container's cgroups")]
    Cgroup(#[from] CgroupError),
    /// A step that is the same when a container is created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// A step outside the new process failed.
    #[error("cannot {doing}")]
    Step {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The process was made and could not be set up, or its program not be executed.
    #[error("cannot run the process in the container")]
    Process(#[source] InitFailure),
    /// The process was made and died without a word.
    #[error("the process died while it was set up: does the container's memory limit leave room for it?")]
    Died,
    /// The process's system calls could not be handed to the container's agent.
    #[error(transparent)]
    SeccompAgent(#[from] SeccompAgentError),
    /// The terminal could not be delivered.
    #[error(transparent)]
    ConsoleSocket(#[from] ConsoleSocketError),
    /// The pid file could not be written.
    #[error(transparent)]
    PidFile(#[from] PidFileError),
}

impl ExecError {
    /// Whether the program is what is wrong, and how: 127 or 126 to a shell.
    pub fn command_failure(&self) -> Option<CommandFailure> {
        match self {
            ExecError::Process(failure) => failure.command_failure(),
            _ => None,
        }
    }

    fn step(doing: &'static str) -> impl FnOnce(Errno) -> ExecError {
        move |errno| ExecError::Step {
            doing,
            source: errno.into(),
        }
    }
}

impl<'a> ExecOptions<'a> {
    /// `process`, with the caller's standard streams.
    pub fn new(process: &'a Process) -> ExecOptions<'a> {
        ExecOptions {
            process,
            stdio: Stdio::Inherit,
            pid_file: None,
            console_socket: None,
            preserved: Vec::new(),
            cgroups: &[],
            although_paused: false,
        }
    }

    /// Connects the program to these streams.
    pub fn stdio(mut self, stdio: Stdio) -> ExecOptions<'a> {
        self.stdio = stdio;
        self
    }

    /// Writes the pid of the process to this file once it runs.
    pub fn pid_file(mut self, path: Option<&'a Path>) -> ExecOptions<'a> {
        self.pid_file = path;
        self
    }

    /// Sends the caller's end of the terminal to whoever listens at this socket.
    pub fn console_socket(mut self, path: Option<&'a Path>) -> ExecOptions<'a> {
        self.console_socket = path;
        self
    }

    /// Lets the program keep these descriptors of the caller's, which have to be open and not close-on-exec.
    pub fn preserved_descriptors(mut self, preserved: Vec<RawFd>) -> ExecOptions<'a> {
        self.preserved = preserved;
        self
    }

    /// Puts the program into these cgroups below the container's, which have to exist: a path for all hierarchies, or
    /// after controllers (`cpu,memory:some/path`) for theirs.
    pub fn cgroups(mut self, cgroups: &'a [String]) -> ExecOptions<'a> {
        self.cgroups = cgroups;
        self
    }

    /// Joins a paused container too. Then [`Container::exec`] returns when the container goes on.
    pub fn although_paused(mut self, although_paused: bool) -> ExecOptions<'a> {
        self.although_paused = although_paused;
        self
    }
}

/// A set of CPUs as a hexadecimal mask.
fn mask(cpus: &CpuSet) -> String {
    let nibble = |first: usize| {
        let bits = (0..4).filter(|bit| cpus.is_set(first + bit));
        bits.fold(0, |nibble, bit| nibble | 1 << bit)
    };
    let digits: String = (0..CpuSet::MAX_CPU)
        .step_by(4)
        .rev()
        .filter_map(|first| char::from_digit(nibble(first), 16))
        .collect();
    format!("0x{}", digits.trim_start_matches('0'))
}

impl Executed {
    /// Where `process.execCPUAffinity.initial` let it begin, as a hexadecimal mask of CPUs.
    pub fn initial_affinity(&self) -> Option<&str> {
        self.initial_affinity.as_deref()
    }

    /// Its number, by the caller's count.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A descriptor of it, to poll for its end.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// The caller's end of its terminal, once, if it was given [`Stdio::Terminal`].
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// What it could not be given and the specification allows to be missing.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Waits for its end. Returns its exit code, or 128 and the number of the signal that ended it.
    pub fn wait(&self) -> io::Result<i32> {
        let status = maker::wait_for(&self.pidfd)?.ok_or(Errno::CHILD)?;
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        Ok(status.exit_status().or(signal).unwrap_or(255))
    }
}

impl Container {
    /// The process that the container's configuration describes, or an ordinary one where it has none, to be changed and
    /// given to [`exec`](Self::exec).
    pub fn configured_process(&self) -> Result<Process, ExecError> {
        Ok(self.configuration()?.process().clone().unwrap_or_default())
    }

    /// The root of the container's process, which is not that of a mount namespace.
    fn open_root(&self, process: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let pid = self.pid().ok_or(Errno::SRCH)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())?;
        // If it has not ended by now, the number was its own.
        send_signal(process, 0)?;
        Ok(root)
    }

    /// The cgroup2 cgroup below the container's own that its first process is in.
    fn open_unified_of_first(&self, process: BorrowedFd<'_>) -> Result<Option<OwnedFd>, ExecError> {
        let (Some(cgroup), Some(pid)) = (&self.record.cgroup, self.pid()) else {
            return Ok(None);
        };
        let unified = cgroup.open_unified_of(pid)?;
        // If it has not ended by now, the number was its own.
        send_signal(process, 0).map_err(ExecError::step("look at the container's process"))?;
        Ok(unified)
    }

    /// Gives those of the streams that are pipes to the user of `process`.
    fn give_pipes(
        &self,
        stdio: &Stdio,
        process: &ProcessPlan,
        namespaces: &NamespacePlan,
        container: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        let pipes = Pipes::among(stdio, process)?;
        let uid = process.user.uid;
        if pipes.is_empty() || !namespaces.isolates(Namespace::User) {
            return pipes.give_to(uid);
        }
        let uid = user_to_caller(uid, self.pid().ok_or(Errno::SRCH)?)?;
        // If it has not ended by now, the number was its own.
        send_signal(container, 0)?;
        uid.map_or(Ok(()), |uid| pipes.give_to(uid))
    }

    /// Runs one more process in the container. Returns when its program runs.
    ///
    /// Like [`create`](crate::create) it forks, and refuses to with a second thread.
    pub fn exec(&self, options: ExecOptions<'_>) -> Result<Executed, ExecError> {
        let configuration = self.configuration()?;
        let process = ProcessPlan::new(options.process)?;
        let linux = configuration.linux().as_ref();
        let linux = linux.ok_or_else(|| SpecError::missing("linux"))?;
        let namespaces = NamespacePlan::new(linux)?;
        let execution = ExecutionPlan::new(linux)?;
        let filter = linux.seccomp().as_ref().map(SeccompPlan::new).transpose()?;
        SecurityModules::of_this_kernel().check(&process.labels, None)?;
        check_streams(&process, &options.stdio, options.console_socket)?;
        super::create::check_threads()?;
        let container = self.running_process(options.although_paused)?;
        let agent = filter.as_ref().and_then(|filter| filter.agent.as_ref());
        let agent = match agent {
            Some(agent) => Some((agent, self.state()?)),
            None => None,
        };
        let cgroup = self.record.cgroup.as_ref();
        let cgroup = cgroup.map(|cgroup| cgroup.below(options.cgroups)).transpose()?;
        let cgroup_entrances = cgroup
            .as_ref()
            .map(|cgroup| cgroup.open_entrances())
            .transpose()?;
        let unified = match &cgroup {
            Some(cgroup) => cgroup.open_unified()?,
            None => None,
        };
        let root = if namespaces.isolates(Namespace::Mount) {
            None
        } else {
            let root = self.open_root(container.as_fd());
            Some(root.map_err(ExecError::step("open the container's root"))?)
        };
        self.give_pipes(&options.stdio, &process, &namespaces, container.as_fd())
            .map_err(ExecError::step(GIVE_STREAMS))?;
        let failed = || ExecError::step("make a socket to the process");
        let (caller_channel, init_channel) = channel().map_err(failed())?;
        if !options.although_paused {
            caller_channel.be_patient_for(PATIENCE).map_err(failed())?;
        }
        // The new process inherits it: it is a copy of this one.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)
            .map_err(ExecError::step("hide this process's memory from the container"))?;
        let made = PidSlot::new().map_err(ExecError::step("share memory with the process"))?;
        let joining = Joining {
            process: &process,
            namespaces: &namespaces,
            identities: &self.record.namespaces,
            filter: filter.as_ref(),
            execution: &execution,
            container: container.as_fd(),
            root,
            cgroup_entrances: cgroup_entrances.unwrap_or_default(),
            stdio: options.stdio.into_files(),
            channel: init_channel,
            made: &made,
            preserved: options.preserved,
            not_ours: [self.directory.as_fd(), caller_channel.as_fd()]
                .map(|descriptor| descriptor.as_raw_fd())
                .into_iter()
                .chain(own_program::left_open())
                .collect(),
        };
        let affinity = process.scheduling.initial_affinity.as_ref();
        let affinity = affinity
            .map(AffinityOfChildren::set)
            .transpose()
            .map_err(ExecError::step(
                "run on the CPUs of process.execCPUAffinity.initial",
            ))?;
        let make = |unified: Option<&OwnedFd>| {
            // SAFETY: this process has one thread, as was checked, and the child only ever runs `Joining::run`, which does
            // not come back.
            unsafe { clone3(0, unified.map(AsFd::as_fd)) }
        };
        let forked = match make(unified.as_ref()) {
            Err(errno @ (Errno::BUSY | Errno::OPNOTSUPP)) if options.cgroups.is_empty() => {
                match self.open_unified_of_first(container.as_fd())? {
                    Some(unified) => make(Some(&unified)),
                    None => Err(errno),
                }
            }
            made => made,
        };
        let forked = forked.map_err(|errno| match errno {
            Errno::BUSY => ExecError::step("make the process in a cgroup which passes controllers on")(errno),
            errno => ExecError::step("make the process")(errno),
        })?;
        let maker = match forked {
            Forked::Child => joining.run(),
            Forked::Parent { pidfd, .. } => Maker { pidfd, made: &made },
        };
        drop(affinity);
        drop(joining);
        own_program::close_left_open();
        let mut executed = match Executed::made_by(&maker, &caller_channel) {
            Ok(executed) => executed,
            Err(error) => {
                maker.undo();
                return Err(error);
            }
        };
        executed.initial_affinity = process.scheduling.initial_affinity.as_ref().map(mask);
        let ran = executed.schedule(&process).and_then(|()| {
            executed.see_it_run(
                &caller_channel,
                agent.as_ref(),
                options.console_socket,
                options.pid_file,
            )
        });
        match ran {
            Ok(()) => Ok(executed),
            Err(error) => {
                maker::end(&executed.pidfd);
                Err(error)
            }
        }
    }

    /// The container's first process, if the container can be joined.
    fn running_process(&self, also_if_paused: bool) -> Result<OwnedFd, ExecError> {
        let not_running = |status| ExecError::NotRunning {
            id: self.id.to_string(),
            status,
        };
        match self.status()? {
            Status::Created | Status::Running => {}
            Status::Paused if also_if_paused => {}
            status => return Err(not_running(status)),
        }
        let process = self.pidfd().map_err(|source| ExecError::Step {
            doing: "open the container's process",
            source,
        })?;
        process.ok_or_else(|| not_running(Status::Stopped))
    }
}

impl Executed {
    /// Follows the maker until it has made the process.
    fn made_by(maker: &Maker<'_>, channel: &CallerChannel) -> Result<Executed, ExecError> {
        let receive = || channel.receive().map_err(ExecError::step(HEAR));
        let (warnings, terminal) = match receive()? {
            Some((Report::Ready { warnings }, terminal)) => (warnings, terminal),
            Some((Report::Failed { failure, messages }, _)) => return Err(process_failed(failure, messages)),
            Some(_) => return Err(ExecError::step(HEAR)(Errno::BADMSG)),
            None => return Err(ExecError::Died),
        };
        let made = maker
            .see_it_end()
            .map_err(ExecError::step("wait for the process to be made"))?;
        match made {
            Some((pid, pidfd)) => Ok(Executed {
                pid: pid.as_raw_pid(),
                pidfd,
                terminal,
                warnings,
                initial_affinity: None,
            }),
            None => Err(match receive()? {
                Some((Report::Failed { failure, messages }, _)) => process_failed(failure, messages),
                _ => ExecError::Died,
            }),
        }
    }

    /// Has the process scheduled as it could not inherit it, and may not set itself.
    fn schedule(&self, plan: &ProcessPlan) -> Result<(), ExecError> {
        let pid = Pid::from_raw(self.pid);
        pid.map_or(Ok(()), |pid| process::schedule_made(pid, &plan.scheduling))
            .map_err(|error| process_failed(None, messages(&error)))
    }

    /// Follows the process until its program runs. By now the container's other processes may be able to make it say
    /// anything.
    fn see_it_run(
        &mut self,
        channel: &CallerChannel,
        agent: Option<&(&AgentPlan, OciState)>,
        console_socket: Option<&Path>,
        pid_file: Option<&Path>,
    ) -> Result<(), ExecError> {
        match self.hear(channel, agent)? {
            Some(Report::Ready { .. }) => {}
            Some(Report::Failed { failure, messages }) => return Err(process_failed(failure, messages)),
            Some(_) => return Err(ExecError::step(HEAR)(Errno::BADMSG)),
            None => return Err(ExecError::Died),
        }
        if let Some(path) = console_socket
            && let Some(terminal) = self.terminal.take()
        {
            send_terminal(path, terminal.as_fd())?;
        }
        if let Some(path) = pid_file {
            write_pid_file(path, self.pid)?;
        }
        channel.let_go_on().map_err(ExecError::step(LET_GO_ON))?;
        match self.hear(channel, agent)? {
            // The channel was closed by the execution, and nothing was said before.
            None => Ok(()),
            Some(Report::Failed { failure, messages }) => Err(process_failed(failure, messages)),
            Some(_) => Err(ExecError::step(HEAR)(Errno::BADMSG)),
        }
    }

    /// What the process says next. If that is about its listener, the agent gets it first.
    fn hear(
        &self,
        channel: &CallerChannel,
        agent: Option<&(&AgentPlan, OciState)>,
    ) -> Result<Option<Report>, ExecError> {
        let receive = || {
            let received = channel.receive().map_err(ExecError::step(HEAR))?;
            // Whatever descriptor came with it is none of ours to use.
            Ok::<_, ExecError>(received.map(|(report, _)| report))
        };
        match (receive()?, agent) {
            (Some(Report::Listener { number }), Some((agent, state))) => {
                match seccomp_agent::hand_over(agent, state, self.pidfd.as_fd(), self.pid, number) {
                    Ok(()) => channel.let_go_on_if_there().map_err(ExecError::step(LET_GO_ON))?,
                    Err(error) if error.process_ended() => {
                        return receive()?.ok_or(error.into()).map(Some);
                    }
                    Err(error) => return Err(error.into()),
                }
                receive()
            }
            (report, _) => Ok(report),
        }
    }
}

fn process_failed(failure: Option<CommandFailure>, messages: Vec<String>) -> ExecError {
    ExecError::Process(InitFailure::new(failure, messages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_a_bit_for_each_cpu() {
        let mut cpus = CpuSet::new();
        for cpu in [0, 1, 65] {
            cpus.set(cpu);
        }
        assert_eq!(mask(&cpus), "0x20000000000000003");
    }
}

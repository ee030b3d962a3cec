//! `create`: everything up to the moment before the program runs.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::between::fork_by_process_between;
use super::console::send_terminal;
use super::create_options::StartedBy;
use super::maker::{self, Maker};
use super::pid_file::write_pid_file;
use super::pid_namespace::PidNamespaceOfChildren;
use super::pipes::{Pipes, user_to_caller};
use super::{Container, CreateError, CreateOptions, InitFailure, Stdio, seccomp_agent};
use crate::cgroup::{Cgroup, CgroupError, Hierarchies, recorded};
use crate::hook::{self, DefaultEnvironment};
use crate::init::{CgroupEntrances, Init, JoinedNamespaces, StartSocket, can_be_made_outside};
use crate::kernel::clone3::{Forked, clone3};
use crate::kernel::pid_slot::PidSlot;
use crate::kernel::pidfd::send_signal;
use crate::kernel::threads::count_threads;
use crate::network::move_devices;
use crate::own_program;
use crate::plan::{Namespace, NamespacePlan, Plan, ProcessPlan, SpecError, id_map};
use crate::process::channel::{CallerChannel, PATIENCE, Report, channel};
use crate::process::{self, SecurityModules};
use crate::procfs;
use crate::rootfs::{RootfsError, Sources, WaitingSources};
use crate::state::{
    NamespaceIdentities, OciState, ProcessIdentity, Record, RootMount, StateDirectory, Status,
};

/// Creates a container: when this returns, its process stands in its namespaces and waits for
/// [`start`](Container::start).
pub fn create(options: CreateOptions<'_>) -> Result<Container, CreateError> {
    let plan = Plan::new(options.bundle, options.id)?;
    if options.start == StartedBy::Creator && !plan.process.is_set() {
        return Err(SpecError::missing("process").into());
    }
    SecurityModules::of_this_kernel().check(&plan.process.labels, plan.mount_label.as_deref())?;
    check_streams(&plan.process, &options.stdio, options.console_socket)?;
    check_threads()?;
    if let Some(agent) = plan.seccomp.as_ref().and_then(|seccomp| seccomp.agent.as_ref()) {
        seccomp_agent::check(agent)?;
    }
    let joined = JoinedNamespaces::open(&plan.namespaces)?;
    joined.check_settings(&plan, options.sets_own_network)?;
    let (mut sources, waiting) = Sources::open(&plan).map_err(unopened)?;
    if can_be_made_outside(&plan, &joined) {
        let namespace = joined
            .pid()
            .map(|namespace| rustix::io::fcntl_dupfd_cloexec(namespace, 3));
        sources.processes_of = namespace
            .transpose()
            .map_err(CreateError::step("keep the pid namespace open"))?;
    }
    let hierarchies = Hierarchies::mounted()?;

    let directory = StateDirectory::create(options.state_root, options.id)?;
    let lock = directory.lock()?;
    let cgroup = match Cgroup::locate(&hierarchies, &plan.cgroup.path) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            directory.remove()?;
            return Err(error.into());
        }
    };
    let spec = options.bundle.spec();
    let record = Record {
        bundle: options.bundle.directory().to_owned(),
        oci_version: spec.version().clone(),
        annotations: spec
            .annotations()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        cgroup: Some(cgroup.clone()),
        poststart_hooks: plan.hooks.poststart.clone(),
        poststop_hooks: plan.hooks.poststop.clone(),
        rootfs: plan.root.path.clone(),
        root_mount: None,
        created: Some(std::time::SystemTime::now()),
        resources: recorded(spec.linux().as_ref().and_then(|linux| linux.resources().as_ref())),
        init: None,
        namespaces: NamespaceIdentities::default(),
    };
    let state = OciState {
        oci_version: record.oci_version.clone(),
        id: options.id.to_string(),
        status: Status::Creating,
        pid: None,
        bundle: record.bundle.clone(),
        annotations: record.annotations.clone(),
    };
    let mut creation = Creation {
        has_cgroup: false,
        root_mount: None,
        options,
        plan: &plan,
        directory: &directory,
        cgroup: &cgroup,
        child: None,
        starter: None,
        waiting,
        state,
        hooks_began: false,
    };
    let made = creation.make(record, &hierarchies, sources, joined);
    let made = made.map_err(|error| creation.undo(error));
    let id = creation.options.id.clone();
    let left_out = creation.options.bundle.warnings().to_vec();
    let starter = creation.starter;
    drop(lock);
    let (record, terminal, warnings) = made?;
    Ok(Container {
        id,
        directory,
        record,
        terminal,
        starter,
        warnings: [left_out, plan.warnings, warnings].concat(),
        configuration: OnceLock::new(),
    })
}

/// A creation under way, and what has to be undone if it fails.
struct Creation<'a> {
    options: CreateOptions<'a>,
    plan: &'a Plan,
    directory: &'a StateDirectory,
    cgroup: &'a Cgroup,
    has_cgroup: bool,
    root_mount: Option<RootMount>,
    child: Option<OwnedFd>,
    /// The connection by which we alone start the process.
    starter: Option<OwnedFd>,
    /// As hooks are told it.
    state: OciState,
    /// What is copied when the container's process comes to it.
    waiting: WaitingSources,
    /// From then on poststop hooks are owed.
    hooks_began: bool,
}

const LET_GO_ON: &str = "let the container's process go on";
const HAND_OVER: &str = "hand bind mounts to the container's process";
const HEAR: &str = "hear from the container's process";
pub(super) const GIVE_STREAMS: &str = "give the standard streams to the program's user";

type Made = (Record, Option<OwnedFd>, Vec<String>);

/// What has come of a container's process by the time that it waits to be started.
struct SetUp {
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
    /// Whether the record tells of the process, and is written down where it only has to take the old one's place.
    is_prepared: bool,
}

impl Creation<'_> {
    fn make(
        &mut self,
        mut record: Record,
        hierarchies: &Hierarchies,
        sources: Sources,
        joined: JoinedNamespaces,
    ) -> Result<Made, CreateError> {
        let root = self.plan.root.path.as_path();
        if !self.plan.namespaces.isolates(Namespace::Mount) {
            let expected = RootMount::expected_at(root);
            record.root_mount =
                Some(expected.map_err(CreateError::step("look at the root file system's folder"))?);
            self.root_mount = record.root_mount;
        }
        // What will exist is written down before it does.
        self.directory.write(&record)?;
        self.cgroup
            .make_unified(hierarchies)
            .map_err(CgroupError::of_path)?;
        self.has_cgroup = true;
        // The many of version 1 are made while the process makes its namespaces. One that devices are moved to has to be
        // there before.
        let meanwhile = self.cgroup.has_version1()
            && self.plan.namespaces.may_be_made_inside()
            && self.plan.net_devices.is_empty();
        if !meanwhile {
            self.make_and_limit_cgroups(hierarchies)?;
        }
        let network = joined
            .network()
            .map(|network| rustix::io::fcntl_dupfd_cloexec(network, 3));
        let made = sources.processes_of.as_ref().map(|_| PidSlot::new());
        let made = made
            .transpose()
            .map_err(CreateError::step("share memory with the container's process"))?;
        let pipes = Pipes::among(&self.options.stdio, &self.plan.process)
            .map_err(CreateError::step("keep the standard streams open"))?;
        let (mut pid, channel) = self.fork(sources, joined, made.as_ref(), meanwhile)?;
        if meanwhile {
            self.make_and_limit_cgroups(hierarchies)?;
            channel
                .let_go_on_if_there()
                .map_err(CreateError::step(LET_GO_ON))?;
        }
        if self.plan.namespaces.creates(Namespace::User) {
            map_users(pid, &self.plan.namespaces)?;
            channel.let_go_on().map_err(CreateError::step(LET_GO_ON))?;
        }
        if !self.plan.net_devices.is_empty() {
            let network = network.unwrap_or_else(|| network_of(pid));
            let network = network.map_err(CreateError::step("open the container's network namespace"))?;
            move_devices(&self.plan.net_devices, network.as_fd())?;
        }
        self.state.pid = Some(pid);
        // For processes that join later, and not for deleting: there is time while the container's process mounts.
        self.directory.write_configuration(self.options.bundle.spec())?;
        own_program::close_left_open();
        let SetUp {
            terminal,
            mut warnings,
            is_prepared,
        } = self.wait_until_ready(&channel, &mut record, made.is_some())?;
        if let Some(made) = &made {
            pid = self.see_it_made(made, &channel)?;
        }
        warnings.extend(self.plan.cgroup.warnings.iter().cloned());
        self.give_to_user(&pipes, pid)
            .map_err(CreateError::step(GIVE_STREAMS))?;
        if !is_prepared {
            self.complete(&mut record, pid)?;
        }
        if let Some(expected) = record.root_mount {
            let found = expected.found_at(root);
            record.root_mount =
                Some(found.map_err(CreateError::step("look at the mounted root file system"))?);
        }
        let terminal = self.deliver(terminal)?;
        if !is_prepared {
            self.directory.prepare(&record)?;
        }
        self.directory.replace_by_prepared()?;
        // Whoever has waited for this file may act on the container at once.
        if let Some(path) = self.options.pid_file {
            write_pid_file(path, pid)?;
        }
        Ok((record, terminal, warnings))
    }

    /// Writes into the record whom the container consists of.
    fn complete(&self, record: &mut Record, pid: i32) -> Result<(), CreateError> {
        record.init =
            Some(ProcessIdentity::of(pid).map_err(CreateError::step("look at the container's process"))?);
        record.namespaces = NamespaceIdentities::of(pid, &self.plan.namespaces)
            .map_err(CreateError::step("look at the container's namespaces"))?;
        Ok(())
    }

    /// Gives the streams to the program's user, to whom the process `pid` has led.
    fn give_to_user(&self, pipes: &Pipes, pid: i32) -> Result<(), Errno> {
        let uid = self.plan.process.user.uid;
        if pipes.is_empty() || !self.plan.namespaces.isolates(Namespace::User) {
            return pipes.give_to(uid);
        }
        user_to_caller(uid, pid)?.map_or(Ok(()), |uid| pipes.give_to(uid))
    }

    fn make_and_limit_cgroups(&self, hierarchies: &Hierarchies) -> Result<(), CreateError> {
        self.cgroup
            .make_version1(hierarchies)
            .map_err(CgroupError::of_path)?;
        self.cgroup.limit(&self.plan.cgroup)?;
        Ok(())
    }

    /// Makes the container's process, before its version 1 cgroups if those are made `meanwhile`.
    fn fork(
        &mut self,
        sources: Sources,
        joined: JoinedNamespaces,
        made: Option<&PidSlot>,
        meanwhile: bool,
    ) -> Result<(i32, CallerChannel), CreateError> {
        let unified = self.cgroup.open_unified()?;
        let cgroup_entrances = if meanwhile {
            CgroupEntrances::BeingMade
        } else {
            CgroupEntrances::Open(self.cgroup.open_entrances()?)
        };
        let start = match self.options.start {
            StartedBy::Anyone => StartSocket::Listening(self.directory.listen_for_start()?),
            StartedBy::Creator => {
                let pair = process::channel::socket_pair();
                let (ours, its) = pair.map_err(CreateError::step(
                    "make a socket to start the container's process",
                ))?;
                self.starter = Some(ours);
                StartSocket::Connected(its)
            }
        };
        let (caller_channel, init_channel) =
            channel().map_err(CreateError::step("make a socket to the container's process"))?;
        // A hook may take as long as its own timeout lets it.
        if self.plan.hooks.create_container.is_empty() {
            caller_channel
                .be_patient_for(PATIENCE)
                .map_err(CreateError::step("bound the wait for the container's process"))?;
        }
        let stdio = std::mem::replace(&mut self.options.stdio, Stdio::Inherit).into_files();
        let init = Init {
            plan: self.plan,
            cgroup: self.cgroup,
            sources,
            cgroup_entrances,
            joined,
            stdio,
            channel: init_channel,
            state: self.state.clone(),
            start,
            preserved: self.options.preserved.clone(),
            keyring: self.options.keyring,
            made,
            not_ours: [self.directory.as_fd(), caller_channel.as_fd()]
                .into_iter()
                .chain(self.starter.as_ref().map(AsFd::as_fd))
                .map(|descriptor| descriptor.as_raw_fd())
                .chain(own_program::left_open())
                .chain(self.waiting.descriptors())
                .collect(),
        };
        let unified = unified.as_ref().map(AsFd::as_fd);
        if self.plan.namespaces.needs_process_between() {
            // SAFETY: this process has one thread, as was checked.
            let forked = unsafe { fork_by_process_between(init, unified) }?;
            let Some((pid, pidfd)) = forked else {
                return Err(self.failure(&caller_channel)?);
            };
            self.child = Some(pidfd);
            return Ok((pid, caller_channel));
        }
        if init.joined.pid().is_some() {
            // The container's process inherits it: it is a copy of this one in the sight of who is there already.
            set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(CreateError::step(
                "hide this process's memory from a joined pid namespace",
            ))?;
        }
        let pid_namespace = init
            .joined
            .pid()
            .filter(|_| made.is_none())
            .map(|namespace| PidNamespaceOfChildren::set(namespace.as_fd()))
            .transpose()?;
        let mut flags = self.plan.namespaces.clone_flags();
        if meanwhile {
            flags &= Namespace::Pid as u64;
        }
        // SAFETY: this process has one thread, as was checked, and the child only ever runs `Init::run`, which does
        // not come back.
        let forked = unsafe { clone3(flags, unified) }
            .map_err(CreateError::step("make the container's process and namespaces"))?;
        match forked {
            Forked::Child => init.run(),
            Forked::Parent { pid, pidfd } => {
                self.child = Some(pidfd);
                if let Some(namespace) = pid_namespace {
                    namespace.restore()?;
                }
                Ok((pid, caller_channel))
            }
        }
    }

    /// Follows the process outside until it has made the container's, and that one until it is ready. Whoever is in the
    /// pid namespace may be able to make it say anything.
    fn see_it_made(&mut self, made: &PidSlot, channel: &CallerChannel) -> Result<i32, CreateError> {
        let Some(pidfd) = self.child.take() else {
            return Err(CreateError::step("find the container's process")(Errno::SRCH));
        };
        let maker = Maker { pidfd, made };
        let found = match maker.see_it_end() {
            Ok(found) => found,
            Err(errno) => {
                maker.undo();
                return Err(CreateError::step("wait for the container's process to be made")(
                    errno,
                ));
            }
        };
        let Some((pid, pidfd)) = found else {
            return Err(self.failure(channel)?);
        };
        self.child = Some(pidfd);
        self.state.pid = Some(pid.as_raw_pid());
        process::schedule_made(pid, &self.plan.process.scheduling)
            .map_err(|error| CreateError::Init(InitFailure::new(None, process::messages(&error))))?;
        loop {
            let report = channel.receive().map_err(CreateError::step(HEAR))?;
            match report {
                Some((Report::Listener { number }, _)) => self.hand_listener_over(channel, number)?,
                Some((Report::Ready { .. }, _)) => return Ok(pid.as_raw_pid()),
                Some((Report::Failed { failure, messages }, _)) => {
                    return Err(CreateError::Init(InitFailure::new(failure, messages)));
                }
                Some(_) => return Err(CreateError::step(HEAR)(Errno::BADMSG)),
                None => return Err(CreateError::InitDied { how: self.reap() }),
            }
        }
    }

    /// Why there is no process.
    fn failure(&self, channel: &CallerChannel) -> Result<CreateError, CreateError> {
        let report = channel.receive().map_err(CreateError::step(HEAR))?;
        Ok(match report {
            Some((Report::Failed { failure, messages }, _)) => {
                CreateError::Init(InitFailure::new(failure, messages))
            }
            _ => CreateError::InitDied { how: self.reap() },
        })
    }

    fn wait_until_ready(
        &mut self,
        channel: &CallerChannel,
        record: &mut Record,
        is_made_by_another: bool,
    ) -> Result<SetUp, CreateError> {
        let mut is_prepared = false;
        loop {
            let report = channel.receive().map_err(CreateError::step(HEAR))?;
            match report {
                Some((Report::AwaitsHooks, _)) => {
                    self.hooks_began = true;
                    hook::run_all(
                        &self.plan.hooks.create_runtime,
                        &self.state,
                        DefaultEnvironment::Inherited,
                    )?;
                    channel.let_go_on().map_err(CreateError::step(LET_GO_ON))?;
                }
                // The process that says so would otherwise not be the one that was forked.
                Some((Report::IsInNamespaces, _)) if !is_made_by_another => {
                    // Nobody reads it before all else is done, but then it need not be written. Of a process that has
                    // failed meanwhile, and says so next, nothing can be told; of any other it is found out then.
                    if let Some(pid) = self.state.pid
                        && self.complete(record, pid).is_ok()
                    {
                        self.directory.prepare(record)?;
                        is_prepared = true;
                    }
                }
                Some((Report::AwaitsSources { first }, _)) => {
                    let trees = self.waiting.copy_in_turn(self.plan, first).map_err(unopened)?;
                    channel
                        .hand_over_if_there(&trees)
                        .map_err(CreateError::step(HAND_OVER))?;
                }
                Some((Report::Listener { number }, _)) => self.hand_listener_over(channel, number)?,
                Some((Report::Ready { warnings }, terminal)) => {
                    return Ok(SetUp {
                        terminal,
                        warnings,
                        is_prepared,
                    });
                }
                Some((Report::Failed { failure, messages }, _)) => {
                    return Err(CreateError::Init(InitFailure::new(failure, messages)));
                }
                Some((Report::IsInNamespaces | Report::NoProcess, _)) => {
                    return Err(CreateError::step(HEAR)(Errno::BADMSG));
                }
                None => return Err(CreateError::InitDied { how: self.reap() }),
            }
        }
    }

    fn hand_listener_over(&self, channel: &CallerChannel, number: RawFd) -> Result<(), CreateError> {
        let agent = self
            .plan
            .seccomp
            .as_ref()
            .and_then(|seccomp| seccomp.agent.as_ref());
        let (Some(agent), Some(child), Some(pid)) = (agent, &self.child, self.state.pid) else {
            return Err(CreateError::step("find the agent for a listener")(Errno::BADMSG));
        };
        match seccomp_agent::hand_over(agent, &self.state, child.as_fd(), pid, number) {
            Ok(()) => channel.let_go_on_if_there().map_err(CreateError::step(LET_GO_ON)),
            // What comes next from it is the reason, or nothing.
            Err(error) if error.process_ended() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends the terminal to the console socket, or keeps it for the caller.
    fn deliver(&self, terminal: Option<OwnedFd>) -> Result<Option<OwnedFd>, CreateError> {
        let (Some(path), Some(terminal)) = (self.options.console_socket, &terminal) else {
            return Ok(terminal);
        };
        send_terminal(path, terminal.as_fd())?;
        Ok(None)
    }

    /// Waits for the process, which has ended or is about to, and says how it ended.
    fn reap(&self) -> String {
        let Some(child) = &self.child else {
            return "was never made".to_owned();
        };
        let status = maker::wait_for(child).ok().flatten();
        let code = status.as_ref().and_then(|status| status.exit_status());
        let signal = status.as_ref().and_then(|status| status.terminating_signal());
        process::describe_end(code, signal)
    }

    /// Removes whatever was made, after `error`.
    fn undo(&mut self, error: CreateError) -> CreateError {
        if let Some(child) = &self.child {
            // It may be gone already; a process that cannot be killed shows when its cgroup is removed.
            let _ = send_signal(child.as_fd(), libc::SIGKILL);
            self.reap();
        }
        let cgroup_removed = if self.has_cgroup {
            self.cgroup.remove()
        } else {
            Ok(())
        };
        let unmounted = match &self.root_mount {
            Some(mount) => mount.remove(&self.plan.root.path),
            None => Ok(()),
        };
        let removed = cgroup_removed
            .map_err(|error| error.to_string())
            .and_then(|()| unmounted.map_err(|errno| format!("cannot unmount its root: {errno}")))
            .and_then(|()| self.directory.remove().map_err(|error| error.to_string()));
        if let Err(left) = removed {
            return CreateError::NotUndone {
                left,
                source: Box::new(error),
            };
        }
        self.run_poststop_hooks(error)
    }

    /// A container that hooks were told of is one that they are told the end of.
    fn run_poststop_hooks(&mut self, error: CreateError) -> CreateError {
        if !self.hooks_began {
            return error;
        }
        self.state.status = Status::Stopped;
        self.state.pid = None;
        match hook::run_each(&self.plan.hooks.poststop, &self.state)
            .into_iter()
            .next()
        {
            None => error,
            Some(hook) => CreateError::PoststopHook {
                hook,
                source: Box::new(error),
            },
        }
    }
}

fn unopened(error: RootfsError) -> CreateError {
    CreateError::Sources(InitFailure::new(None, process::messages(&error)))
}

pub(super) fn check_streams(
    process: &ProcessPlan,
    stdio: &Stdio,
    console_socket: Option<&Path>,
) -> Result<(), CreateError> {
    let contradiction = match (process.terminal.is_some(), stdio, console_socket) {
        (true, Stdio::Files { .. }, _) => {
            "process.terminal is true, so the program cannot have files for its streams"
        }
        (true, Stdio::Inherit, None) => {
            "process.terminal is true: name a console socket that takes the terminal"
        }
        (false, Stdio::Terminal, _) => "a terminal was asked for, but process.terminal is false",
        (false, _, Some(_)) => "there is a console socket, but process.terminal is false",
        _ => return Ok(()),
    };
    Err(CreateError::Terminal(contradiction))
}

/// The new process is a copy of this thread alone.
pub(super) fn check_threads() -> Result<(), CreateError> {
    match count_threads().map_err(CreateError::step("count this process's threads"))? {
        1 => Ok(()),
        threads => Err(CreateError::ManyThreads { threads }),
    }
}

/// The network namespace that the process was made in.
fn network_of(pid: i32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/ns/net"), flags, Mode::empty())
}

/// Writes the user namespace's maps, which the process inside waits for.
fn map_users(pid: i32, namespaces: &NamespacePlan) -> Result<(), CreateError> {
    for (file, mappings, doing) in [
        (
            "uid_map",
            &namespaces.uid_mappings,
            "map users by linux.uidMappings",
        ),
        (
            "gid_map",
            &namespaces.gid_mappings,
            "map groups by linux.gidMappings",
        ),
    ] {
        procfs::write(format!("{pid}/{file}"), id_map(mappings).as_bytes())
            .map_err(CreateError::step(doing))?;
    }
    Ok(())
}

//! `create`, as far as it is the same for `run`: a sandbox, an attendant, a container in the guest.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use container::{Bundle, ContainerId, HostHooks, OciState, PodCgroup, PodLimits, Status};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};

use super::delete::{delete_from_pod, run_poststop_hooks};
use super::new_network::NewNetwork;
use super::{GuestError, configuration, event_loop};
use crate::configuration::MicroVmConfiguration;
use crate::kvm;
use crate::oci_cli::create::Creation;
use crate::oci_cli::log::{Log, chain};
use crate::oci_cli::vm_state::{self, VmState};
use crate::oci_cli::{GlobalOptions, OciError, descriptors};
use crate::oci_pod::attendant::{Attendant, AttendantPlan, AttendantStdio, Attended, ContainerPlan};
use crate::oci_pod::disks;
use crate::oci_pod::folder::Folder;
use crate::oci_pod::guest_configuration::fit_for_guest;
use crate::oci_pod::membership::{Membership, network_namespace};
use crate::oci_pod::new_limits;
use crate::oci_pod::record::{GuestContainer, Stage};
use crate::oci_pod::sandbox::{PodSandbox, machine_files};
use crate::terminal::TerminalSize;
use crate::unused_name::unused_name;

/// The configuration in the container's folder.
pub(super) const CONFIGURATION: &str = "config.json";

/// A container that waits for its start.
pub(super) struct Created {
    /// The process that stands for it, a child of ours.
    pub(super) attendant: container::ProcessIdentity,
    /// The other end of its terminal, where nobody else asked for it.
    pub(super) terminal: Option<OwnedFd>,
}

pub(in crate::oci_cli) fn create(
    creation: &Creation,
    bundle: &Bundle,
    global: &GlobalOptions,
    log: &Log,
) -> Result<(), OciError> {
    make(creation, bundle, global, log, None)?;
    Ok(())
}

/// Makes the container. Where `shown` is given, a terminal that has no console socket to go to is ours to show, in that
/// size.
pub(super) fn make(
    creation: &Creation,
    bundle: &Bundle,
    global: &GlobalOptions,
    log: &Log,
    shown: Option<Option<TerminalSize>>,
) -> Result<Created, GuestError> {
    if !descriptors::preserved(creation.preserve_fds).is_empty() {
        return Err(GuestError::Descriptors);
    }
    // What our caller has open for itself is neither the machine's nor the attendant's.
    container::close_on_exec_all_but_stdio_and(&mut [])
        .map_err(|errno| GuestError::Inheritance(errno.into()))?;
    let configuration = configuration(global)?;
    kvm::check(&configuration.microvm.kvm)?;
    let directory = bundle.directory();
    let config: Value = std::fs::read(directory.join(CONFIGURATION))
        .and_then(|text| Ok(serde_json::from_slice(&text)?))
        .map_err(GuestError::Configured)?;
    let membership = Membership::of(&config, &global.root)?;
    let mut fit = config.clone();
    let sandbox = match &membership {
        Membership::Founder { .. } => &creation.id,
        Membership::Member(sandbox) => {
            refuse_paused(&global.root, sandbox)?;
            sandbox
        }
    };
    let fitted = fit_for_guest(&mut fit, directory, &global.root, sandbox)?;
    fitted.warnings.iter().for_each(|warning| log.warning(warning));
    disks::check(&config, directory)?;

    let folder = Folder::create(&global.root, &creation.id)?;
    let making = Making {
        creation,
        bundle,
        config,
        fit,
        shared_memory: fitted.shared_memory.unwrap_or_default(),
        membership,
        folder: &folder,
        global,
        log,
        hooks_began: Cell::new(false),
    };
    let lock = folder.lock();
    let made = match &lock {
        Ok(_) => making.make(&configuration.microvm, shown),
        // Somebody has deleted it already.
        Err(_) => Err(GuestError::Gone(creation.id.clone())),
    };
    if lock.is_ok() && made.is_err() {
        // What could not be made is the thing to tell; what is left of it is there to be deleted.
        if let Err(left) = making.undo() {
            log.warning(&chain(&left));
        }
    }
    made
}

/// The machine of a container that is paused may stand still.
fn refuse_paused(root: &Path, founder: &ContainerId) -> Result<(), GuestError> {
    match GuestContainer::read(&Folder::of(root, founder))? {
        Some(GuestContainer { paused: true, .. }) => Err(GuestError::Status {
            id: founder.clone(),
            status: Status::Paused,
            needed: "its sandbox can be joined when it is resumed",
        }),
        _ => Ok(()),
    }
}

/// A container that is being made.
struct Making<'a> {
    creation: &'a Creation,
    bundle: &'a Bundle,
    /// As the caller gave it.
    config: Value,
    /// As the guest is to have it.
    fit: Value,
    shared_memory: String,
    membership: Membership,
    folder: &'a Folder,
    global: &'a GlobalOptions,
    log: &'a Log,
    /// From then on poststop hooks are owed.
    hooks_began: Cell<bool>,
}

impl Making<'_> {
    fn make(
        &self,
        configuration: &MicroVmConfiguration,
        shown: Option<Option<TerminalSize>>,
    ) -> Result<Created, GuestError> {
        if self.has_terminal() && shown.is_none() && self.creation.console_socket.is_none() {
            return Err(GuestError::NoConsoleSocket);
        }
        let mut record = self.record()?;
        record.write(self.folder)?;
        self.folder.write(CONFIGURATION, &self.config)?;
        record.cgroup.make()?;
        let hooks = HostHooks::new(self.bundle.spec())?;
        let new_network = self.network_made_by(&hooks)?;
        let (sandbox, sandbox_folder) = match &self.membership {
            Membership::Founder { of_a_pod } => {
                let named = new_network.as_ref().map(|network| network.named_in(&self.config));
                let started = event_loop()?.block_on(async {
                    let (sandbox, machine) = PodSandbox::start(
                        configuration,
                        self.folder,
                        &record.cgroup,
                        named.as_ref().unwrap_or(&self.config),
                        *of_a_pod,
                    )
                    .await?;
                    // From here on its record is what it ends by.
                    machine.let_go();
                    Ok::<_, GuestError>(sandbox)
                });
                (started?, self.folder.clone())
            }
            Membership::Member(id) => {
                // Who paused it since has not seen us, or we see it now.
                refuse_paused(&self.global.root, id)?;
                let sandbox = PodSandbox::founded_by(&self.global.root, id)?;
                // Whoever made the pod has not said what it would need: podman does not.
                for limit in new_limits::out_of_reach(&sandbox, &self.config) {
                    self.log.warning(&chain(&limit));
                }
                (sandbox, Folder::of(&self.global.root, id))
            }
        };
        let has_terminal = self.has_terminal();
        let mut fit = self.fit.clone();
        let (stdio, terminal) = if has_terminal {
            if let (Some(Some(size)), Some(process)) = (shown, fit.get_mut("process")) {
                process["consoleSize"] = json!({ "width": size.columns, "height": size.rows });
            }
            let (master, slave) = self.terminal(shown.flatten()).map_err(GuestError::Terminal)?;
            (AttendantStdio::Terminal(slave), Some(master))
        } else {
            (AttendantStdio::Inherited, None)
        };
        let plan = AttendantPlan {
            machine: sandbox.machine,
            files: machine_files(&sandbox_folder).directory().to_owned(),
            attended: Attended::Container(ContainerPlan {
                id: record.id.clone(),
                sandbox_folder: sandbox_folder.path().to_owned(),
                bundle: self.bundle.directory().to_owned(),
                config: fit,
                shared_folder: record.shared_folder.clone(),
                shared_memory: self.shared_memory.clone(),
                network: self.network_on_host(new_network.as_ref())?,
            }),
            ends_machine: !sandbox.of_a_pod,
            has_terminal,
        };
        let attendant = Attendant::spawn(&plan, stdio, &record.cgroup)?;
        for warning in attendant.warnings() {
            self.log.warning(warning);
        }
        record.attendant = Some(attendant.identity());
        record.guest_pid = attendant.guest_pid();
        record.stage = Stage::Created;
        let terminal = match (terminal, &self.creation.console_socket) {
            (Some(master), Some(socket)) => {
                container::send_terminal(socket, master.as_fd())?;
                None
            }
            (terminal, _) => terminal,
        };
        if new_network.is_none() {
            self.run_create_runtime(&hooks, attendant.identity().pid)?;
        }
        record.write(self.folder)?;
        if let Some(path) = &self.creation.pid_file {
            container::write_pid_file(path, attendant.identity().pid)?;
        }
        let identity = attendant.identity();
        attendant.go_on()?;
        if matches!(self.membership, Membership::Founder { .. }) {
            self.tell_of_start(&sandbox);
        }
        self.log.debug(|| {
            format!(
                "created container {} in the microVM of process {}, attended by process {}",
                record.id, sandbox.machine.pid, identity.pid
            )
        });
        Ok(Created {
            attendant: identity,
            terminal,
        })
    }

    /// Says in the log what the start of the machine took. Last of all: a caller that is told of a failure reads that alone.
    fn tell_of_start(&self, sandbox: &PodSandbox) {
        let message = format!(
            "the microVM of process {} was {}",
            sandbox.machine.pid, sandbox.start
        );
        let state = VmState::of(sandbox.clone(), self.creation.id.as_str(), None);
        self.log.info(&message, vm_state::NAME, &state);
    }

    /// The network that hooks have made, in a namespace that is there for that. They run before there is a machine then,
    /// because what is in the namespace decides which devices it has.
    fn network_made_by(&self, hooks: &HostHooks) -> Result<Option<NewNetwork>, GuestError> {
        if !hooks.has_create_runtime() || !matches!(self.membership, Membership::Founder { .. }) {
            return Ok(None);
        }
        let network = NewNetwork::asked_for(&self.config)?;
        if let Some(network) = &network {
            self.run_create_runtime(hooks, network.pid())?;
        }
        Ok(network)
    }

    /// Where the pod's network is on the host, for those who look for it by the attendant's pid.
    fn network_on_host(&self, new_network: Option<&NewNetwork>) -> Result<Option<PathBuf>, GuestError> {
        let of_process = |pid| PathBuf::from(format!("/proc/{pid}/ns/net"));
        if let Some(network) = new_network {
            return Ok(Some(of_process(network.pid())));
        }
        let named = network_namespace(&self.config).map(Path::to_owned);
        match &self.membership {
            Membership::Member(id) if named.is_none() => {
                let founder = GuestContainer::read(&Folder::of(&self.global.root, id))?;
                let attendant = founder.and_then(|founder| founder.attendant);
                // One that has ended shows nothing any more.
                Ok(attendant
                    .filter(|attendant| attendant.is_alive().unwrap_or(false))
                    .map(|attendant| of_process(attendant.pid)))
            }
            _ => Ok(named),
        }
    }

    fn run_create_runtime(&self, hooks: &HostHooks, pid: i32) -> Result<(), GuestError> {
        self.hooks_began.set(true);
        Ok(hooks.run_create_runtime(&self.state_with(pid))?)
    }

    fn state_with(&self, pid: i32) -> OciState {
        OciState {
            pid: Some(pid),
            ..self.state_of_bundle()
        }
    }

    fn has_terminal(&self) -> bool {
        self.config.pointer("/process/terminal") == Some(&Value::Bool(true))
    }

    /// Leaves nothing of what was made.
    fn undo(&self) -> Result<(), GuestError> {
        match &self.membership {
            Membership::Founder { .. } => {
                if let Some(sandbox) = PodSandbox::read(self.folder)? {
                    sandbox.kill()?;
                }
            }
            Membership::Member(sandbox) => {
                if let Some(record) = GuestContainer::read(self.folder)? {
                    delete_from_pod(&record, &Folder::of(&self.global.root, sandbox), self.log)?;
                }
            }
        }
        if let Some(record) = GuestContainer::read(self.folder)? {
            record.cgroup.remove()?;
            if self.hooks_began.get() {
                run_poststop_hooks(&record, self.folder.path(), self.log);
            }
        }
        Ok(self.folder.remove()?)
    }

    fn record(&self) -> Result<GuestContainer, GuestError> {
        let sandbox = match &self.membership {
            Membership::Founder { .. } => &self.creation.id,
            Membership::Member(id) => id,
        };
        let state = self.state_of_bundle();
        let root = self.config.pointer("/root/path").and_then(Value::as_str);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(GuestContainer {
            id: self.creation.id.to_string(),
            sandbox: sandbox.to_string(),
            rootfs: self.bundle.directory().join(root.unwrap_or_default()),
            bundle: state.bundle,
            oci_version: state.oci_version,
            annotations: state.annotations,
            created_at: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX),
            owner: rustix::process::geteuid().as_raw(),
            shared_folder: unused_name().map_err(GuestError::Random)?,
            cgroup: self.cgroup()?,
            stage: Stage::Creating,
            paused: false,
            attendant: None,
            guest_pid: 0,
        })
    }

    /// The cgroup that the configuration names. The one of a container that founds its sandbox holds the machine too.
    fn cgroup(&self) -> Result<PodCgroup, GuestError> {
        let path = self.config.pointer("/linux/cgroupsPath").and_then(Value::as_str);
        let limits = match &self.membership {
            Membership::Founder { .. } => PodSandbox::limits_on_host(&self.config)?,
            Membership::Member(_) => PodLimits::default(),
        };
        let path = path.filter(|path| !path.is_empty()).map(Path::new);
        Ok(PodCgroup::locate(path, &self.creation.id, limits)?)
    }

    /// What the configuration says that is also part of the container's state.
    fn state_of_bundle(&self) -> OciState {
        let spec = self.bundle.spec();
        let annotations: BTreeMap<String, String> = spec
            .annotations()
            .iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        OciState {
            oci_version: spec.version().clone(),
            id: self.creation.id.to_string(),
            status: Status::Creating,
            pid: None,
            bundle: self.bundle.directory().to_owned(),
            annotations,
        }
    }

    /// Both ends of a new terminal, in the size that is asked for or given.
    fn terminal(&self, shown: Option<TerminalSize>) -> std::io::Result<(OwnedFd, OwnedFd)> {
        let console = self.config.pointer("/process/consoleSize");
        let asked = |name: &str| console?.get(name)?.as_u64()?.try_into().ok();
        let size = shown.or_else(|| {
            Some(TerminalSize {
                columns: asked("width")?,
                rows: asked("height")?,
            })
        });
        open_terminal(size)
    }
}

/// Both ends of a new terminal: the one whoever shows it has, and the one the attendant has.
pub(super) fn open_terminal(size: Option<TerminalSize>) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    if let Some(size) = size {
        let size = Winsize {
            ws_col: size.columns,
            ws_row: size.rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size)?;
    }
    Ok((master, slave))
}

//! How a machine comes to be: booted, or cloned from a template. Either way it ends with an agent that serves.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Instant;

use container::{PodCgroup, ProcessIdentity};
use tokio::net::{UnixListener, UnixStream};
use vmm::config::{
    MacAddress, MachineConfig, NetworkDevice, QUEUE_PAIRS, SharedDirectory as MachineDirectory, VsockConfig,
};
use vmm::status::Phase;

use super::boot::{self, BootError, LOAD_DEADLINE, RESUME_DEADLINE, Stage, stage};
use super::machine_files::MachineFiles;
use super::shared_directory;
use super::start_metrics;
use super::template::store::{Template, TemplateStore};
use super::template::{self, TemplateError, TemplatePolicy};
use super::unix_path::UnixPath;
use super::vmm_process::VmmProcess;
use crate::configuration::MicroVmConfiguration;
use crate::pod_network::{PodNetwork, device_mac};
use crate::sizing::MachineSize;
use crate::start_record::{Origin, StartRecord};

/// How often a template is obtained whose predecessor was removed while it was cloned.
const CLONING_TRIES: u32 = 3;

/// Every guest's context id: vsock is served within the VMM's process, so ids need not differ between machines.
const GUEST_CID: u32 = 3;

/// Room for disks that containers bring: each slot costs a boot some percent, and its template memory, used or not.
pub const DISK_SLOTS: u8 = 4;

/// How many pairs of queues each network device of a machine of this size has: one for each vCPU, as far as there can be.
/// A template's name says the size, and so this as well.
pub fn queue_pairs(size: MachineSize) -> u8 {
    size.vcpus.clamp(*QUEUE_PAIRS.start(), *QUEUE_PAIRS.end())
}

/// A machine to be.
pub struct NewMachine<'a> {
    /// Its parts.
    pub configuration: &'a MicroVmConfiguration,
    /// Its folder, which exists, and in it [`MachineFiles::export`].
    pub files: &'a MachineFiles,
    /// How large it is.
    pub size: MachineSize,
    /// What it is connected to.
    pub network: &'a PodNetwork,
    /// Whose it is.
    pub life: Life<'a>,
    /// Where its process is from its first instruction on; with us, if nothing is said.
    pub cgroup: Option<&'a PodCgroup>,
}

/// How long a machine lives.
#[derive(Clone, Copy)]
pub enum Life<'a> {
    /// As long as the thread that starts it; of the host's files it keeps none but its own in sight.
    WithUs,
    /// The same, but it sees the host's files: it is to be saved among them.
    ToBeSaved,
    /// On, until somebody ends it. Which process it is is told before it is anything.
    OnItsOwn(&'a dyn Fn(ProcessIdentity) -> io::Result<()>),
}

/// A machine whose agent serves.
#[derive(Debug)]
pub struct StartedMachine {
    /// Its process.
    pub vmm: VmmProcess,
    /// What the agent tells unasked.
    pub events: UnixStream,
}

/// Starts a machine as its configuration's policy says, and counts it where that says so.
///
/// # Errors
/// When it can neither be cloned nor booted, or may not be booted.
pub async fn start(new: &NewMachine<'_>, record: &mut StartRecord) -> Result<StartedMachine, BootError> {
    let machine = clone_or_boot(new, record).await?;
    if let Some(folder) = &new.configuration.metrics
        && let Err(error) = start_metrics::count(folder, record)
    {
        eprintln!(
            "bulkhead: this start is not counted: {:#}",
            anyhow::Error::new(error)
        );
    }
    Ok(machine)
}

async fn clone_or_boot(new: &NewMachine<'_>, record: &mut StartRecord) -> Result<StartedMachine, BootError> {
    let reason = match new.configuration.template {
        TemplatePolicy::Never => None,
        policy => match clone(new, record).await {
            Ok(machine) => return Ok(machine),
            // A machine that does not boot for a template does not boot without one. What fails before it runs may
            // be the fault of the folder of templates.
            Err(TemplateError::Boot(
                error @ BootError::Stage {
                    stage: Stage::Boot, ..
                },
            )) => return Err(error),
            Err(error) if policy == TemplatePolicy::Require => {
                return Err(BootError::Template(Box::new(error)));
            }
            Err(error) => Some(format!("{:#}", anyhow::Error::new(error))),
        },
    };
    if let Some(reason) = reason {
        eprintln!("bulkhead: booting the microVM, because it cannot be cloned: {reason}");
        record.origin = Origin::BootInsteadOfClone { reason };
    }
    let begun = Instant::now();
    let machine = boot(new).await;
    record.phase("boot", begun);
    machine
}

/// Boots a machine.
///
/// # Errors
/// With the stage that failed, why, and what the guest last said.
pub async fn boot(new: &NewMachine<'_>) -> Result<StartedMachine, BootError> {
    launch(new, None).await
}

async fn clone(new: &NewMachine<'_>, record: &mut StartRecord) -> Result<StartedMachine, TemplateError> {
    let configuration = new.configuration;
    let store = TemplateStore::new(configuration.templates.clone(), configuration.templates_limit);
    let mut tries = 0;
    loop {
        tries += 1;
        let begun = Instant::now();
        let (template, built) =
            template::obtain(&store, configuration, new.size, new.network.devices()).await?;
        record.phase("template", begun);
        let begun = Instant::now();
        let source = match launch(new, Some(&template)).await {
            Ok(machine) => {
                record.phase("clone", begun);
                record.origin = Origin::Clone {
                    template: template.name,
                    built,
                };
                return Ok(machine);
            }
            Err(source) => source,
        };
        if let Err(left) = clear(new.files.directory()) {
            eprintln!("bulkhead: {:#}", anyhow::Error::new(left));
        }
        let refused = matches!(source, BootError::Stage { .. });
        if refused && !store.holds(&template) && tries < CLONING_TRIES {
            // Somebody removed it between our finding it and the VMM's opening it.
            continue;
        }
        if store.holds(&template) && is_at_fault(&template, &source) {
            discard(&store, &template.name);
        }
        return Err(TemplateError::Clone {
            template: template.name,
            source,
        });
    }
}

/// Whether the next clone will fail as this one did. A host that is busy, or out of memory or descriptors, fails every
/// template, and building it anew would be more of what it has too much of.
fn is_at_fault(template: &Template, error: &BootError) -> bool {
    match error {
        BootError::Stage {
            stage: Stage::Load, ..
        } => vmm::snapshot::verify(&template.snapshot()).is_err(),
        error => error.is_the_guests(),
    }
}

/// Removes a template that no machine can be cloned from.
fn discard(store: &TemplateStore, name: &str) {
    if let Err(error) = store.discard(name) {
        eprintln!(
            "bulkhead: removing template {name}: {:#}",
            anyhow::Error::new(error)
        );
    }
}

/// Removes the template of a clone that came up but whose guest could not be prepared for this `error` of its own, if it
/// was one.
pub fn discard_template_of(configuration: &MicroVmConfiguration, record: &StartRecord, error: &BootError) {
    if error.is_the_guests()
        && let Origin::Clone { template, .. } = &record.origin
    {
        let store = TemplateStore::new(configuration.templates.clone(), configuration.templates_limit);
        discard(&store, template);
    }
}

async fn launch(new: &NewMachine<'_>, template: Option<&Template>) -> Result<StartedMachine, BootError> {
    let NewMachine {
        configuration,
        files,
        size,
        network,
        life,
        cgroup,
    } = new;
    let event_socket = files.host_port(protocol::ports::EVENT);
    let events = UnixPath::to(&event_socket)
        .and_then(|path| UnixListener::bind(path.reach()))
        .map_err(io_error("listening on", &event_socket))?;
    let machine = MachineConfig {
        kernel: configuration.kernel.clone(),
        initramfs: configuration.initramfs.clone(),
        command_line: String::new(),
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        console_ring: MachineFiles::CONSOLE_RING.into(),
        vsock: Some(VsockConfig {
            guest_cid: GUEST_CID,
            socket: MachineFiles::VSOCK.into(),
        }),
        shared_directories: vec![MachineDirectory {
            tag: shared_directory::TAG.to_owned(),
            path: MachineFiles::EXPORT.into(),
            read_only: false,
        }],
        block_devices: Vec::new(),
        disk_slots: DISK_SLOTS,
        network_devices: network_devices(network, queue_pairs(*size))?,
        control_socket: Some(MachineFiles::CONTROL_SOCKET.into()),
        die_with_parent: !matches!(life, Life::OnItsOwn(_)),
        own_root: !matches!(life, Life::ToBeSaved),
        restore: template.map(Template::snapshot),
    };
    let write_down = |process| match life {
        Life::OnItsOwn(write_down) => write_down(process),
        Life::WithUs | Life::ToBeSaved => Ok(()),
    };
    let vmm = VmmProcess::spawn(
        &configuration.vmm,
        &machine,
        files,
        *cgroup,
        network.taps().iter().flatten().map(AsFd::as_fd),
        write_down,
    )?;
    let ring = &files.console_ring();
    stage(Stage::Load, LOAD_DEADLINE, &vmm, ring, async {
        Ok(vmm.reached(Phase::FirstRun).await?)
    })
    .await?;
    let (name, deadline) = match template {
        None => (Stage::Boot, configuration.boot_deadline),
        Some(_) => (Stage::Resume, RESUME_DEADLINE),
    };
    let ready = boot::agent_ready(&events, ring);
    let events = stage(name, deadline, &vmm, ring, ready).await?;
    // Nobody is to reach us there any more.
    fs::remove_file(&event_socket).map_err(io_error("removing", &event_socket))?;
    Ok(StartedMachine { vmm, events })
}

/// A device for each of the pod's interfaces, or one without a link. Their addresses are the same in every machine: a
/// clone's guest has read them already, and gets the pod's with the rest of its network.
fn network_devices(network: &PodNetwork, queue_pairs: u8) -> Result<Vec<NetworkDevice>, BootError> {
    let taps = |place| network.taps().get(place).map_or(&[][..], Vec::as_slice);
    let device = |place: usize| {
        Ok(NetworkDevice {
            mac: MacAddress::new(device_mac(place))?,
            // The guest is told the pod's.
            mtu: None,
            queue_pairs,
            tap_descriptors: taps(place).iter().map(AsRawFd::as_raw_fd).collect(),
            rate_limit: network.rates,
        })
    };
    (0..network.devices()).map(device).collect()
}

/// Makes the folder of a machine, for us alone, and in it the empty one that its guest may mount.
///
/// # Errors
/// When they cannot be made.
pub fn create_folder(files: &MachineFiles) -> Result<(), BootError> {
    // Root of a user namespace in the guest has to get through the exported folder to the container's own.
    for (path, mode) in [(files.directory(), 0o700), (&files.export(), 0o711)] {
        DirBuilder::new()
            .mode(mode)
            .create(path)
            .map_err(io_error("creating", path))?;
    }
    Ok(())
}

/// Removes what a machine that did not come to be has left in its folder.
fn clear(directory: &Path) -> Result<(), BootError> {
    let listing = || io_error("listing", directory);
    for entry in fs::read_dir(directory).map_err(listing())? {
        let entry = entry.map_err(listing())?;
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        fs::remove_file(&path).map_err(io_error("removing", &path))?;
    }
    Ok(())
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootError {
    let path = path.to_owned();
    move |source| BootError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_has_a_pair_of_queues_as_long_as_there_are_some() {
        for (vcpus, pairs) in [(1, 1), (3, 3), (8, 8), (9, 8), (32, 8)] {
            let size = MachineSize {
                memory_mib: 100,
                vcpus,
            };
            assert_eq!(queue_pairs(size), pairs);
        }
    }
}

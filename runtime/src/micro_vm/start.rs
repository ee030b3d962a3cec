//! How a machine comes to be: booted, or cloned from a template. Either way it ends with an agent that serves.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use vmm::config::{MachineConfig, SharedDirectory as MachineDirectory, VsockConfig};
use vmm::status::Phase;

use super::boot::{self, BootError, LOAD_DEADLINE, RESUME_DEADLINE, Stage, stage};
use super::shared_directory;
use super::template::store::{Template, TemplateStore};
use super::template::{self, TemplateError, TemplatePolicy};
use super::unix_path::UnixPath;
use super::vmm_process::VmmProcess;
use crate::configuration::MicroVmConfiguration;
use crate::sizing::MachineSize;

/// How often a template is obtained whose predecessor was removed while it was cloned.
const CLONING_TRIES: u32 = 3;

/// Every guest's context id: vsock is served within the VMM's process, so ids need not differ between machines.
const GUEST_CID: u32 = 3;

/// Where the files of a machine are, below its folder.
#[derive(Debug, Clone)]
pub struct MachinePaths {
    /// The console's ring.
    pub console_ring: PathBuf,
    /// The control socket.
    pub control_socket: PathBuf,
    /// The socket that stands for the guest's vsock ports.
    pub vsock: PathBuf,
    log: PathBuf,
}

impl MachinePaths {
    /// The files of the machine in `directory`.
    pub fn of(directory: &Path) -> Self {
        Self {
            console_ring: directory.join("console.ring"),
            control_socket: directory.join("control.sock"),
            vsock: directory.join("vsock.sock"),
            log: directory.join("vmm.log"),
        }
    }
}

/// A machine whose agent serves.
#[derive(Debug)]
pub struct StartedMachine {
    /// Its process.
    pub vmm: VmmProcess,
    /// Its files.
    pub paths: MachinePaths,
    /// What the agent tells unasked.
    pub events: UnixStream,
}

/// How a machine was started, and what each part took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRecord {
    /// From what.
    pub origin: Origin,
    /// The parts in their order, and their times in microseconds.
    pub phases: Vec<(String, u64)>,
}

/// What a machine was started from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Origin {
    /// It booted, as it was asked to.
    #[default]
    Boot,
    /// It booted because it could not be cloned.
    BootInsteadOfClone {
        /// Why not.
        reason: String,
    },
    /// It is a clone.
    Clone {
        /// The template's name.
        template: String,
        /// Whether the template was built for it.
        built: bool,
    },
}

impl StartRecord {
    /// Notes that a part took from `begun` until now.
    pub fn phase(&mut self, name: &str, begun: Instant) {
        let microseconds = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.phases.push((name.to_owned(), microseconds));
    }
}

/// Starts a machine of this size as `policy` says, its files in the new folder `directory`. `export` is the folder that
/// its guest may mount.
///
/// # Errors
/// When it can neither be cloned nor booted, or may not be booted.
pub async fn start(
    configuration: &MicroVmConfiguration,
    directory: &Path,
    size: MachineSize,
    export: &Path,
    record: &mut StartRecord,
) -> Result<StartedMachine, BootError> {
    let reason = match configuration.template {
        TemplatePolicy::Never => None,
        policy => match clone(configuration, directory, size, export, record).await {
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
    let machine = boot(configuration, directory, size, export).await;
    record.phase("boot", begun);
    machine
}

/// Boots a machine.
///
/// # Errors
/// With the stage that failed, why, and what the guest last said.
pub async fn boot(
    configuration: &MicroVmConfiguration,
    directory: &Path,
    size: MachineSize,
    export: &Path,
) -> Result<StartedMachine, BootError> {
    launch(configuration, directory, size, export, None).await
}

async fn clone(
    configuration: &MicroVmConfiguration,
    directory: &Path,
    size: MachineSize,
    export: &Path,
    record: &mut StartRecord,
) -> Result<StartedMachine, TemplateError> {
    let store = TemplateStore::new(configuration.templates.clone(), configuration.templates_limit);
    let mut tries = 0;
    loop {
        tries += 1;
        let begun = Instant::now();
        let (template, built) = template::obtain(&store, configuration, size).await?;
        record.phase("template", begun);
        let begun = Instant::now();
        let source = match launch(configuration, directory, size, export, Some(&template)).await {
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
        if let Err(left) = clear(directory) {
            eprintln!("bulkhead: {:#}", anyhow::Error::new(left));
        }
        let refused = matches!(source, BootError::Stage { .. });
        if refused && !store.holds(&template) && tries < CLONING_TRIES {
            // Somebody removed it between our finding it and the VMM's opening it.
            continue;
        }
        // A template that the VMM refuses, or whose guest does not wake up, fails the next time as well.
        if refused && store.holds(&template) {
            discard(&store, &template.name);
        }
        return Err(TemplateError::Clone {
            template: template.name,
            source,
        });
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

/// Removes the template of a clone that came up but could not be prepared, if it was one.
pub fn discard_template_of(configuration: &MicroVmConfiguration, record: &StartRecord) {
    if let Origin::Clone { template, .. } = &record.origin {
        let store = TemplateStore::new(configuration.templates.clone(), configuration.templates_limit);
        discard(&store, template);
    }
}

async fn launch(
    configuration: &MicroVmConfiguration,
    directory: &Path,
    size: MachineSize,
    export: &Path,
    template: Option<&Template>,
) -> Result<StartedMachine, BootError> {
    let paths = MachinePaths::of(directory);
    let event_socket = PathBuf::from(format!("{}_{}", paths.vsock.display(), protocol::ports::EVENT));
    let events = UnixPath::to(&event_socket)
        .and_then(|path| UnixListener::bind(path.reach()))
        .map_err(io_error("listening on", &event_socket))?;
    let machine = MachineConfig {
        kernel: configuration.kernel.clone(),
        initramfs: configuration.initramfs.clone(),
        command_line: String::new(),
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        console_ring: paths.console_ring.clone(),
        vsock: Some(VsockConfig {
            guest_cid: GUEST_CID,
            socket: paths.vsock.clone(),
        }),
        shared_directories: vec![MachineDirectory {
            tag: shared_directory::TAG.to_owned(),
            path: export.to_owned(),
            read_only: false,
        }],
        control_socket: Some(paths.control_socket.clone()),
        die_with_parent: true,
        restore: template.map(Template::snapshot),
    };
    let vmm = VmmProcess::spawn(&configuration.vmm, &machine, &paths.log)?;
    let ring = &paths.console_ring;
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
    Ok(StartedMachine { vmm, paths, events })
}

/// Makes the folder of a machine that is not to see any of the host's files, and in it an empty one for it to see.
///
/// # Errors
/// When they cannot be made.
pub fn empty_export(directory: &Path) -> Result<PathBuf, BootError> {
    create(directory)?;
    let export = directory.join("export");
    create(&export)?;
    Ok(export)
}

/// Makes a folder for us alone.
///
/// # Errors
/// When it cannot be made.
pub fn create(directory: &Path) -> Result<(), BootError> {
    DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .map_err(io_error("creating", directory))
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

//! `bulkhead run`: one container, in the foreground, behind either wall.

use std::io::{self, IsTerminal as _};
use std::str::FromStr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use container::{ContainerId, ProcessIdentity};
use image::bundle::{Bind, BundleOptions, ByteSize, CpuCount, InvalidValue, PidsLimit, UserName, Variable};
use image::{ContainerLayer, Image, Progress, Reference, RootfsMount, Store};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::UnshareFlags;

use super::foreground::{self, FORWARDED};
use super::{event_loop, pod_limits};
use crate::configuration::Configuration;
use crate::forwarded_signals::ForwardedSignals;
use crate::isolation::Isolation;
use crate::kvm;
use crate::micro_vm::MicroVm;
use crate::micro_vm::machine_files::MachineFiles;
use crate::micro_vm::start::{Life, NewMachine};
use crate::micro_vm::template::TemplatePolicy;
use crate::pod_network::PodNetwork;
use crate::sandbox::directory::SandboxDirectory;
use crate::sandbox::record::SandboxRecord;
use crate::sandbox::shared_kernel::SharedKernel;
use crate::sandbox::stdio::ContainerStdio;
use crate::sandbox::{ContainerRequest, Sandbox, SandboxError};
use crate::sizing::machine_size;
use crate::start_record::StartRecord;
use crate::terminal::{self, RawTerminal};

/// How much of an id is a hostname, as with other container tools.
const HOSTNAME_CHARACTERS: usize = 12;

/// Options of `run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The wall: microvm (a virtual machine of its own) or shared-kernel (the host's kernel) [default: microvm]
    #[arg(long, value_name = "WALL")]
    isolation: Option<Isolation>,
    /// Clone the microVM from a template of one that has booted: never, auto (boot where it cannot be cloned) or require
    #[arg(long, value_name = "POLICY", hide_possible_values = true)]
    template: Option<TemplatePolicy>,
    /// The container's name [default: twelve random hexadecimal digits]
    #[arg(long, value_name = "ID")]
    name: Option<ContainerId>,
    /// Remove the container and its writable layer when it ends
    #[arg(long)]
    rm: bool,
    /// Keep the container's standard input open
    #[arg(long, short)]
    interactive: bool,
    /// Give the container a terminal
    #[arg(long, short)]
    tty: bool,
    /// Set an environment variable; without a value it is taken from our own environment
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<EnvironmentVariable>,
    /// Show a host file or folder to the container
    #[arg(long, short, value_name = "HOST:DEST[:ro]")]
    volume: Vec<Bind>,
    /// Limit the memory, as in 64m
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Limit the processor time, as in 0.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<CpuCount>,
    /// Limit the number of processes
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<PidsLimit>,
    /// Run as this user
    #[arg(long, short, value_name = "USER[:GROUP]")]
    user: Option<UserName>,
    /// Start in this folder
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// The image: oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    image: Reference,
    /// The command and its arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs the container to its end and returns the exit code of its command.
pub(crate) fn run(configuration: &Configuration, arguments: Arguments) -> anyhow::Result<u8> {
    let isolation = Isolation::choose(arguments.isolation, None, configuration.isolation);
    let id = match &arguments.name {
        Some(name) => name.to_string(),
        None => random_id()?,
    };
    let options = bundle_options(&arguments, &id);
    if isolation == Isolation::MicroVm {
        kvm::check(&configuration.microvm.kvm)?;
    }
    // Everything is mounted in a namespace of our own: however we end, no mount is left. It comes first, because the
    // kernel renames nothing between a folder opened before and one after.
    own_mount_namespace().context("making a mount namespace for the container's files")?;
    let store = Store::open(&configuration.root)?;
    let image = store.resolve(&arguments.image, &mut show_progress)?;
    let directory = SandboxDirectory::create(&configuration.run_root, &id)?;
    let layer = store.create_container(&id, &image)?;
    let mut record = SandboxRecord {
        id: id.clone(),
        isolation,
        image: arguments.image.to_string(),
        command: arguments.command.clone(),
        created_at: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        supervisor: ProcessIdentity::of(std::process::id().cast_signed())
            .context("reading our own entry in /proc")?,
        vmm: None,
        start: None,
        init: None,
        exit_status: None,
    };
    record.write(directory.path())?;
    let result = event_loop()?.block_on(async {
        let container = Prepared {
            configuration,
            arguments: &arguments,
            image: &image,
            layer: &layer,
        };
        container.run(&options, &directory, &mut record).await
    });
    // Without --rm a container that has run stays to be looked at; one that never did is of no use.
    let keep = record.exit_status.is_some() && !arguments.rm;
    let cleaned = if keep {
        reduce(directory, &record)
    } else {
        remove(directory, layer)
    };
    match (result, cleaned) {
        (Ok(status), Ok(())) => Ok(status),
        (Ok(_), Err(left)) => Err(left.context("cleaning up after the container")),
        (Err(error), cleaned) => {
            if let Err(left) = cleaned {
                eprintln!("bulkhead: cleaning up after the container: {left:#}");
            }
            Err(error)
        }
    }
}

/// Leaves of a sandbox that has ended what `ps` shows.
fn reduce(directory: SandboxDirectory, record: &SandboxRecord) -> anyhow::Result<()> {
    record.write(directory.path())?;
    Ok(directory.reduce_to_record()?)
}

/// Leaves nothing, or as little as can be.
fn remove(directory: SandboxDirectory, layer: ContainerLayer<'_>) -> anyhow::Result<()> {
    let removed = layer.remove();
    directory.remove()?;
    Ok(removed?)
}

/// A container of which everything is there but its sandbox.
struct Prepared<'a> {
    configuration: &'a Configuration,
    arguments: &'a Arguments,
    image: &'a Image,
    layer: &'a ContainerLayer<'a>,
}

impl Prepared<'_> {
    async fn run(
        &self,
        options: &BundleOptions,
        directory: &SandboxDirectory,
        record: &mut SandboxRecord,
    ) -> anyhow::Result<u8> {
        let mut signals = ForwardedSignals::catch(FORWARDED).context("taking over the signals")?;
        let sandbox = tokio::select! {
            sandbox = self.sandbox(options, directory, record) => sandbox?,
            number = signals.next() => bail!("stopped by signal {number} before the container was made"),
        };
        record.write(directory.path())?;
        let mut mounted = None;
        let result = self
            .run_in(&*sandbox, &mut signals, options, directory, record, &mut mounted)
            .await;
        let stopped = sandbox.stop().await;
        // A guest writes back what it has not written yet while it is stopped.
        let unmounted = mounted.map_or(Ok(()), RootfsMount::unmount);
        let status = result?;
        stopped?;
        unmounted?;
        Ok(status)
    }

    async fn sandbox(
        &self,
        options: &BundleOptions,
        directory: &SandboxDirectory,
        record: &mut SandboxRecord,
    ) -> anyhow::Result<Box<dyn Sandbox>> {
        if record.isolation == Isolation::SharedKernel {
            return Ok(Box::new(SharedKernel::new(directory)));
        }
        let limits = pod_limits(options.memory, options.cpus);
        let mut microvm = self.configuration.microvm.clone();
        microvm.template = self.arguments.template.unwrap_or(microvm.template);
        let mut start = StartRecord::default();
        let new = NewMachine {
            configuration: &microvm,
            files: &MachineFiles::of(&directory.machine()),
            size: machine_size(&limits).context("sizing the microVM")?,
            network: &PodNetwork::default(),
            life: Life::WithUs,
            cgroup: None,
        };
        let machine = MicroVm::start(&new, &record.id, &mut start)
            .await
            .context("starting the microVM")?;
        record.vmm = Some(machine.machine());
        record.start = Some(start);
        Ok(Box::new(machine))
    }

    async fn run_in(
        &self,
        sandbox: &dyn Sandbox,
        signals: &mut ForwardedSignals,
        options: &BundleOptions,
        directory: &SandboxDirectory,
        record: &mut SandboxRecord,
        mounted: &mut Option<RootfsMount>,
    ) -> anyhow::Result<u8> {
        let id = record.id.clone();
        let rootfs = sandbox.rootfs(&id)?;
        *mounted = Some(self.layer.mount_at(&rootfs)?);
        let bundle = directory.bundle();
        std::fs::create_dir(&bundle).with_context(|| format!("creating {}", bundle.display()))?;
        image::bundle::create(&bundle, &self.image.config, &rootfs, options)?;
        let Arguments { interactive, tty, .. } = *self.arguments;
        let stdio = ContainerStdio::of_this_process(interactive, tty)
            .context("duplicating our standard descriptors")?;
        let request = ContainerRequest {
            id: id.clone(),
            bundle,
            stdio,
        };
        let begun = Instant::now();
        if let Err(error) = sandbox.create(request).await {
            return command_failure(error);
        }
        record.phase("create", begun);
        let begun = Instant::now();
        if let Err(error) = sandbox.start(&id).await {
            return command_failure(error);
        }
        record.phase("start", begun);
        let begun = Instant::now();
        record.init = sandbox.host_process(&id);
        record.write(directory.path())?;
        // From here on every key is the container's.
        let raw = if interactive && tty {
            RawTerminal::enter(io::stdin())?
        } else {
            None
        };
        let status = foreground::wait(sandbox, &id, signals, tty).await;
        drop(raw);
        if let Err(error) = &status
            && let Some(lost) = error.downcast_ref::<SandboxError>()
        {
            // It has run, and is kept to be looked at.
            record.exit_status = lost.exit_status.map(|status| status.0);
        }
        let status = status?.0;
        record.phase("run", begun);
        record.exit_status = Some(status);
        // The container goes with its sandbox.
        Ok(status)
    }
}

/// A command that cannot be run is the user's to know by its exit code, as in a shell; any other failure is ours.
fn command_failure(error: SandboxError) -> anyhow::Result<u8> {
    match error.command_failure {
        Some(failure) => {
            eprintln!("bulkhead: {:#}", anyhow::Error::new(error));
            Ok(failure.exit_status().0)
        }
        None => Err(error.into()),
    }
}

/// What the options ask for beyond what the image says.
fn bundle_options(arguments: &Arguments, id: &str) -> BundleOptions {
    BundleOptions {
        hostname: id.chars().take(HOSTNAME_CHARACTERS).collect(),
        command: arguments.command.clone(),
        env: arguments
            .env
            .iter()
            .filter_map(|variable| variable.0.clone())
            .collect(),
        tty: arguments.tty,
        terminal_size: terminal::size(io::stdout())
            .filter(|_| arguments.tty)
            .map(|size| (size.rows, size.columns)),
        user: arguments.user.clone(),
        working_directory: arguments.workdir.clone(),
        binds: arguments.volume.clone(),
        memory: arguments.memory,
        cpus: arguments.cpus,
        pids_limit: arguments.pids_limit,
        ..BundleOptions::default()
    }
}

/// Importing takes a while, and a person wants to know; a program reading our errors does not.
fn show_progress(progress: Progress) {
    if !io::stderr().is_terminal() {
        return;
    }
    match progress {
        Progress::Waiting { number, count } => {
            eprintln!("layer {number}/{count}: waiting for another import");
        }
        Progress::Unpacked {
            number,
            count,
            entries,
            bytes,
        } => {
            eprintln!(
                "layer {number}/{count}: unpacked {entries} entries, {} KiB",
                bytes / 1024
            );
        }
        Progress::Unpacking { .. } => {}
    }
}

/// A variable for the container, or nothing where ours is to be passed on and there is none.
#[derive(Debug, Clone)]
struct EnvironmentVariable(Option<Variable>);

impl FromStr for EnvironmentVariable {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('=') || text.is_empty() {
            return Ok(Self(Some(text.parse()?)));
        }
        let own = std::env::var(text).ok();
        Ok(Self(own.map(|value| Variable {
            name: text.to_owned(),
            value,
        })))
    }
}

/// A mount namespace that sees the host's later mounts and shows it none of ours.
fn own_mount_namespace() -> Result<(), rustix::io::Errno> {
    // SAFETY: this process has a single thread still, which shares nothing that the call would tear apart.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
}

fn random_id() -> anyhow::Result<String> {
    let mut bytes = [0u8; 6];
    getrandom(&mut bytes, GetRandomFlags::empty()).context("choosing an id")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

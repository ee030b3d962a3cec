//! The microVM wall: containers made by the agent inside a virtual machine of the pod's own.

pub mod boot;
pub mod console;
pub mod control;
pub mod disk;
pub mod guest_connection;
pub mod guest_text;
pub mod machine_files;
pub mod pod_network;
pub mod shared_directory;
mod shared_volumes;
pub mod standstill;
pub mod start;
pub mod start_metrics;
pub mod status_file;
pub mod task;
pub mod template;
pub mod unix_path;
pub mod vmm_process;

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use container::ProcessIdentity;
use protocol::sandbox::{PrepareRequest, SharedDirectory as GuestDirectory};
use protocol::sandbox_ttrpc::SandboxClient;
use protocol::task_ttrpc::TaskClient;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::UnixStream;
use ttrpc::context::{Context, with_duration};

use self::boot::{BootError, PREPARE_DEADLINE, Stage, StageFailure, stage};
use self::machine_files::MachineFiles;
use self::shared_directory::SharedDirectory;
use self::start::{NewMachine, StartedMachine};
use self::task::{NewContainer, ProcessName};
use self::vmm_process::{MachineEnd, VmmProcess};
use crate::isolation::Isolation;
use crate::sandbox::stdio::CopyEnd;
use crate::sandbox::{ContainerRequest, ExitStatus, Sandbox, SandboxError};
use crate::start_record::StartRecord;

/// Fresh randomness for each guest, in bytes.
const SEED: usize = 64;

/// A sandbox in a virtual machine.
pub struct MicroVm {
    vmm: VmmProcess,
    files: MachineFiles,
    tasks: TaskClient,
    sandbox: SandboxClient,
    /// Of each process, by its container and its own name.
    outputs: RefCell<HashMap<(String, String), Vec<CopyEnd>>>,
    // The agent tells of its own end here, to whoever started the machine.
    _events: Option<UnixStream>,
}

impl MicroVm {
    /// Starts a machine in the new folder of `files`. `hostname` is the guest's. How it went is told in `record`, also
    /// where it fails.
    ///
    /// # Errors
    /// With the stage that failed, why, and what the guest last said.
    pub async fn start(
        new: &NewMachine<'_>,
        hostname: &str,
        record: &mut StartRecord,
    ) -> Result<Self, BootError> {
        start::create_folder(new.files)?;
        let StartedMachine { vmm, events } = start::start(new, record).await?;
        let begun = Instant::now();
        let mut words = first_words(hostname)?;
        let prepare = async {
            let (tasks, sandbox) = agent(new.files).await?;
            // Connecting may take a busy host seconds, by which the guest's clock would be late for good.
            words.realtime = nanoseconds_since_1970();
            let prepared = sandbox.prepare(deadline(PREPARE_DEADLINE), &words).await;
            prepared.map_err(guest_text::shown_error)?;
            Ok((tasks, sandbox))
        };
        let ring = &new.files.console_ring();
        let prepared = stage(Stage::Prepare, PREPARE_DEADLINE, &vmm, ring, prepare).await;
        if let Err(error) = &prepared {
            start::discard_template_of(new.configuration, record, error);
        }
        let (tasks, sandbox) = prepared?;
        let network = async {
            let described = &new.network.description;
            let configured = sandbox
                .configure_network(deadline(PREPARE_DEADLINE), described)
                .await;
            configured.map_err(guest_text::shown_error)?;
            Ok(())
        };
        stage(Stage::Network, PREPARE_DEADLINE, &vmm, ring, network).await?;
        record.phase("prepare", begun);
        Ok(Self {
            vmm,
            files: new.files.clone(),
            tasks,
            sandbox,
            outputs: RefCell::default(),
            _events: Some(events),
        })
    }

    /// Speaks to the agent of a machine that somebody else has started.
    ///
    /// # Errors
    /// When the machine has ended, or its agent cannot be reached.
    pub async fn join(machine: ProcessIdentity, files: &MachineFiles) -> Result<Self, SandboxError> {
        const ACTION: &str = "joining the microVM";
        let vmm = VmmProcess::join(machine, files).map_err(|error| SandboxError::new(ACTION, error))?;
        let connected = tokio::select! {
            biased;
            connected = agent(files) => connected,
            end = vmm.ended() => Err(end.into()),
        };
        let (tasks, sandbox) = connected.map_err(|error| SandboxError::new(ACTION, error))?;
        Ok(Self {
            vmm,
            files: files.clone(),
            tasks,
            sandbox,
            outputs: RefCell::default(),
            _events: None,
        })
    }

    /// Leaves the machine to others: it runs on.
    pub fn let_go(mut self) {
        self.vmm.let_go();
    }

    /// The machine's process.
    pub fn machine(&self) -> ProcessIdentity {
        self.vmm.identity()
    }

    /// Waits for the machine's end.
    pub async fn ended(&self) -> MachineEnd {
        self.vmm.ended().await
    }

    /// The machine's end, if it has come or is about to.
    pub async fn soon_ended(&self) -> Option<MachineEnd> {
        boot::soon_ended(&self.vmm).await
    }

    /// Ends the machine, without waiting until it has.
    pub fn kill_machine(&self) {
        self.vmm.kill();
    }

    fn shared(&self) -> SharedDirectory<'_> {
        SharedDirectory::new(&self.files, self.vmm.descriptor())
    }
}

#[async_trait(?Send)]
impl Sandbox for MicroVm {
    fn isolation(&self) -> Isolation {
        Isolation::MicroVm
    }

    fn rootfs(&self, id: &str) -> Result<PathBuf, SandboxError> {
        let rootfs = self.files.directory().join("rootfs").join(id);
        match std::fs::create_dir_all(&rootfs) {
            Ok(()) => Ok(rootfs),
            Err(error) => Err(SandboxError::new(
                format!("making room for the root of container {id}"),
                error,
            )),
        }
    }

    fn host_process(&self, _: &str) -> Option<ProcessIdentity> {
        None
    }

    async fn create(&self, request: ContainerRequest) -> Result<(), SandboxError> {
        let ContainerRequest { id, bundle, stdio } = request;
        let config =
            std::fs::read(bundle.join("config.json")).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        let mut config = config
            .map_err(|error| SandboxError::new(format!("reading the bundle of container {id}"), error))?;
        pod_network::join(&mut config);
        let new = NewContainer {
            id: &id,
            bundle: &bundle,
            config: &config,
            guest_root: None,
            shared_folder: &id,
            shared_memory: "",
        };
        self.create_container(&new, stdio, None).await.map(drop)
    }

    async fn start(&self, id: &str) -> Result<(), SandboxError> {
        self.start_process(ProcessName::init(id)).await.map(drop)
    }

    async fn wait(&self, id: &str) -> Result<ExitStatus, SandboxError> {
        self.wait_for_process(ProcessName::init(id)).await
    }

    async fn kill(&self, id: &str, signal: i32) -> Result<(), SandboxError> {
        self.signal(ProcessName::init(id), signal, false).await
    }

    async fn resize_terminal(&self, id: &str, columns: u16, rows: u16) -> Result<(), SandboxError> {
        self.resize(ProcessName::init(id), columns, rows).await
    }

    async fn delete(&self, id: &str) -> Result<(), SandboxError> {
        self.delete_container(id, id).await
    }

    async fn stop(&self) -> Result<(), SandboxError> {
        let written_back = self.shut_down().await;
        let stopped = self
            .vmm
            .stop()
            .await
            .map_err(|error| SandboxError::new("stopping the VMM", error));
        written_back.and(stopped)
    }
}

/// Connects to the agent's services.
async fn agent(files: &MachineFiles) -> Result<(TaskClient, SandboxClient), StageFailure> {
    let connection = guest_connection::connect(&files.vsock(), protocol::ports::RPC).await?;
    let client = ttrpc::r#async::Client::new(ttrpc::r#async::transport::Socket::new(connection));
    Ok((TaskClient::new(client.clone()), SandboxClient::new(client)))
}

/// The host's time of day; 0 where its clock says that it is before 1970.
fn nanoseconds_since_1970() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or_default()
}

/// What only the host knows, but for the time of day.
fn first_words(hostname: &str) -> Result<PrepareRequest, BootError> {
    let mut entropy = vec![0; SEED];
    // Up to 256 bytes are given at once, always (getrandom(2)). Without them a clone would be a twin.
    getrandom(entropy.as_mut_slice(), GetRandomFlags::empty()).map_err(BootError::Entropy)?;
    Ok(PrepareRequest {
        hostname: hostname.to_owned(),
        entropy,
        shared_directories: vec![GuestDirectory {
            tag: shared_directory::TAG.to_owned(),
            mount_point: shared_directory::GUEST_MOUNT_POINT.to_owned(),
            ..GuestDirectory::default()
        }],
        ..PrepareRequest::default()
    })
}

fn deadline(duration: Duration) -> Context {
    with_duration(duration)
}

//! The microVM wall: containers made by the agent inside a virtual machine of the pod's own.

pub mod boot;
pub mod console;
pub mod control;
pub mod guest_connection;
pub mod guest_text;
mod pod_network;
pub mod shared_directory;
pub mod start;
pub mod template;
pub mod unix_path;
pub mod vmm_process;

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use protocol::failure::{self, FailureKind};
use protocol::sandbox::{PrepareRequest, SharedDirectory as GuestDirectory, ShutdownRequest};
use protocol::sandbox_ttrpc::SandboxClient;
use protocol::stream::StreamId;
use protocol::task::{
    CreateRequest, DeleteRequest, KillRequest, ResizePtyRequest, StartRequest, WaitRequest,
};
use protocol::task_ttrpc::TaskClient;
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::net::UnixStream;
use ttrpc::context::{Context, with_duration};

use self::boot::{BootError, PREPARE_DEADLINE, Stage, stage};
use self::shared_directory::SharedDirectory;
use self::start::{StartRecord, StartedMachine};
use self::vmm_process::VmmProcess;
use crate::configuration::MicroVmConfiguration;
use crate::isolation::Isolation;
use crate::sandbox::record::ProcessIdentity;
use crate::sandbox::stdio::{ContainerStdio, CopyEnd, all_written, copy_in_background};
use crate::sandbox::{CommandFailure, ContainerRequest, ExitStatus, Sandbox, SandboxError};
use crate::sizing::{PodLimits, machine_size};

/// Every call but waiting; the guest's kernel may be emulated, and a container's creation is many system calls.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// Fresh randomness for each guest, in bytes.
const SEED: usize = 64;

/// A sandbox in a virtual machine.
pub struct MicroVm {
    vmm: VmmProcess,
    socket: PathBuf,
    tasks: TaskClient,
    sandbox: SandboxClient,
    shared: RefCell<SharedDirectory>,
    outputs: RefCell<HashMap<String, Vec<CopyEnd>>>,
    // The agent tells of its own end here.
    _events: UnixStream,
}

impl MicroVm {
    /// Starts a machine for a pod of these limits, everything it needs below `directory`. `hostname` is the guest's.
    /// How it went is told in `record`, also where it fails.
    ///
    /// # Errors
    /// With the stage that failed, why, and what the guest last said.
    pub async fn start(
        configuration: &MicroVmConfiguration,
        directory: &Path,
        hostname: &str,
        limits: &PodLimits,
        record: &mut StartRecord,
    ) -> Result<Self, BootError> {
        let size = machine_size(limits)?;
        start::create(directory)?;
        let shared = SharedDirectory::create(directory)?;
        let machine = start::start(configuration, directory, size, shared.export(), record).await?;
        let StartedMachine { vmm, paths, events } = machine;
        let begun = Instant::now();
        let words = first_words(hostname)?;
        let prepare = async {
            let connection = guest_connection::connect(&paths.vsock, protocol::ports::RPC).await?;
            let client = ttrpc::r#async::Client::new(ttrpc::r#async::transport::Socket::new(connection));
            let sandbox = SandboxClient::new(client.clone());
            let prepared = sandbox.prepare(deadline(PREPARE_DEADLINE), &words).await;
            prepared.map_err(guest_text::shown_error)?;
            Ok((TaskClient::new(client), sandbox))
        };
        let ring = &paths.console_ring;
        let prepared = stage(Stage::Prepare, PREPARE_DEADLINE, &vmm, ring, prepare).await;
        if prepared.is_err() {
            start::discard_template_of(configuration, record);
        }
        let (tasks, sandbox) = prepared?;
        record.phase("prepare", begun);
        let outputs = RefCell::default();
        Ok(Self {
            vmm,
            socket: paths.vsock,
            tasks,
            sandbox,
            shared: RefCell::new(shared),
            outputs,
            _events: events,
        })
    }

    /// The machine's process.
    pub fn machine(&self) -> ProcessIdentity {
        self.vmm.identity()
    }

    /// Opens a stream and copies between it and a descriptor of ours.
    async fn open_stream(&self, id: &str, name: &str) -> Result<(String, OwnedFd), SandboxError> {
        let action = || format!("opening {name} of container {id}");
        let stream =
            StreamId::new(format!("{id}/{name}")).map_err(|error| SandboxError::new(action(), error))?;
        let connection = tokio::select! {
            connection = guest_connection::open_stream(&self.socket, &stream) => {
                connection.map_err(|error| SandboxError::new(action(), error))?
            }
            end = self.vmm.ended() => return Err(SandboxError::new(action(), end)),
        };
        Ok((stream.as_str().to_owned(), connection))
    }

    async fn feed(&self, id: &str, from: Option<OwnedFd>) -> Result<String, SandboxError> {
        let Some(from) = from else {
            return Ok(String::new());
        };
        let (stream, connection) = self.open_stream(id, "stdin").await?;
        copy_in_background("stdin", from, connection)
            .map_err(|error| SandboxError::new(format!("feeding container {id}"), error))?;
        Ok(stream)
    }

    async fn drain(&self, id: &str, name: &str, to: OwnedFd) -> Result<String, SandboxError> {
        let (stream, connection) = self.open_stream(id, name).await?;
        let end = copy_in_background(name, connection, to)
            .map_err(|error| SandboxError::new(format!("draining container {id}"), error))?;
        self.outputs
            .borrow_mut()
            .entry(id.to_owned())
            .or_default()
            .push(end);
        Ok(stream)
    }

    /// Waits for a call's answer or the machine's end, whichever is first.
    async fn call<T>(
        &self,
        action: String,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, SandboxError> {
        let error = tokio::select! {
            biased;
            answer = call => match answer {
                Ok(answer) => return Ok(answer),
                Err(error @ ttrpc::Error::RpcStatus(_)) => {
                    let failure = match failure::kind(&error) {
                        FailureKind::COMMAND_NOT_FOUND => Some(CommandFailure::NotFound),
                        FailureKind::COMMAND_NOT_EXECUTABLE => Some(CommandFailure::NotExecutable),
                        FailureKind::OTHER => None,
                    };
                    let message = message_of(guest_text::shown_error(error));
                    return Err(SandboxError::new(action, message).with_command_failure(failure));
                }
                // A broken connection is most often the machine's end, which has a better account of itself.
                Err(error) => match boot::soon_ended(&self.vmm).await {
                    Some(end) => Box::from(end),
                    None => Box::from(error),
                },
            },
            end = self.vmm.ended() => Box::<dyn std::error::Error + Send + Sync>::from(end),
        };
        Err(SandboxError::new(action, error))
    }
}

#[async_trait(?Send)]
impl Sandbox for MicroVm {
    fn isolation(&self) -> Isolation {
        Isolation::MicroVm
    }

    fn rootfs(&self, id: &str) -> Result<PathBuf, SandboxError> {
        let action = || format!("making room for the root of container {id}");
        self.shared
            .borrow()
            .rootfs(id)
            .map_err(|error| SandboxError::new(action(), error))
    }

    fn host_process(&self, _: &str) -> Option<ProcessIdentity> {
        None
    }

    async fn create(&self, request: ContainerRequest) -> Result<(), SandboxError> {
        let id = request.id;
        let config = std::fs::read(request.bundle.join("config.json"))
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
            .map_err(|error| SandboxError::new(format!("reading the bundle of container {id}"), error))?;
        let mut config = self
            .shared
            .borrow()
            .share(&id, &config)
            .map_err(|error| SandboxError::new(format!("sharing the files of container {id}"), error))?;
        pod_network::join(&mut config);
        let mut create = CreateRequest {
            id: id.clone(),
            ..CreateRequest::default()
        };
        create.config = serde_json::to_vec(&config).map_err(|error| {
            SandboxError::new(format!("writing the configuration of container {id}"), error)
        })?;
        match request.stdio {
            ContainerStdio::Descriptors {
                stdin,
                stdout,
                stderr,
            } => {
                create.stdin = self.feed(&id, stdin).await?;
                create.stdout = self.drain(&id, "stdout", stdout).await?;
                create.stderr = self.drain(&id, "stderr", stderr).await?;
            }
            ContainerStdio::Terminal { input, output } => {
                create.stdin = self.feed(&id, input).await?;
                create.stdout = self.drain(&id, "stdout", output).await?;
            }
        }
        let action = format!("creating container {id}");
        self.call(action, self.tasks.create(deadline(CALL_DEADLINE), &create))
            .await
            .map(drop)
    }

    async fn start(&self, id: &str) -> Result<(), SandboxError> {
        let request = StartRequest {
            id: id.to_owned(),
            ..StartRequest::default()
        };
        let action = format!("starting container {id}");
        self.call(action, self.tasks.start(deadline(CALL_DEADLINE), &request))
            .await
            .map(drop)
    }

    async fn wait(&self, id: &str) -> Result<ExitStatus, SandboxError> {
        let request = WaitRequest {
            id: id.to_owned(),
            ..WaitRequest::default()
        };
        let action = format!("waiting for container {id}");
        let answer = self
            .call(action, self.tasks.wait(Context::default(), &request))
            .await?;
        let outputs = self.outputs.borrow_mut().remove(id).unwrap_or_default();
        let written = all_written(outputs).await;
        let status = ExitStatus(u8::try_from(answer.exit_status).unwrap_or(u8::MAX));
        written.map_err(|error| SandboxError::output_lost(id, status, error))?;
        Ok(status)
    }

    async fn kill(&self, id: &str, signal: i32) -> Result<(), SandboxError> {
        let action = format!("sending signal {signal} to container {id}");
        let signal = signal.unsigned_abs();
        let request = KillRequest {
            id: id.to_owned(),
            signal,
            ..KillRequest::default()
        };
        self.call(action, self.tasks.kill(deadline(CALL_DEADLINE), &request))
            .await
            .map(drop)
    }

    async fn resize_terminal(&self, id: &str, columns: u16, rows: u16) -> Result<(), SandboxError> {
        let request = ResizePtyRequest {
            id: id.to_owned(),
            width: columns.into(),
            height: rows.into(),
            ..ResizePtyRequest::default()
        };
        let action = format!("resizing the terminal of container {id}");
        self.call(action, self.tasks.resize_pty(deadline(CALL_DEADLINE), &request))
            .await
            .map(drop)
    }

    async fn delete(&self, id: &str) -> Result<(), SandboxError> {
        let request = DeleteRequest {
            id: id.to_owned(),
            force: true,
            ..DeleteRequest::default()
        };
        let action = format!("deleting container {id}");
        self.call(action, self.tasks.delete(deadline(CALL_DEADLINE), &request))
            .await?;
        self.shared
            .borrow()
            .withdraw(id)
            .map_err(|error| SandboxError::new(format!("withdrawing the files of container {id}"), error))
    }

    async fn stop(&self) -> Result<(), SandboxError> {
        let request = ShutdownRequest::default();
        let shutdown = self.sandbox.shutdown(deadline(CALL_DEADLINE), &request);
        let written_back = self
            .call("shutting the guest down".to_owned(), shutdown)
            .await
            .map(drop);
        let stopped = self
            .vmm
            .stop()
            .await
            .map_err(|error| SandboxError::new("stopping the VMM", error));
        let dismantled = self
            .shared
            .borrow_mut()
            .dismantle()
            .map_err(|error| SandboxError::new("taking the shared folder apart", error));
        written_back.and(stopped).and(dismantled)
    }
}

/// What only the host knows.
fn first_words(hostname: &str) -> Result<PrepareRequest, BootError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut entropy = vec![0; SEED];
    // Up to 256 bytes are given at once, always (getrandom(2)). Without them a clone would be a twin.
    getrandom(entropy.as_mut_slice(), GetRandomFlags::empty()).map_err(BootError::Entropy)?;
    Ok(PrepareRequest {
        hostname: hostname.to_owned(),
        realtime: i64::try_from(now.as_nanos()).unwrap_or_default(),
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

/// The agent's own words, without the protocol's wrapping.
fn message_of(error: ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => status.message,
        other => other.to_string(),
    }
}

//! The life of containers in the guest, by the agent's task service: one call each.

use std::error::Error;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use protocol::failure::{self, FailureKind};
use protocol::sandbox::ShutdownRequest;
use protocol::stream::StreamId;
use protocol::task::{
    CreateRequest, DeleteRequest, ExecRequest, KillRequest, PauseRequest, PidsRequest, Process,
    ResizePtyRequest, ResumeRequest, StartRequest, StateRequest, StateResponse, StatsRequest, Status,
    UpdateRequest, WaitOutOfMemoryRequest, WaitOutOfMemoryResponse, WaitRequest,
};
use serde_json::Value;
use ttrpc::Code;
use ttrpc::context::Context;

use super::shared_directory::SharedDirectory;
use super::{MicroVm, boot, deadline, guest_connection, guest_text};
use crate::sandbox::stdio::{ContainerStdio, all_written, copy_in_background};
use crate::sandbox::{CommandFailure, ExitStatus, SandboxError};
use crate::unused_name::unused_name;

/// Every call but waiting. Where the guest's kernel is emulated a container's creation takes seconds of a processor, and
/// a host that starts many pods at once has few for each; a kubelet gives up after two minutes.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(120);

/// A process in the guest.
#[derive(Debug, Clone, Copy)]
pub struct ProcessName<'a> {
    /// The container it is in.
    pub container: &'a str,
    /// Its own name; empty for the container's init process.
    pub exec: &'a str,
}

impl<'a> ProcessName<'a> {
    /// The init process of a container.
    pub fn init(container: &'a str) -> Self {
        Self { container, exec: "" }
    }

    fn key(self) -> (String, String) {
        (self.container.to_owned(), self.exec.to_owned())
    }

    fn described(self) -> String {
        match self.exec {
            "" => format!("container {}", self.container),
            exec => format!("process {exec} of container {}", self.container),
        }
    }
}

/// A container to be made.
#[derive(Debug)]
pub struct NewContainer<'a> {
    /// Its id.
    pub id: &'a str,
    /// The folder that relative paths of its configuration are of.
    pub bundle: &'a Path,
    /// Its configuration, with paths of the host.
    pub config: &'a Value,
    /// Where its root is mounted in the guest already, if it is not one of the host's folders.
    pub guest_root: Option<&'a str>,
    /// The name of its folder in what the guest sees of the host, which no container had before it.
    pub shared_folder: &'a str,
    /// The name of the memory it has at `/dev/shm` together with other containers of the machine; empty for none.
    pub shared_memory: &'a str,
}

/// A process that the agent has made.
#[derive(Debug)]
pub struct Made {
    /// Its number in the guest.
    pub pid: u32,
    /// What was not as asked and is no error.
    pub warnings: Vec<String>,
}

/// The host's end of a stream that carries nothing: when it goes, the agent kills the process it was made for.
#[derive(Debug)]
pub struct Leash(#[expect(dead_code, reason = "held for what becomes of the other end")] OwnedFd);

/// The names of a process's streams; empty for those it has not.
#[derive(Debug, Default)]
struct Streams {
    stdin: String,
    stdout: String,
    stderr: String,
}

impl MicroVm {
    /// Shares a container's files and makes it, up to the moment before its command runs. Gives its init process.
    /// `leash` holds it.
    ///
    /// # Errors
    /// When its files cannot be shared or the engine in the guest refuses it.
    pub async fn create_container(
        &self,
        new: &NewContainer<'_>,
        stdio: ContainerStdio,
        leash: Option<&mut Option<Leash>>,
    ) -> Result<Made, SandboxError> {
        let name = ProcessName::init(new.id);
        let config = self
            .shared()
            .share(new.shared_folder, new.bundle, new.config, new.guest_root)
            .map_err(|error| {
                SandboxError::new(format!("sharing the files of container {}", new.id), error)
            })?;
        let config = serde_json::to_vec(&config).map_err(|error| {
            SandboxError::new(
                format!("writing the configuration of container {}", new.id),
                error,
            )
        })?;
        let streams = self.join_streams(name, stdio).await?;
        let request = CreateRequest {
            id: new.id.to_owned(),
            config,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            leash: self.lay_leash(name, leash).await?,
            shared_memory: new.shared_memory.to_owned(),
            ..CreateRequest::default()
        };
        let action = format!("creating container {}", new.id);
        let created = self.tasks.create(deadline(CALL_DEADLINE), &request);
        let created = self.call(action, created).await?;
        Ok(Made {
            pid: created.pid,
            warnings: guest_text::shown_list(&created.warnings),
        })
    }

    /// Adds a process to a container, for [`Self::start_process`]. `process` is the JSON of an OCI process.
    ///
    /// # Errors
    /// When the agent refuses it.
    pub async fn add_process(
        &self,
        name: ProcessName<'_>,
        process: Vec<u8>,
        stdio: ContainerStdio,
        leash: Option<&mut Option<Leash>>,
    ) -> Result<(), SandboxError> {
        let streams = self.join_streams(name, stdio).await?;
        let request = ExecRequest {
            id: name.container.to_owned(),
            exec_id: name.exec.to_owned(),
            process,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            leash: self.lay_leash(name, leash).await?,
            ..ExecRequest::default()
        };
        let action = format!("adding {}", name.described());
        self.call(action, self.tasks.exec(deadline(CALL_DEADLINE), &request))
            .await
            .map(drop)
    }

    /// Runs the command of a container, or a process that was added to one.
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn start_process(&self, name: ProcessName<'_>) -> Result<Made, SandboxError> {
        let request = StartRequest {
            id: name.container.to_owned(),
            exec_id: name.exec.to_owned(),
            ..StartRequest::default()
        };
        let action = format!("starting {}", name.described());
        let started = self.tasks.start(deadline(CALL_DEADLINE), &request);
        let started = self.call(action, started).await?;
        Ok(Made {
            pid: started.pid,
            warnings: guest_text::shown_list(&started.warnings),
        })
    }

    /// Waits until the process has ended and its output, where it comes to us, has been handed on.
    ///
    /// # Errors
    /// When the machine ends first, or output is lost.
    pub async fn wait_for_process(&self, name: ProcessName<'_>) -> Result<ExitStatus, SandboxError> {
        let request = WaitRequest {
            id: name.container.to_owned(),
            exec_id: name.exec.to_owned(),
            ..WaitRequest::default()
        };
        let action = format!("waiting for {}", name.described());
        let answer = self
            .call(action, self.tasks.wait(Context::default(), &request))
            .await?;
        let outputs = self.outputs.borrow_mut().remove(&name.key()).unwrap_or_default();
        let written = all_written(outputs).await;
        let status = ExitStatus(u8::try_from(answer.exit_status).unwrap_or(u8::MAX));
        written.map_err(|error| SandboxError::output_lost(name.container, status, error))?;
        Ok(status)
    }

    /// Sends a signal to a process, or to all of its container.
    ///
    /// # Errors
    /// When there is no such process any more.
    pub async fn signal(&self, name: ProcessName<'_>, signal: i32, all: bool) -> Result<(), SandboxError> {
        let request = KillRequest {
            id: name.container.to_owned(),
            exec_id: name.exec.to_owned(),
            signal: signal.unsigned_abs(),
            all,
            ..KillRequest::default()
        };
        let action = format!("sending signal {signal} to {}", name.described());
        self.call(action, self.tasks.kill(deadline(CALL_DEADLINE), &request))
            .await
            .map(drop)
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// When it has none.
    pub async fn resize(&self, name: ProcessName<'_>, columns: u16, rows: u16) -> Result<(), SandboxError> {
        let request = ResizePtyRequest {
            id: name.container.to_owned(),
            exec_id: name.exec.to_owned(),
            width: columns.into(),
            height: rows.into(),
            ..ResizePtyRequest::default()
        };
        let action = format!("resizing the terminal of {}", name.described());
        self.call(action, self.tasks.resize_pty(deadline(CALL_DEADLINE), &request))
            .await
            .map(drop)
    }

    /// The processes of a container. Their texts are the guest's, and cleaned.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn processes(&self, container: &str) -> Result<Vec<Process>, SandboxError> {
        let request = PidsRequest {
            id: container.to_owned(),
            ..PidsRequest::default()
        };
        let action = format!("listing the processes of container {container}");
        let listed = self.tasks.pids(deadline(CALL_DEADLINE), &request);
        let mut processes = self.call(action, listed).await?.processes;
        for process in &mut processes {
            process.command = guest_text::shown(&process.command);
            process.terminal = guest_text::shown(&process.terminal);
        }
        Ok(processes)
    }

    /// Freezes every process of a container.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn pause(&self, container: &str) -> Result<(), SandboxError> {
        let request = PauseRequest {
            id: container.to_owned(),
            ..PauseRequest::default()
        };
        let action = format!("pausing container {container}");
        self.call(action, self.tasks.pause(deadline(CALL_DEADLINE), &request))
            .await
            .map(drop)
    }

    /// Lets the processes of a paused container go on.
    ///
    /// # Errors
    /// When it is not paused.
    pub async fn resume(&self, container: &str) -> Result<(), SandboxError> {
        let request = ResumeRequest {
            id: container.to_owned(),
            ..ResumeRequest::default()
        };
        let action = format!("resuming container {container}");
        self.call(action, self.tasks.resume(deadline(CALL_DEADLINE), &request))
            .await
            .map(drop)
    }

    /// Changes the limits of a container in the guest to the JSON of OCI resources; gives warnings.
    ///
    /// # Errors
    /// When one cannot be set; none is then.
    pub async fn update(&self, container: &str, resources: Vec<u8>) -> Result<Vec<String>, SandboxError> {
        let request = UpdateRequest {
            id: container.to_owned(),
            resources,
            ..UpdateRequest::default()
        };
        let action = format!("changing the limits of container {container}");
        let updated = self.tasks.update(deadline(CALL_DEADLINE), &request);
        let warnings = self.call(action, updated).await?.warnings;
        Ok(guest_text::shown_list(&warnings))
    }

    /// What a container uses: the JSON of the engine's statistics.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn statistics(&self, container: &str) -> Result<Vec<u8>, SandboxError> {
        let request = StatsRequest {
            id: container.to_owned(),
            ..StatsRequest::default()
        };
        let action = format!("measuring container {container}");
        let measured = self.tasks.stats(deadline(CALL_DEADLINE), &request);
        Ok(self.call(action, measured).await?.statistics)
    }

    /// Waits until the kernel has ended more than `known` processes of the container for want of memory, or the container
    /// has ended.
    ///
    /// # Errors
    /// When the machine ends first.
    pub async fn wait_out_of_memory(
        &self,
        container: &str,
        known: u64,
    ) -> Result<WaitOutOfMemoryResponse, SandboxError> {
        let request = WaitOutOfMemoryRequest {
            id: container.to_owned(),
            known,
            ..WaitOutOfMemoryRequest::default()
        };
        let action = format!("watching the memory of container {container}");
        self.call(
            action,
            self.tasks.wait_out_of_memory(Context::default(), &request),
        )
        .await
    }

    /// Whether the agent knows a container of that id.
    ///
    /// # Errors
    /// When the machine ends first.
    pub async fn has_container(&self, id: &str) -> Result<bool, SandboxError> {
        Ok(self.state(id).await?.is_some())
    }

    /// Whether the first process of a container has ended, also where its output is still on its way.
    ///
    /// # Errors
    /// When the machine ends first.
    pub async fn has_ended(&self, id: &str) -> Result<bool, SandboxError> {
        let state = self.state(id).await?;
        Ok(state.is_none_or(|state| state.status.enum_value() == Ok(Status::STOPPED)))
    }

    /// What a container is doing; `None` where the agent knows none of that id.
    async fn state(&self, id: &str) -> Result<Option<StateResponse>, SandboxError> {
        let request = StateRequest {
            id: id.to_owned(),
            ..StateRequest::default()
        };
        let asked = self.tasks.state(deadline(CALL_DEADLINE), &request);
        let known = async {
            match asked.await {
                Ok(state) => Ok(Some(state)),
                Err(ttrpc::Error::RpcStatus(status)) if status.code() == Code::NOT_FOUND => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.call(format!("looking for container {id}"), known).await
    }

    /// Removes a container whatever its state, and what was shared with it.
    ///
    /// # Errors
    /// When the agent cannot remove it.
    pub async fn delete_container(&self, id: &str, shared_folder: &str) -> Result<(), SandboxError> {
        let request = DeleteRequest {
            id: id.to_owned(),
            force: true,
            ..DeleteRequest::default()
        };
        let action = format!("deleting container {id}");
        self.call(action, self.tasks.delete(deadline(CALL_DEADLINE), &request))
            .await?;
        SharedDirectory::withdraw(&self.files, shared_folder)
            .map_err(|error| SandboxError::new(format!("withdrawing the files of container {id}"), error))
    }

    /// Ends every container's processes and writes back every file system. The machine may be stopped afterwards.
    ///
    /// # Errors
    /// When the agent cannot.
    pub async fn shut_down(&self) -> Result<(), SandboxError> {
        let request = ShutdownRequest::default();
        let shutdown = self.sandbox.shutdown(deadline(CALL_DEADLINE), &request);
        self.call("shutting the guest down".to_owned(), shutdown)
            .await
            .map(drop)
    }

    /// Opens the streams of a process and joins them to what is its on the host.
    async fn join_streams(
        &self,
        name: ProcessName<'_>,
        stdio: ContainerStdio,
    ) -> Result<Streams, SandboxError> {
        Ok(match stdio {
            ContainerStdio::Descriptors {
                stdin,
                stdout,
                stderr,
            } => Streams {
                stdin: self.feed(name, stdin).await?,
                stdout: self.drain(name, "stdout", stdout).await?,
                stderr: self.drain(name, "stderr", stderr).await?,
            },
            ContainerStdio::Terminal { input, output } => Streams {
                stdin: self.feed(name, input).await?,
                stdout: self.drain(name, "stdout", output).await?,
                stderr: String::new(),
            },
        })
    }

    async fn lay_leash(
        &self,
        name: ProcessName<'_>,
        leash: Option<&mut Option<Leash>>,
    ) -> Result<String, SandboxError> {
        let Some(leash) = leash else {
            return Ok(String::new());
        };
        let (stream, connection) = self.open_stream(name, "leash").await?;
        *leash = Some(Leash(connection));
        Ok(stream)
    }

    async fn feed(&self, name: ProcessName<'_>, from: Option<OwnedFd>) -> Result<String, SandboxError> {
        let Some(from) = from else {
            return Ok(String::new());
        };
        let (stream, connection) = self.open_stream(name, "stdin").await?;
        copy_in_background("stdin", from, connection)
            .map_err(|error| SandboxError::new(format!("feeding {}", name.described()), error))?;
        Ok(stream)
    }

    async fn drain(
        &self,
        name: ProcessName<'_>,
        descriptor: &str,
        to: OwnedFd,
    ) -> Result<String, SandboxError> {
        let (stream, connection) = self.open_stream(name, descriptor).await?;
        let end = copy_in_background(descriptor, connection, to)
            .map_err(|error| SandboxError::new(format!("draining {}", name.described()), error))?;
        self.outputs.borrow_mut().entry(name.key()).or_default().push(end);
        Ok(stream)
    }

    /// Opens a stream under a name that nobody else has.
    async fn open_stream(
        &self,
        name: ProcessName<'_>,
        descriptor: &str,
    ) -> Result<(String, OwnedFd), SandboxError> {
        let action = || format!("opening {descriptor} of {}", name.described());
        let own = unused_name().map_err(|error| SandboxError::new(action(), error))?;
        let stream = StreamId::new(format!("{own}/{descriptor}"))
            .map_err(|error| SandboxError::new(action(), error))?;
        let socket = self.files.vsock();
        let connection = tokio::select! {
            connection = guest_connection::open_stream(&socket, &stream) => {
                connection.map_err(|error| SandboxError::new(action(), error))?
            }
            end = self.vmm.ended() => return Err(SandboxError::new(action(), end)),
        };
        Ok((stream.as_str().to_owned(), connection))
    }

    /// Waits for a call's answer or the machine's end, whichever is first.
    pub(super) async fn call<T>(
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
            end = self.vmm.ended() => Box::<dyn Error + Send + Sync>::from(end),
        };
        Err(SandboxError::new(action, error))
    }
}

/// The agent's own words, without the protocol's wrapping.
fn message_of(error: ttrpc::Error) -> String {
    match error {
        ttrpc::Error::RpcStatus(status) => status.message,
        other => other.to_string(),
    }
}

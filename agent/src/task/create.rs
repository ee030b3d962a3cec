//! `Create`: from a configuration and named streams to a container that waits for its start.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use container::{Bundle, ContainerId, CreateOptions, Stdio};
use protocol::task::{CreateRequest, CreateResponse};
use rustix::process::Pid;
use tokio::task::JoinHandle;
use tokio_vsock::VsockStream;
use ttrpc::{Code, Result};

use super::{BUNDLES, KeptContainer, STATE_ROOT, TaskService, command_failed, failed, refuse};
use crate::stdio;

pub(super) async fn create(service: &TaskService, request: CreateRequest) -> Result<CreateResponse> {
    let id: ContainerId = request
        .id
        .parse()
        .map_err(|error| failed("reading the container's id", error))?;
    if service.containers().contains_key(id.as_str()) {
        return Err(refuse(
            Code::ALREADY_EXISTS,
            format!("a container named {id} exists already"),
        ));
    }
    let streams = ContainerStreams::claim(service, &request).await?;
    let bundle = Path::new(BUNDLES).join(id.as_str());
    fs::create_dir_all(&bundle)
        .and_then(|()| fs::write(bundle.join("config.json"), &request.config))
        .map_err(|error| failed("writing the bundle", error))?;
    match make(service, &id, &bundle, streams) {
        Ok(pid) => Ok(CreateResponse {
            pid,
            ..CreateResponse::default()
        }),
        Err(error) => {
            // The engine has undone what it did; the bundle is ours. A failure here must not hide the first one.
            let _ = fs::remove_dir_all(&bundle);
            Err(error)
        }
    }
}

/// Standard streams that this container has claimed.
struct ContainerStreams {
    stdin: Option<VsockStream>,
    stdout: Option<VsockStream>,
    stderr: Option<VsockStream>,
}

impl ContainerStreams {
    async fn claim(service: &TaskService, request: &CreateRequest) -> Result<Self> {
        let claim = async |descriptor, id: &str| {
            service
                .streams
                .claim(descriptor, id)
                .await
                .map_err(|error| failed("claiming a stream", error))
        };
        Ok(Self {
            stdin: claim("stdin", &request.stdin).await?,
            stdout: claim("stdout", &request.stdout).await?,
            stderr: claim("stderr", &request.stderr).await?,
        })
    }
}

/// Everything from here on happens without the event loop, which alone reaps: the exit cannot be missed.
fn make(service: &TaskService, id: &ContainerId, bundle: &Path, streams: ContainerStreams) -> Result<u32> {
    let failure = |error| failed("reading the bundle", error);
    let bundle = Bundle::load(bundle).map_err(failure)?;
    let has_terminal = bundle
        .spec()
        .process()
        .as_ref()
        .and_then(|process| process.terminal())
        .unwrap_or(false);
    let joined = Joined::new(has_terminal, streams).map_err(|error| failed("joining the streams", error))?;
    let options = CreateOptions::new(Path::new(STATE_ROOT), id, &bundle).stdio(joined.stdio);
    let mut container = container::create(options)
        .map_err(|error| command_failed("creating the container", error.command_failure(), error))?;
    for warning in container.take_warnings() {
        eprintln!("bulkhead-agent: container {id}: {warning}");
    }
    let pid = container.pid().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| refuse(Code::INTERNAL, format!("container {id} has no process")))?;
    let exit = service.exits.watch(pid);
    let terminal = container.take_terminal();
    let mut outputs = joined.outputs;
    if let (Some(master), Some((input, output))) = (&terminal, joined.terminal_streams) {
        let attached = stdio::attach_terminal(master, input, output);
        outputs.extend(attached.map_err(|error| failed("joining the terminal", error))?);
    }
    let kept = KeptContainer {
        container,
        exit,
        terminal,
        outputs: Arc::new(tokio::sync::Mutex::new(outputs)),
    };
    service.containers().insert(id.to_string(), kept);
    Ok(pid.as_raw_pid().unsigned_abs())
}

/// The container's ends of its streams, and what goes on behind ours.
struct Joined {
    stdio: Stdio,
    outputs: Vec<JoinHandle<()>>,
    /// What the terminal is to be joined to once it exists.
    terminal_streams: Option<(Option<VsockStream>, Option<VsockStream>)>,
}

impl Joined {
    fn new(has_terminal: bool, streams: ContainerStreams) -> std::io::Result<Self> {
        let ContainerStreams {
            stdin,
            stdout,
            stderr,
        } = streams;
        if has_terminal {
            let terminal_streams = Some((stdin, stdout));
            return Ok(Self {
                stdio: Stdio::Terminal,
                outputs: Vec::new(),
                terminal_streams,
            });
        }
        let mut outputs = Vec::new();
        let mut output = |stream: Option<VsockStream>| -> std::io::Result<OwnedFd> {
            let Some(stream) = stream else {
                return stdio::null();
            };
            let (write_end, drained) = stdio::drain(stream)?;
            outputs.push(drained);
            Ok(write_end)
        };
        let (stdout, stderr) = (output(stdout)?, output(stderr)?);
        let stdin = stdin.map_or_else(stdio::null, stdio::feed)?;
        Ok(Self {
            stdio: Stdio::Files {
                stdin,
                stdout,
                stderr,
            },
            outputs,
            terminal_streams: None,
        })
    }
}

//! The streams that a process has claimed, joined to its standard descriptors.

use std::io;
use std::os::fd::OwnedFd;

use container::Stdio;
use tokio_vsock::VsockStream;
use ttrpc::Result;

use super::failed;
use crate::stdio::{self, Draining};
use crate::streams::Streams;

/// The ids in a request; an empty one names no stream.
pub(super) struct StreamNames<'a> {
    pub(super) stdin: &'a str,
    pub(super) stdout: &'a str,
    pub(super) stderr: &'a str,
    pub(super) leash: &'a str,
}

/// Streams that nobody else can claim any more.
pub(super) struct ClaimedStreams {
    stdin: Option<VsockStream>,
    stdout: Option<VsockStream>,
    stderr: Option<VsockStream>,
    leash: Option<VsockStream>,
}

impl ClaimedStreams {
    /// Claims the streams of `process`, as errors name it.
    ///
    /// # Errors
    /// When one of them is not there.
    pub(super) async fn claim(streams: &Streams, names: StreamNames<'_>, process: &str) -> Result<Self> {
        let claim = async |descriptor, id: &str| {
            let claimed = streams.claim(descriptor, id).await;
            claimed.map_err(|error| failed(&format!("claiming a stream for {process}"), error))
        };
        Ok(Self {
            stdin: claim("stdin", names.stdin).await?,
            stdout: claim("stdout", names.stdout).await?,
            stderr: claim("stderr", names.stderr).await?,
            leash: claim("leash", names.leash).await?,
        })
    }
}

/// The agent's side of a process's streams.
pub(super) struct JoinedStreams {
    /// What the terminal is to be joined to once it exists; none without one.
    terminal: Option<(Option<VsockStream>, Option<VsockStream>)>,
    /// What is handed to the host.
    pub(super) outputs: Vec<Draining>,
    /// Whose end means that nobody on the host waits any more.
    pub(super) leash: Option<VsockStream>,
}

impl JoinedStreams {
    /// Joins the streams to what a process is to be given.
    ///
    /// # Errors
    /// When a pipe cannot be made.
    pub(super) fn new(has_terminal: bool, streams: ClaimedStreams) -> io::Result<(Stdio, Self)> {
        let ClaimedStreams {
            stdin,
            stdout,
            stderr,
            leash,
        } = streams;
        if has_terminal {
            let joined = Self {
                terminal: Some((stdin, stdout)),
                outputs: Vec::new(),
                leash,
            };
            return Ok((Stdio::Terminal, joined));
        }
        let mut outputs = Vec::new();
        let mut output = |stream: Option<VsockStream>| -> io::Result<OwnedFd> {
            let Some(stream) = stream else {
                return stdio::null();
            };
            let (write_end, drained) = stdio::drain(stream)?;
            outputs.push(drained);
            Ok(write_end)
        };
        let (stdout, stderr) = (output(stdout)?, output(stderr)?);
        let stdin = stdin.map_or_else(stdio::null, stdio::feed)?;
        let files = Stdio::Files {
            stdin,
            stdout,
            stderr,
        };
        let joined = Self {
            terminal: None,
            outputs,
            leash,
        };
        Ok((files, joined))
    }

    /// Joins what is meant for a terminal to its master.
    ///
    /// # Errors
    /// When the master cannot be registered with the event loop.
    pub(super) fn attach(&mut self, master: &OwnedFd) -> io::Result<()> {
        if let Some((input, output)) = self.terminal.take() {
            self.outputs
                .extend(stdio::attach_terminal(master, input, output)?);
        }
        Ok(())
    }
}

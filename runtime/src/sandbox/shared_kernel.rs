//! The shared-kernel wall: containers made by the engine on the host itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use async_trait::async_trait;
use container::{
    Bundle, Container, ContainerId, CreateOptions, ProcessIdentity, Signal, Stdio, UnknownSignal,
};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;

use super::directory::SandboxDirectory;
use super::stdio::{ContainerStdio, CopyEnd, all_written, copy_in_background};
use super::{CommandFailure, ContainerRequest, ExitStatus, Sandbox, SandboxError};
use crate::isolation::Isolation;

/// A sandbox on the host's kernel: no more than the folder its containers are kept in.
#[derive(Debug)]
pub struct SharedKernel {
    state_root: PathBuf,
    rootfs: PathBuf,
    containers: RefCell<HashMap<String, HostContainer>>,
}

/// A container whose parent we are.
#[derive(Debug)]
struct HostContainer {
    container: Container,
    /// Its init process, held from its birth: nothing else finds one that has ended.
    process: OwnedFd,
    terminal: Option<OwnedFd>,
    output: Option<CopyEnd>,
}

impl SharedKernel {
    /// A sandbox that keeps its state in `directory`.
    pub fn new(directory: &SandboxDirectory) -> Self {
        Self {
            state_root: directory.containers(),
            rootfs: directory.rootfs(),
            containers: RefCell::default(),
        }
    }
}

#[async_trait(?Send)]
impl Sandbox for SharedKernel {
    fn isolation(&self) -> Isolation {
        Isolation::SharedKernel
    }

    fn rootfs(&self, id: &str) -> Result<PathBuf, SandboxError> {
        fs::create_dir_all(&self.rootfs).map_err(|error| {
            SandboxError::new(format!("making room for the root of container {id}"), error)
        })?;
        Ok(self.rootfs.clone())
    }

    fn host_process(&self, id: &str) -> Option<ProcessIdentity> {
        let pid = self.containers.borrow().get(id)?.container.pid()?;
        ProcessIdentity::of(pid).ok()
    }

    async fn create(&self, request: ContainerRequest) -> Result<(), SandboxError> {
        let id = request.id.clone();
        let action = || format!("creating container {id}");
        let parsed: ContainerId = id.parse().map_err(|error| SandboxError::new(action(), error))?;
        let bundle = Bundle::load(&request.bundle).map_err(|error| SandboxError::new(action(), error))?;
        let (stdio, terminal_ends) = match request.stdio {
            ContainerStdio::Descriptors {
                stdin,
                stdout,
                stderr,
            } => {
                let stdin = match stdin {
                    Some(stdin) => stdin,
                    None => File::open("/dev/null")
                        .map_err(|error| SandboxError::new(action(), error))?
                        .into(),
                };
                (
                    Stdio::Files {
                        stdin,
                        stdout,
                        stderr,
                    },
                    None,
                )
            }
            ContainerStdio::Terminal { input, output } => (Stdio::Terminal, Some((input, output))),
        };
        let options = CreateOptions::new(&self.state_root, &parsed, &bundle).stdio(stdio);
        let mut container = container::create(options).map_err(|error| {
            let failure = error.command_failure().map(CommandFailure::from);
            SandboxError::new(action(), error).with_command_failure(failure)
        })?;
        let process = container
            .pidfd()
            .map_err(|error| SandboxError::new(action(), error))?;
        let process = process.ok_or_else(|| SandboxError::new(action(), "its process has gone already"))?;
        let terminal = container.take_terminal();
        let mut output = None;
        if let (Some(master), Some((from, to))) = (&terminal, terminal_ends) {
            output = Some(join_terminal(master, from, to).map_err(|error| {
                SandboxError::new(format!("joining the terminal of container {id}"), error)
            })?);
        }
        self.containers.borrow_mut().insert(
            id,
            HostContainer {
                container,
                process,
                terminal,
                output,
            },
        );
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<(), SandboxError> {
        self.with(id, "starting", |kept| {
            kept.container.start().map_err(|error| {
                let failure = error.command_failure().map(CommandFailure::from);
                SandboxError::new(format!("starting container {id}"), error).with_command_failure(failure)
            })
        })
    }

    async fn wait(&self, id: &str) -> Result<ExitStatus, SandboxError> {
        let action = || format!("waiting for container {id}");
        let (process, output) = self.with(id, "waiting for", |kept| {
            let process = kept.process.try_clone();
            Ok((
                process.map_err(|error| SandboxError::new(action(), error))?,
                kept.output.take(),
            ))
        })?;
        // SAFETY: the descriptor is owned by the registration and so open for as long as it lasts.
        let ended =
            unsafe { AsyncFd::register(process) }.map_err(|error| SandboxError::new(action(), error))?;
        ended
            .readable()
            .await
            .map_err(|error| SandboxError::new(action(), error))?
            .retain_ready();
        let status = waitid(WaitId::PidFd(ended.get_ref().as_fd()), WaitIdOptions::EXITED)
            .map_err(|error| SandboxError::new(action(), error))?;
        let written = all_written(output).await;
        let code = status.as_ref().and_then(|status| status.exit_status());
        let signal = status
            .as_ref()
            .and_then(|status| status.terminating_signal())
            .map(|signal| 128 + signal);
        let status = code.or(signal).and_then(|status| u8::try_from(status).ok());
        let status = ExitStatus(status.unwrap_or(u8::MAX));
        written.map_err(|error| SandboxError::output_lost(id, status, error))?;
        Ok(status)
    }

    async fn kill(&self, id: &str, signal: i32) -> Result<(), SandboxError> {
        let action = || format!("sending signal {signal} to container {id}");
        self.with(id, "signalling", |kept| {
            let signal: Signal = signal
                .to_string()
                .parse()
                .map_err(|error: UnknownSignal| SandboxError::new(action(), error))?;
            kept.container
                .kill(signal)
                .map_err(|error| SandboxError::new(action(), error))
        })
    }

    async fn resize_terminal(&self, id: &str, columns: u16, rows: u16) -> Result<(), SandboxError> {
        let action = || format!("resizing the terminal of container {id}");
        self.with(id, "resizing", |kept| {
            let terminal = kept
                .terminal
                .as_ref()
                .ok_or_else(|| SandboxError::new(action(), "it has none"))?;
            let size = Winsize {
                ws_col: columns,
                ws_row: rows,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            tcsetwinsize(terminal, size).map_err(|error| SandboxError::new(action(), error))
        })
    }

    async fn delete(&self, id: &str) -> Result<(), SandboxError> {
        self.with(id, "deleting", |kept| {
            kept.container
                .delete(true)
                .map_err(|error| SandboxError::new(format!("deleting container {id}"), error))
        })?;
        self.containers.borrow_mut().remove(id);
        Ok(())
    }

    async fn stop(&self) -> Result<(), SandboxError> {
        let ids: Vec<String> = self.containers.borrow().keys().cloned().collect();
        for id in ids {
            self.delete(&id).await?;
        }
        Ok(())
    }
}

impl SharedKernel {
    fn with<T>(
        &self,
        id: &str,
        doing: &str,
        action: impl FnOnce(&mut HostContainer) -> Result<T, SandboxError>,
    ) -> Result<T, SandboxError> {
        match self.containers.borrow_mut().get_mut(id) {
            Some(kept) => action(kept),
            None => Err(SandboxError::new(
                format!("{doing} container {id}"),
                "this sandbox has no such container",
            )),
        }
    }
}

/// Copies between a terminal's master and our own descriptors; resolves when all it showed has been shown.
fn join_terminal(master: &OwnedFd, from: Option<OwnedFd>, to: OwnedFd) -> std::io::Result<CopyEnd> {
    if let Some(from) = from {
        copy_in_background("stdin", from, master.try_clone()?)?;
    }
    copy_in_background("stdout", master.try_clone()?, to)
}

impl From<container::CommandFailure> for CommandFailure {
    fn from(failure: container::CommandFailure) -> Self {
        match failure {
            container::CommandFailure::NotFound => Self::NotFound,
            container::CommandFailure::NotExecutable => Self::NotExecutable,
        }
    }
}

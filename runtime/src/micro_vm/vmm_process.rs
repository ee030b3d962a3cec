//! The virtual machine's process: started, listened to, ended.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::timeout;
use vmm::config::MachineConfig;
use vmm::status::{Event, ExitKind, Phase};

use super::console::ConsoleTail;
use super::guest_text;
use crate::sandbox::record::ProcessIdentity;

/// How long the VMM may take to stop when asked.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// The longest line of the status channel that is read, in bytes.
const LONGEST_STATUS_LINE: u64 = 256 * 1024;

/// A running (or ended) `bulkhead-vmm`. Dropping it kills the machine.
#[derive(Debug)]
pub struct VmmProcess {
    pidfd: OwnedFd,
    identity: ProcessIdentity,
    progress: watch::Receiver<Progress>,
}

/// How far the machine has come.
#[derive(Debug, Clone, Default)]
struct Progress {
    phases: Vec<Phase>,
    end: Option<MachineEnd>,
}

/// How the machine ended, by its own account where it gave one.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the microVM has ended: {reason}{console}")]
pub struct MachineEnd {
    reason: String,
    console: ConsoleTail,
}

/// Why the VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The log could not be made.
    #[error("creating the VMM's log {}", .path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The binary could not be executed.
    #[error("executing {}", .binary.display())]
    Execute {
        /// The binary.
        binary: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Its configuration could not be handed over, or its status channel not be read.
    #[error("talking to {}", .binary.display())]
    Talk {
        /// The binary.
        binary: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl VmmProcess {
    /// Starts `binary` on `config`, its messages for people going to `log`.
    ///
    /// # Errors
    /// When the process cannot be started; what it makes of its configuration shows in [`Self::reached`].
    pub fn spawn(binary: &Path, config: &MachineConfig, log: &Path) -> Result<Self, SpawnError> {
        let stderr = File::create(log).map_err(|source| SpawnError::Log {
            path: log.to_owned(),
            source,
        })?;
        let mut child = Command::new(binary)
            .args(["--config", "-"])
            .env_clear()
            // A key pressed at our terminal is the container's to hear of, not the machine's to die of.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(|source| SpawnError::Execute {
                binary: binary.to_owned(),
                source,
            })?;
        let guarded = Self::listen(&mut child, config, log);
        match guarded {
            Ok(process) => Ok(process),
            Err(source) => {
                // Not yet guarded by a value of ours, so ended by hand; it may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
                Err(SpawnError::Talk {
                    binary: binary.to_owned(),
                    source,
                })
            }
        }
    }

    fn listen(child: &mut Child, config: &MachineConfig, log: &Path) -> io::Result<Self> {
        let pid = rustix::process::Pid::from_child(child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let identity = ProcessIdentity::of(child.id())
            .ok_or_else(|| io::Error::other("the process is not to be found in /proc"))?;
        let missing = || io::Error::other("a pipe is missing");
        let description = serde_json::to_vec(config)?;
        child.stdin.take().ok_or_else(missing)?.write_all(&description)?;
        let status = pipe::Receiver::from_owned_fd(child.stdout.take().ok_or_else(missing)?.into())?;
        let (sender, progress) = watch::channel(Progress::default());
        // SAFETY: the descriptor is owned by the registration and so open for as long as it lasts.
        let ended = unsafe { AsyncFd::register(pidfd.try_clone()?) }?;
        tokio::spawn(follow(
            status,
            ended,
            sender,
            config.console_ring.clone(),
            log.to_owned(),
        ));
        Ok(Self {
            pidfd,
            identity,
            progress,
        })
    }

    /// Which process it is.
    pub fn identity(&self) -> ProcessIdentity {
        self.identity
    }

    /// Waits until the VMM has reported the phase as over.
    ///
    /// # Errors
    /// When the machine ends before.
    pub async fn reached(&self, phase: Phase) -> Result<(), MachineEnd> {
        let mut progress = self.progress.clone();
        let reached = |progress: &Progress| progress.end.is_some() || progress.phases.contains(&phase);
        match progress.wait_for(reached).await {
            Ok(progress) => progress.end.clone().map_or(Ok(()), Err),
            Err(_) => Err(MachineEnd::unreported("its status channel is gone")),
        }
    }

    /// Waits for the machine's end.
    pub async fn ended(&self) -> MachineEnd {
        let mut progress = self.progress.clone();
        match progress.wait_for(|progress| progress.end.is_some()).await {
            Ok(progress) => progress.end.clone(),
            Err(_) => None,
        }
        .unwrap_or_else(|| MachineEnd::unreported("its status channel is gone"))
    }

    /// Asks the machine to stop, and kills it when it does not.
    ///
    /// # Errors
    /// When it cannot even be killed.
    pub async fn stop(&self) -> io::Result<()> {
        self.signal(Signal::TERM)?;
        if timeout(STOP_DEADLINE, self.ended()).await.is_err() {
            self.signal(Signal::KILL)?;
            self.ended().await;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            result => Ok(result?),
        }
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        if self.progress.borrow().end.is_none() {
            // Both fail only when it has ended and been reaped already.
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
            let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

impl MachineEnd {
    fn unreported(reason: &str) -> Self {
        Self {
            reason: reason.to_owned(),
            console: ConsoleTail::default(),
        }
    }
}

/// Follows the status channel to its end, then reaps the process.
async fn follow(
    status: pipe::Receiver,
    ended: AsyncFd<OwnedFd>,
    progress: watch::Sender<Progress>,
    console_ring: PathBuf,
    log: PathBuf,
) {
    let mut lines = BufReader::new(status);
    let mut own_account = None;
    loop {
        let mut line = Vec::new();
        match (&mut lines)
            .take(LONGEST_STATUS_LINE)
            .read_until(b'\n', &mut line)
            .await
        {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        match serde_json::from_slice(&line) {
            Ok(Event::Phase { name, .. }) => progress.send_modify(|progress| progress.phases.push(name)),
            Ok(Event::Exit(exit)) => {
                own_account = Some(format!("{}: {}", in_words(exit.reason.kind), exit.reason.message));
            }
            // Another version's event: no reason to lose the machine.
            Err(_) => {}
        }
    }
    let reaped = match ended.readable().await {
        Ok(_) => waitid(WaitId::PidFd(ended.get_ref().as_fd()), WaitIdOptions::EXITED),
        Err(_) => Ok(None),
    };
    let reason = own_account.unwrap_or_else(|| last_words(&log, reaped.ok().flatten().as_ref()));
    let end = MachineEnd {
        // A guest can make the VMM name what it did.
        reason: guest_text::shown(&reason),
        console: ConsoleTail::read(&console_ring),
    };
    progress.send_modify(|progress| progress.end = Some(end));
}

fn in_words(kind: ExitKind) -> &'static str {
    match kind {
        ExitKind::Stopped => "it was stopped",
        ExitKind::StartFailed => "it could not start",
        ExitKind::GuestReset => "the guest reset itself",
        ExitKind::GuestPanic => "the guest's kernel panicked",
        ExitKind::TripleFault => "the guest crashed",
        ExitKind::EmulationFailure => "KVM could not emulate an instruction",
        ExitKind::KvmError => "KVM failed",
        ExitKind::DeviceFailure => "a device failed",
    }
}

/// The account of a VMM that could give none: how its process ended and what it last said to people.
fn last_words(log: &Path, status: Option<&rustix::process::WaitIdStatus>) -> String {
    let how = match status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("the VMM exited with code {code}"),
            (_, Some(signal)) => format!("the VMM was killed by signal {signal}"),
            _ => "the VMM ended".to_owned(),
        },
        None => "the VMM ended".to_owned(),
    };
    match std::fs::read_to_string(log) {
        Ok(log) if !log.trim().is_empty() => {
            let last: Vec<&str> = log.trim().lines().rev().take(5).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            format!("{how}: {}", last.join("; "))
        }
        _ => how,
    }
}

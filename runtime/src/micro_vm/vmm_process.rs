//! The virtual machine's process: started, listened to, ended.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use container::{CgroupError, PodCgroup, ProcessIdentity};
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;
use vmm::config::MachineConfig;
use vmm::status::{Event, ExitKind, Phase};

use super::console::ConsoleTail;
use super::guest_text;
use super::machine_files::MachineFiles;
use super::status_file::{self, StatusFile};

/// How long the VMM may take to stop when asked.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// As much of the VMM's log is read, in bytes.
const LONGEST_LOG: u64 = 64 << 10;

/// A running (or ended) `bulkhead-vmm`. Dropping one that was spawned kills the machine, unless it was let go.
#[derive(Debug)]
pub struct VmmProcess {
    pidfd: OwnedFd,
    identity: ProcessIdentity,
    progress: watch::Receiver<Progress>,
    ends_with_us: bool,
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
    /// Whether the machine itself said so.
    accounted_for: bool,
    console: ConsoleTail,
}

/// Why the VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A file of its output could not be made.
    #[error("creating {}", .path.display())]
    Output {
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
    /// Its configuration could not be handed over, or its status not be followed.
    #[error("talking to {}", .binary.display())]
    Talk {
        /// The binary.
        binary: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It could not be put into the pod's cgroup.
    #[error("opening the pod's cgroup for the VMM")]
    Cgroup(#[from] CgroupError),
    /// It could not be written down.
    #[error("writing down which process the VMM is")]
    WriteDown(#[source] io::Error),
}

impl VmmProcess {
    /// Starts `binary` in the folder of its files, on `config`, whose relative paths are of that folder. It inherits the
    /// descriptors `inherited` under their numbers. `write_down` is told which process it is before it gets its
    /// configuration, without which it ends: whoever cleans up after us knows of every VMM that runs.
    ///
    /// # Errors
    /// When the process cannot be started; what it makes of its configuration shows in [`Self::reached`].
    pub fn spawn<'a>(
        binary: &Path,
        config: &MachineConfig,
        files: &MachineFiles,
        cgroup: Option<&PodCgroup>,
        inherited: impl Iterator<Item = BorrowedFd<'a>>,
        write_down: impl FnOnce(ProcessIdentity) -> io::Result<()>,
    ) -> Result<Self, SpawnError> {
        let create = |path: &Path| {
            File::create(path).map_err(|source| SpawnError::Output {
                path: path.to_owned(),
                source,
            })
        };
        let mut command = Command::new(binary);
        if let Some(cgroup) = cgroup {
            cgroup.take_in(&mut command)?;
        }
        inherit(&mut command, inherited);
        let mut child = command
            .args(["--config", "-"])
            .env_clear()
            .current_dir(files.directory())
            // A key pressed at our terminal is the container's to hear of, not the machine's to die of.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(create(&files.status())?)
            .stderr(create(&files.log())?)
            .spawn()
            .map_err(|source| SpawnError::Execute {
                binary: binary.to_owned(),
                source,
            })?;
        let talk = |source| SpawnError::Talk {
            binary: binary.to_owned(),
            source,
        };
        let spawned = ProcessIdentity::of(child.id().cast_signed())
            .map_err(|errno| talk(errno.into()))
            .and_then(|identity| {
                write_down(identity).map_err(SpawnError::WriteDown)?;
                hand_over(&mut child, config)
                    .and_then(|()| Self::follow(identity, files, true))
                    .map_err(talk)
            });
        if spawned.is_err() {
            // Not yet guarded by a value of ours, so ended by hand; it may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        spawned
    }

    /// Takes part in the life of a machine that another process has started.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn join(identity: ProcessIdentity, files: &MachineFiles) -> io::Result<Self> {
        Self::follow(identity, files, false)
    }

    fn follow(identity: ProcessIdentity, files: &MachineFiles, ends_with_us: bool) -> io::Result<Self> {
        let pidfd = identity.open()?.ok_or_else(|| {
            let end = MachineEnd::of_ended(files);
            io::Error::other(end)
        })?;
        let (sender, progress) = watch::channel(Progress::default());
        // SAFETY: the descriptor is owned by the registration and so open for as long as it lasts.
        let ended = unsafe { AsyncFd::register(pidfd.try_clone()?) }?;
        if ends_with_us {
            let status = StatusFile::open(&files.status())?;
            tokio::spawn(follow(status, ended, sender, files.clone()));
        } else {
            tokio::spawn(await_end(ended, sender, files.clone()));
        }
        Ok(Self {
            pidfd,
            identity,
            progress,
            ends_with_us,
        })
    }

    /// Leaves the machine to others: it runs on when this is dropped.
    pub fn let_go(&mut self) {
        self.ends_with_us = false;
    }

    /// The process, for what is done to it by its descriptor.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
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

    /// Kills the machine, without waiting for its end.
    pub fn kill(&self) {
        // It fails only when it has ended already.
        let _ = self.signal(Signal::KILL);
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
        if self.ends_with_us && self.progress.borrow().end.is_none() {
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
            accounted_for: false,
            console: ConsoleTail::default(),
        }
    }

    /// Why it ended, in words.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether the machine itself said why. One that was killed could not.
    pub fn is_accounted_for(&self) -> bool {
        self.accounted_for
    }

    /// The last lines of the guest's console.
    pub fn console(&self) -> &[String] {
        self.console.lines()
    }

    /// The end of a machine whose process is gone, as its files tell it.
    fn of_ended(files: &MachineFiles) -> Self {
        let events = status_file::read_events(&files.status());
        let own_account = events.unwrap_or_default().iter().find_map(account);
        Self::told(own_account, None, files)
    }

    fn told(own_account: Option<String>, exit: Option<&WaitIdStatus>, files: &MachineFiles) -> Self {
        let accounted_for = own_account.is_some();
        let reason = own_account.unwrap_or_else(|| last_words(&files.log(), exit));
        Self {
            // A guest can make the VMM name what it did.
            reason: guest_text::shown(&reason),
            accounted_for,
            console: ConsoleTail::read(&files.console_ring()),
        }
    }
}

/// Has a command keep these descriptors, which must be open until it is executed.
fn inherit<'a>(command: &mut Command, descriptors: impl Iterator<Item = BorrowedFd<'a>>) {
    let numbers: Vec<RawFd> = descriptors.map(|descriptor| descriptor.as_raw_fd()).collect();
    if numbers.is_empty() {
        return;
    }
    let keep = move || {
        for number in &numbers {
            // SAFETY: The call takes no pointer, and fails for a number that is not open.
            if unsafe { libc::fcntl(*number, libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: Between fork and exec it makes fcntl calls only, which may be made there (signal-safety(7)), and allocates
    // nothing.
    unsafe { command.pre_exec(keep) };
}

/// Gives a VMM its configuration.
fn hand_over(child: &mut Child, config: &MachineConfig) -> io::Result<()> {
    let description = serde_json::to_vec(config)?;
    let stdin = child.stdin.take();
    let mut stdin = stdin.ok_or_else(|| io::Error::other("it has no standard input"))?;
    stdin.write_all(&description)
}

/// What the machine itself says of its end, if this is it.
fn account(event: &Event) -> Option<String> {
    match event {
        Event::Exit(exit) => Some(format!("{}: {}", in_words(exit.reason.kind), exit.reason.message)),
        Event::Phase { .. } => None,
    }
}

/// Waits for the end of a machine that somebody else has started. Its account is read only then: to watch the file takes
/// one of the few inotify instances that a user has.
async fn await_end(ended: AsyncFd<OwnedFd>, progress: watch::Sender<Progress>, files: MachineFiles) {
    // It fails only when the event loop ends.
    let _ = ended.readable().await;
    let end = MachineEnd::of_ended(&files);
    progress.send_modify(|progress| progress.end = Some(end));
}

/// Follows the machine's account of itself to its end, then reaps the process, if it is our child.
async fn follow(
    mut status: StatusFile,
    ended: AsyncFd<OwnedFd>,
    progress: watch::Sender<Progress>,
    files: MachineFiles,
) {
    let mut own_account = None;
    let mut runs = true;
    loop {
        // A file that cannot be read tells nothing; the end of the process still does.
        for event in status.read_events().unwrap_or_default() {
            own_account = account(&event).or(own_account);
            if let Event::Phase { name, .. } = event {
                progress.send_modify(|progress| progress.phases.push(name));
            }
        }
        if !runs {
            break;
        }
        tokio::select! {
            biased;
            // All that was written is read once more.
            _ = ended.readable() => runs = false,
            grown = status.grown() => if grown.is_err() {
                let _ = ended.readable().await;
                runs = false;
            },
        }
    }
    let reaped = waitid(WaitId::PidFd(ended.get_ref().as_fd()), WaitIdOptions::EXITED);
    let end = MachineEnd::told(own_account, reaped.ok().flatten().as_ref(), &files);
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
fn last_words(log: &Path, status: Option<&WaitIdStatus>) -> String {
    let how = match status {
        Some(status) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("the VMM exited with code {code}"),
            (_, Some(signal)) => format!("the VMM was killed by signal {signal}"),
            _ => "the VMM ended".to_owned(),
        },
        // It was no child of ours.
        None => "the VMM was killed, or ended without saying why".to_owned(),
    };
    let mut said = Vec::new();
    let read = File::open(log).and_then(|log| log.take(LONGEST_LOG).read_to_end(&mut said));
    match read.map(|_| String::from_utf8_lossy(&said)) {
        Ok(log) if !log.trim().is_empty() => {
            let last: Vec<&str> = log.trim().lines().rev().take(5).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            format!("{how}: {}", last.join("; "))
        }
        _ => how,
    }
}

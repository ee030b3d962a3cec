//! The process on the host that stands for one process in a guest.
//!
//! Who makes it tells it what to attend to, on a socket that it inherits; it makes the process in the guest, and answers
//! how that went. Then it is told to keep the process: if its maker dies before, nothing is left of either.
//!
//! It has two threads. Clients take its pid for the container's and join the namespaces they find by it, which are those of
//! its first thread: that one shows them what the host has of the container (`view.rs`) and does nothing else. The second
//! thread does all the rest, where the caller of the command line is.

mod last_words;
mod plan;
mod spawn;
mod terminal;
mod view;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::SigSet;
use tokio::sync::oneshot;

pub use plan::{AttendantPlan, Attended, ContainerPlan, ProcessPlan};
pub use spawn::{Attendant, AttendantError, AttendantStdio};

use self::last_words::LastWords;
use self::plan::{Answer, GO_ON};
use self::view::{View, ViewError};
use crate::forwarded_signals::ForwardedSignals;
use crate::micro_vm::MicroVm;
use crate::micro_vm::machine_files::MachineFiles;
use crate::micro_vm::task::{Leash, Made, NewContainer, ProcessName};
use crate::oci_pod::disks;
use crate::oci_pod::folder::Folder;
use crate::oci_pod::owed;
use crate::oci_pod::record::GuestContainer;
use crate::sandbox::stdio::ContainerStdio;
use crate::sandbox::{ExitStatus, SandboxError};

/// The word that makes this program an attendant; the descriptor of its maker's socket follows it.
pub const WORD: &str = "attend";

/// What a process that was lost with its machine has ended with, as if by SIGKILL.
const LOST: ExitStatus = ExitStatus(137);

/// What an attendant ends with that never had a process to attend to.
const NOTHING_ATTENDED: ExitStatus = ExitStatus(255);

/// The longest plan, in bytes: it holds a configuration.
const LONGEST_PLAN: u64 = 64 << 20;

/// The signals that are the attendant's own: they cannot be caught (and its leash ends with it), tell of its own faults or
/// children or terminal, or are the C library's (32 and 33).
const OWN: [libc::c_int; 17] = [
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGCHLD,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGKILL,
    libc::SIGPIPE,
    libc::SIGSEGV,
    libc::SIGSTOP,
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
    32,
    33,
];

/// The last signal there is (signal(7)).
const LAST_SIGNAL: libc::c_int = 64;

/// Attends, and returns what the process ended with. `descriptor` is the socket of whoever made us.
pub fn attend(descriptor: RawFd) -> u8 {
    // SAFETY: the number was given to this program for this, and nothing else here uses it.
    let maker = UnixStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
    let status = Attending::begin(maker).and_then(|attending| {
        let (show, shown) = mpsc::channel();
        let second = thread::Builder::new().name("attending".to_owned());
        let second = second.spawn(move || attending.run(&ShowingThread(show)))?;
        for Showing { view, done } in shown {
            // Who asked waits, or has ended.
            let _ = done.send(view.enter());
        }
        second
            .join()
            .map_err(|_| io::Error::other("the thread that attends has panicked"))
    });
    match status {
        Ok(status) => status.0,
        // Who made us reads nothing on the socket then, and says so.
        Err(error) => {
            eprintln!("bulkhead-attendant: {error}");
            NOTHING_ATTENDED.0
        }
    }
}

/// The first thread, as the second one asks it.
struct ShowingThread(mpsc::Sender<Showing>);

/// What the first thread is to show from now on.
struct Showing {
    view: View,
    done: oneshot::Sender<Result<(), ViewError>>,
}

impl ShowingThread {
    async fn show(&self, view: View) -> Result<(), ViewError> {
        let (done, is_done) = oneshot::channel();
        // Where nobody is asked, nobody answers either.
        let _ = self.0.send(Showing { view, done });
        is_done.await.unwrap_or(Err(ViewError::NoThread))
    }
}

/// What an attendant has before it reaches for the guest.
struct Attending {
    maker: UnixStream,
    plan: AttendantPlan,
}

impl Attending {
    fn begin(maker: UnixStream) -> io::Result<Self> {
        // Whoever made us may have held signals up, and what is held up is inherited.
        SigSet::empty().thread_set_mask()?;
        // What happens to our maker's session is not the process's affair, but for the terminal we are given.
        rustix::process::setsid()?;
        let mut line = Vec::new();
        BufReader::new(&maker)
            .take(LONGEST_PLAN)
            .read_until(b'\n', &mut line)?;
        let plan: AttendantPlan = serde_json::from_slice(&line)?;
        if plan.has_terminal {
            terminal::take()?;
        }
        rustix::process::chdir("/")?;
        Ok(Self { maker, plan })
    }

    fn run(self, first: &ShowingThread) -> ExitStatus {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let error = SandboxError::new("starting the attendant's event loop", error);
                self.answer(&Answer::failed(&error));
                return NOTHING_ATTENDED;
            }
        };
        let status = runtime.block_on(self.attend(first));
        // Threads that still wait for input would be waited for.
        runtime.shutdown_background();
        status
    }

    async fn attend(&self, first: &ShowingThread) -> ExitStatus {
        let files = MachineFiles::of(&self.plan.files);
        let name = self.plan.attended.name();
        let mut leash = None;
        let begun = async {
            let machine = MicroVm::join(self.plan.machine, &files).await?;
            let signals = ForwardedSignals::catch(handed_on())
                .map_err(|error| SandboxError::new("taking over the attendant's signals", error))?;
            let mut warnings = Vec::new();
            let last_words = self.last_words(&mut warnings)?;
            let mut made = self.make(&machine, &mut leash, first).await?;
            made.warnings.extend(warnings);
            Ok::<_, SandboxError>((machine, signals, made, last_words))
        };
        let (machine, mut signals, made, mut last_words) = match begun.await {
            Ok(begun) => begun,
            Err(error) => {
                self.answer(&Answer::failed(&error));
                return NOTHING_ATTENDED;
            }
        };
        self.answer(&Answer::Made {
            guest_pid: made.pid,
            warnings: made.warnings,
        });
        let mut word = [0; GO_ON.len()];
        if (&self.maker).read_exact(&mut word).is_err() || word != *GO_ON {
            // The leash goes with us, and the process with the leash.
            return NOTHING_ATTENDED;
        }
        if self.plan.has_terminal {
            hand_size_on(&machine, name).await;
        }
        match Self::hand_on(&machine, name, &mut signals).await {
            Ok(status) => {
                self.leave(&machine).await;
                status
            }
            Err(error) => {
                if let Some(last_words) = &mut last_words {
                    last_words.say(&machine, &error).await;
                }
                LOST
            }
        }
    }

    /// Ends the machine where nobody is left in it, and it is nobody's to wait in.
    async fn leave(&self, machine: &MicroVm) {
        let Attended::Container(container) = &self.plan.attended else {
            return;
        };
        let sandbox = Folder::at(&container.sandbox_folder);
        if !self.plan.ends_machine || GuestContainer::others_live(&sandbox, &container.id) {
            return;
        }
        // What was written to the host's files is with the host already; what was written to disks may be the guest's
        // still.
        if disks::are_attached(&sandbox)
            && let Err(error) = machine.shut_down().await
        {
            eprintln!("bulkhead-attendant: {:#}", anyhow::Error::new(error));
        }
        machine.kill_machine();
    }

    /// Those of a container. One more process in it needs none.
    fn last_words(&self, warnings: &mut Vec<String>) -> Result<Option<LastWords>, SandboxError> {
        let Attended::Container(container) = &self.plan.attended else {
            return Ok(None);
        };
        let last_words = LastWords::prepare(Folder::at(&container.sandbox_folder), warnings);
        last_words
            .map(Some)
            .map_err(|error| SandboxError::new("duplicating the attendant's standard error", error))
    }

    /// Hands signals on until the process has ended.
    ///
    /// # Errors
    /// When the machine has ended first.
    async fn hand_on(
        machine: &MicroVm,
        name: ProcessName<'_>,
        signals: &mut ForwardedSignals,
    ) -> Result<ExitStatus, SandboxError> {
        let ended = machine.wait_for_process(name);
        tokio::pin!(ended);
        let mut waiting = VecDeque::new();
        let mut sending = None;
        loop {
            // One at a time, in their order. A guest that takes its time with one keeps nobody from seeing the end.
            if sending.is_none() {
                sending = waiting
                    .pop_front()
                    .map(|number| Box::pin(send(machine, name, number)));
            }
            let sent = async {
                match &mut sending {
                    Some(sending) => sending.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                status = &mut ended => return match status {
                    // The process has ended, and what it said was lost: there is nobody here to tell of it.
                    Err(SandboxError { exit_status: Some(status), .. }) => Ok(status),
                    status => status,
                },
                () = sent => sending = None,
                number = signals.next() => {
                    // As a process has it: one that waits already is not counted.
                    if !waiting.contains(&number) {
                        waiting.push_back(number);
                    }
                }
            }
        }
    }

    async fn make(
        &self,
        machine: &MicroVm,
        leash: &mut Option<Leash>,
        first: &ShowingThread,
    ) -> Result<Made, SandboxError> {
        let stdio = self
            .stdio()
            .map_err(|error| SandboxError::new("duplicating the attendant's standard descriptors", error))?;
        let name = self.plan.attended.name();
        match &self.plan.attended {
            Attended::Container(container) => {
                let folder = Folder::at(&container.sandbox_folder);
                // It may have the same name or want the same disks.
                let settled = owed::settle(machine, &folder).await;
                settled.map_err(|error| {
                    SandboxError::new("removing containers from the guest that are gone", error)
                })?;
                let mut config = container.config.clone();
                let root =
                    disks::attach(machine, &folder, &container.id, &container.bundle, &mut config).await;
                let root = root.map_err(|error| {
                    SandboxError::new(
                        format!("attaching the disks of container {}", container.id),
                        error,
                    )
                })?;
                let new = NewContainer {
                    id: &container.id,
                    bundle: &container.bundle,
                    config: &config,
                    guest_root: root.as_deref(),
                    shared_folder: &container.shared_folder,
                    shared_memory: &container.shared_memory,
                };
                let made = machine.create_container(&new, stdio, Some(leash)).await?;
                // Not before: mount points that were missing were made with the container.
                let view = View::of_container(container, root.is_none());
                self.show(first, view).await?;
                Ok(made)
            }
            Attended::Process(process) => {
                let bytes = serde_json::to_vec(&process.process)
                    .map_err(|error| SandboxError::new("writing the process for the agent", error))?;
                self.show(first, View::of_process(process)).await?;
                machine.add_process(name, bytes, stdio, Some(leash)).await?;
                machine.start_process(name).await
            }
        }
    }

    /// Has clients that join our namespaces see this, and not the host.
    async fn show(&self, first: &ShowingThread, view: View) -> Result<(), SandboxError> {
        let shown = first.show(view).await;
        shown.map_err(|error| {
            let container = self.plan.attended.name().container;
            SandboxError::new(
                format!("showing the host what container {container} has of it"),
                error,
            )
        })
    }

    /// Our standard descriptors, which are the process's.
    fn stdio(&self) -> io::Result<ContainerStdio> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        if self.plan.has_terminal {
            return Ok(ContainerStdio::Terminal {
                input: Some(stdin),
                output: stdout,
            });
        }
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        // Ours would keep whoever reads them from seeing the end.
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(ContainerStdio::Descriptors {
            stdin: Some(stdin),
            stdout,
            stderr,
        })
    }

    /// Who made us may have gone, and then there is nobody to tell.
    fn answer(&self, answer: &Answer) {
        if let Ok(mut line) = serde_json::to_vec(answer) {
            line.push(b'\n');
            let _ = (&self.maker).write_all(&line);
        }
    }
}

/// Has the process get a signal of ours, or its terminal our size.
async fn send(machine: &MicroVm, name: ProcessName<'_>, number: libc::c_int) {
    if number == libc::SIGWINCH {
        hand_size_on(machine, name).await;
    } else {
        // A process that has just ended takes none, and its end is the next to come.
        let _ = machine.signal(name, number, false).await;
    }
}

/// Gives the terminal in the guest the size of ours.
async fn hand_size_on(machine: &MicroVm, name: ProcessName<'_>) {
    if let Some(size) = crate::terminal::size(io::stdin()) {
        // A process that has just ended has no terminal.
        let _ = machine.resize(name, size.columns, size.rows).await;
    }
}

/// Those that are the process's to handle, and the change of our terminal's size.
fn handed_on() -> impl Iterator<Item = libc::c_int> {
    (1..=LAST_SIGNAL)
        .filter(|number| !OWN.contains(number))
        .chain([libc::SIGWINCH])
}

//! From nothing to an agent that answers: the stages of a start, each with a name and a deadline.

use std::fmt;
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use protocol::PROTOCOL_VERSION;
use protocol::event::{self, Event, EventError};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::console::ConsoleTail;
use super::guest_connection::ConnectError;
use super::guest_text;
use super::template::TemplateError;
use super::vmm_process::{MachineEnd, SpawnError, VmmProcess};

/// Reading kernel and initramfs and setting up the machine.
pub const LOAD_DEADLINE: Duration = Duration::from_secs(10);

/// A clone's guest has but to notice that its connections are gone.
pub const RESUME_DEADLINE: Duration = Duration::from_secs(30);

/// One call that mounts a directory and sets a clock.
pub const PREPARE_DEADLINE: Duration = Duration::from_secs(30);

/// A stage of the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The VMM opens its files and makes the machine.
    Load,
    /// The guest's kernel and agent start.
    Boot,
    /// The guest of a clone goes on, and its agent connects anew.
    Resume,
    /// The agent is given what only the host knows.
    Prepare,
    /// The agent gives the guest its pod's network.
    Network,
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Load => "loading the guest",
            Self::Boot => "booting the guest",
            Self::Resume => "resuming the cloned guest",
            Self::Prepare => "preparing the guest",
            Self::Network => "giving the guest its pod's network",
        })
    }
}

/// Why there is no microVM.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A folder or socket of the machine could not be made.
    #[error("{action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The VMM could not be started.
    #[error("starting the VMM")]
    Spawn(#[from] SpawnError),
    /// The host gives no random bytes.
    #[error("drawing random bytes for the guest")]
    Entropy(#[source] rustix::io::Errno),
    /// A network device's address is none.
    #[error("numbering the network devices")]
    Mac(#[from] vmm::config::MacAddressError),
    /// It has to be cloned and cannot be.
    #[error("cloning the microVM, as the template policy \"require\" demands")]
    Template(#[source] Box<TemplateError>),
    /// A stage failed.
    #[error("{stage}")]
    Stage {
        /// Which one.
        stage: Stage,
        /// The cause.
        #[source]
        failure: StageFailure,
    },
}

/// Why a stage failed.
#[derive(Debug, thiserror::Error)]
pub enum StageFailure {
    /// It took too long.
    #[error("no answer within {} s{console}", .deadline.as_secs_f32())]
    Deadline {
        /// The time it had.
        deadline: Duration,
        /// What the guest last said.
        console: ConsoleTail,
    },
    /// The machine ended.
    #[error(transparent)]
    MachineEnded(#[from] MachineEnd),
    /// The agent gave up.
    #[error("the agent gave up: {message}{console}")]
    Agent {
        /// Its own words.
        message: String,
        /// What the guest last said.
        console: ConsoleTail,
    },
    /// The agent is of another version.
    #[error("the agent speaks version {theirs} of the protocol and this runtime version {PROTOCOL_VERSION}")]
    Version {
        /// The agent's.
        theirs: u32,
    },
    /// The agent's first word was none, or never came.
    #[error("receiving the agent's first event")]
    Event(#[from] EventError),
    /// The agent's connection could not be accepted.
    #[error("accepting the agent's connection")]
    Accept(#[source] io::Error),
    /// The agent's ports could not be reached.
    #[error("reaching the agent")]
    Connect(#[from] ConnectError),
    /// The agent refused.
    #[error("asking the agent")]
    Call(#[from] ttrpc::Error),
}

impl BootError {
    /// Whether the guest itself failed: it ended, or said so. What a host does that is slow or lacks something, and what
    /// one pod's network is, is not its fault.
    pub fn is_the_guests(&self) -> bool {
        let BootError::Stage { stage, failure } = self else {
            return false;
        };
        let by_itself = match failure {
            StageFailure::MachineEnded(_) | StageFailure::Agent { .. } | StageFailure::Version { .. } => true,
            StageFailure::Call(error) => matches!(error, ttrpc::Error::RpcStatus(_)),
            _ => false,
        };
        by_itself && matches!(stage, Stage::Boot | Stage::Resume | Stage::Prepare)
    }
}

/// Runs one stage against its deadline and the machine's end.
///
/// # Errors
/// When it fails, the machine ends, or the deadline passes.
pub async fn stage<T>(
    stage: Stage,
    deadline: Duration,
    vmm: &VmmProcess,
    console_ring: &std::path::Path,
    work: impl Future<Output = Result<T, StageFailure>>,
) -> Result<T, BootError> {
    let raced = async {
        tokio::select! {
            // A machine that ends makes every connection fail as well; its own account is the better one.
            biased;
            result = work => match result {
                Err(StageFailure::Event(_) | StageFailure::Connect(_) | StageFailure::Call(_))
                    if let Some(end) = soon_ended(vmm).await => Err(end.into()),
                result => result,
            },
            end = vmm.ended() => Err(end.into()),
        }
    };
    let result = timeout(deadline, raced).await.unwrap_or_else(|_| {
        Err(StageFailure::Deadline {
            deadline,
            console: ConsoleTail::read(console_ring),
        })
    });
    result.map_err(|failure| BootError::Stage { stage, failure })
}

/// The machine's end, where it is about to be told.
pub async fn soon_ended(vmm: &VmmProcess) -> Option<MachineEnd> {
    timeout(Duration::from_millis(500), vmm.ended()).await.ok()
}

/// Waits for the agent's first word; the connection is kept for its later ones. An agent whose connection took too long
/// makes another: the last one counts, and one that is closed without a word does not.
///
/// # Errors
/// When the agent gives up, or is of another version, or what it says is no event.
pub async fn agent_ready(
    listener: &UnixListener,
    console_ring: &std::path::Path,
) -> Result<UnixStream, StageFailure> {
    let accept = || async { listener.accept().await.map_err(StageFailure::Accept) };
    let (mut connection, _) = accept().await?;
    let first = loop {
        let received = tokio::select! {
            received = event::receive(&mut connection) => received,
            another = accept() => {
                (connection, _) = another?;
                continue;
            }
        };
        match received {
            Ok(Some(event)) => break event,
            Ok(None) | Err(EventError::Io(_)) => (connection, _) = accept().await?,
            Err(error) => return Err(error.into()),
        }
    };
    match first {
        Event::Ready(ready) if ready.protocol_version == PROTOCOL_VERSION => Ok(connection),
        Event::Ready(ready) => Err(StageFailure::Version {
            theirs: ready.protocol_version,
        }),
        Event::Fatal(fatal) => Err(StageFailure::Agent {
            message: guest_text::shown(&fatal.message),
            console: ConsoleTail::read(console_ring),
        }),
        // Another version's, decoded by a table that is newer than this code.
        _ => Err(EventError::Io(io::ErrorKind::InvalidData.into()).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use protocol::event::{Fatal, Ready};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn an_agent_that_connects_again_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("events");
        let listener = UnixListener::bind(&socket).unwrap();
        let agent = async {
            // One that is given up, one that stays silent, one that speaks.
            drop(UnixStream::connect(&socket).await.unwrap());
            let silent = UnixStream::connect(&socket).await.unwrap();
            let mut speaking = UnixStream::connect(&socket).await.unwrap();
            let ready = Ready {
                protocol_version: PROTOCOL_VERSION,
                ..Ready::default()
            };
            event::send(&mut speaking, Event::Ready(ready)).await.unwrap();
            (silent, speaking)
        };
        let ready = timeout(
            Duration::from_secs(10),
            agent_ready(&listener, Path::new("/nonexistent")),
        );
        let (ready, _connections) = tokio::join!(ready, agent);
        ready.unwrap().unwrap();
    }

    #[test]
    fn a_guest_is_blamed_for_what_it_says_itself_and_not_for_the_hosts_want_of_time() {
        let console = || ConsoleTail::read(Path::new("/nonexistent"));
        let late = || StageFailure::Deadline {
            deadline: RESUME_DEADLINE,
            console: console(),
        };
        let gave_up = || StageFailure::Agent {
            message: "no memory".to_owned(),
            console: console(),
        };
        let refused = || {
            let status = ttrpc::get_status(ttrpc::Code::INTERNAL, "no such route");
            StageFailure::Call(ttrpc::Error::RpcStatus(status))
        };
        let unreachable = || StageFailure::Accept(io::ErrorKind::Other.into());
        for (stage, failure, its_own) in [
            (Stage::Resume, gave_up(), true),
            (Stage::Resume, late(), false),
            (Stage::Resume, unreachable(), false),
            (Stage::Prepare, refused(), true),
            (Stage::Prepare, late(), false),
            (Stage::Network, refused(), false),
            (Stage::Load, gave_up(), false),
        ] {
            let error = BootError::Stage { stage, failure };
            assert_eq!(error.is_the_guests(), its_own, "{error:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_agents_last_words_do_not_command_the_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("events");
        let listener = UnixListener::bind(&socket).unwrap();
        let agent = async {
            let mut connection = UnixStream::connect(&socket).await.unwrap();
            let fatal = Fatal {
                message: "\x1b[2Jno memory".to_owned(),
                ..Fatal::default()
            };
            event::send(&mut connection, Event::Fatal(fatal)).await.unwrap();
        };
        let (ready, ()) = tokio::join!(agent_ready(&listener, Path::new("/nonexistent")), agent);
        let error = ready.unwrap_err().to_string();
        assert_eq!(error, "the agent gave up: [2Jno memory");
    }
}

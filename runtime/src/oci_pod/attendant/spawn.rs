//! Making an attendant.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::Duration;

use container::{CgroupError, PodCgroup, ProcessIdentity};
use rustix::io::{FdFlags, fcntl_setfd};

use super::WORD;
use super::plan::{Answer, AttendantPlan, GO_ON};

/// How long the making may take: a few calls of the agent, each of which has its own deadline.
const PATIENCE: Duration = Duration::from_secs(300);

/// The longest answer, in bytes.
const LONGEST_ANSWER: u64 = 1 << 20;

/// A running attendant that has made its process. Dropped before it is told to go on, it ends, and its process with it.
#[derive(Debug)]
pub struct Attendant {
    child: Child,
    maker: UnixStream,
    identity: ProcessIdentity,
    guest_pid: u32,
    warnings: Vec<String>,
}

/// What an attendant's standard descriptors are.
#[derive(Debug)]
pub enum AttendantStdio {
    /// Ours.
    Inherited,
    /// The slave of a terminal.
    Terminal(OwnedFd),
}

/// Why there is no process to attend to.
#[derive(Debug, thiserror::Error)]
pub enum AttendantError {
    /// A step on the host failed.
    #[error("cannot {doing}")]
    Step {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It could not be put into the container's cgroup.
    #[error("opening the container's cgroup for its attendant")]
    Cgroup(#[from] CgroupError),
    /// The attendant ended without an answer.
    #[error("the attendant ended before it had made the process")]
    Silent,
    /// The process could not be made.
    #[error("{message}")]
    Failed {
        /// Why.
        message: String,
        /// The exit code a shell has for it, where the command itself is at fault.
        command_failure: Option<u8>,
    },
}

impl Attendant {
    /// Starts an attendant, and waits until it has made its process.
    ///
    /// # Errors
    /// When it cannot be started, or the process not be made; nothing is left of either.
    pub fn spawn(
        plan: &AttendantPlan,
        stdio: AttendantStdio,
        cgroup: &PodCgroup,
    ) -> Result<Self, AttendantError> {
        let (maker, theirs) = UnixStream::pair().map_err(step("make a socket for the attendant"))?;
        let (mut child, identity) = execute(&theirs, stdio, cgroup)?;
        drop(theirs);
        match ask(&maker, plan) {
            Ok((guest_pid, warnings)) => Ok(Self {
                child,
                maker,
                identity,
                guest_pid,
                warnings,
            }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// Which process it is.
    pub fn identity(&self) -> ProcessIdentity {
        self.identity
    }

    /// The number of its process in the guest.
    pub fn guest_pid(&self) -> u32 {
        self.guest_pid
    }

    /// What was not as asked of its process and is no error.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Has it keep its process, whatever becomes of us.
    ///
    /// # Errors
    /// When it has ended.
    pub fn go_on(mut self) -> Result<(), AttendantError> {
        let told = (&self.maker).write_all(GO_ON);
        if told.is_err() {
            end(&mut self.child);
        }
        told.map_err(step("have the attendant go on"))
    }
}

fn execute(
    theirs: &UnixStream,
    stdio: AttendantStdio,
    cgroup: &PodCgroup,
) -> Result<(Child, ProcessIdentity), AttendantError> {
    let inheritable = theirs.as_raw_fd();
    // What our caller has open for itself is not the attendant's.
    container::close_on_exec_all_but_stdio_and(&mut [])
        .map_err(step("keep our descriptors from the attendant"))?;
    fcntl_setfd(theirs, FdFlags::empty()).map_err(step("hand the attendant its socket"))?;
    let own = container::own_program_path().map_err(step("find this program"))?;
    let mut command = Command::new(own);
    cgroup.take_in(&mut command)?;
    command.arg(WORD).arg(inheritable.to_string());
    if let AttendantStdio::Terminal(slave) = stdio {
        let copy = |end: &OwnedFd| end.try_clone().map_err(step("duplicate the terminal"));
        command.stdin(copy(&slave)?).stdout(copy(&slave)?).stderr(slave);
    }
    let mut child = command.spawn().map_err(step("execute the attendant"))?;
    match ProcessIdentity::of(child.id().cast_signed()) {
        Ok(identity) => Ok((child, identity)),
        Err(errno) => {
            end(&mut child);
            Err(step("find the attendant in /proc")(errno))
        }
    }
}

fn ask(mut maker: &UnixStream, plan: &AttendantPlan) -> Result<(u32, Vec<String>), AttendantError> {
    const TALK: &str = "talk to the attendant";
    let mut line = serde_json::to_vec(plan).map_err(|error| step(TALK)(io::Error::from(error)))?;
    line.push(b'\n');
    maker.write_all(&line).map_err(step(TALK))?;
    maker.set_read_timeout(Some(PATIENCE)).map_err(step(TALK))?;
    let mut answer = Vec::new();
    BufReader::new(maker)
        .take(LONGEST_ANSWER)
        .read_until(b'\n', &mut answer)
        .map_err(step(TALK))?;
    if answer.is_empty() {
        return Err(AttendantError::Silent);
    }
    match serde_json::from_slice(&answer).map_err(|error| step(TALK)(io::Error::from(error)))? {
        Answer::Made { guest_pid, warnings } => Ok((guest_pid, warnings)),
        Answer::Failed {
            message,
            command_failure,
        } => Err(AttendantError::Failed {
            message,
            command_failure,
        }),
    }
}

/// Ends an attendant that is not to be. It may have ended by itself.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn step<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> AttendantError {
    move |source| AttendantError::Step {
        doing,
        source: source.into(),
    }
}

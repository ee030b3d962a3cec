//! A process of a container, and what the agent holds for it.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use container::Signal;
use rustix::process::Pid;
use tokio::sync::watch;

use super::out_of_memory::OutOfMemoryKills;
use crate::connection_end::end_of;
use crate::exit_status::{Exit, ExitReceiver};
use crate::stdio::Draining;

/// The end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) exit: Exit,
    /// Of its container's processes, until then.
    pub(super) out_of_memory_kills: u64,
}

/// Becomes `Some` once the process has ended and all of its output is on its way. Its sender goes without that when the
/// process never ran.
pub(super) type EndReceiver = watch::Receiver<Option<End>>;

/// Tells of the end.
pub(super) type EndSender = watch::Sender<Option<End>>;

/// A process that runs, or did.
pub(super) struct KeptProcess {
    pub(super) pid: Pid,
    /// Of the process alone: its output may still be on its way.
    pub(super) exit: ExitReceiver,
    /// The terminal's master, for resizing.
    pub(super) terminal: Option<OwnedFd>,
}

impl KeptProcess {
    /// Whether it has been reaped.
    pub(super) fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// The number, as calls carry it.
    pub(super) fn number(&self) -> u32 {
        self.pid.as_raw_pid().unsigned_abs()
    }

    /// Sends it a signal; false when it has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<bool> {
        signal_process(self.pid, &self.exit, signal)
    }
}

/// Sends a signal to the process `pid` alone, whose exit is `exit`; false when it has ended.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn signal_process(pid: Pid, exit: &ExitReceiver, signal: Signal) -> io::Result<bool> {
    if exit.borrow().is_some() {
        return Ok(false);
    }
    // SAFETY: a system call that takes two numbers. The pid names one process, and still that one: only the event loop
    // reaps, and that does not run meanwhile.
    match unsafe { libc::kill(pid.as_raw_pid(), signal.number()) } {
        0 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What has to be seen to from a process's start to its end.
pub(super) struct Follower<L> {
    /// As errors name it.
    pub(super) process: String,
    pub(super) exit: ExitReceiver,
    pub(super) outputs: Vec<Draining>,
    pub(super) out_of_memory_kills: OutOfMemoryKills,
    /// Where there is one, the process lives only as long as the host's end of it.
    pub(super) leash: Option<L>,
    pub(super) end: EndSender,
}

impl<L: AsFd> Follower<L> {
    /// Follows the process to its end and tells of it. If the leash goes before that, the process is ended with `kill`,
    /// which is called while it has not been reaped, and the result is true: nobody on the host waits for it.
    pub(super) async fn follow<E: Display>(mut self, kill: impl FnOnce() -> Result<(), E>) -> bool {
        let mut is_abandoned = false;
        if let Some(leash) = self.leash.take() {
            tokio::select! {
                biased;
                _ = self.exit.wait_for(Option::is_some) => {}
                () = gone(&leash, &self.process) => {
                    is_abandoned = true;
                    if let Err(error) = kill() {
                        eprintln!("bulkhead-agent: ending {}, which nobody waits for: {error}", self.process);
                    }
                }
            }
        }
        let exit = match self.exit.wait_for(Option::is_some).await {
            Ok(exit) => *exit,
            Err(_) => None,
        };
        // The watch goes only with what it has told.
        let Some(exit) = exit else { return is_abandoned };
        // Before the end is told, and before the draining, during which the cgroup may be removed.
        let out_of_memory_kills = self.out_of_memory_kills.count();
        for output in self.outputs {
            output.finish().await;
        }
        // Nobody may ask any more.
        self.end.send_replace(Some(End {
            exit,
            out_of_memory_kills,
        }));
        is_abandoned
    }
}

/// Waits until the host's end of a leash has gone. One that cannot be watched holds nothing.
async fn gone(leash: &impl AsFd, process: &str) {
    if let Err(error) = end_of(leash).await {
        eprintln!("bulkhead-agent: watching the leash of {process}: {error}");
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, SystemTime};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    const EXIT: Exit = Exit {
        status: 3,
        at: SystemTime::UNIX_EPOCH,
    };

    fn not_killed() -> io::Result<()> {
        panic!("killed")
    }

    struct Setup {
        exit: watch::Sender<Option<Exit>>,
        end: EndReceiver,
        host: UnixStream,
        follower: Follower<UnixStream>,
    }

    fn setup() -> Setup {
        let (agent, host) = UnixStream::pair().unwrap();
        let (exit, exits) = watch::channel(None);
        let (end, ends) = watch::channel(None);
        let follower = Follower {
            process: "process p of container c".to_owned(),
            exit: exits,
            outputs: Vec::new(),
            out_of_memory_kills: OutOfMemoryKills::default(),
            leash: Some(agent),
            end,
        };
        Setup {
            exit,
            end: ends,
            host,
            follower,
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_process_whose_leash_goes_is_killed() {
        let mut setup = setup();
        let killed = Cell::new(false);
        (&setup.host)
            .write_all(b"what a leash carries is of no matter")
            .unwrap();

        let followed = setup.follower.follow(|| {
            killed.set(true);
            setup.exit.send_replace(Some(EXIT));
            Ok::<_, io::Error>(())
        });
        let (is_abandoned, ()) = tokio::join!(followed, async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!killed.get(), "killed while the host was there");
            drop(setup.host);
        });

        assert!(killed.get() && is_abandoned);
        assert_eq!(setup.end.borrow_and_update().unwrap().exit, EXIT);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_process_that_has_ended_is_not_killed() {
        let setup = setup();
        setup.exit.send_replace(Some(EXIT));
        drop(setup.host);

        let is_abandoned = setup.follower.follow(not_killed).await;

        assert!(!is_abandoned);
        assert_eq!(setup.end.borrow().unwrap().exit, EXIT);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_end_is_told_when_the_output_is_drained() {
        let mut setup = setup();
        let (mut process, output) = tokio::io::duplex(8);
        // The host takes a byte at a time, and none yet.
        let (agent, mut host) = tokio::io::duplex(1);
        setup.follower.outputs.push(Draining::begin(output, agent));
        process.write_all(b"last").await.unwrap();
        setup.exit.send_replace(Some(EXIT));

        let followed = tokio::spawn(setup.follower.follow(not_killed));
        let early = timeout(Duration::from_millis(300), setup.end.changed()).await;
        assert!(early.is_err(), "told before the output was drained");

        let mut received = Vec::new();
        host.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"last");
        setup.end.wait_for(Option::is_some).await.unwrap();
        assert!(!followed.await.unwrap());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_output_that_somebody_else_has_open_does_not_hold_up_the_end() {
        let mut setup = setup();
        let (mut somebody, output) = tokio::io::duplex(8);
        let (agent, mut host) = tokio::io::duplex(64);
        setup.follower.outputs.push(Draining::begin(output, agent));
        somebody.write_all(b"said").await.unwrap();
        setup.exit.send_replace(Some(EXIT));

        let followed = setup.follower.follow(not_killed);
        assert!(!timeout(Duration::from_secs(10), followed).await.unwrap());
        let mut received = Vec::new();
        host.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"said");
        assert!(somebody.write_all(b"too late").await.is_err());
    }
}

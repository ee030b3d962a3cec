//! Reaping: every process of the guest whose parent has gone ends here, and those of containers are remembered.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// As a shell counts it: the exit code, or 128 plus the signal.
    pub(crate) status: u32,
    /// When it was reaped.
    pub(crate) at: SystemTime,
}

/// Becomes `Some` once the process has ended.
pub(crate) type ExitReceiver = watch::Receiver<Option<Exit>>;

/// The processes whose end somebody waits for, by their numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExitStatuses(Arc<Mutex<BTreeMap<i32, watch::Sender<Option<Exit>>>>>);

impl ExitStatuses {
    /// Watches a child. Call it before the event loop runs again after the child was made: only the loop reaps, so no
    /// exit can be missed.
    pub(crate) fn watch(&self, pid: Pid) -> ExitReceiver {
        let (sender, receiver) = watch::channel(None);
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid.as_raw_pid(), sender);
        receiver
    }

    /// Reaps for as long as the guest lives.
    ///
    /// # Errors
    /// When SIGCHLD cannot be received.
    pub(crate) async fn reap(self) -> io::Result<std::convert::Infallible> {
        let mut children = signal(SignalKind::child())?;
        loop {
            self.reap_ended();
            if children.recv().await.is_none() {
                return Err(io::Error::other("the signal stream has ended"));
            }
        }
    }

    fn reap_ended(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(status) = shell_status(status) else {
                continue;
            };
            let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let watcher = watchers.remove(&pid.as_raw_pid());
            drop(watchers);
            if let Some(watcher) = watcher {
                // Nobody listens any more once the container has been deleted.
                watcher.send_replace(Some(Exit {
                    status,
                    at: SystemTime::now(),
                }));
            }
        }
    }
}

/// The status as a shell counts it; `None` while the process lives.
fn shell_status(status: WaitStatus) -> Option<u32> {
    let code = status.exit_status();
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    code.or(signal).and_then(|status| u32::try_from(status).ok())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::waitpid;

    use super::*;

    #[allow(
        clippy::zombie_processes,
        reason = "waited for by its number, as the reaper does"
    )]
    fn status_of(script: &str) -> Option<u32> {
        let child = Command::new("sh").args(["-c", script]).spawn().unwrap();
        let (_, status) = waitpid(Some(Pid::from_child(&child)), WaitOptions::empty())
            .unwrap()
            .unwrap();
        shell_status(status)
    }

    #[test]
    fn an_exit_code_is_itself() {
        assert_eq!(status_of("exit 3"), Some(3));
    }

    #[test]
    fn a_signal_counts_from_128() {
        assert_eq!(status_of("kill -9 $$"), Some(137));
    }
}

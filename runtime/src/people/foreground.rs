//! Standing before a running container: signals and window sizes go in, the exit comes out.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use crate::forwarded_signals::ForwardedSignals;
use crate::sandbox::{ExitStatus, Sandbox};
use crate::terminal;

/// The signals that are the container's to handle.
pub(crate) const FORWARDED: [i32; 6] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// The interrupt after which patience ends: a container's init that installed no handler ignores the signal for good
/// (pid_namespaces(7)).
const LAST_INTERRUPT: u32 = 3;

/// How long a container that was killed may take to end, in a guest whose kernel is emulated on a busy host. The
/// sandbox around one that takes longer is ended from outside.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// How long the exit of a container that refused a signal may take to be told.
const EXIT_UNDER_WAY: Duration = Duration::from_secs(2);

/// Waits for the container, forwarding what comes for it.
///
/// # Errors
/// When waiting fails; a signal that cannot be forwarded is reported and no reason to stop.
pub(crate) async fn wait(
    sandbox: &dyn Sandbox,
    id: &str,
    signals: &mut ForwardedSignals,
    has_terminal: bool,
) -> anyhow::Result<ExitStatus> {
    let mut window = signal(SignalKind::window_change()).context("watching the window's size")?;
    if has_terminal {
        follow_size(sandbox, id).await;
    }
    let exit = sandbox.wait(id);
    tokio::pin!(exit);
    let mut interrupts = 0;
    loop {
        tokio::select! {
            status = &mut exit => return Ok(status?),
            number = signals.next() => {
                interrupts += u32::from(number == libc::SIGINT || number == libc::SIGTERM);
                if interrupts >= LAST_INTERRUPT {
                    let end = async {
                        // One that has just ended cannot be killed; whether it has is told by its exit.
                        let _ = sandbox.kill(id, libc::SIGKILL).await;
                        (&mut exit).await
                    };
                    return match timeout(KILL_PATIENCE, end).await {
                        Ok(status) => Ok(status?),
                        Err(_) => bail!("container {id} did not end within {} s of being killed", KILL_PATIENCE.as_secs()),
                    };
                }
                if let Err(error) = sandbox.kill(id, number).await {
                    // A container that has just ended takes no signals; that is told by its exit.
                    match timeout(EXIT_UNDER_WAY, &mut exit).await {
                        Ok(status) => return Ok(status?),
                        Err(_) => eprintln!("bulkhead: {:#}", anyhow::Error::new(error)),
                    }
                }
            }
            Some(()) = next(&mut window), if has_terminal => follow_size(sandbox, id).await,
        }
    }
}

async fn next(signal: &mut Signal) -> Option<()> {
    signal.recv().await
}

/// Gives the container's terminal the size of ours.
async fn follow_size(sandbox: &dyn Sandbox, id: &str) {
    let Some(size) = terminal::size(io::stdout().as_fd()) else {
        return;
    };
    if let Err(error) = sandbox.resize_terminal(id, size.columns, size.rows).await {
        eprintln!("bulkhead: {:#}\r", anyhow::Error::new(error));
    }
}

//! The agent's connection to the host for what the host has not asked.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use protocol::PROTOCOL_VERSION;
use protocol::event::{self, Event, EventError, Fatal, Ready};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

/// The kernel gives each attempt two seconds, which a busy host that emulates the guest's kernel may need.
const MOST_ATTEMPTS: u32 = 10;

/// How long to wait before a host that did not take the lost connection back is tried again.
const RECONNECT_STEP: Duration = Duration::from_secs(1);

/// Why the host could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("connecting to vsock port {port} of the host")]
pub(crate) struct ConnectError {
    port: u32,
    #[source]
    source: io::Error,
}

/// Why a lost connection could not be replaced.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    /// There is no other.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The other fails as well.
    #[error("announcing readiness")]
    Announce(#[from] EventError),
}

/// Kept open for the life of the agent.
pub(crate) struct EventConnection(VsockStream);

impl EventConnection {
    /// Connects to the host.
    ///
    /// # Errors
    /// When there is no vsock device or nobody listens.
    pub(crate) async fn open() -> Result<Self, ConnectError> {
        let port = protocol::ports::EVENT;
        let mut attempts = 1;
        loop {
            match VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await {
                Ok(connection) => return Ok(Self(connection)),
                Err(error) if error.kind() == io::ErrorKind::TimedOut && attempts < MOST_ATTEMPTS => {
                    attempts += 1
                }
                Err(source) => return Err(ConnectError { port, source }),
            }
        }
    }

    /// Tells the host that every port is served.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn ready(&mut self) -> Result<(), EventError> {
        let ready = Ready {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Ready::default()
        };
        event::send(&mut self.0, Event::Ready(ready)).await
    }

    /// Waits until the connection is lost, which happens to every connection of a machine that is cloned, and makes
    /// another. The host, which need not be the one from before, is told again that every port is served.
    ///
    /// # Errors
    /// When the connection cannot be watched.
    pub(crate) async fn keep(&mut self) -> io::Result<Infallible> {
        loop {
            self.lost().await?;
            while let Err(error) = self.renew().await {
                eprintln!(
                    "bulkhead-agent: telling the host anew: {:#}",
                    anyhow::Error::new(error)
                );
                tokio::time::sleep(RECONNECT_STEP).await;
            }
        }
    }

    /// The machine's new life is no end of the stream but an error of the socket, which wakes only those who ask for
    /// errors; the stream's own reading does not.
    async fn lost(&self) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::ERROR;
        // SAFETY: the descriptor is owned by the registration and so open for as long as it lasts.
        let socket =
            unsafe { AsyncFd::register_with_interest(self.0.as_fd().try_clone_to_owned()?, interest) }?;
        loop {
            let mut ready = socket.ready(interest).await?;
            // The host has nothing to say here.
            match recv(&socket, &mut [0; 64], RecvFlags::DONTWAIT) {
                Ok((1.., _)) => {}
                Err(Errno::WOULDBLOCK) => ready.clear_ready(),
                _ => return Ok(()),
            }
        }
    }

    async fn renew(&mut self) -> Result<(), RenewError> {
        *self = Self::open().await?;
        Ok(self.ready().await?)
    }

    /// Tells the host why the agent cannot go on.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn fatal(&mut self, message: String) -> Result<(), EventError> {
        event::send(
            &mut self.0,
            Event::Fatal(Fatal {
                message,
                ..Fatal::default()
            }),
        )
        .await
    }
}

//! The agent's connection to the host for what the host has not asked.

use std::convert::Infallible;
use std::future;
use std::io;
use std::time::Duration;

use protocol::PROTOCOL_VERSION;
use protocol::event::{self, Event, EventError, Fatal, Ready};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use crate::connection_end::{ConnectionEnd, end_of};

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

/// Why the host could not be told something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TellError {
    /// There is no connection to it.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection fails.
    #[error(transparent)]
    Send(#[from] EventError),
}

/// Kept for as long as the host listens; none once it has closed its end.
pub(crate) struct EventConnection(Option<VsockStream>);

impl EventConnection {
    /// Connects to the host.
    ///
    /// # Errors
    /// When there is no vsock device or nobody listens.
    pub(crate) async fn open() -> Result<Self, ConnectError> {
        Ok(Self(Some(connect(MOST_ATTEMPTS).await?)))
    }

    /// Tells the host that every port is served.
    ///
    /// # Errors
    /// When the connection fails.
    pub(crate) async fn ready(&mut self) -> Result<(), TellError> {
        let ready = Ready {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Ready::default()
        };
        self.tell(Event::Ready(ready)).await
    }

    /// Waits until the connection is lost, which happens to every connection of a machine that is cloned, and makes
    /// another. The host, which need not be the one from before, is told again that every port is served.
    ///
    /// A host that closes the connection wants to hear no more, and is left alone.
    ///
    /// # Errors
    /// When the connection cannot be watched.
    pub(crate) async fn keep(&mut self) -> io::Result<Infallible> {
        while let Some(connection) = &self.0 {
            match end_of(connection).await? {
                ConnectionEnd::Closed => self.0 = None,
                ConnectionEnd::Lost => {
                    while let Err(error) = self.renew().await {
                        eprintln!(
                            "bulkhead-agent: telling the host anew: {:#}",
                            anyhow::Error::new(error)
                        );
                        tokio::time::sleep(RECONNECT_STEP).await;
                    }
                }
            }
        }
        future::pending().await
    }

    async fn renew(&mut self) -> Result<(), TellError> {
        *self = Self::open().await?;
        self.ready().await
    }

    /// Tells the host why the agent cannot go on, on another connection if this one has ended.
    ///
    /// # Errors
    /// When nobody listens any more.
    pub(crate) async fn fatal(&mut self, message: String) -> Result<(), TellError> {
        let fatal = Event::Fatal(Fatal {
            message,
            ..Fatal::default()
        });
        if self.0.is_some() && self.tell(fatal.clone()).await.is_ok() {
            return Ok(());
        }
        self.0 = Some(connect(1).await?);
        self.tell(fatal).await
    }

    async fn tell(&mut self, event: Event) -> Result<(), TellError> {
        match &mut self.0 {
            Some(connection) => Ok(event::send(connection, event).await?),
            None => Err(EventError::Io(io::ErrorKind::NotConnected.into()).into()),
        }
    }
}

/// Connects to the host; an attempt that the host did not answer in time is made again, up to `most_attempts`.
async fn connect(most_attempts: u32) -> Result<VsockStream, ConnectError> {
    let port = protocol::ports::EVENT;
    let mut attempts = 1;
    loop {
        match VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port)).await {
            Ok(connection) => return Ok(connection),
            Err(error) if error.kind() == io::ErrorKind::TimedOut && attempts < most_attempts => {
                attempts += 1
            }
            Err(source) => return Err(ConnectError { port, source }),
        }
    }
}

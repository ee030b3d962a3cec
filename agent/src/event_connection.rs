//! The agent's connection to the host for what the host has not asked.

use std::io;

use protocol::PROTOCOL_VERSION;
use protocol::event::{self, Event, EventError, Fatal, Ready};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

/// The kernel gives each attempt two seconds, which a busy host that emulates the guest's kernel may need.
const MOST_ATTEMPTS: u32 = 10;

/// Why the host could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("connecting to vsock port {port} of the host")]
pub(crate) struct ConnectError {
    port: u32,
    #[source]
    source: io::Error,
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

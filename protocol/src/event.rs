//! The agent's events: protobuf messages, each behind its length as a big-endian `u32`.

use std::io;

use protobuf::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use crate::generated::event::agent_event::Event;
pub use crate::generated::event::{AgentEvent, Fatal, Ready};

/// The longest event either side accepts, in bytes.
pub const LONGEST_EVENT: u32 = 64 * 1024;

/// Why an event could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The event is longer than [`LONGEST_EVENT`].
    #[error("an event of {0} bytes is longer than the {LONGEST_EVENT} allowed")]
    TooLong(u64),
    /// The bytes are no event.
    #[error("decoding an event")]
    Decode(#[source] protobuf::Error),
    /// The event cannot be encoded.
    #[error("encoding an event")]
    Encode(#[source] protobuf::Error),
    /// The connection failed.
    #[error("exchanging an event")]
    Io(#[from] io::Error),
}

/// Sends one event.
///
/// # Errors
/// When the event is too long or the connection fails.
pub async fn send<W: AsyncWrite + Unpin>(connection: &mut W, event: Event) -> Result<(), EventError> {
    let event = AgentEvent {
        event: Some(event),
        ..AgentEvent::default()
    };
    let body = event.write_to_bytes().map_err(EventError::Encode)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length <= LONGEST_EVENT)
        .ok_or(EventError::TooLong(body.len() as u64))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    connection.write_all(&frame).await?;
    connection.flush().await?;
    Ok(())
}

/// Receives one event; `None` when the other side has closed the connection between two events, or has sent an event
/// of a kind this version does not know.
///
/// # Errors
/// When the event is too long, is no event, or the connection fails.
pub async fn receive<R: AsyncRead + Unpin>(connection: &mut R) -> Result<Option<Event>, EventError> {
    let length = match connection.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if length > LONGEST_EVENT {
        return Err(EventError::TooLong(length.into()));
    }
    let mut body = vec![0; length as usize];
    connection.read_exact(&mut body).await?;
    let event = AgentEvent::parse_from_bytes(&body).map_err(EventError::Decode)?;
    Ok(event.event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PROTOCOL_VERSION;

    #[tokio::test(flavor = "current_thread")]
    async fn an_event_arrives_as_it_was_sent() {
        let (mut agent, mut host) = tokio::io::duplex(1024);
        let ready = Ready {
            protocol_version: PROTOCOL_VERSION,
            ..Ready::default()
        };

        send(&mut agent, Event::Ready(ready.clone())).await.unwrap();

        assert_eq!(receive(&mut host).await.unwrap(), Some(Event::Ready(ready)));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_closed_connection_is_no_event() {
        let (agent, mut host) = tokio::io::duplex(1024);
        drop(agent);

        assert_eq!(receive(&mut host).await.unwrap(), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_length_beyond_the_limit_is_refused_before_it_is_allocated() {
        let (mut agent, mut host) = tokio::io::duplex(1024);
        agent.write_u32(u32::MAX).await.unwrap();

        assert!(matches!(receive(&mut host).await, Err(EventError::TooLong(_))));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_message_cut_short_is_an_error() {
        let (mut agent, mut host) = tokio::io::duplex(1024);
        agent.write_u32(100).await.unwrap();
        agent.write_all(b"short").await.unwrap();
        drop(agent);

        assert!(matches!(receive(&mut host).await, Err(EventError::Io(_))));
    }
}

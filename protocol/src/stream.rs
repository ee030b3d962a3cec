//! Standard streams: one raw connection per descriptor.
//!
//! The host connects to [`crate::ports::STREAM`] and names the stream; the agent answers with one byte. From then on
//! every byte belongs to the stream, and each side closes its half when it has no more to send. A later
//! `CreateRequest` or `ExecRequest` claims the stream by its id, once.

use std::fmt;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest stream id, in bytes.
pub const LONGEST_STREAM_ID: usize = 128;

/// The agent's answer when it has taken the stream.
const ACCEPTED: u8 = 0;
/// The agent's answer when it has not.
const REFUSED: u8 = 1;

/// The name of a stream: letters, digits, `-`, `_`, `.` and `/`, at most [`LONGEST_STREAM_ID`] of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(String);

impl StreamId {
    /// Checks a name.
    ///
    /// # Errors
    /// When the name is empty, too long, or has another character.
    pub fn new(name: impl Into<String>) -> Result<Self, StreamError> {
        let name = name.into();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
        if name.is_empty() || name.len() > LONGEST_STREAM_ID || !name.bytes().all(allowed) {
            return Err(StreamError::Id(
                name.escape_default().take(2 * LONGEST_STREAM_ID).collect(),
            ));
        }
        Ok(Self(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The name is not one.
    #[error("{0:?} is no stream id")]
    Id(String),
    /// The agent has refused the stream.
    #[error("the agent refused stream {0}")]
    Refused(StreamId),
    /// The connection failed.
    #[error("opening a stream")]
    Io(#[from] io::Error),
}

/// Names a fresh connection and waits for the agent's answer; the host's side.
///
/// # Errors
/// When the agent refuses the stream or the connection fails.
pub async fn open<C: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut C,
    id: &StreamId,
) -> Result<(), StreamError> {
    let mut header = (id.as_str().len() as u32).to_be_bytes().to_vec();
    header.extend_from_slice(id.as_str().as_bytes());
    connection.write_all(&header).await?;
    connection.flush().await?;
    match connection.read_u8().await? {
        ACCEPTED => Ok(()),
        _ => Err(StreamError::Refused(id.clone())),
    }
}

/// Reads the name of a fresh connection; the agent's side, followed by [`answer`].
///
/// # Errors
/// When what comes is no stream id or the connection fails.
pub async fn accept<C: AsyncRead + Unpin>(connection: &mut C) -> Result<StreamId, StreamError> {
    let length = connection.read_u32().await? as usize;
    if length > LONGEST_STREAM_ID {
        return Err(StreamError::Id(format!("<{length} bytes>")));
    }
    let mut name = vec![0; length];
    connection.read_exact(&mut name).await?;
    StreamId::new(String::from_utf8_lossy(&name))
}

/// Tells the host whether the stream it has named is taken.
///
/// # Errors
/// When the connection fails.
pub async fn answer<C: AsyncWrite + Unpin>(connection: &mut C, accepted: bool) -> Result<(), StreamError> {
    connection
        .write_u8(if accepted { ACCEPTED } else { REFUSED })
        .await?;
    connection.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn both_sides_agree_on_the_name_and_the_stream_is_raw_afterwards() {
        let (mut host, mut agent) = tokio::io::duplex(1024);
        let id = StreamId::new("web/stdout").unwrap();

        let (opened, accepted) = tokio::join!(open(&mut host, &id), async {
            let id = accept(&mut agent).await.unwrap();
            answer(&mut agent, true).await.unwrap();
            agent.write_all(b"raw").await.unwrap();
            id
        });

        opened.unwrap();
        assert_eq!(accepted, id);
        let mut raw = [0; 3];
        host.read_exact(&mut raw).await.unwrap();
        assert_eq!(&raw, b"raw");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_refusal_names_the_stream() {
        let (mut host, mut agent) = tokio::io::duplex(1024);
        let id = StreamId::new("web/stdout").unwrap();

        let (opened, ()) = tokio::join!(open(&mut host, &id), async {
            accept(&mut agent).await.unwrap();
            answer(&mut agent, false).await.unwrap();
        });

        assert_eq!(
            opened.unwrap_err().to_string(),
            "the agent refused stream web/stdout"
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_name_beyond_the_limit_is_refused_before_it_is_allocated() {
        let (mut host, mut agent) = tokio::io::duplex(1024);
        host.write_u32(u32::MAX).await.unwrap();

        assert!(matches!(accept(&mut agent).await, Err(StreamError::Id(_))));
    }

    #[test]
    fn names_with_other_characters_are_refused() {
        for name in ["", "a b", "a\0b", "ä", &"x".repeat(LONGEST_STREAM_ID + 1)] {
            assert!(StreamId::new(name).is_err(), "{name:?} was accepted");
        }
    }
}

//! Reaching the agent through the machine's vsock socket.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::stream::{self, StreamError, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::unix_path::UnixPath;

/// The guest answers a connection from its kernel, so a later answer means a broken guest.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);

/// `OK <host_port>\n` with the largest port.
const LONGEST_ANSWER: usize = 16;

/// Why a connection into the guest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The VMM's socket cannot be reached.
    #[error("connecting to {}", .socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The guest refuses the port, or the machine is gone.
    #[error("the guest refused vsock port {port}")]
    Refused {
        /// The port.
        port: u32,
    },
    /// The guest does not answer.
    #[error("the guest did not accept vsock port {port} within {} s", CONNECT_DEADLINE.as_secs())]
    Deadline {
        /// The port.
        port: u32,
    },
    /// The VMM's answer is none.
    #[error("{answer:?} is no answer to a connection request")]
    Answer {
        /// What came.
        answer: String,
    },
    /// The agent does not take the stream.
    #[error("naming the stream")]
    Stream(#[from] StreamError),
    /// The connection cannot leave the event loop.
    #[error("taking the stream off the event loop")]
    Detach(#[source] io::Error),
}

/// Connects to a port of the guest, as Firecracker's and Cloud Hypervisor's sockets take it: `CONNECT <port>` is
/// answered by `OK <host_port>`, and the guest's bytes follow.
///
/// # Errors
/// When the machine is gone, or the guest refuses or does not answer.
pub async fn connect(socket: &Path, port: u32) -> Result<UnixStream, ConnectError> {
    timeout(CONNECT_DEADLINE, handshake(socket, port))
        .await
        .map_err(|_| ConnectError::Deadline { port })?
}

async fn handshake(socket: &Path, port: u32) -> Result<UnixStream, ConnectError> {
    let failed = |source| ConnectError::Socket {
        socket: socket.to_owned(),
        source,
    };
    let path = UnixPath::to(socket).map_err(failed)?;
    let mut connection = UnixStream::connect(path.reach()).await.map_err(failed)?;
    connection
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await
        .map_err(failed)?;
    let mut answer = Vec::with_capacity(LONGEST_ANSWER);
    loop {
        // One byte at a time: what follows the line is the guest's.
        match connection.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) => answer.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(ConnectError::Refused { port });
            }
            Err(error) => return Err(failed(error)),
        }
        if answer.len() > LONGEST_ANSWER {
            break;
        }
    }
    if !answer.starts_with(b"OK ") {
        return Err(ConnectError::Answer {
            answer: String::from_utf8_lossy(&answer).into_owned(),
        });
    }
    Ok(connection)
}

/// Opens a standard stream, as a descriptor for blocking use.
///
/// # Errors
/// When the guest cannot be reached or the agent refuses the stream.
pub async fn open_stream(socket: &Path, id: &StreamId) -> Result<OwnedFd, ConnectError> {
    let port = protocol::ports::STREAM;
    let mut connection = connect(socket, port).await?;
    timeout(CONNECT_DEADLINE, stream::open(&mut connection, id))
        .await
        .map_err(|_| ConnectError::Deadline { port })??;
    let connection = connection.into_std().map_err(ConnectError::Detach)?;
    connection.set_nonblocking(false).map_err(ConnectError::Detach)?;
    Ok(connection.into())
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    async fn against(answer: &'static [u8]) -> Result<UnixStream, ConnectError> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 13];
            connection.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"CONNECT 1024\n");
            connection.write_all(answer).await.unwrap();
        };
        tokio::join!(connect(&socket, 1024), server).0
    }

    #[tokio::test(flavor = "current_thread")]
    async fn bytes_behind_the_answer_are_the_guests() {
        let mut connection = against(b"OK 1073741824\nhello").await.unwrap();
        let mut bytes = [0; 5];
        connection.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_closed_connection_is_a_refusal() {
        assert!(matches!(
            against(b"").await,
            Err(ConnectError::Refused { port: 1024 })
        ));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_endless_answer_is_cut_off() {
        assert!(matches!(
            against(&[b'x'; 4096]).await,
            Err(ConnectError::Answer { .. })
        ));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_missing_socket_is_named() {
        let error = connect(Path::new("/nonexistent/vsock"), 1024).await.unwrap_err();
        assert!(error.to_string().contains("/nonexistent/vsock"), "{error}");
    }
}

//! Asking a machine's process for what its guest has no part in.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;
use vmm::control::{Request, Response};

use super::unix_path::UnixPath;

/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: u64 = 1 << 20;

/// Why the machine's process did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be reached, or has gone.
    #[error("talking to the VMM at {}", .socket.display())]
    Socket {
        /// Its control socket.
        socket: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Its answer is none.
    #[error("understanding the VMM's answer")]
    Answer(#[from] serde_json::Error),
    /// It refused.
    #[error("the VMM refused: {message}")]
    Refused {
        /// Its own words.
        message: String,
    },
    /// It does not answer.
    #[error("the VMM did not answer within {} s", .deadline.as_secs_f32())]
    Deadline {
        /// The time it had.
        deadline: Duration,
    },
}

/// Sends a request and waits for its answer, for `deadline` at most.
///
/// # Errors
/// When the VMM cannot be reached, refuses or does not answer.
pub async fn ask(socket: &Path, request: &Request, deadline: Duration) -> Result<Response, ControlError> {
    ask_with(socket, request, None, deadline).await
}

/// The same for a request that goes with a descriptor.
///
/// # Errors
/// As for [`ask`].
pub async fn ask_with(
    socket: &Path,
    request: &Request,
    descriptor: Option<BorrowedFd<'_>>,
    deadline: Duration,
) -> Result<Response, ControlError> {
    match timeout(deadline, exchange(socket, request, descriptor)).await {
        Ok(Ok(Response::Error { message })) => Err(ControlError::Refused { message }),
        Ok(answer) => answer,
        Err(_) => Err(ControlError::Deadline { deadline }),
    }
}

async fn exchange(
    socket: &Path,
    request: &Request,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<Response, ControlError> {
    let failed = |source| ControlError::Socket {
        socket: socket.to_owned(),
        source,
    };
    let path = UnixPath::to(socket).map_err(failed)?;
    let mut connection = UnixStream::connect(path.reach()).await.map_err(failed)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let sent = match descriptor {
        Some(descriptor) => send_with(&connection, &line, descriptor).await.map_err(failed)?,
        None => 0,
    };
    let rest = line.get(sent..).unwrap_or_default();
    connection.write_all(rest).await.map_err(failed)?;
    let mut answer = Vec::new();
    BufReader::new(connection)
        .take(LONGEST_ANSWER)
        .read_until(b'\n', &mut answer)
        .await
        .map_err(failed)?;
    if answer.is_empty() {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// Sends the beginning of `line` with a descriptor (`SCM_RIGHTS` of unix(7)), and says how much of it that was.
async fn send_with(connection: &UnixStream, line: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let send = || {
        let descriptors = [descriptor];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let parts = [IoSlice::new(line)];
        Ok(sendmsg(connection, &parts, &mut ancillary, SendFlags::NOSIGNAL)?)
    };
    connection.async_io(Interest::WRITABLE, send).await
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    async fn answered(answer: &'static [u8]) -> Result<Response, ControlError> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = async {
            let (connection, _) = listener.accept().await.unwrap();
            let mut connection = BufReader::new(connection);
            let mut request = String::new();
            connection.read_line(&mut request).await.unwrap();
            assert_eq!(request, "{\"request\":\"stop\"}\n");
            connection.write_all(answer).await.unwrap();
            // Kept until the deadline where nothing was answered.
            if answer.is_empty() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let deadline = Duration::from_millis(200);
        tokio::join!(ask(&socket, &Request::Stop, deadline), server).0
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_answer_is_handed_on_and_a_refusal_is_an_error() {
        let answer = answered(b"{\"response\":\"stopping\"}\n").await.unwrap();
        assert_eq!(answer, Response::Stopping);
        let refusal = answered(b"{\"response\":\"error\",\"message\":\"not now\"}\n").await;
        assert_eq!(refusal.unwrap_err().to_string(), "the VMM refused: not now");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn silence_and_a_missing_socket_are_told_apart() {
        assert!(matches!(answered(b"").await, Err(ControlError::Deadline { .. })));
        let error = ask(Path::new("/nonexistent"), &Request::Stop, Duration::from_secs(1)).await;
        assert!(error.unwrap_err().to_string().contains("/nonexistent"));
    }
}

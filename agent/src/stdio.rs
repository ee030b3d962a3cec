//! The agent's ends of a container's standard descriptors, joined to the host's streams.
//!
//! A container gets pipes and not the vsock connections themselves: programs reopen `/dev/stdout`, which no socket
//! allows.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_vsock::VsockStream;

/// What is read at a time, in bytes: the capacity of a pipe.
const CHUNK: usize = 64 * 1024;

/// How long an output of a process that has ended must have had nothing to read, twice, to be taken for empty: time for the
/// event loop to see what was written last.
const QUIET: Duration = Duration::from_millis(50);

/// Gives a container's standard input a pipe that `stream` fills, and closes it when the host has no more to send.
///
/// # Errors
/// When the pipe cannot be made.
pub(crate) fn feed(stream: VsockStream) -> io::Result<OwnedFd> {
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let sink = pipe::Sender::from_owned_fd(write_end)?;
    tokio::spawn(copy(stream, sink, |_| {}));
    Ok(read_end)
}

/// An output that is being handed to the host, until all of its writers have closed it.
#[derive(Debug)]
pub(crate) struct Draining {
    task: JoinHandle<()>,
    /// Whether everything written so far has been handed on.
    is_empty: Arc<AtomicBool>,
}

impl Draining {
    /// Begins to hand on what `source` gives to `stream`.
    pub(crate) fn begin<R, W>(source: R, stream: W) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let is_empty = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_empty);
        Self {
            task: tokio::spawn(copy(source, stream, move |empty| {
                told.store(empty, Ordering::Relaxed)
            })),
            is_empty,
        }
    }

    /// Waits until everything that a process has written which has just ended is handed on. Who else has the output open is
    /// not waited for, and finds it closed: nobody on the host listens any more.
    pub(crate) async fn finish(mut self) {
        let mut quiet = 0;
        while quiet < 2 {
            // A copy that was cut off has nothing more to hand on.
            if timeout(QUIET, &mut self.task).await.is_ok() {
                return;
            }
            quiet = if self.is_empty.load(Ordering::Relaxed) {
                quiet + 1
            } else {
                0
            };
        }
        self.task.abort();
    }
}

/// Gives a container's output a pipe that is drained into `stream`.
///
/// # Errors
/// When the pipe cannot be made.
pub(crate) fn drain(stream: VsockStream) -> io::Result<(OwnedFd, Draining)> {
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let source = pipe::Receiver::from_owned_fd(read_end)?;
    Ok((write_end, Draining::begin(source, stream)))
}

/// `/dev/null` for a descriptor without a stream.
///
/// # Errors
/// When the guest's `/dev` is broken.
pub(crate) fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?
        .into())
}

/// Joins a terminal's master to the host's streams.
///
/// # Errors
/// When the master cannot be registered with the event loop.
pub(crate) fn attach_terminal(
    master: &OwnedFd,
    input: Option<VsockStream>,
    output: Option<VsockStream>,
) -> io::Result<Option<Draining>> {
    if let Some(input) = input {
        tokio::spawn(copy(input, Terminal::new(master)?, |_| {}));
    }
    let Some(output) = output else { return Ok(None) };
    Ok(Some(Draining::begin(Terminal::new(master)?, output)))
}

/// Copies until the source ends, then closes the sink's half. A failure of either side ends the copy as the end of the
/// source would: the container sees a closed pipe, the host a closed stream, and both know what to do. `is_empty` is told
/// when more is waited for, and when more has come.
async fn copy<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut source: R,
    mut sink: W,
    is_empty: impl Fn(bool),
) {
    let mut chunk = vec![0; CHUNK];
    loop {
        is_empty(true);
        let read = source.read(&mut chunk).await;
        is_empty(false);
        let length = match read {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        // `read` never reports more than it was given room for.
        if sink
            .write_all(chunk.get(..length).unwrap_or_default())
            .await
            .is_err()
        {
            return;
        }
    }
    if let Err(error) = sink.shutdown().await
        && error.kind() != io::ErrorKind::NotConnected
    {
        eprintln!("bulkhead-agent: closing a standard stream: {error}");
    }
}

/// A pseudo-terminal's master on the event loop.
struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn new(master: &OwnedFd) -> io::Result<Self> {
        let master = master.try_clone()?;
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned by the registration and so open for as long as it lasts.
        Ok(Self(unsafe { AsyncFd::register(master) }?))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let read =
                guard.try_io(|master| Ok(rustix::io::read(master.as_fd(), buffer.initialize_unfilled())?));
            match read {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // Nobody has the terminal open any more (pty(7)): its end, not a failure.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_not_ready) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|master| Ok(rustix::io::write(master.as_fd(), bytes)?)) {
                Ok(result) => return Poll::Ready(result),
                Err(_not_ready) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal has no half to close: its end of input is a character that the host's terminal sends itself.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

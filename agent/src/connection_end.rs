//! The end of a connection on which the host says nothing.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionEnd {
    /// The host has closed it. Linux's vsock tells that by an end of the stream, also where the host closed both
    /// directions at once and the connection is gone.
    Closed,
    /// It is gone without that, as every connection of a machine that is cloned.
    Lost,
}

/// Waits for the end of `connection`. What arrives until then is discarded, a little at a time, and others have their
/// turn between.
///
/// A machine's new life is no end of the stream but an error of the socket, which wakes only those who ask for errors;
/// the stream's own reading does not.
///
/// # Errors
/// When the connection cannot be watched.
pub(crate) async fn end_of(connection: &impl AsFd) -> io::Result<ConnectionEnd> {
    let interest = Interest::READABLE | Interest::ERROR;
    let socket = connection.as_fd().try_clone_to_owned()?;
    // SAFETY: the descriptor is owned by the registration and so open for as long as it lasts.
    let socket = unsafe { AsyncFd::register_with_interest(socket, interest) }?;
    loop {
        let mut ready = socket.ready(interest).await?;
        match recv(&socket, &mut [0; 256], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(ConnectionEnd::Closed),
            Ok(_) => tokio::task::yield_now().await,
            Err(Errno::WOULDBLOCK) => ready.clear_ready(),
            Err(Errno::INTR) => {}
            Err(_) => return Ok(ConnectionEnd::Lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn connection() -> (UnixStream, UnixStream) {
        let (agent, host) = UnixStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        (agent, host)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_connection_that_the_host_closes_is_closed() {
        let (agent, host) = connection();

        let (end, ()) = tokio::join!(end_of(&agent), async {
            tokio::task::yield_now().await;
            drop(host);
        });

        assert_eq!(end.unwrap(), ConnectionEnd::Closed);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_connection_that_is_reset_is_lost() {
        let (agent, host) = connection();
        // A unix socket is reset when its other end goes with something unread.
        (&agent).write_all(b"unread").unwrap();

        let (end, ()) = tokio::join!(end_of(&agent), async {
            tokio::task::yield_now().await;
            drop(host);
        });

        assert_eq!(end.unwrap(), ConnectionEnd::Lost);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_the_host_says_is_no_end() {
        let (agent, mut host) = connection();
        host.write_all(&[7; 10_000]).unwrap();

        let end = timeout(Duration::from_millis(50), end_of(&agent)).await;

        assert!(end.is_err(), "{end:?}");
        drop(host);
        assert_eq!(end_of(&agent).await.unwrap(), ConnectionEnd::Closed);
    }
}

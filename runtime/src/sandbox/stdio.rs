//! Copying between our own standard descriptors and a container's.
//!
//! Each direction has a thread with blocking reads: our descriptors may be files, which no event loop watches, and
//! making them non-blocking would change them for every process that shares them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::net::Shutdown;
use tokio::sync::oneshot;

/// What a container's standard descriptors are joined to.
#[derive(Debug)]
pub enum ContainerStdio {
    /// Three descriptors; an absent input is `/dev/null`.
    Descriptors {
        /// Read by the container.
        stdin: Option<OwnedFd>,
        /// Written by the container.
        stdout: OwnedFd,
        /// Written by the container.
        stderr: OwnedFd,
    },
    /// A terminal of the container's own, shown on and fed from these.
    Terminal {
        /// What is typed; nothing when absent.
        input: Option<OwnedFd>,
        /// What is shown.
        output: OwnedFd,
    },
}

impl ContainerStdio {
    /// Our own three descriptors, or our own terminal.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn of_this_process(interactive: bool, terminal: bool) -> io::Result<Self> {
        let stdin = if interactive {
            Some(io::stdin().as_fd().try_clone_to_owned()?)
        } else {
            None
        };
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        if terminal {
            return Ok(Self::Terminal {
                input: stdin,
                output: stdout,
            });
        }
        Ok(Self::Descriptors {
            stdin,
            stdout,
            stderr: io::stderr().as_fd().try_clone_to_owned()?,
        })
    }
}

/// Resolves when the copy has ended and everything read has been written.
pub type CopyEnd = oneshot::Receiver<()>;

/// Copies from one descriptor to the other until the first ends or the second is closed by its reader; then closes
/// the second's sending half.
///
/// # Errors
/// When no thread can be started.
pub fn copy_in_background(name: &str, from: OwnedFd, to: OwnedFd) -> io::Result<CopyEnd> {
    let (ended, end) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        copy(File::from(from), to);
        // The other side is gone when nobody waits any more.
        let _ = ended.send(());
    })?;
    Ok(end)
}

/// Errors end the copy as the end of the source does: a reader that has gone away, or a terminal whose last user has
/// (EIO, pty(7)).
fn copy(mut from: File, to: OwnedFd) {
    let is_socket = rustix::fs::fstat(&to)
        .is_ok_and(|status| rustix::fs::FileType::from_raw_mode(status.st_mode).is_socket());
    if is_socket {
        let mut socket = UnixStream::from(to);
        let _ = io::copy(&mut from, &mut socket);
        let _ = rustix::net::shutdown(&socket, Shutdown::Write);
    } else {
        let _ = io::copy(&mut from, &mut File::from(to));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn everything_is_copied_before_the_end_is_told() {
        let (source, mut feeder) = UnixStream::pair().unwrap();
        let (sink, mut reader) = UnixStream::pair().unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        let expected = sent.clone();

        let end = copy_in_background("test", source.into(), sink.into()).unwrap();
        let feeding = thread::spawn(move || feeder.write_all(&sent));
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();

        feeding.join().unwrap().unwrap();
        end.blocking_recv().unwrap();
        assert_eq!(received, expected);
    }

    #[test]
    fn the_copy_ends_when_its_reader_has_gone() {
        let (source, mut feeder) = UnixStream::pair().unwrap();
        let (sink, reader) = UnixStream::pair().unwrap();
        drop(reader);

        let end = copy_in_background("test", source.into(), sink.into()).unwrap();
        feeder.write_all(b"nobody reads this").unwrap();

        end.blocking_recv().unwrap();
    }
}

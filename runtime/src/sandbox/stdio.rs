//! Copying between our own standard descriptors and a container's.
//!
//! Each direction has a thread with blocking reads: our descriptors may be files, which no event loop watches, and
//! making them non-blocking would change them for every process that shares them.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::Shutdown;
use tokio::sync::oneshot;

/// In bytes: what a pipe holds (pipe(7)).
const COPIED_AT_ONCE: usize = 64 << 10;

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

/// Resolves when the copy has ended and everything read has been written, or could not be: with the cause, unless it was
/// the reader that has gone.
pub type CopyEnd = oneshot::Receiver<io::Result<()>>;

/// Copies from one descriptor to the other until the first ends or the second takes no more; then closes the second's
/// sending half.
///
/// # Errors
/// When no thread can be started.
pub fn copy_in_background(name: &str, from: OwnedFd, to: OwnedFd) -> io::Result<CopyEnd> {
    let (ended, end) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let copied = copy(from, to);
        // The other side is gone when nobody waits any more.
        let _ = ended.send(copied);
    })?;
    Ok(end)
}

fn copy(from: OwnedFd, to: OwnedFd) -> io::Result<()> {
    let mut to = File::from(to);
    let copied = copy_bytes(File::from(from), &mut to);
    // Only a socket has a half to close; of anything else, dropping it is the end.
    let _ = rustix::net::shutdown(&to, Shutdown::Write);
    match copied {
        // A reader that has gone wants no more.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(())
        }
        copied => copied,
    }
}

/// Waits for the ends of copies; the first cause why something was not written.
///
/// # Errors
/// When what a container wrote is lost.
pub async fn all_written(ends: impl IntoIterator<Item = CopyEnd>) -> io::Result<()> {
    let mut all = Ok(());
    for end in ends {
        // A copying thread that is gone without a word has panicked in the middle of it.
        let written = end
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the copying thread is gone")));
        all = all.and(written);
    }
    all
}

/// An error of the source ends the copy as its end does: a terminal whose last user has gone gives one (EIO, pty(7)). An
/// error is of the destination.
///
/// Not `std::io::copy`: that splices, and a splice into a pipe holds the pipe's lock while it waits for its source
/// (`splice_file_to_pipe`), so that what has been written cannot be read until more comes.
fn copy_bytes(mut from: File, to: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; COPIED_AT_ONCE];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_for(&from, PollFlags::IN)?;
                continue;
            }
            Err(_) => return Ok(()),
        };
        write_all(to, buffer.get(..count).unwrap_or_default())?;
    }
}

/// Also to a descriptor that does not block: somebody else who has it may have made it so for everyone.
fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_for(to, PollFlags::OUT)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_for(file: &File, readiness: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(file, readiness)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

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
        end.blocking_recv().unwrap().unwrap();
        assert_eq!(received, expected);
    }

    #[test]
    fn descriptors_that_do_not_block_lose_nothing() {
        let (source, mut feeder) = UnixStream::pair().unwrap();
        let (sink, mut reader) = UnixStream::pair().unwrap();
        source.set_nonblocking(true).unwrap();
        sink.set_nonblocking(true).unwrap();
        let end = copy_in_background("test", source.into(), sink.into()).unwrap();
        let sent = vec![b'x'; 3 << 20];
        let feeding = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            feeder.write_all(&sent)
        });
        thread::sleep(Duration::from_millis(100));
        let mut received = Vec::new();
        reader.read_to_end(&mut received).unwrap();
        feeding.join().unwrap().unwrap();
        end.blocking_recv().unwrap().unwrap();
        assert_eq!(received.len(), 3 << 20);
    }

    #[test]
    fn the_copy_ends_when_its_reader_has_gone() {
        let (source, mut feeder) = UnixStream::pair().unwrap();
        let (sink, reader) = UnixStream::pair().unwrap();
        drop(reader);

        let end = copy_in_background("test", source.into(), sink.into()).unwrap();
        feeder.write_all(b"nobody reads this").unwrap();

        end.blocking_recv().unwrap().unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn output_that_cannot_be_written_is_told() {
        let (source, mut feeder) = UnixStream::pair().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        feeder.write_all(b"no room for this").unwrap();

        let end = copy_in_background("test", source.into(), full.into()).unwrap();

        let lost = all_written([end]).await.unwrap_err();
        assert_eq!(lost.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn what_a_pipe_was_given_can_be_read_while_more_is_awaited() {
        let (source, mut feeder) = UnixStream::pair().unwrap();
        let (mut reader, sink) = io::pipe().unwrap();
        let _end = copy_in_background("test", source.into(), sink.into()).unwrap();
        feeder.write_all(b"first").unwrap();
        // Until the copy waits again.
        thread::sleep(Duration::from_millis(100));

        let (read, was_read) = std::sync::mpsc::channel();
        let reading = thread::spawn(move || {
            let mut received = [0; 5];
            reader.read_exact(&mut received).unwrap();
            read.send(received).unwrap();
        });

        assert_eq!(
            was_read.recv_timeout(Duration::from_secs(10)).as_ref(),
            Ok(b"first")
        );
        reading.join().unwrap();
    }
}

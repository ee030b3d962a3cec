//! A host stream whose guest is done: the guest has been let go, and what it had sent is still on its way.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// What is left of a connection until the host's reader has everything.
#[derive(Debug)]
pub(super) struct Lingering {
    stream: UnixStream,
    rest: VecDeque<u8>,
}

impl Lingering {
    /// `rest` is owed to `stream`, which must not block.
    pub(super) fn new(stream: UnixStream, rest: VecDeque<u8>) -> Self {
        Self { stream, rest }
    }

    /// Writes on; true when all is written or nobody reads any more.
    pub(super) fn flush(&mut self) -> bool {
        write_queued(&mut &self.stream, &mut self.rest).map_or(true, |_| self.rest.is_empty())
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        close(&self.stream);
    }
}

/// Writes as much of `queue` as `stream` takes and returns how many bytes that were. An error means that the rest can
/// never be written; a full stream is none.
pub(super) fn write_queued(stream: &mut impl Write, queue: &mut VecDeque<u8>) -> io::Result<usize> {
    let mut total = 0;
    while !queue.is_empty() {
        match stream.write(queue.as_slices().0) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                queue.drain(..count);
                total += count;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

/// Ends a stream such that its reader sees the end and not an error. Linux gives the peer of a unix socket that is
/// closed with unread bytes ECONNRESET, so those are taken first; they were for a guest that is gone.
pub(super) fn close(stream: &UnixStream) {
    // After this no more can come. Errors mean that the peer is gone already.
    let _ = stream.shutdown(Shutdown::Both);
    let mut scratch = [0; 4096];
    while let Ok(1..) = (&mut &*stream).read(&mut scratch) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn a_slow_reader_gets_everything_and_then_the_end() {
        let (ours, mut theirs) = pair();
        let sent: Vec<u8> = (0..1 << 20).map(|index: u32| index as u8).collect();
        let mut lingering = Lingering::new(ours, sent.iter().copied().collect());
        theirs.write_all(b"never read").unwrap();
        let mut received = Vec::new();
        while !lingering.flush() {
            let mut part = [0; 1000];
            let count = theirs.read(&mut part).unwrap();
            received.extend_from_slice(&part[..count]);
        }
        drop(lingering);
        theirs.read_to_end(&mut received).unwrap();
        assert!(received == sent);
    }

    #[test]
    fn a_reader_that_is_gone_ends_it() {
        let (ours, theirs) = pair();
        drop(theirs);
        assert!(Lingering::new(ours, [1, 2, 3].into()).flush());
    }
}

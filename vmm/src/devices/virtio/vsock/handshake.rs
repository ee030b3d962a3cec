//! A client of the device's socket before the guest is asked: it owes us one line, `CONNECT <port>\n`.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, recv};

/// `CONNECT 4294967295\n` and no more.
const MAX_LINE: usize = 19;

/// A client whose line is not complete yet.
#[derive(Debug)]
pub(super) struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

/// How far a client has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The line is not complete.
    Waiting,
    /// The client asks for this port of the guest.
    Connect(u32),
    /// The client went away or said something else.
    Refused,
}

impl Handshake {
    /// `stream` must not block.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            line: Vec::with_capacity(MAX_LINE),
        }
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Reads on, as far as the end of the line: what follows it already belongs to the guest.
    pub(super) fn advance(&mut self) -> Progress {
        loop {
            let mut seen = [0; MAX_LINE];
            let room = MAX_LINE.saturating_sub(self.line.len());
            let Some(window) = seen.get_mut(..room).filter(|window| !window.is_empty()) else {
                return Progress::Refused;
            };
            let count = match recv(&self.stream, &mut *window, RecvFlags::PEEK) {
                Ok((_, 0)) => return Progress::Refused,
                Ok((_, count)) => count,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => return Progress::Waiting,
                Err(_) => return Progress::Refused,
            };
            let seen = window.get(..count).unwrap_or_default();
            let end = seen.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(seen.len(), |end| end + 1);
            self.line.extend_from_slice(seen.get(..taken).unwrap_or_default());
            if consume(&self.stream, taken).is_err() {
                return Progress::Refused;
            }
            if end.is_some() {
                return parse(&self.line).map_or(Progress::Refused, Progress::Connect);
            }
        }
    }
}

/// Takes `count` bytes that were seen already.
fn consume(stream: &UnixStream, count: usize) -> io::Result<()> {
    let mut taken = [0; MAX_LINE];
    io::Read::read_exact(&mut &*stream, taken.get_mut(..count).unwrap_or_default())
}

/// The port that a line asks for.
fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (UnixStream, Handshake) {
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, Handshake::new(server))
    }

    #[test]
    fn a_line_in_pieces_is_put_together() {
        let (mut client, mut handshake) = pair();
        assert_eq!(handshake.advance(), Progress::Waiting);
        for piece in ["CON", "NECT 10", "24"] {
            client.write_all(piece.as_bytes()).unwrap();
            assert_eq!(handshake.advance(), Progress::Waiting);
        }
        client.write_all(b"\n").unwrap();
        assert_eq!(handshake.advance(), Progress::Connect(1024));
    }

    #[test]
    fn what_follows_the_line_is_left_for_the_guest() {
        let (mut client, mut handshake) = pair();
        client.write_all(b"CONNECT 7\nGET / HTTP/1.0\r\n").unwrap();
        assert_eq!(handshake.advance(), Progress::Connect(7));
        drop(client);
        let mut rest = String::new();
        handshake.into_stream().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "GET / HTTP/1.0\r\n");
    }

    #[test]
    fn the_longest_line_is_accepted() {
        let (mut client, mut handshake) = pair();
        client.write_all(b"CONNECT 4294967295\n").unwrap();
        assert_eq!(handshake.advance(), Progress::Connect(u32::MAX));
    }

    #[test]
    fn other_lines_are_refused() {
        for line in [
            "\n",
            "CONNECT\n",
            "CONNECT \n",
            "CONNECT -1\n",
            "CONNECT +1\n",
            "CONNECT 1 \n",
            "CONNECT 4294967296\n",
            "connect 1\n",
            "GET / HTTP/1.0\r\n",
            "CONNECT 00000000000000000000001\n",
            "CONNECT \u{0}\n",
        ] {
            let (mut client, mut handshake) = pair();
            client.write_all(line.as_bytes()).unwrap();
            assert_eq!(handshake.advance(), Progress::Refused, "{line:?}");
        }
    }

    #[test]
    fn a_client_that_goes_away_is_refused() {
        let (mut client, mut handshake) = pair();
        client.write_all(b"CONN").unwrap();
        drop(client);
        assert_eq!(handshake.advance(), Progress::Refused);
    }
}

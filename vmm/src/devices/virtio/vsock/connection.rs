//! One stream between a guest's socket and a host's.
//!
//! A connection neither waits nor owns a thread: the muxer tells it what came from the guest and what its host stream
//! is ready for, and asks it for packets. Its two directions close one by one, as those of a TCP connection do.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::credit::{Granted, Owned};
use super::lingering::write_queued;
use super::packet::{Done, GuestHeader, Header, MAX_DATA, Operation, Ports};

/// The host's end of a connection; it never blocks.
pub(super) trait HostStream: Write + ReadVolatile + WriteVolatile {
    /// Closes one or both directions.
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
}

impl HostStream for UnixStream {
    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        UnixStream::shutdown(self, how)
    }
}

/// What a packet from the guest means for the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Continue,
    /// It is over: the guest closed both directions, and is told with a reset that it may forget the connection. What
    /// it sent still goes to the host.
    Closed,
    /// The guest has forgotten the connection. What it sent still goes to the host.
    Forgotten,
    /// The guest broke the rules, and is told with a reset.
    Broken,
}

/// Whether both sides know of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A client of the host waits for the guest to accept.
    Asking,
    Open,
}

/// Packets owed to the guest beside data.
#[derive(Debug, Default)]
struct Debts {
    request: bool,
    response: bool,
    credit_update: bool,
}

/// A connection over the host stream `S`.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    ports: Ports,
    phase: Phase,
    debts: Debts,
    granted: Granted,
    owned: Owned,
    /// Whether the guest was asked for credit since it last gave any.
    credit_requested: bool,
    /// What the guest sent and the host has not taken; never more than the credit granted.
    to_host: VecDeque<u8>,
    /// What the stream last said, or may be ready for: it reports changes only.
    readable: bool,
    writable: bool,
    /// What the guest is done with.
    guest: Done,
    /// What the host's client is done with, and how much of that the guest was told.
    host: Done,
    host_announced: Done,
}

impl<S: HostStream> Connection<S> {
    /// A connection that a client of the host asks for.
    pub(super) fn asking(stream: S, ports: Ports) -> Self {
        let mut connection = Self::new(stream, ports, Phase::Asking);
        connection.debts.request = true;
        connection
    }

    /// A connection that the guest asked for in `request` and a host socket took.
    pub(super) fn accepted(stream: S, request: &GuestHeader) -> Self {
        let mut connection = Self::new(stream, request.ports, Phase::Open);
        connection.debts.response = true;
        connection.owned.update(request.buffer_size, request.forwarded);
        connection
    }

    fn new(stream: S, ports: Ports, phase: Phase) -> Self {
        Self {
            stream,
            ports,
            phase,
            debts: Debts::default(),
            granted: Granted::default(),
            owned: Owned::default(),
            credit_requested: false,
            to_host: VecDeque::new(),
            // True until the stream says otherwise, because it may have become ready before it was watched.
            readable: true,
            writable: true,
            guest: Done::default(),
            host: Done::default(),
            host_announced: Done::default(),
        }
    }

    /// Whether the guest has yet to accept.
    pub(super) fn is_asking(&self) -> bool {
        self.phase == Phase::Asking
    }

    /// The stream and what it is still owed.
    pub(super) fn into_rest(self) -> (S, VecDeque<u8>) {
        (self.stream, self.to_host)
    }

    /// Takes a packet from the guest, with its data if it has any.
    pub(super) fn receive<B: BitmapSlice>(
        &mut self,
        header: &GuestHeader,
        data: Option<&VolatileSlice<'_, B>>,
    ) -> Verdict {
        self.owned.update(header.buffer_size, header.forwarded);
        if self.owned.available() > 0 {
            self.credit_requested = false;
        }
        match (header.operation, self.phase) {
            (Some(Operation::Reset), _) => Verdict::Forgotten,
            (Some(Operation::Response), Phase::Asking) => self.accept(),
            (Some(Operation::Data), Phase::Open) => match data {
                Some(data) => self.deliver(data),
                None => Verdict::Continue,
            },
            (Some(Operation::Shutdown), Phase::Open) => self.close_directions(Done::from_flags(header.flags)),
            (Some(Operation::CreditUpdate), Phase::Open) => Verdict::Continue,
            (Some(Operation::CreditRequest), Phase::Open) => {
                self.debts.credit_update = true;
                Verdict::Continue
            }
            _ => Verdict::Broken,
        }
    }

    /// Takes what the host stream reported. `hung_up` means that the client is done with both directions.
    pub(super) fn stream_changed(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        self.writable |= writable;
        if hung_up {
            self.host_stopped_receiving();
        } else if self.writable {
            self.flush();
        }
    }

    /// Whether [`transmit`](Self::transmit) has a packet for a guest with room for it.
    pub(super) fn wants_to_transmit(&self) -> bool {
        self.debts.request
            || self.debts.response
            || self.phase == Phase::Open
                && (self.may_read() && (self.owned.available() > 0 || !self.credit_requested)
                    || self.host != self.host_announced
                    || self.owes_credit_update())
    }

    /// The next packet for the guest; its data, if any, is in `buffer` already.
    pub(super) fn transmit<B: BitmapSlice>(&mut self, buffer: &mut VolatileSlice<'_, B>) -> Option<Header> {
        if std::mem::take(&mut self.debts.request) {
            return Some(self.header(Operation::Request));
        }
        if std::mem::take(&mut self.debts.response) {
            return Some(self.header(Operation::Response));
        }
        if self.phase == Phase::Asking {
            return None;
        }
        if let Some(length) = self.read_from_host(buffer) {
            self.owned.send(length);
            let mut header = self.header(Operation::Data);
            header.data_length = length;
            return Some(header);
        }
        if self.host != self.host_announced {
            self.host_announced = self.host;
            let mut header = self.header(Operation::Shutdown);
            header.flags = self.host.to_flags();
            return Some(header);
        }
        if self.owes_credit_update() {
            return Some(self.header(Operation::CreditUpdate));
        }
        if self.may_read() && self.owned.available() == 0 && !self.credit_requested {
            self.credit_requested = true;
            return Some(self.header(Operation::CreditRequest));
        }
        None
    }

    /// A header with the ports and the credit; every packet carries it.
    fn header(&mut self, operation: Operation) -> Header {
        self.debts.credit_update = false;
        Header {
            ports: self.ports,
            operation,
            flags: 0,
            data_length: 0,
            buffer_size: Granted::BUFFER_SIZE,
            forwarded: self.granted.announce(),
        }
    }

    fn owes_credit_update(&self) -> bool {
        self.debts.credit_update || self.granted.is_worth_announcing() && !self.guest.sending
    }

    fn may_read(&self) -> bool {
        self.readable && !self.host.sending && !self.guest.receiving
    }

    /// Tells the client that the guest accepted.
    fn accept(&mut self) -> Verdict {
        self.phase = Phase::Open;
        let answer = format!("OK {}\n", self.ports.host);
        // Nothing was written to the stream before, so it has room for a line.
        match self.stream.write_all(answer.as_bytes()) {
            Ok(()) => Verdict::Continue,
            Err(_) => Verdict::Broken,
        }
    }

    /// Passes data on to the host, straight from the guest's memory as far as the stream takes it.
    fn deliver<B: BitmapSlice>(&mut self, data: &VolatileSlice<'_, B>) -> Verdict {
        let Ok(length) = u32::try_from(data.len()) else {
            return Verdict::Broken;
        };
        if self.guest.sending || !self.granted.receive(length) {
            return Verdict::Broken;
        }
        let mut written = 0;
        while self.writable && self.to_host.is_empty() && !self.host.receiving && written < data.len() {
            let Ok(rest) = data.offset(written) else {
                break;
            };
            match self.stream.write_volatile(&rest) {
                Ok(count @ 1..) => {
                    written += count;
                    self.granted.forward(u32::try_from(count).unwrap_or(u32::MAX));
                }
                Ok(0) => break,
                Err(error) if is(&error, io::ErrorKind::Interrupted) => {}
                Err(error) if is(&error, io::ErrorKind::WouldBlock) => self.writable = false,
                Err(_) => self.host_stopped_receiving(),
            }
        }
        let mut rest = vec![0; data.len() - written];
        // The slice is as long as it says, so all of the rest is there.
        let _ = data.read_slice(&mut rest, written);
        if self.host.receiving {
            self.granted
                .forward(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        } else {
            self.to_host.extend(rest);
        }
        Verdict::Continue
    }

    /// Writes what waits for the host, and after it the end if the guest is done.
    fn flush(&mut self) {
        match write_queued(&mut self.stream, &mut self.to_host) {
            Ok(count) => self.granted.forward(u32::try_from(count).unwrap_or(u32::MAX)),
            Err(_) => return self.host_stopped_receiving(),
        }
        if self.to_host.is_empty() {
            // A buffer that was needed once is not kept for a stream that may never need it again.
            self.to_host = VecDeque::new();
            if self.guest.sending {
                // It fails only when the client is gone, which the stream reports by itself.
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        } else {
            self.writable = false;
        }
    }

    /// The client takes no more: what waits for it counts as passed on, so that the guest is not left waiting.
    fn host_stopped_receiving(&mut self) {
        self.host.receiving = true;
        let dropped = std::mem::take(&mut self.to_host).len();
        self.granted.forward(u32::try_from(dropped).unwrap_or(u32::MAX));
    }

    /// The guest is done with one or both directions.
    fn close_directions(&mut self, done: Done) -> Verdict {
        self.guest.receiving |= done.receiving;
        self.guest.sending |= done.sending;
        if self.guest == Done::BOTH {
            return Verdict::Closed;
        }
        if self.guest.receiving {
            // See `flush`.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if self.guest.sending && !self.host.receiving {
            self.flush();
        }
        Verdict::Continue
    }

    /// Reads from the host into `buffer`, as much as it and the guest's credit allow.
    fn read_from_host<B: BitmapSlice>(&mut self, buffer: &mut VolatileSlice<'_, B>) -> Option<u32> {
        let limit = self.owned.available().min(MAX_DATA) as usize;
        let mut window = buffer.subslice(0, limit.min(buffer.len())).ok()?;
        while self.may_read() && !window.is_empty() {
            match self.stream.read_volatile(&mut window) {
                Ok(0) => self.host.sending = true,
                Ok(count) => return u32::try_from(count).ok(),
                Err(error) if is(&error, io::ErrorKind::Interrupted) => {}
                Err(error) if is(&error, io::ErrorKind::WouldBlock) => self.readable = false,
                Err(_) => {
                    self.host.sending = true;
                    self.host_stopped_receiving();
                }
            }
        }
        None
    }
}

fn is(error: &VolatileMemoryError, kind: io::ErrorKind) -> bool {
    matches!(error, VolatileMemoryError::IOError(error) if error.kind() == kind)
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;

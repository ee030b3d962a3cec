//! All connections of a guest, and the sockets they end in.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vmm_sys_util::epoll::EventSet;

use super::connection::{Connection, Verdict};
use super::handshake::{Handshake, Progress};
use super::lingering::{Lingering, close};
use super::packet::{GuestHeader, HOST_CID, Header, Operation, Ports, TYPE_STREAM};
use super::unix_path::UnixPath;
use crate::devices::virtio::worker::Poller;

/// Connections of one guest, lingering ones included. Each may hold a descriptor and a full buffer.
const MAX_CONNECTIONS: usize = 1024;
/// Clients that have not said yet where they want to go. Further ones wait in the listener's backlog.
const MAX_HANDSHAKES: usize = 64;
/// How long a client may take over its one line.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a guest may take to accept or refuse; one that is emulated and busy needs seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Resets waiting for a receive buffer. With more, the guest's packets are left in its queue.
const MAX_RESETS: usize = 256;
/// How long to wait before clients are accepted again when there was no descriptor for one.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Ports given to clients of the host start here, out of the way of the ones services use.
const FIRST_CLIENT_PORT: u32 = 1 << 30;
/// How long the readers of a guest that ended may take to fetch what it left.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// The number of the listener in the poller; streams have greater ones.
const LISTENER: u64 = 1 << 32;

struct Entry {
    connection: Connection<UnixStream>,
    token: u64,
    /// Whether the connection stands in the queue of those with something to say.
    queued: bool,
}

/// What a watched stream belongs to.
enum Source {
    Handshake(Handshake),
    Connection(Ports),
    Lingering(Lingering),
}

/// Routes between the guest's packets and the host's streams.
pub(super) struct Muxer {
    guest_cid: u64,
    path: Arc<UnixPath>,
    listener: UnixListener,
    poller: Poller,
    sources: HashMap<u64, Source>,
    connections: HashMap<Ports, Entry>,
    ready: VecDeque<Ports>,
    resets: VecDeque<Header>,
    handshakes: usize,
    lingering: usize,
    /// When clients must have said their line, and when the guest must have answered: oldest first.
    line_deadlines: VecDeque<(Instant, u64)>,
    answer_deadlines: VecDeque<(Instant, Ports)>,
    accept_again: Option<Instant>,
    next_token: u64,
    next_client_port: u32,
}

impl Muxer {
    /// A muxer without connections; `listener` must not block.
    pub(super) fn new(guest_cid: u64, listener: UnixListener, path: Arc<UnixPath>) -> io::Result<Self> {
        let poller = Poller::new()?;
        poller.add(&listener, EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER)?;
        Ok(Self {
            guest_cid,
            path,
            listener,
            poller,
            sources: HashMap::new(),
            connections: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            handshakes: 0,
            lingering: 0,
            line_deadlines: VecDeque::new(),
            answer_deadlines: VecDeque::new(),
            accept_again: None,
            next_token: LISTENER + 1,
            next_client_port: FIRST_CLIENT_PORT,
        })
    }

    /// What to wait on; numbers below 2^32 are free for others.
    pub(super) fn poller(&self) -> &Poller {
        &self.poller
    }

    /// Whether [`transmit`](Self::transmit) may have a packet.
    pub(super) fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Whether the guest knows, or is about to learn, of a connection it has or had.
    pub(super) fn is_known_to_guest(&self) -> bool {
        !self.connections.is_empty() || !self.resets.is_empty()
    }

    /// The port that the next client is given.
    pub(super) fn next_client_port(&self) -> u32 {
        self.next_client_port
    }

    /// Gives the next client `port`, or one after it.
    pub(super) fn set_next_client_port(&mut self, port: u32) {
        self.next_client_port = port.max(FIRST_CLIENT_PORT);
    }

    /// Whether the guest's packets should wait until it took some of ours.
    pub(super) fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// The next packet for the guest, with its data in `buffer`. Connections take turns, one packet each.
    pub(super) fn transmit<B: BitmapSlice>(&mut self, buffer: &mut VolatileSlice<'_, B>) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(ports) = self.ready.pop_front() {
            let Some(entry) = self.connections.get_mut(&ports) else {
                continue;
            };
            entry.queued = false;
            if let Some(header) = entry.connection.transmit(buffer) {
                self.enqueue(ports);
                return Some(header);
            }
        }
        None
    }

    /// Takes a packet from the guest.
    pub(super) fn receive<B: BitmapSlice>(
        &mut self,
        header: &GuestHeader,
        data: Option<&VolatileSlice<'_, B>>,
    ) {
        if header.source_cid != self.guest_cid {
            // Nobody could be answered.
            return;
        }
        let is_reset = header.operation == Some(Operation::Reset);
        if header.destination_cid != HOST_CID || header.kind != TYPE_STREAM {
            if !is_reset {
                self.resets.push_back(Header::reset(header.ports));
            }
            return;
        }
        let ports = header.ports;
        let verdict = match self.connections.get_mut(&ports) {
            Some(entry) => entry.connection.receive(header, data),
            None if header.operation == Some(Operation::Request) => return self.connect_to_host(header),
            None if is_reset => return,
            None => Verdict::Broken,
        };
        match verdict {
            Verdict::Continue => self.enqueue(ports),
            Verdict::Closed => {
                self.linger(ports);
                self.resets.push_back(Header::reset(ports));
            }
            Verdict::Forgotten => self.linger(ports),
            Verdict::Broken => {
                self.remove(ports);
                self.resets.push_back(Header::reset(ports));
            }
        }
    }

    /// Takes what the poller reported about the listener or a stream.
    pub(super) fn handle_event(&mut self, token: u64, events: EventSet, now: Instant) {
        if token == LISTENER {
            return self.accept_clients(now);
        }
        match self.sources.get_mut(&token) {
            Some(Source::Handshake(_)) => self.advance_handshake(token, now),
            Some(Source::Connection(ports)) => {
                let ports = *ports;
                self.stream_changed(ports, events);
            }
            Some(Source::Lingering(_)) => self.flush_lingering(token, now),
            // An event reported together with the one that ended its stream.
            None => {}
        }
    }

    /// Ends what has taken too long.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, token)) = take_passed(&mut self.line_deadlines, now) {
            if let Some(Source::Handshake(_)) = self.sources.get(&token) {
                self.sources.remove(&token);
                self.handshakes -= 1;
            }
        }
        while let Some((_, ports)) = take_passed(&mut self.answer_deadlines, now) {
            if self
                .connections
                .get(&ports)
                .is_some_and(|entry| entry.connection.is_asking())
            {
                self.remove(ports);
            }
        }
        self.accept_if_waiting(now);
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let line = self.line_deadlines.front().map(|(deadline, _)| *deadline);
        let answer = self.answer_deadlines.front().map(|(deadline, _)| *deadline);
        [line, answer, self.accept_again].into_iter().flatten().min()
    }

    /// Ends all connections. Readers get what the guest sent, if they take it soon.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let ports: Vec<Ports> = self.connections.keys().copied().collect();
        for ports in ports {
            self.linger(ports);
        }
        let deadline = Instant::now() + END_PATIENCE;
        loop {
            self.sources.retain(|_, source| match source {
                Source::Lingering(lingering) => !lingering.flush(),
                Source::Handshake(_) | Source::Connection(_) => false,
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if self.sources.is_empty() || left.is_zero() {
                return Ok(());
            }
            self.poller.wait(Some(left))?;
        }
    }

    /// Puts the connection into the queue if it has something to say.
    fn enqueue(&mut self, ports: Ports) {
        if let Some(entry) = self.connections.get_mut(&ports)
            && !entry.queued
            && entry.connection.wants_to_transmit()
        {
            entry.queued = true;
            self.ready.push_back(ports);
        }
    }

    fn stream_changed(&mut self, ports: Ports, events: EventSet) {
        let Some(entry) = self.connections.get_mut(&ports) else {
            return;
        };
        let hung_up = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if hung_up && entry.connection.is_asking() {
            // A guest that accepts after all is answered with a reset, as for any connection that is not there.
            return self.remove(ports);
        }
        let readable = events.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        entry
            .connection
            .stream_changed(readable, events.contains(EventSet::OUT), hung_up);
        self.enqueue(ports);
    }

    fn flush_lingering(&mut self, token: u64, now: Instant) {
        if let Some(Source::Lingering(lingering)) = self.sources.get_mut(&token)
            && lingering.flush()
        {
            self.sources.remove(&token);
            self.lingering -= 1;
            self.accept_if_waiting(now);
        }
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.lingering + self.handshakes >= MAX_CONNECTIONS
    }

    fn accept_if_waiting(&mut self, now: Instant) {
        if self.accept_again.is_some_and(|when| when <= now) {
            self.accept_clients(now);
        }
    }

    /// Takes clients from the backlog, as many as there is room for.
    fn accept_clients(&mut self, now: Instant) {
        self.accept_again = None;
        loop {
            if self.handshakes >= MAX_HANDSHAKES || self.is_full() {
                self.accept_again = Some(now + ACCEPT_RETRY);
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.start_handshake(stream, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // No descriptor or memory is left for the client. It keeps its place in the backlog.
                Err(_) => {
                    self.accept_again = Some(now + ACCEPT_RETRY);
                    return;
                }
            }
        }
    }

    fn start_handshake(&mut self, stream: UnixStream, now: Instant) {
        // A client that cannot be watched is turned away by closing its stream.
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let Ok(token) = self.watch(&stream) else {
            return;
        };
        self.sources
            .insert(token, Source::Handshake(Handshake::new(stream)));
        self.handshakes += 1;
        self.line_deadlines.push_back((now + HANDSHAKE_TIMEOUT, token));
        self.advance_handshake(token, now);
    }

    fn advance_handshake(&mut self, token: u64, now: Instant) {
        let Some(Source::Handshake(handshake)) = self.sources.get_mut(&token) else {
            return;
        };
        let progress = handshake.advance();
        if progress == Progress::Waiting {
            return;
        }
        self.handshakes -= 1;
        if let (Some(Source::Handshake(handshake)), Progress::Connect(port)) =
            (self.sources.remove(&token), progress)
        {
            let ports = Ports {
                host: self.free_client_port(port),
                guest: port,
            };
            self.answer_deadlines.push_back((now + ANSWER_TIMEOUT, ports));
            self.add(Connection::asking(handshake.into_stream(), ports), ports, token);
        }
        self.accept_if_waiting(now);
    }

    fn connect_to_host(&mut self, request: &GuestHeader) {
        let ports = request.ports;
        let stream = if self.is_full() {
            Err(io::ErrorKind::QuotaExceeded.into())
        } else {
            self.path.connect(ports.host)
        };
        let watched = stream.and_then(|stream| Ok((self.watch(&stream)?, stream)));
        match watched {
            Ok((token, stream)) => self.add(Connection::accepted(stream, request), ports, token),
            // Nobody listens there, or has no room: the guest sees a refused connection either way.
            Err(_) => self.resets.push_back(Header::reset(ports)),
        }
    }

    /// Watches a stream under a new number.
    fn watch(&mut self, stream: &UnixStream) -> io::Result<u64> {
        let token = self.next_token;
        self.next_token += 1;
        let interest = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.poller.add(stream, interest, token)?;
        Ok(token)
    }

    fn add(&mut self, connection: Connection<UnixStream>, ports: Ports, token: u64) {
        self.sources.insert(token, Source::Connection(ports));
        self.connections.insert(
            ports,
            Entry {
                connection,
                token,
                queued: false,
            },
        );
        self.enqueue(ports);
    }

    /// A port for a client that no connection to `guest` uses; there are more ports than connections.
    fn free_client_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_client_port;
            self.next_client_port = host.checked_add(1).unwrap_or(FIRST_CLIENT_PORT);
            if !self.connections.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    /// Takes a connection out. It must not stay in the queue: a guest that takes no packets could open and end others
    /// until the queue fills the host's memory.
    fn take(&mut self, ports: Ports) -> Option<Entry> {
        let entry = self.connections.remove(&ports)?;
        if entry.queued {
            self.ready.retain(|queued| *queued != ports);
        }
        Some(entry)
    }

    /// Ends a connection at once.
    fn remove(&mut self, ports: Ports) {
        if let Some(entry) = self.take(ports) {
            self.sources.remove(&entry.token);
            let (stream, _) = entry.connection.into_rest();
            close(&stream);
        }
    }

    /// Ends a connection for the guest; the host's reader gets what is left.
    fn linger(&mut self, ports: Ports) {
        let Some(entry) = self.take(ports) else {
            return;
        };
        let (stream, rest) = entry.connection.into_rest();
        let mut lingering = Lingering::new(stream, rest);
        if lingering.flush() {
            self.sources.remove(&entry.token);
        } else {
            self.sources.insert(entry.token, Source::Lingering(lingering));
            self.lingering += 1;
        }
    }
}

/// Takes the front of a queue of deadlines if it has passed.
fn take_passed<T>(deadlines: &mut VecDeque<(Instant, T)>, now: Instant) -> Option<(Instant, T)> {
    deadlines.pop_front_if(|(deadline, _)| *deadline <= now)
}

#[cfg(test)]
#[path = "muxer_tests.rs"]
mod tests;

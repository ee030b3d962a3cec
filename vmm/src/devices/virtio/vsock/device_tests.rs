//! The whole device, driven through its queues, with real unix sockets on the other side.

mod moved;

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use virtio_vsock::packet::PKT_HEADER_SIZE;
use vm_memory::GuestMemoryMmap;

use super::Vsock;
use super::packet::{Header, Operation, Ports};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::test_driver::{Buffer, TestDriver};

const CID: u64 = 42;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const RECEIVE_BUFFER: u32 = 4096;
const RECEIVE_BUFFERS: usize = 64;
const GUEST_BUFFER: u32 = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// One connection as the guest sees it.
#[derive(Default)]
struct Peer {
    received: Vec<u8>,
    sent: u32,
    host_buffer: u32,
    host_forwarded: u32,
    host_done: u32,
    is_open: bool,
    is_reset: bool,
}

impl Peer {
    fn credit(&self) -> u32 {
        self.host_buffer
            .saturating_sub(self.sent.wrapping_sub(self.host_forwarded))
    }
}

/// A guest's driver and its sockets.
struct Guest<'m> {
    driver: TestDriver<'m>,
    peers: HashMap<(u32, u32), Peer>,
    buffers: HashMap<u16, u64>,
    free_transmit: VecDeque<u64>,
    transmitted: HashMap<u16, u64>,
    requests: VecDeque<(u32, u32)>,
    owed_credit: VecDeque<(u32, u32)>,
}

impl<'m> Guest<'m> {
    fn new(memory: &'m Arc<GuestMemoryMmap>, vsock: &mut Vsock) -> Self {
        let sizes = vsock.queue_sizes().to_vec();
        let driver = TestDriver::new(memory, &sizes);
        driver.activate(vsock);
        let transmit = driver.data(TRANSMIT);
        let mut guest = Self {
            driver,
            peers: HashMap::new(),
            buffers: HashMap::new(),
            free_transmit: (0..16).map(|slot| transmit + slot * (128 << 10)).collect(),
            transmitted: HashMap::new(),
            requests: VecDeque::new(),
            owed_credit: VecDeque::new(),
        };
        let data = guest.driver.data(RECEIVE);
        for slot in 0..RECEIVE_BUFFERS as u64 {
            guest.give_buffer(data + slot * 8192);
        }
        guest
    }

    fn give_buffer(&mut self, address: u64) {
        let header = Buffer::writable(address, PKT_HEADER_SIZE as u32);
        let data = Buffer::writable(address + 64, RECEIVE_BUFFER);
        let head = self.driver.add(RECEIVE, &[header, data]);
        self.buffers.insert(head, address);
    }

    /// Sends a packet, with the header as the guest writes it.
    fn send(&mut self, host: u32, guest: u32, operation: Operation, flags: u32, data: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while self.free_transmit.is_empty() {
            self.work();
            assert!(Instant::now() < deadline);
        }
        let address = self.free_transmit.pop_front().unwrap();
        let forwarded = self
            .peers
            .get(&(host, guest))
            .map_or(0, |peer| peer.received.len() as u32);
        let mut header = Header {
            ports: Ports {
                host: guest,
                guest: host,
            },
            operation,
            flags,
            data_length: data.len() as u32,
            buffer_size: GUEST_BUFFER,
            forwarded,
        }
        .to_wire(2);
        header[..8].copy_from_slice(&CID.to_le_bytes());
        self.driver.write(address, &header);
        self.driver.write(address + 64, data);
        let head = if data.is_empty() {
            self.driver
                .add(TRANSMIT, &[Buffer::readable(address, PKT_HEADER_SIZE as u32)])
        } else {
            self.driver.add(
                TRANSMIT,
                &[
                    Buffer::readable(address, PKT_HEADER_SIZE as u32),
                    Buffer::readable(address + 64, data.len() as u32),
                ],
            )
        };
        self.transmitted.insert(head, address);
        if let Some(peer) = self.peers.get_mut(&(host, guest)) {
            peer.sent = peer.sent.wrapping_add(data.len() as u32);
        }
    }

    /// Takes everything the device has done; sleeps a moment when that was nothing.
    fn work(&mut self) {
        let mut idle = true;
        while let Some((head, _)) = self.driver.take_used(TRANSMIT) {
            idle = false;
            self.free_transmit
                .push_back(self.transmitted.remove(&head).unwrap());
        }
        while let Some((head, length)) = self.driver.take_used(RECEIVE) {
            idle = false;
            let address = self.buffers.remove(&head).unwrap();
            let header = self.driver.read(address, PKT_HEADER_SIZE);
            let data = self.driver.read(address + 64, length as usize - PKT_HEADER_SIZE);
            self.give_buffer(address);
            self.take_packet(&header, data);
        }
        while !self.free_transmit.is_empty()
            && let Some((host, guest)) = self.owed_credit.pop_front()
        {
            self.send(host, guest, Operation::CreditUpdate, 0, b"");
        }
        if idle {
            self.driver.assert_waiting(Instant::now() + PATIENCE);
        }
    }

    fn take_packet(&mut self, header: &[u8], data: Vec<u8>) {
        let field = |offset: usize| u32::from_le_bytes(header[offset..offset + 4].try_into().unwrap());
        assert_eq!(header[..8], 2u64.to_le_bytes());
        assert_eq!(header[8..16], CID.to_le_bytes());
        let key = (field(16), field(20));
        let operation = Operation::from_wire(u16::from_le_bytes([header[30], header[31]])).unwrap();
        assert_eq!(field(24) as usize, data.len());
        if operation == Operation::Request {
            self.peers.insert(
                key,
                Peer {
                    is_open: true,
                    ..Peer::default()
                },
            );
            self.requests.push_back(key);
        }
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.host_buffer = field(36);
        peer.host_forwarded = field(40);
        match operation {
            Operation::Data => peer.received.extend_from_slice(&data),
            Operation::Response => peer.is_open = true,
            Operation::Shutdown => peer.host_done |= field(32),
            Operation::Reset => peer.is_reset = true,
            _ => {}
        }
        if operation == Operation::Data && !self.owed_credit.contains(&key) {
            self.owed_credit.push_back(key);
        }
    }

    fn work_until(&mut self, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "it never came about");
            self.work();
        }
    }

    fn peer(&self, key: (u32, u32)) -> &Peer {
        &self.peers[&key]
    }

    /// Accepts the next connection from the host.
    fn accept(&mut self) -> (u32, u32) {
        self.work_until(|guest| !guest.requests.is_empty());
        let key = self.requests.pop_front().unwrap();
        self.send(key.0, key.1, Operation::Response, 0, b"");
        key
    }

    /// Connects to a port of the host.
    fn connect(&mut self, host: u32, guest: u32) -> (u32, u32) {
        self.peers.insert((host, guest), Peer::default());
        self.send(host, guest, Operation::Request, 0, b"");
        self.work_until(|this| this.peer((host, guest)).is_open || this.peer((host, guest)).is_reset);
        (host, guest)
    }

    /// Sends a whole stream as fast as credit allows.
    fn send_stream(&mut self, key: (u32, u32), mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.work_until(|guest| guest.peer(key).credit() > 0);
            let count = bytes.len().min(self.peer(key).credit() as usize).min(64 << 10);
            let (now, later) = bytes.split_at(count);
            self.send(key.0, key.1, Operation::Data, 0, now);
            bytes = later;
        }
    }
}

struct Setup {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    memory: Arc<GuestMemoryMmap>,
    vsock: Vsock,
}

impl Setup {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("v.sock");
        let vsock = Vsock::new(CID, &socket).unwrap();
        Self {
            _directory: directory,
            socket,
            memory: TestDriver::memory(),
            vsock,
        }
    }

    fn host_listens(&self, port: u32) -> UnixListener {
        let mut path = self.socket.clone().into_os_string();
        path.push(format!("_{port}"));
        UnixListener::bind(path).unwrap()
    }
}

fn client(socket: &PathBuf, port: u32) -> UnixStream {
    let mut client = UnixStream::connect(socket).unwrap();
    client.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
    client
}

/// Reads the `OK <port>` line.
fn read_answer(client: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

const MEGABYTES: usize = 16 << 20;

#[test]
fn a_guest_that_sends_megabytes_and_closes_at_once_loses_nothing() {
    let mut setup = Setup::new();
    let listener = setup.host_listens(1000);
    let mut guest = Guest::new(&setup.memory, &mut setup.vsock);
    let sent = noise(MEGABYTES);
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        received
    });
    let key = guest.connect(1000, 5);
    guest.send_stream(key, &sent);
    guest.send(key.0, key.1, Operation::Shutdown, 3, b"");
    guest.work_until(|guest| guest.peer(key).is_reset);
    let received = reader.join().unwrap();
    assert_eq!(received.len(), sent.len());
    assert_eq!(checksum(&received), checksum(&sent));
}

#[test]
fn a_guest_that_sends_megabytes_and_vanishes_with_its_device_loses_nothing() {
    let mut setup = Setup::new();
    let listener = setup.host_listens(1000);
    let mut guest = Guest::new(&setup.memory, &mut setup.vsock);
    let sent = noise(4 << 20);
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        received
    });
    let key = guest.connect(1000, 5);
    guest.send_stream(key, &sent);
    setup.vsock.reset();
    let received = reader.join().unwrap();
    assert_eq!(received.len(), sent.len());
    assert_eq!(checksum(&received), checksum(&sent));
}

#[test]
fn a_host_that_sends_megabytes_and_closes_at_once_loses_nothing() {
    let mut setup = Setup::new();
    let mut guest = Guest::new(&setup.memory, &mut setup.vsock);
    let sent = noise(MEGABYTES);
    let expected = checksum(&sent);
    let socket = setup.socket.clone();
    let writer = thread::spawn(move || {
        let mut client = client(&socket, 77);
        read_answer(&mut client);
        client.write_all(&sent).unwrap();
    });
    let key = guest.accept();
    guest.work_until(|guest| guest.peer(key).host_done == 3);
    writer.join().unwrap();
    assert_eq!(guest.peer(key).received.len(), MEGABYTES);
    assert_eq!(checksum(&guest.peer(key).received), expected);
}

#[test]
fn half_closes_are_carried_in_both_directions() {
    let mut setup = Setup::new();
    let mut guest = Guest::new(&setup.memory, &mut setup.vsock);
    let mut host = client(&setup.socket, 77);
    let key = guest.accept();
    assert_eq!(read_answer(&mut host), format!("OK {}\n", key.0));

    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    guest.work_until(|guest| guest.peer(key).host_done == 2);
    assert_eq!(guest.peer(key).received, b"question");

    guest.send_stream(key, b"answer");
    guest.send(key.0, key.1, Operation::Shutdown, 2, b"");
    let mut answer = String::new();
    host.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "answer");

    drop(host);
    guest.work_until(|guest| guest.peer(key).host_done == 3);
    guest.send(key.0, key.1, Operation::Reset, 0, b"");
}

#[test]
fn many_connections_carry_their_own_data_at_once() {
    let mut setup = Setup::new();
    let mut guest = Guest::new(&setup.memory, &mut setup.vsock);
    let clients: Vec<_> = (0..20u32)
        .map(|number| {
            let socket = setup.socket.clone();
            thread::spawn(move || {
                let mut client = client(&socket, 100 + number);
                read_answer(&mut client);
                let data = noise((number as usize + 1) * 10_000);
                client.write_all(&data).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                let mut echo = Vec::new();
                client.read_to_end(&mut echo).unwrap();
                assert!(echo == data, "connection {number}");
            })
        })
        .collect();
    let keys: Vec<_> = clients.iter().map(|_| guest.accept()).collect();
    guest.work_until(|guest| keys.iter().all(|key| guest.peer(*key).host_done & 2 != 0));
    for key in &keys {
        let echo = guest.peer(*key).received.clone();
        guest.send_stream(*key, &echo);
        guest.send(key.0, key.1, Operation::Shutdown, 3, b"");
    }
    guest.work_until(|guest| keys.iter().all(|key| guest.peer(*key).is_reset));
    for client in clients {
        client.join().unwrap();
    }
}

#[test]
fn a_client_that_came_before_the_driver_is_served() {
    let mut setup = Setup::new();
    let mut early = client(&setup.socket, 1024);
    thread::sleep(Duration::from_millis(20));
    let mut guest = Guest::new(&setup.memory, &mut setup.vsock);
    let key = guest.accept();
    assert_eq!(read_answer(&mut early), format!("OK {}\n", key.0));
}

#[test]
fn reset_closes_the_hosts_connections_and_the_next_driver_is_served() {
    let mut setup = Setup::new();
    let mut guest = Guest::new(&setup.memory, &mut setup.vsock);
    let mut before = client(&setup.socket, 1);
    guest.accept();
    read_answer(&mut before);
    setup.vsock.reset();
    let mut rest = Vec::new();
    before.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());

    let mut guest = Guest::new(&setup.memory, &mut setup.vsock);
    let mut after = client(&setup.socket, 1);
    guest.accept();
    read_answer(&mut after);
}

#[test]
fn dropping_the_device_removes_its_socket() {
    let setup = Setup::new();
    let socket = setup.socket.clone();
    assert!(socket.exists());
    drop(setup.vsock);
    assert!(!socket.exists());
}

#[test]
fn the_configuration_is_the_guests_id() {
    let setup = Setup::new();
    let mut data = [0xff; 12];
    setup.vsock.read_config(0, &mut data);
    assert_eq!(data[..8], CID.to_le_bytes());
    assert_eq!(data[8..], [0; 4]);
}

#[test]
fn hostile_chains_are_given_back_and_the_device_goes_on() {
    let mut setup = Setup::new();
    let memory = Arc::clone(&setup.memory);
    let sizes = setup.vsock.queue_sizes().to_vec();
    let mut driver = TestDriver::new(&memory, &sizes);
    driver.activate(&mut setup.vsock);
    let data = driver.data(TRANSMIT);

    // A header that promises more data than any chain below has.
    let mut header = Header::reset(Ports { host: 9, guest: 9 }).to_wire(2);
    header[..8].copy_from_slice(&CID.to_le_bytes());
    header[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    driver.write(data, &header);
    for chain in [
        vec![Buffer::readable(data, 0)],
        vec![Buffer::readable(data, 43)],
        vec![Buffer::readable(data, 44)],
        vec![Buffer::readable(data, 44), Buffer::readable(data, u32::MAX)],
        vec![Buffer::readable(data, 44), Buffer::writable(data, 4096)],
        vec![Buffer::writable(data, 44), Buffer::writable(data, 4096)],
        vec![Buffer::readable(u64::MAX - 10, 44)],
        vec![Buffer::readable(driver.memory_end() - 10, 44)],
    ] {
        driver.add(TRANSMIT, &chain);
        assert_eq!(driver.wait_for_used(TRANSMIT).1, 0, "{chain:?}");
    }
    driver.add_loop(TRANSMIT, Buffer::readable(data, 44));
    driver.wait_for_used(TRANSMIT);

    // The receive queue is looked at when there is something to send.
    header[24..28].copy_from_slice(&0u32.to_le_bytes());
    header[30..32].copy_from_slice(&5u16.to_le_bytes());
    driver.write(data, &header);
    driver.add(TRANSMIT, &[Buffer::readable(data, 44)]);
    driver.wait_for_used(TRANSMIT);
    let data = driver.data(RECEIVE);
    for chain in [
        vec![Buffer::readable(data, 44), Buffer::readable(data, 4096)],
        vec![Buffer::writable(data, 10)],
        vec![Buffer::writable(data, 44), Buffer::readable(data, 4096)],
        vec![Buffer::writable(data, 44), Buffer::writable(data, u32::MAX)],
        vec![Buffer::writable(u64::MAX - 10, 44), Buffer::writable(data, 4096)],
        vec![Buffer::writable(data, 44), Buffer::writable(u64::MAX - 10, 4096)],
    ] {
        driver.add(RECEIVE, &chain);
        assert_eq!(driver.wait_for_used(RECEIVE).1, 0, "{chain:?}");
    }
    driver.add(
        RECEIVE,
        &[Buffer::writable(data, 44), Buffer::writable(data + 64, 4096)],
    );
    assert_eq!(driver.wait_for_used(RECEIVE).1, 44);
    let reset = driver.read(data, 44);
    assert_eq!(reset[30..32], 3u16.to_le_bytes());
    assert!(driver.failure().is_none());
    assert!(driver.free_descriptors(TRANSMIT) > 200);
}

#[test]
fn a_broken_ring_asks_for_a_reset_and_still_delivers_what_came_before() {
    let mut setup = Setup::new();
    let listener = setup.host_listens(8);
    let mut guest = Guest::new(&setup.memory, &mut setup.vsock);
    let key = guest.connect(8, 1);
    guest.send_stream(key, b"before the fall");
    guest.work_until(|guest| guest.transmitted.is_empty());
    guest.driver.set_available_index(TRANSMIT, 9999);
    guest.driver.wait_for_reset_request();
    let mut received = String::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_string(&mut received)
        .unwrap();
    assert_eq!(received, "before the fall");
    setup.vsock.reset();
}

use std::io::{Read, Write};
use std::path::PathBuf;

use super::*;
use crate::devices::virtio::vsock::credit::Granted;

const CID: u64 = 3;
const GUEST_BUFFER: u32 = 256 << 10;

/// A muxer with a guest that answers only what a test makes it answer.
struct Bench {
    _directory: tempfile::TempDir,
    socket: PathBuf,
    muxer: Muxer,
    now: Instant,
}

type Sent = (Header, Vec<u8>);

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("vsock");
        let (path, listener) = UnixPath::listen(&socket).unwrap();
        Self {
            _directory: directory,
            socket,
            muxer: Muxer::new(CID, listener, Arc::new(path)).unwrap(),
            now: Instant::now(),
        }
    }

    fn host_listens(&self, port: u32) -> UnixListener {
        let mut path = self.socket.clone().into_os_string();
        path.push(format!("_{port}"));
        UnixListener::bind(path).unwrap()
    }

    fn client(&self, line: &str) -> UnixStream {
        let mut client = UnixStream::connect(&self.socket).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        client
    }

    fn guest_header(ports: Ports, operation: Operation) -> GuestHeader {
        GuestHeader {
            source_cid: CID,
            destination_cid: HOST_CID,
            kind: TYPE_STREAM,
            ports,
            operation: Some(operation),
            flags: 0,
            buffer_size: GUEST_BUFFER,
            forwarded: 0,
        }
    }

    fn guest_sends(&mut self, ports: Ports, operation: Operation, flags: u32, data: &[u8]) {
        let header = GuestHeader {
            flags,
            ..Self::guest_header(ports, operation)
        };
        let mut data = data.to_vec();
        let slice = VolatileSlice::from(data.as_mut_slice());
        self.muxer.receive(&header, (!slice.is_empty()).then_some(&slice));
    }

    /// Handles all events there are and returns all packets for the guest.
    fn pump(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        loop {
            let events = self.muxer.poller().wait(Some(Duration::ZERO)).unwrap();
            for (token, events) in &events {
                self.muxer.handle_event(*token, *events, self.now);
            }
            let before = sent.len();
            let mut data = [0; 4096];
            while let Some(header) = self.muxer.transmit(&mut VolatileSlice::from(data.as_mut_slice())) {
                sent.push((header, data[..header.data_length as usize].to_vec()));
            }
            if events.is_empty() && sent.len() == before {
                return sent;
            }
        }
    }

    /// Pumps and returns the only packet.
    fn pump_one(&mut self) -> Sent {
        let mut sent = self.pump();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    /// A connection from the host that the guest accepted.
    fn connect_to_guest(&mut self, port: u32) -> (UnixStream, Ports) {
        let mut client = self.client(&format!("CONNECT {port}\n"));
        let (request, _) = self.pump_one();
        assert_eq!(request.operation, Operation::Request);
        self.guest_sends(request.ports, Operation::Response, 0, b"");
        let mut line = vec![0; format!("OK {}\n", request.ports.host).len()];
        client.read_exact(&mut line).unwrap();
        assert_eq!(
            String::from_utf8(line).unwrap(),
            format!("OK {}\n", request.ports.host)
        );
        assert!(self.pump().is_empty());
        (client, request.ports)
    }
}

fn read_all(mut stream: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_client_reaches_the_guest_and_both_talk() {
    let mut bench = Bench::new();
    let (mut client, ports) = bench.connect_to_guest(1024);
    assert_eq!(ports.guest, 1024);
    client.write_all(b"hello guest").unwrap();
    let (header, data) = bench.pump_one();
    assert_eq!((header.operation, header.ports), (Operation::Data, ports));
    assert_eq!(data, b"hello guest");
    bench.guest_sends(ports, Operation::Data, 0, b"hello host");
    let mut answer = [0; 10];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"hello host");
}

#[test]
fn data_sent_together_with_the_line_reaches_the_guest() {
    let mut bench = Bench::new();
    let _client = bench.client("CONNECT 9\nimpatient");
    let (request, _) = bench.pump_one();
    bench.guest_sends(request.ports, Operation::Response, 0, b"");
    assert_eq!(bench.pump_one().1, b"impatient");
}

#[test]
fn a_guest_that_refuses_ends_the_client() {
    let mut bench = Bench::new();
    let client = bench.client("CONNECT 9\n");
    let (request, _) = bench.pump_one();
    bench.guest_sends(request.ports, Operation::Reset, 0, b"");
    assert_eq!(read_all(client), b"");
    assert!(bench.pump().is_empty());
}

#[test]
fn a_guest_reaches_a_listening_host_port_and_not_another() {
    let mut bench = Bench::new();
    let listener = bench.host_listens(52);
    let ports = Ports {
        host: 52,
        guest: 7000,
    };
    bench.guest_sends(ports, Operation::Request, 0, b"");
    assert_eq!(bench.pump_one().0.operation, Operation::Response);
    bench.guest_sends(ports, Operation::Data, 0, b"ready");
    bench.guest_sends(ports, Operation::Shutdown, 3, b"");
    assert_eq!(bench.pump_one().0, Header::reset(ports));
    assert_eq!(read_all(listener.accept().unwrap().0), b"ready");

    let other = Ports {
        host: 53,
        guest: 7000,
    };
    bench.guest_sends(other, Operation::Request, 0, b"");
    assert_eq!(bench.pump_one().0, Header::reset(other));
}

#[test]
fn packets_of_no_connection_are_reset_but_resets_are_not() {
    let mut bench = Bench::new();
    let ports = Ports { host: 1, guest: 2 };
    for operation in [
        Operation::Data,
        Operation::Response,
        Operation::Shutdown,
        Operation::CreditUpdate,
        Operation::CreditRequest,
    ] {
        bench.guest_sends(ports, operation, 0, b"");
        assert_eq!(bench.pump_one().0, Header::reset(ports), "{operation:?}");
    }
    bench.guest_sends(ports, Operation::Reset, 0, b"");
    assert!(bench.pump().is_empty());
}

#[test]
fn another_type_or_destination_is_reset_and_another_source_is_ignored() {
    let mut bench = Bench::new();
    let ports = Ports { host: 1, guest: 2 };
    let good = Bench::guest_header(ports, Operation::Request);
    for header in [
        GuestHeader { kind: 2, ..good },
        GuestHeader {
            destination_cid: 1,
            ..good
        },
        GuestHeader {
            destination_cid: u64::MAX,
            ..good
        },
        GuestHeader {
            operation: None,
            ..good
        },
    ] {
        bench.muxer.receive::<()>(&header, None);
        assert_eq!(bench.pump_one().0, Header::reset(ports), "{header:?}");
    }
    bench.muxer.receive::<()>(
        &GuestHeader {
            source_cid: 4,
            ..good
        },
        None,
    );
    assert!(bench.pump().is_empty());
}

#[test]
fn a_second_request_on_the_same_ports_ends_the_connection() {
    let mut bench = Bench::new();
    let listener = bench.host_listens(52);
    let ports = Ports {
        host: 52,
        guest: 7000,
    };
    bench.guest_sends(ports, Operation::Request, 0, b"");
    bench.pump();
    bench.guest_sends(ports, Operation::Request, 0, b"");
    assert_eq!(bench.pump_one().0, Header::reset(ports));
    assert_eq!(read_all(listener.accept().unwrap().0), b"");
}

#[test]
fn a_reader_that_stops_stalls_its_own_connection_only() {
    let mut bench = Bench::new();
    let (stuck, stuck_ports) = bench.connect_to_guest(1);
    let (mut lively, lively_ports) = bench.connect_to_guest(2);
    // More than the kernel's buffer and ours take together would break the rules; this fills the credit.
    let mut sent = 0;
    while sent < 300 << 10 {
        bench.guest_sends(stuck_ports, Operation::Data, 0, &[1; 4 << 10]);
        sent += 4 << 10;
        bench.pump();
        if !bench.muxer.connections.contains_key(&stuck_ports) {
            panic!("the guest had credit for {sent} bytes only");
        }
    }
    for round in 0..100u8 {
        bench.guest_sends(lively_ports, Operation::Data, 0, &[round; 1000]);
        let mut data = [0; 1000];
        lively.read_exact(&mut data).unwrap();
        assert_eq!(data, [round; 1000]);
        lively.write_all(&[round]).unwrap();
        assert!(
            bench
                .pump()
                .iter()
                .any(|(header, data)| header.ports == lively_ports && data == &[round])
        );
    }
    drop(stuck);
}

#[test]
fn what_a_guest_sent_before_it_closed_reaches_a_reader_that_comes_late() {
    let mut bench = Bench::new();
    let (mut client, ports) = bench.connect_to_guest(1);
    client.write_all(b"never read by the guest").unwrap();
    bench.pump();
    let mut sent = Vec::new();
    for round in 0..75u8 {
        let data = [round; 4 << 10];
        bench.guest_sends(ports, Operation::Data, 0, &data);
        sent.extend_from_slice(&data);
    }
    bench.guest_sends(ports, Operation::Shutdown, 3, b"");
    assert_eq!(bench.pump().last().unwrap().0, Header::reset(ports));
    assert_eq!(bench.muxer.lingering, 1);

    let reader = std::thread::spawn(move || read_all(client));
    while bench.muxer.lingering > 0 {
        bench.pump();
    }
    assert!(reader.join().unwrap() == sent);
    assert!(bench.muxer.sources.is_empty());
}

#[test]
fn what_a_guest_sent_before_the_end_reaches_the_reader() {
    let mut bench = Bench::new();
    let (client, ports) = bench.connect_to_guest(1);
    let mut sent = Vec::new();
    for round in 0..75u8 {
        let data = [round; 4 << 10];
        bench.guest_sends(ports, Operation::Data, 0, &data);
        sent.extend_from_slice(&data);
    }
    let reader = std::thread::spawn(move || read_all(client));
    bench.muxer.finish().unwrap();
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn the_end_does_not_wait_for_a_reader_that_never_comes() {
    let mut bench = Bench::new();
    let (_client, ports) = bench.connect_to_guest(1);
    for _ in 0..75 {
        bench.guest_sends(ports, Operation::Data, 0, &[0; 4 << 10]);
    }
    let begun = Instant::now();
    bench.muxer.finish().unwrap();
    assert!(begun.elapsed() < END_PATIENCE + Duration::from_secs(2));
}

#[test]
fn a_client_that_says_nothing_is_turned_away_in_time() {
    let mut bench = Bench::new();
    let client = bench.client("CONN");
    assert!(bench.pump().is_empty());
    let deadline = bench.muxer.next_deadline().unwrap();
    bench.muxer.expire(deadline - Duration::from_millis(1));
    assert_eq!(bench.muxer.handshakes, 1);
    bench.muxer.expire(deadline);
    assert_eq!(bench.muxer.handshakes, 0);
    assert_eq!(read_all(client), b"");
    assert!(bench.muxer.sources.is_empty());
}

#[test]
fn a_guest_that_does_not_answer_is_given_up_and_an_accepted_client_is_not() {
    let mut bench = Bench::new();
    let waiting = bench.client("CONNECT 5\n");
    let (request, _) = bench.pump_one();
    let (accepted, _) = bench.connect_to_guest(6);
    bench.muxer.expire(bench.now + ANSWER_TIMEOUT);
    assert_eq!(read_all(waiting), b"");
    assert_eq!(bench.muxer.connections.len(), 1);
    // Too late.
    bench.guest_sends(request.ports, Operation::Response, 0, b"");
    assert_eq!(bench.pump_one().0, Header::reset(request.ports));
    drop(accepted);
}

#[test]
fn a_client_that_leaves_before_the_answer_is_forgotten() {
    let mut bench = Bench::new();
    let client = bench.client("CONNECT 5\n");
    let (request, _) = bench.pump_one();
    drop(client);
    assert!(bench.pump().is_empty());
    assert!(bench.muxer.connections.is_empty());
    bench.guest_sends(request.ports, Operation::Response, 0, b"");
    assert_eq!(bench.pump_one().0, Header::reset(request.ports));
}

#[test]
fn silent_clients_beyond_the_limit_wait_for_their_turn() {
    let mut bench = Bench::new();
    let silent: Vec<_> = (0..MAX_HANDSHAKES).map(|_| bench.client("")).collect();
    let _late = bench.client("CONNECT 77\n");
    assert!(bench.pump().is_empty());
    assert_eq!(bench.muxer.handshakes, MAX_HANDSHAKES);
    drop(silent);
    bench.pump();
    bench.muxer.expire(bench.now + ACCEPT_RETRY);
    assert_eq!(bench.pump_one().0.ports.guest, 77);
}

#[test]
fn connections_beyond_the_limit_are_refused() {
    let mut bench = Bench::new();
    let _listener = bench.host_listens(52);
    let mut opened = 0;
    let mut refused = false;
    // A low limit of descriptors may end it earlier; nothing ends it later.
    for guest in 0..=MAX_CONNECTIONS as u32 {
        bench.guest_sends(Ports { host: 52, guest }, Operation::Request, 0, b"");
        match bench.pump_one().0.operation {
            Operation::Response => opened += 1,
            Operation::Reset => refused = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(refused);
    assert_eq!(bench.muxer.connections.len(), opened);
}

#[test]
fn answers_to_a_guest_that_takes_none_are_bounded() {
    let mut bench = Bench::new();
    for guest in 0..MAX_RESETS as u32 {
        assert!(!bench.muxer.is_congested());
        bench.guest_sends(Ports { host: 1, guest }, Operation::Data, 0, b"");
    }
    assert!(bench.muxer.is_congested());
    assert_eq!(bench.pump().len(), MAX_RESETS);
    assert!(!bench.muxer.is_congested());
}

#[test]
fn a_guest_that_opens_and_resets_and_takes_no_answers_leaves_nothing() {
    let mut bench = Bench::new();
    let listener = bench.host_listens(7);
    for guest in (0..3).cycle().take(600) {
        let ports = Ports { host: 7, guest };
        bench.guest_sends(ports, Operation::Request, 0, b"");
        assert_eq!(bench.muxer.ready.len(), 1);
        drop(listener.accept().unwrap());
        bench.guest_sends(ports, Operation::Reset, 0, b"");
        assert!(bench.muxer.ready.is_empty() && bench.muxer.sources.is_empty());
    }
    assert!(bench.pump().is_empty());
}

#[test]
fn connections_take_turns() {
    let mut bench = Bench::new();
    let (mut first, first_ports) = bench.connect_to_guest(1);
    let (mut second, second_ports) = bench.connect_to_guest(2);
    first.write_all(&[1; 16 << 10]).unwrap();
    second.write_all(&[2; 16 << 10]).unwrap();
    let order: Vec<Ports> = bench.pump().iter().map(|(header, _)| header.ports).collect();
    assert_eq!(order.len(), 8);
    for pair in order.chunks(2) {
        assert!(
            pair.contains(&first_ports) && pair.contains(&second_ports),
            "{order:?}"
        );
    }
}

#[test]
fn a_buffer_of_credit_is_what_the_guest_is_told() {
    let mut bench = Bench::new();
    let _client = bench.client("CONNECT 1\n");
    assert_eq!(bench.pump_one().0.buffer_size, Granted::BUFFER_SIZE);
}

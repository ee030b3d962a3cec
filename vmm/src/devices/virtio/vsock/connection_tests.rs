use std::cell::RefCell;
use std::rc::Rc;

use super::*;

/// A host stream in memory: what it can be read, how much it takes, and what was done to it.
#[derive(Debug, Default)]
struct Script {
    input: VecDeque<u8>,
    input_ended: bool,
    output: Vec<u8>,
    room: usize,
    reader_gone: bool,
    shutdowns: Vec<Shutdown>,
}

#[derive(Debug, Clone)]
struct FakeStream(Rc<RefCell<Script>>);

impl Write for FakeStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut script = self.0.borrow_mut();
        if script.reader_gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if script.room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = bytes.len().min(script.room);
        script.room -= count;
        script.output.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteVolatile for FakeStream {
    fn write_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut bytes = vec![0; buffer.len()];
        buffer.copy_to(&mut bytes);
        self.write(&bytes).map_err(VolatileMemoryError::IOError)
    }
}

impl ReadVolatile for FakeStream {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut script = self.0.borrow_mut();
        let count = buffer.len().min(script.input.len());
        if count == 0 && !script.input_ended {
            return Err(VolatileMemoryError::IOError(io::ErrorKind::WouldBlock.into()));
        }
        let bytes: Vec<u8> = script.input.drain(..count).collect();
        buffer.copy_from(&bytes);
        Ok(count)
    }
}

impl HostStream for FakeStream {
    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.0.borrow_mut().shutdowns.push(how);
        Ok(())
    }
}

const PORTS: Ports = Ports {
    host: 1 << 30,
    guest: 1024,
};
const GUEST_BUFFER: u32 = 64 << 10;

struct Harness {
    connection: Connection<FakeStream>,
    script: Rc<RefCell<Script>>,
    /// What the guest got and how much of it it took.
    received: Vec<u8>,
    forwarded: u32,
}

impl Harness {
    /// A connection the host asked for, which the guest has not seen.
    fn asking() -> Self {
        let script = Rc::new(RefCell::new(Script {
            room: usize::MAX,
            ..Script::default()
        }));
        Self {
            connection: Connection::asking(FakeStream(Rc::clone(&script)), PORTS),
            script,
            received: Vec::new(),
            forwarded: 0,
        }
    }

    /// One the guest accepted.
    fn open() -> Self {
        let mut harness = Self::asking();
        assert_eq!(harness.transmit().unwrap().operation, Operation::Request);
        assert_eq!(harness.receive(Operation::Response, 0, b""), Verdict::Continue);
        harness.script.borrow_mut().output.clear();
        assert!(harness.transmit().is_none());
        harness
    }

    fn receive(&mut self, operation: Operation, flags: u32, data: &[u8]) -> Verdict {
        let header = GuestHeader {
            source_cid: 3,
            destination_cid: 2,
            kind: 1,
            ports: PORTS,
            operation: Some(operation),
            flags,
            buffer_size: GUEST_BUFFER,
            forwarded: self.forwarded,
        };
        let mut data = data.to_vec();
        let slice = VolatileSlice::from(data.as_mut_slice());
        let slice = (!slice.is_empty()).then_some(&slice);
        self.connection.receive(&header, slice)
    }

    fn transmit(&mut self) -> Option<Header> {
        self.transmit_into(4096)
    }

    fn transmit_into(&mut self, size: usize) -> Option<Header> {
        let wanted = self.connection.wants_to_transmit();
        let mut data = vec![0; size];
        let header = self
            .connection
            .transmit(&mut VolatileSlice::from(data.as_mut_slice()));
        assert!(wanted || header.is_none(), "{header:?} was not announced");
        if let Some(header) = header {
            self.received
                .extend_from_slice(&data[..header.data_length as usize]);
        }
        header
    }

    fn host_sends(&mut self, data: &[u8]) {
        self.script.borrow_mut().input.extend(data);
        self.connection.stream_changed(true, false, false);
    }

    fn host_ends(&mut self) {
        self.script.borrow_mut().input_ended = true;
        self.connection.stream_changed(true, false, false);
    }

    fn host_has_room(&mut self, room: usize) {
        self.script.borrow_mut().room = room;
        self.connection.stream_changed(false, true, false);
    }

    fn output(&self) -> Vec<u8> {
        self.script.borrow().output.clone()
    }
}

#[test]
fn a_client_is_told_its_port_once_the_guest_accepted() {
    let mut harness = Harness::asking();
    harness.host_sends(b"early");
    let request = harness.transmit().unwrap();
    assert_eq!(request.operation, Operation::Request);
    assert_eq!(request.ports, PORTS);
    assert_eq!(request.buffer_size, Granted::BUFFER_SIZE);
    assert!(harness.transmit().is_none());

    assert_eq!(harness.receive(Operation::Response, 0, b""), Verdict::Continue);
    assert_eq!(harness.output(), b"OK 1073741824\n");
    assert_eq!(harness.transmit().unwrap().operation, Operation::Data);
    assert_eq!(harness.received, b"early");
}

#[test]
fn packets_out_of_turn_break_the_connection() {
    for operation in [
        Operation::Data,
        Operation::Shutdown,
        Operation::Request,
        Operation::CreditUpdate,
    ] {
        assert_eq!(
            Harness::asking().receive(operation, 3, b"x"),
            Verdict::Broken,
            "{operation:?}"
        );
    }
    for operation in [Operation::Request, Operation::Response] {
        assert_eq!(
            Harness::open().receive(operation, 0, b""),
            Verdict::Broken,
            "{operation:?}"
        );
    }
}

#[test]
fn data_goes_through_in_both_directions() {
    let mut harness = Harness::open();
    assert_eq!(
        harness.receive(Operation::Data, 0, b"to the host"),
        Verdict::Continue
    );
    assert_eq!(harness.output(), b"to the host");
    harness.host_sends(b"to the guest");
    let header = harness.transmit().unwrap();
    assert_eq!(
        (header.operation, header.data_length, header.forwarded),
        (Operation::Data, 12, 11)
    );
    assert_eq!(harness.received, b"to the guest");
}

#[test]
fn the_host_is_read_no_further_than_the_guests_credit_and_buffers() {
    let mut harness = Harness::open();
    harness.host_sends(&[7; 100 << 10]);
    let mut packets = 0;
    while let Some(Header {
        operation: Operation::Data,
        data_length,
        ..
    }) = harness.transmit_into(5000)
    {
        assert!(data_length <= 5000);
        packets += 1;
    }
    assert_eq!(packets, 14);
    assert_eq!(harness.received.len(), GUEST_BUFFER as usize);
    // The credit request came with the last call.
    assert!(harness.transmit().is_none());
    assert!(!harness.connection.wants_to_transmit());

    harness.forwarded = 1000;
    assert_eq!(
        harness.receive(Operation::CreditUpdate, 0, b""),
        Verdict::Continue
    );
    assert_eq!(harness.transmit().unwrap().data_length, 1000);
    assert_eq!(harness.transmit().unwrap().operation, Operation::CreditRequest);
}

#[test]
fn a_slow_reader_costs_the_guest_credit_and_gives_it_back() {
    let mut harness = Harness::open();
    harness.script.borrow_mut().room = 10;
    let data: Vec<u8> = (0..Granted::BUFFER_SIZE).map(|index| index as u8).collect();
    assert_eq!(harness.receive(Operation::Data, 0, &data), Verdict::Continue);
    assert_eq!(harness.output().len(), 10);
    assert!(harness.transmit().is_none());

    harness.host_has_room(usize::MAX);
    assert_eq!(harness.output(), data);
    let update = harness.transmit().unwrap();
    assert_eq!(
        (update.operation, update.forwarded),
        (Operation::CreditUpdate, Granted::BUFFER_SIZE)
    );
    assert!(harness.transmit().is_none());
}

#[test]
fn a_guest_that_sends_beyond_its_credit_breaks_the_connection() {
    let mut harness = Harness::open();
    harness.script.borrow_mut().room = 0;
    let data = vec![0; Granted::BUFFER_SIZE as usize];
    assert_eq!(harness.receive(Operation::Data, 0, &data), Verdict::Continue);
    assert_eq!(harness.receive(Operation::Data, 0, b"x"), Verdict::Broken);
}

#[test]
fn a_credit_request_is_answered() {
    let mut harness = Harness::open();
    assert_eq!(
        harness.receive(Operation::CreditRequest, 0, b""),
        Verdict::Continue
    );
    assert_eq!(harness.transmit().unwrap().operation, Operation::CreditUpdate);
    assert!(harness.transmit().is_none());
}

#[test]
fn a_guest_done_sending_ends_the_hosts_input_after_the_last_byte_and_still_receives() {
    let mut harness = Harness::open();
    harness.script.borrow_mut().room = 3;
    harness.receive(Operation::Data, 0, b"last words");
    assert_eq!(harness.receive(Operation::Shutdown, 2, b""), Verdict::Continue);
    assert!(harness.script.borrow().shutdowns.is_empty());
    harness.host_has_room(usize::MAX);
    assert_eq!(harness.output(), b"last words");
    assert_eq!(harness.script.borrow().shutdowns, [Shutdown::Write]);

    harness.host_sends(b"answer");
    assert_eq!(harness.transmit().unwrap().data_length, 6);
    assert_eq!(harness.receive(Operation::Data, 0, b"more"), Verdict::Broken);
}

#[test]
fn a_guest_done_receiving_is_sent_nothing_and_still_sends() {
    let mut harness = Harness::open();
    assert_eq!(harness.receive(Operation::Shutdown, 1, b""), Verdict::Continue);
    assert_eq!(harness.script.borrow().shutdowns, [Shutdown::Read]);
    harness.host_sends(b"unwanted");
    assert!(harness.transmit().is_none());
    harness.receive(Operation::Data, 0, b"wanted");
    assert_eq!(harness.output(), b"wanted");
}

#[test]
fn a_guest_done_in_two_steps_is_done() {
    let mut harness = Harness::open();
    assert_eq!(harness.receive(Operation::Shutdown, 2, b""), Verdict::Continue);
    assert_eq!(harness.receive(Operation::Shutdown, 1, b""), Verdict::Closed);
}

#[test]
fn a_guest_that_closes_leaves_what_it_sent() {
    for (operation, verdict) in [
        (Operation::Shutdown, Verdict::Closed),
        (Operation::Reset, Verdict::Forgotten),
    ] {
        let mut harness = Harness::open();
        harness.script.borrow_mut().room = 4;
        harness.receive(Operation::Data, 0, b"last words");
        assert_eq!(harness.receive(operation, 3, b""), verdict);
        let (_, rest) = harness.connection.into_rest();
        assert_eq!(rest, b" words");
    }
}

#[test]
fn a_host_done_sending_is_announced_after_its_data_and_still_receives() {
    let mut harness = Harness::open();
    harness.host_sends(b"all there is");
    harness.host_ends();
    assert_eq!(harness.transmit_into(6).unwrap().data_length, 6);
    assert_eq!(harness.transmit_into(6).unwrap().data_length, 6);
    let shutdown = harness.transmit().unwrap();
    assert_eq!((shutdown.operation, shutdown.flags), (Operation::Shutdown, 2));
    assert!(harness.transmit().is_none());

    harness.receive(Operation::Data, 0, b"thanks");
    assert_eq!(harness.output(), b"thanks");
}

#[test]
fn a_host_that_is_gone_is_announced_after_its_data_and_swallows_the_rest() {
    let mut harness = Harness::open();
    harness.script.borrow_mut().room = 0;
    harness.receive(Operation::Data, 0, &[1; 1000]);
    harness.host_sends(b"bye");
    harness.script.borrow_mut().input_ended = true;
    harness.script.borrow_mut().reader_gone = true;
    harness.connection.stream_changed(true, true, true);

    assert_eq!(harness.transmit().unwrap().data_length, 3);
    let shutdown = harness.transmit().unwrap();
    assert_eq!(
        (shutdown.operation, shutdown.flags, shutdown.forwarded),
        (Operation::Shutdown, 3, 1000)
    );
    assert_eq!(harness.receive(Operation::Data, 0, &[1; 1000]), Verdict::Continue);
    assert!(harness.transmit().is_none());
}

#[test]
fn a_host_that_only_stopped_reading_still_sends() {
    let mut harness = Harness::open();
    harness.script.borrow_mut().reader_gone = true;
    harness.receive(Operation::Data, 0, b"unheard");
    let shutdown = harness.transmit().unwrap();
    assert_eq!((shutdown.operation, shutdown.flags), (Operation::Shutdown, 1));
    harness.host_sends(b"but speaking");
    assert_eq!(harness.transmit().unwrap().data_length, 12);
}

#[test]
fn a_buffer_without_room_is_not_the_end_of_the_hosts_data() {
    let mut harness = Harness::open();
    harness.host_sends(b"data");
    assert!(harness.transmit_into(0).is_none());
    assert_eq!(harness.transmit().unwrap().data_length, 4);
}

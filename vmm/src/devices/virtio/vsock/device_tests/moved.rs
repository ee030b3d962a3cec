//! A guest whose device pauses, or is replaced by another as when a snapshot is restored.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::{Guest, Setup, client, read_answer};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::test_driver::Buffer;
use crate::devices::virtio::vsock::packet::Operation;

const EVENT: usize = 2;
const A_MOMENT: Duration = Duration::from_millis(50);

impl Guest<'_> {
    fn give_event_buffer(&mut self) {
        self.driver
            .add(EVENT, &[Buffer::writable(self.driver.data(EVENT), 4)]);
    }

    /// Whether a connection from the host arrives soon.
    fn is_asked(&mut self) -> bool {
        let deadline = Instant::now() + A_MOMENT;
        while self.requests.is_empty() && Instant::now() < deadline {
            self.work();
        }
        !self.requests.is_empty()
    }
}

#[test]
fn connections_outlive_a_pause() {
    let mut setup = Setup::new();
    let mut guest = Guest::new(&setup.memory, &mut setup.vsock);
    let mut client = client(&setup.socket, 7);
    let key = guest.accept();
    read_answer(&mut client);

    setup.vsock.worker().unwrap().pause();
    client.write_all(b"said while it was paused").unwrap();
    assert!(!guest.is_asked());
    assert_eq!(guest.peer(key).received, b"");
    setup.vsock.worker().unwrap().resume().unwrap();
    guest.work_until(|guest| guest.peer(key).received == b"said while it was paused");
    guest.send_stream(key, b"an answer");
    let mut answer = [0; 9];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"an answer");
}

#[test]
fn a_moved_guest_first_hears_that_its_connections_are_gone() {
    let (mut before, mut after) = (Setup::new(), Setup::new());
    let mut guest = Guest::new(&before.memory, &mut before.vsock);
    let _old = client(&before.socket, 7);
    let (old_port, _) = guest.accept();
    let mut new = client(&after.socket, 7);

    guest.driver.move_over(&mut before.vsock, &mut after.vsock);
    assert!(!guest.is_asked(), "asked before it could hear of the reset");
    guest.driver.write(guest.driver.data(EVENT), &[0xff; 4]);
    guest.give_event_buffer();
    assert_eq!(guest.driver.wait_for_used(EVENT).1, 4);
    assert_eq!(guest.driver.read(guest.driver.data(EVENT), 4), [0; 4]);
    assert!(!guest.is_asked(), "asked before it had taken in the reset");
    guest.give_event_buffer();
    let (new_port, _) = guest.accept();
    assert_eq!(
        new_port,
        old_port + 1,
        "the old port still means the old connection"
    );
    assert_eq!(read_answer(&mut new), format!("OK {new_port}\n"));
    assert_eq!(guest.driver.take_used(EVENT), None, "one reset is enough");
}

#[test]
fn a_moved_guest_is_answered_for_an_old_connection_with_a_reset() {
    let (mut before, mut after) = (Setup::new(), Setup::new());
    let mut guest = Guest::new(&before.memory, &mut before.vsock);
    let _old = client(&before.socket, 7);
    let key = guest.accept();
    guest.driver.move_over(&mut before.vsock, &mut after.vsock);
    guest.send(key.0, key.1, Operation::Data, 0, b"are you there?");
    guest.give_event_buffer();
    guest.driver.wait_for_used(EVENT);
    guest.give_event_buffer();
    guest.work_until(|guest| guest.peer(key).is_reset);
}

#[test]
fn a_guest_without_connections_is_moved_without_an_event() {
    let (mut before, mut after) = (Setup::new(), Setup::new());
    let mut guest = Guest::new(&before.memory, &mut before.vsock);
    guest.give_event_buffer();
    guest.driver.move_over(&mut before.vsock, &mut after.vsock);
    let _client = client(&after.socket, 7);
    guest.accept();
    assert_eq!(guest.driver.take_used(EVENT), None);
}

#[test]
fn a_guest_that_is_moved_twice_before_it_hears_of_it_hears_of_it_then() {
    let (mut first, mut second, mut third) = (Setup::new(), Setup::new(), Setup::new());
    let mut guest = Guest::new(&first.memory, &mut first.vsock);
    let _client = client(&first.socket, 7);
    guest.accept();
    guest.driver.move_over(&mut first.vsock, &mut second.vsock);
    guest.driver.move_over(&mut second.vsock, &mut third.vsock);
    guest.give_event_buffer();
    assert_eq!(guest.driver.wait_for_used(EVENT).1, 4);
}

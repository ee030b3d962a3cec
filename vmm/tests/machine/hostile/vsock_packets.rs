//! Packets that lie about themselves, and connections by the thousand.

use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use super::driver::{BUFFERS, Descriptor, NEXT, Offer, SCRATCH, SIZE, WRITE, describe};
use super::random::Random;
use super::script::Script;
use super::victim::{Scene, VSOCK, random, seed};
use crate::program::Machine;

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const GUEST: u64 = 3;
const HOST: u64 = 2;
/// A port of the host's where somebody listens.
const PORT: u32 = 7;
const REQUEST: u16 = 1;
const RESET: u16 = 3;
const HEADER_BYTES: u32 = 44;
const ROOM: u32 = 64;

/// A packet's header (virtio 1.2, section 5.10.6).
struct Packet {
    source: u64,
    destination: u64,
    from: u32,
    to: u32,
    length: u32,
    kind: u16,
    operation: u16,
    flags: u32,
    room: u32,
    forwarded: u32,
}

impl Packet {
    /// A right one that opens or resets a connection.
    fn right(operation: u16, from: u32) -> Self {
        Self {
            source: GUEST,
            destination: HOST,
            from,
            to: PORT,
            length: 0,
            kind: 1,
            operation,
            flags: 0,
            room: 4096,
            forwarded: 0,
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [
            &self.source.to_le_bytes()[..],
            &self.destination.to_le_bytes(),
            &self.from.to_le_bytes(),
            &self.to.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.operation.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.room.to_le_bytes(),
            &self.forwarded.to_le_bytes(),
        ]
        .concat();
        bytes.resize(ROOM as usize, 0x5a);
        bytes
    }
}

/// Listens for what the guest of `machine` connects to, and keeps or ends what comes.
fn listen(machine: &Machine, keep: bool) {
    let mut path = machine.path("vsock").into_os_string();
    path.push(format!("_{PORT}"));
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let mut kept: Vec<UnixStream> = Vec::new();
        // It goes on until the test's process ends; what it keeps ends with the VMM.
        for stream in listener.incoming().map_while(Result::ok) {
            if keep && kept.len() < 2_000 {
                kept.push(stream);
            }
        }
    });
}

/// Starts the device with `packets` at hand and, if `answers` can come, buffers for them.
fn send(script: &mut Script, packets: &[Packet], answers: bool) {
    let bytes: Vec<u8> = packets.iter().flat_map(Packet::to_bytes).collect();
    script.preset(BUFFERS, &bytes);
    for queue in 0..VSOCK.queues {
        VSOCK.refill(script, queue, &[]);
    }
    VSOCK.start(script, VSOCK.features);
    let mut receive = Offer::new(VSOCK, RECEIVE);
    for index in 0..SIZE {
        let descriptor = Descriptor {
            address: (SCRATCH + u32::from(index) * 4096).into(),
            length: 4096,
            flags: WRITE,
            next: 0,
        };
        describe(script, RECEIVE, index, descriptor);
    }
    let mut transmit = Offer::new(VSOCK, TRANSMIT);
    for (number, batch) in (0..).zip(packets.chunks(usize::from(SIZE / 2))) {
        let mut heads = Vec::new();
        for (place, packet) in (0..).zip(batch) {
            let index = number * u32::from(SIZE / 2) + u32::from(place);
            let header = Descriptor {
                address: (BUFFERS + index * ROOM).into(),
                length: HEADER_BYTES,
                flags: NEXT,
                next: place * 2 + 1,
            };
            let data = Descriptor {
                address: SCRATCH.into(),
                length: packet.length.min(0x1_0000),
                flags: 0,
                next: 0,
            };
            describe(script, TRANSMIT, place * 2, header);
            describe(script, TRANSMIT, place * 2 + 1, data);
            heads.push(place * 2);
        }
        transmit.offer(script, &heads);
        if answers {
            let heads: Vec<u16> = (0..SIZE).collect();
            receive.offer(script, &heads[..usize::from(SIZE / 2)]);
        }
        // What is not taken because nobody takes the answers is overtaken, which is a broken ring: hostile as well.
        script.rest(1 << 17);
    }
}

fn garbage(random: &mut Random) -> Packet {
    Packet {
        source: random.of(&[GUEST, GUEST, GUEST, GUEST, 0, 2, u64::MAX]),
        destination: random.of(&[HOST, HOST, HOST, HOST, 0, 3, u64::MAX]),
        from: random.of(&[0, 1, 2, 3, u32::MAX]),
        to: random.of(&[PORT, PORT, PORT, 0, 1024, u32::MAX]),
        length: random.of(&[0, 0, 1, 4096, 0x1_0000, 0x1_0001, u32::MAX]),
        kind: random.of(&[1, 1, 1, 1, 2, 0, 0xffff]),
        operation: random.of(&[0, 1, 1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 0xffff]),
        flags: random.of(&[0, 1, 2, 3, u32::MAX]),
        room: random.of(&[0, 1, 4096, u32::MAX]),
        forwarded: random.of(&[0, 1, 0x7fff_ffff, u32::MAX]),
    }
}

#[test]
fn packets_that_lie() {
    Scene::run(|scene| {
        for (round, answers) in [true, false, true].into_iter().enumerate() {
            let case = format!("packets, round {round}, seed {}", seed());
            let mut random = random(&case);
            let packets: Vec<Packet> = (0..900).map(|_| garbage(&mut random)).collect();
            let mut script = Script::new();
            send(&mut script, &packets, answers);
            scene.endure_with(&case, &script, |machine| listen(machine, round == 0));
        }
    });
}

#[test]
fn connections_by_the_thousand() {
    Scene::run(|scene| {
        let requests = || {
            (0..1_900)
                .map(|port| Packet::right(REQUEST, 5_000 + port))
                .collect::<Vec<_>>()
        };
        for (case, keep, answers) in [
            ("connections that somebody keeps", true, true),
            ("connections that nobody keeps", false, true),
            ("connections without answers", true, false),
        ] {
            let mut script = Script::new();
            send(&mut script, &requests(), answers);
            scene.endure_with(case, &script, |machine| listen(machine, keep));
        }
    });
}

#[test]
fn resets_by_the_thousand() {
    Scene::run(|scene| {
        // Opened and reset at once; and resets of what was never there.
        let opened: Vec<Packet> = (0..1_900)
            .map(|number| Packet::right([REQUEST, RESET][number % 2], 9))
            .collect();
        let alone: Vec<Packet> = (0..1_900).map(|port| Packet::right(RESET, port)).collect();
        for (case, packets) in [("opened and reset", opened), ("resets alone", alone)] {
            for answers in [true, false] {
                let mut script = Script::new();
                send(&mut script, &packets, answers);
                scene.endure_with(case, &script, |machine| listen(machine, true));
            }
        }
    });
}

//! Frames that no network has seen, with headers that ask for the impossible.

use super::driver::{BUFFERS, Descriptor, NEXT, Offer, SCRATCH, SIZE, WRITE, describe};
use super::script::Script;
use super::victim::{NETWORK, Scene, random, seed};

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const HEADER_BYTES: usize = 12;

/// A `virtio_net_hdr` (virtio 1.2, section 5.1.6).
fn header(
    flags: u8,
    kind: u8,
    header_length: u16,
    size: u16,
    start: u16,
    offset: u16,
    buffers: u16,
) -> Vec<u8> {
    let words = [header_length, size, start, offset, buffers];
    let words = words.into_iter().flat_map(u16::to_le_bytes);
    [flags, kind].into_iter().chain(words).collect()
}

#[test]
fn frames_from_the_guest() {
    Scene::run(|scene| {
        for features in [NETWORK.features, 0] {
            let case = format!("frames with features {features:#x}, seed {}", seed());
            let mut random = random(&case);
            let mut script = Script::new();
            let mut presets = Vec::new();
            NETWORK.refill(&mut script, RECEIVE, &[]);
            NETWORK.refill(&mut script, TRANSMIT, &[]);
            NETWORK.start(&mut script, features);
            let mut offer = Offer::new(NETWORK, TRANSMIT);
            for number in 0..240_u32 {
                let mut word = || random.of(&[0, 1, 12, 14, 34, 54, 60, 1460, 0x7fff, 0xffff]);
                let words = [word(), word(), word(), word(), word()];
                let flags = random.of(&[0, 0, 1, 1, 2, 3, 0xff]);
                let kind = random.of(&[0, 0, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0xff]);
                let mut bytes = header(flags, kind, words[0], words[1], words[2], words[3], words[4]);
                let ethernet = random.of(&[[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00]]);
                bytes.extend([0xff; 12]);
                bytes.extend(ethernet);
                bytes.push(random.of(&[0x45, 0x60, 0x4f, 0]));
                bytes.extend(random.bytes(133));
                presets.extend(&bytes);
                let address = BUFFERS + number * bytes.len() as u32;
                let length = random.of(&[
                    bytes.len() as u32,
                    bytes.len() as u32,
                    HEADER_BYTES as u32,
                    HEADER_BYTES as u32 + 14,
                    0,
                    1,
                    11,
                ]);
                let place = (number % u32::from(SIZE / 2)) as u16 * 2;
                // Some go on in 64 KiB of nothing, one byte or 4 GiB.
                let rest = random.of(&[0, 1, 65_536, 65_535 - 160, u32::MAX]);
                let first = Descriptor {
                    address: address.into(),
                    length,
                    flags: random.of(&[0, NEXT, NEXT]),
                    next: place + 1,
                };
                let second = Descriptor {
                    address: SCRATCH.into(),
                    length: rest,
                    flags: random.of(&[0, 0, 0, WRITE]),
                    next: 0,
                };
                describe(&mut script, TRANSMIT, place, first);
                describe(&mut script, TRANSMIT, place + 1, second);
                offer.offer(&mut script, &[place]);
                offer.wait(&mut script);
            }
            script.preset(BUFFERS, &presets);
            scene.endure(&case, &script);
        }
    });
}

/// Buffers for frames that are none, while the host sends.
#[test]
fn buffers_for_frames() {
    Scene::run(|scene| {
        for features in [NETWORK.features, 0] {
            let case = format!("buffers with features {features:#x}, seed {}", seed());
            let mut random = random(&case);
            let mut script = Script::new();
            NETWORK.refill(&mut script, RECEIVE, &[]);
            NETWORK.refill(&mut script, TRANSMIT, &[]);
            NETWORK.start(&mut script, features);
            let mut offer = Offer::new(NETWORK, RECEIVE);
            for _ in 0..60 {
                for place in 0..SIZE {
                    let descriptor = Descriptor {
                        address: u64::from(SCRATCH) + random.below(1 << 30),
                        length: random.of(&[0, 1, 11, 12, 13, 60, 1526, 65_562, u32::MAX]),
                        flags: random.of(&[WRITE, WRITE, WRITE | NEXT, 0, 0xffff]),
                        next: random.below(17) as u16,
                    };
                    describe(&mut script, RECEIVE, place, descriptor);
                }
                let heads: Vec<u16> = (0..SIZE / 2)
                    .map(|_| random.below(u64::from(SIZE)) as u16)
                    .collect();
                offer.offer(&mut script, &heads);
                script.rest(1 << 20);
            }
            scene.endure_with(&case, &script, |_| {
                // The host asks who has an address, which makes frames for the guest.
                std::thread::spawn(|| {
                    let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
                    for number in 0..200_u8 {
                        // Refused while the interface is not ready, or when nobody answers.
                        let _ = socket.send_to(
                            &[0; 1400],
                            (std::net::Ipv4Addr::new(192, 0, 2, 2 + number % 250), 9),
                        );
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                });
            });
        }
    });
}

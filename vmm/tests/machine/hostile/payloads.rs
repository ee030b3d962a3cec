//! Chains that are in order, with requests in them that are not.

use super::driver::{BUFFERS, Descriptor, NEXT, Offer, SCRATCH, SIZE, Target, WRITE, describe};
use super::random::Random;
use super::script::Script;
use super::victim::{BALLOON, CONSOLE, DISK, ENTROPY, FILES, Scene, random, seed};

/// Bytes for each request.
const ROOM: u32 = 256;
const REQUESTS: u32 = 192;

/// Offers `queue` requests whose readable part is what `request` says, with something to write an answer to.
fn send(
    script: &mut Script,
    random: &mut Random,
    target: Target,
    queue: u32,
    request: fn(&mut Random) -> Vec<u8>,
) {
    let mut presets = Vec::new();
    target.refill(script, queue, &[]);
    target.start(script, target.features);
    let mut offer = Offer::new(target, queue);
    for batch in 0..REQUESTS / u32::from(SIZE / 2) {
        for chain in 0..SIZE / 2 {
            let number = batch * u32::from(SIZE / 2) + u32::from(chain);
            let mut bytes = request(random);
            bytes.truncate(ROOM as usize);
            let readable = Descriptor {
                address: (BUFFERS + number * ROOM).into(),
                length: bytes.len() as u32,
                flags: NEXT,
                next: chain * 2 + 1,
            };
            let writable = Descriptor {
                address: (SCRATCH + number * 8192).into(),
                length: random.of(&[0, 1, 15, 16, 17, 512, 513, 4096, 8192]),
                flags: WRITE,
                next: 0,
            };
            describe(script, queue, chain * 2, readable);
            describe(script, queue, chain * 2 + 1, writable);
            bytes.resize(ROOM as usize, 0);
            presets.extend(bytes);
        }
        let heads: Vec<u16> = (0..SIZE / 2).map(|chain| chain * 2).collect();
        offer.offer(script, &heads);
        offer.wait(script);
    }
    script.preset(BUFFERS, &presets);
}

fn endure(target: Target, queue: u32, request: fn(&mut Random) -> Vec<u8>) {
    Scene::run(move |scene| {
        for round in 0..3 {
            let case = format!("requests for {}, round {round}, seed {}", target.name, seed());
            let mut random = random(&case);
            let mut script = Script::new();
            send(&mut script, &mut random, target, queue, request);
            scene.endure(&case, &script);
        }
        let shared = scene.directory().join("shared");
        assert_eq!(std::fs::read(shared.join("file")).unwrap(), b"somebody's");
    });
}

#[test]
fn requests_to_the_disk() {
    endure(DISK, 0, |random| {
        let kind: u32 = random.of(&[0, 0, 1, 1, 4, 8, 11, 13, 14, 99, u32::MAX]);
        let sector = random.of(&[0, 1, 62, 64, 65, 1 << 40, u64::MAX, u64::MAX / 512]);
        // Sectors 32 to 63 stay as they are only where no request is in order; what the scene reads is put there last.
        let is_write = matches!(kind, 1 | 11 | 13);
        let sector = if is_write { sector.max(64) } else { sector };
        let mut bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        if is_write {
            let ranges = random.below(8) as usize;
            for _ in 0..ranges {
                let start = random.of(&[64_u64, 65, u64::MAX, 1 << 55]);
                let count = random.of(&[0_u32, 1, 8, 1 << 20, u32::MAX]);
                bytes.extend(start.to_le_bytes());
                bytes.extend(count.to_le_bytes());
                bytes.extend((random.next() as u32).to_le_bytes());
            }
        }
        let length = random.of(&[bytes.len(), bytes.len(), 15, 16, 17, 0]);
        bytes.resize(length, 0xa5);
        bytes
    });
}

#[test]
fn requests_for_files() {
    endure(FILES, 1, |random| {
        let body = random.below(160) as usize;
        let length = 40 + body as u32;
        let said = random.of(&[length, length, length, 0, 39, u32::MAX]);
        // INIT comes now and then, so that there is a session to abuse; RENAME and what removes is for names that are
        // not there.
        let operation = random.of(&[
            26, 1, 1, 2, 3, 4, 14, 15, 16, 18, 20, 21, 22, 23, 27, 28, 35, 39, 42, 44, 46,
        ]);
        let operation: u32 = match random.below(4) {
            0 => random.below(60) as u32,
            _ => operation,
        };
        let node = random.of(&[0_u64, 1, 1, 1, 2, 3, u64::MAX]);
        let mut bytes = [
            &said.to_le_bytes()[..],
            &operation.to_le_bytes(),
            &random.next().to_le_bytes(),
            &node.to_le_bytes(),
            &[0; 16],
        ]
        .concat();
        match operation {
            26 => bytes.extend([7_u32, 36, 1 << 20, u32::MAX].map(u32::to_le_bytes).concat()),
            1 => bytes.extend(random.of(&[&b"file\0"[..], b"../..\0", b"/etc/passwd\0", b"..\0", b"x"])),
            _ => bytes.extend(random.bytes(body)),
        }
        bytes
    });
}

#[test]
fn pages_for_the_balloon() {
    for queue in [0, 1] {
        endure(BALLOON, queue, |random| {
            let count = random.below(63) as usize;
            let pages = (0..count).map(|_| {
                // From 16 MiB on memory is nobody's; below it is what the guest itself needs.
                let bits = random.of(&[4, 12, 14, 20, 31]);
                let page = 4096 + random.below(1 << bits) as u32;
                random.of(&[page, page, u32::MAX, 16_384])
            });
            let mut bytes: Vec<u8> = pages.flat_map(u32::to_le_bytes).collect();
            bytes.truncate(bytes.len() - random.below(4).min(bytes.len() as u64) as usize);
            bytes
        });
    }
}

#[test]
fn requests_for_entropy() {
    endure(ENTROPY, 0, |random| {
        let length = random.below(256) as usize;
        random.bytes(length)
    });
}

/// Control characters, broken UTF-8, lines without an end.
#[test]
fn words_on_the_console() {
    endure(CONSOLE, 1, |random| {
        let length = random.below(256) as usize;
        random.bytes(length)
    });
}

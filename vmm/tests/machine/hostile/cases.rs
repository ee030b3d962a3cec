//! Queues that are wrong, offered to every device that has one.

use vmm::control::{Request, Response};
use vmm::status::ExitKind;

use super::driver::{
    BEHIND_RAM, BUFFERS, Descriptor, INDIRECT, NEXT, Offer, SCRATCH, SIZE, STATUS, Target, WRITE, available,
    describe, descriptors, plausible,
};
use super::script::{FREE, Script, Width};
use super::victim::{ALL, BALLOON, Scene, random, seed};

/// Rings and descriptors of random bytes; then the same with as many chains available as there may be.
#[test]
fn queues_full_of_garbage() {
    Scene::run(|scene| {
        for target in ALL {
            let case = format!("garbage for {}, seed {}", target.name, seed());
            let mut random = random(&case);
            let mut script = Script::new();
            script.preset(FREE, &random.bytes(0x8000));
            target.start(&mut script, target.features);
            offer_everything(&mut script, target);
            for queue in 0..target.queues {
                script.store(Width::Four, available(queue), u64::from(SIZE) << 16);
            }
            target.start(&mut script, target.features);
            offer_everything(&mut script, target);
            scene.endure(&case, &script);
        }
    });
}

fn offer_everything(script: &mut Script, target: Target) {
    for queue in 0..target.queues {
        target.notify(script, queue);
    }
    script.rest(1 << 21);
}

/// Chains that may mean something, in great number.
#[test]
fn plausible_chains() {
    Scene::run(|scene| {
        for target in ALL {
            let case = format!("chains for {}, seed {}", target.name, seed());
            let mut random = random(&case);
            let mut script = Script::new();
            script.preset(BUFFERS, &random.bytes(0x8000));
            for round in 0..24 {
                for queue in 0..target.queues {
                    for index in 0..SIZE {
                        let mut descriptor = plausible(&mut random);
                        // Numbers in its rings are pages that the guest itself needs.
                        if target.name == BALLOON.name && descriptor.address >> 16 == u64::from(FREE) >> 16 {
                            descriptor.address += u64::from(SCRATCH);
                        }
                        describe(&mut script, queue, index, descriptor);
                    }
                    let heads: Vec<u16> = (0..SIZE).map(|_| random.below(17) as u16).collect();
                    target.refill(&mut script, queue, &heads);
                }
                let features = if round % 2 == 0 { target.features } else { 0 };
                target.start(&mut script, features);
                offer_everything(&mut script, target);
            }
            scene.endure(&case, &script);
        }
    });
}

/// A table of descriptors, each of which is one.
const TABLE: u32 = BUFFERS + 0x4000;

fn ram(flags: u16, next: u16) -> Descriptor {
    Descriptor {
        address: SCRATCH.into(),
        length: 4096,
        flags,
        next,
    }
}

/// One of a queue full of descriptors that lead around: the first half is read, the second written.
fn around(index: u16, address: u64, length: u32) -> Descriptor {
    Descriptor {
        address,
        length,
        flags: NEXT | if index >= SIZE / 2 { WRITE } else { 0 },
        next: (index + 1) % SIZE,
    }
}

/// What each descriptor of a queue is, by its number.
type Shape = fn(u16) -> Descriptor;

const SHAPES: [(&str, Shape); 9] = [
    ("read, and again", |index| ram(NEXT, index)),
    ("written, and again", |index| ram(NEXT | WRITE, index ^ 1)),
    ("all of them around", |index| {
        around(index, SCRATCH.into(), 65_536)
    }),
    ("4 GiB each", |index| around(index, SCRATCH.into(), u32::MAX)),
    ("nothing each", |index| around(index, SCRATCH.into(), 0)),
    ("beyond RAM", |index| around(index, BEHIND_RAM, 4096)),
    ("around the end of all addresses", |index| {
        around(index, u64::MAX - 1, 4096)
    }),
    ("behind the last descriptor", |_| ram(NEXT, SIZE)),
    ("a table in a table", |_| Descriptor {
        address: TABLE.into(),
        length: !15,
        flags: INDIRECT,
        next: 0,
    }),
];

/// Chains without an end, of nothing, of 4 GiB a buffer, in tables that go on for ever.
#[test]
fn chains_that_cannot_be() {
    Scene::run(|scene| {
        for target in ALL {
            let mut script = Script::new();
            // A table whose every entry is a table, and the first of which goes on to itself.
            let nested = Descriptor {
                address: TABLE.into(),
                length: 0x1000,
                flags: INDIRECT | NEXT,
                next: 0,
            };
            script.preset(TABLE, &nested.to_bytes().repeat(256));
            for (_, shape) in SHAPES {
                for queue in 0..target.queues {
                    for index in 0..SIZE {
                        describe(&mut script, queue, index, shape(index));
                    }
                    let heads: Vec<u16> = (0..SIZE).collect();
                    target.refill(&mut script, queue, &heads);
                }
                target.start(&mut script, target.features);
                offer_everything(&mut script, target);
            }
            let names: Vec<&str> = SHAPES.iter().map(|(name, _)| *name).collect();
            scene.endure(&format!("{} for {}", names.join(", "), target.name), &script);
        }
    });
}

/// Available indices that jump, go back, or run ahead of the device; a loop offered again and again.
#[test]
fn indices_that_jump() {
    Scene::run(|scene| {
        for target in ALL {
            let mut script = Script::new();
            for index in [1_u16, SIZE, SIZE + 1, 0x7fff, 0x8000, 0xffff] {
                target.start(&mut script, target.features);
                for queue in 0..target.queues {
                    script.store(Width::Four, available(queue), u64::from(index) << 16);
                    target.notify(&mut script, queue);
                    script.store(Width::Two, available(queue) + 2, index.wrapping_sub(2).into());
                    target.notify(&mut script, queue);
                }
                script.rest(1 << 20);
            }
            for queue in 0..target.queues {
                let endless = Descriptor {
                    address: SCRATCH.into(),
                    length: 65_536,
                    flags: NEXT | WRITE,
                    next: 0,
                };
                describe(&mut script, queue, 0, endless);
                target.refill(&mut script, queue, &[0; SIZE as usize]);
                script.store(Width::Four, available(queue), 0);
            }
            target.start(&mut script, target.features);
            for queue in 0..target.queues {
                let mut offer = Offer::new(target, queue);
                for _ in 0..400 {
                    offer.again(&mut script, 1);
                }
                // And all at once what was not looked at meanwhile.
                offer.again(&mut script, SIZE);
            }
            scene.endure(&format!("indices of {}", target.name), &script);
        }
    });
}

/// Rings that devices write over while they read them: each part of a queue is a buffer of the queue.
#[test]
fn queues_that_are_their_own_buffers() {
    Scene::run(|scene| {
        for target in ALL {
            let mut script = Script::new();
            for queue in 0..target.queues {
                for index in 0..SIZE {
                    let descriptor = Descriptor {
                        address: u64::from(descriptors(queue)) + u64::from(index) * 64,
                        length: 0x400,
                        flags: NEXT | if index % 2 == 1 { WRITE } else { 0 },
                        next: (index + 1) % SIZE,
                    };
                    // The balloon would take the lengths for pages that the guest itself needs.
                    if target.name != BALLOON.name {
                        describe(&mut script, queue, index, descriptor);
                    }
                }
                let heads: Vec<u16> = (0..SIZE).collect();
                target.refill(&mut script, queue, &heads);
            }
            target.start(&mut script, target.features);
            offer_everything(&mut script, target);
            scene.endure(&format!("own buffers of {}", target.name), &script);
        }
    });
}

/// A guest that gives all of its memory away, what it executes and its page tables included, harms itself alone.
#[test]
fn a_guest_that_gives_itself_away_ends_by_name() {
    Scene::run(|scene| {
        let mut script = Script::new();
        let pages: Vec<u8> = (0..16_384_u32)
            .rev()
            .flat_map(u32::to_le_bytes)
            .take(0x1_0000)
            .collect();
        script.preset(BUFFERS + 0x1_0000, &pages[..0x1_0000 - 0x1000]);
        for (index, half) in (0..).zip([0_u32, 0x4000, 0x8000, 0xb000]) {
            let descriptor = Descriptor {
                address: u64::from(BUFFERS + 0x1_0000 + half),
                length: 0x4000,
                flags: 0,
                next: 0,
            };
            describe(&mut script, 0, index, descriptor);
        }
        BALLOON.refill(&mut script, 0, &[0, 1, 2, 3]);
        BALLOON.start(&mut script, 0);
        BALLOON.notify(&mut script, 0);
        script.rest(1 << 26);
        script.load(Width::Four, BALLOON.register(STATUS));
        let (machine, running) = scene.start("a guest that gives itself away", &script);
        // What it executes then is zeroes, until there is no memory any more; or nothing, if it halted before.
        std::thread::sleep(std::time::Duration::from_millis(300));
        if machine.path("control").exists() {
            assert_eq!(machine.ask(Request::Stop), Response::Stopping);
        }
        let finished = running.finish();
        let kind = finished.exit().reason.kind;
        assert!(
            matches!(
                kind,
                ExitKind::Stopped | ExitKind::TripleFault | ExitKind::EmulationFailure | ExitKind::KvmError
            ),
            "{:?}",
            finished.exit()
        );
    });
}

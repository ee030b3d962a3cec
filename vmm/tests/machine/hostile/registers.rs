//! Accesses that no register is there for, in widths it has not, out of turn, and too often.

use super::driver::{EVENT_INDEX, QUEUE_NOTIFY, SIZE, STATUS, Target, available, descriptors, used};
use super::script::{SCRATCH_OF_PORTS, Script, WINDOWS, Width};
use super::victim::{ALL, Scene, random, seed};

const RESET_PORT: u16 = 0x64;
const CONSOLE_PORTS: std::ops::Range<u16> = 0x3f8..0x400;

/// Every offset of a device's window in every width, also across its end, read and written.
#[test]
fn accesses_of_odd_widths_and_places() {
    Scene::run(|scene| {
        let mut script = Script::new();
        for (target, width) in ALL.into_iter().zip(Width::ALL.into_iter().cycle()) {
            for offset in (0..0x120).chain([0xffc, 0xffd, 0xfff]) {
                script.load(width, target.register(offset));
            }
        }
        scene.endure("reads", &script);
        let mut script = Script::new();
        for (target, width) in ALL.into_iter().zip(Width::ALL.into_iter().cycle()) {
            target.start(&mut script, target.features);
            for offset in (0..0x120).chain([0xffc, 0xffd, 0xfff]) {
                script.store(width, target.register(offset), 0x5a5a_5a5a_5a5a_5a5a);
            }
        }
        scene.endure("writes", &script);
        let mut random = random("nobodys memory");
        let mut script = Script::new();
        for _ in 0..1_500 {
            // What is mapped there: 2 MiB, of which the devices have a few pages.
            let address = WINDOWS + random.below((2 << 20) - 8) as u32;
            let width = random.of(&Width::ALL);
            match random.below(2) {
                0 => script.load(width, address),
                _ => script.store(width, address, random.next()),
            }
        }
        scene.endure(&format!("anywhere, seed {}", seed()), &script);
    });
}

/// Registers of all devices in random order with values that mean something, and some that do not.
#[test]
fn registers_out_of_turn() {
    Scene::run(|scene| {
        for round in 0..3 {
            let case = format!("registers, round {round}");
            let mut random = random(&case);
            let mut script = Script::new();
            for _ in 0..2_500 {
                let target = random.of(&ALL);
                let register = random.of(&[
                    0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, STATUS, STATUS, STATUS, 0x80, 0x84, 0x90,
                    0x94, 0xa0, 0xa4, 0xfc, 0x100,
                ]);
                let small = random.below(4);
                let value = random.of(&[
                    0,
                    1,
                    3,
                    11,
                    15,
                    15,
                    0x80,
                    small,
                    16,
                    256,
                    u64::from(target.features),
                    u64::from(descriptors(0)),
                    u64::from(available(1)),
                    u64::from(used(2)),
                    0xffff_ffff,
                ]);
                target.set(&mut script, register, value as u32);
            }
            scene.endure(&format!("{case}, seed {}", seed()), &script);
        }
    });
}

/// All features, queues that are placed again while they are served, and devices started over and over.
#[test]
fn drivers_that_do_not_keep_to_the_order() {
    Scene::run(|scene| {
        let mut script = Script::new();
        for target in ALL {
            target.start(&mut script, u32::MAX);
            script.expect(target.register(STATUS), 3);
            target.notify(&mut script, 0);
            // Without VIRTIO_F_VERSION_1.
            for (register, value) in [(STATUS, 0), (STATUS, 1), (STATUS, 3), (STATUS, 11)] {
                target.set(&mut script, register, value);
            }
            script.expect(target.register(STATUS), 3);
        }
        scene.endure("features that nobody offered", &script);

        let mut script = Script::new();
        for target in ALL {
            target.start(&mut script, target.features);
            script.expect(target.register(STATUS), 15);
            for queue in 0..target.queues + 2 {
                target.place(&mut script, queue, 1 << queue, [0, 0x1000, u64::MAX]);
                target.set(&mut script, 0x44, 0);
                target.notify(&mut script, queue);
            }
        }
        scene.endure("queues placed while they are served", &script);

        let mut script = Script::new();
        for target in ALL {
            for _ in 0..8 {
                target.start(&mut script, EVENT_INDEX);
                target.notify(&mut script, 0);
            }
        }
        scene.endure("devices started over and over", &script);

        let mut script = Script::new();
        for target in ALL {
            impossible_queues(&mut script, target);
        }
        scene.endure("queues that cannot be", &script);
    });
}

/// Sizes and places that a queue cannot have; the driver sees that they are not taken, or is asked for a reset.
fn impossible_queues(script: &mut Script, target: Target) {
    let good = [descriptors(0), available(0), used(0)].map(u64::from);
    let ram = 64 << 20;
    let places = [
        (0, good),
        (3, good),
        (32_768, good),
        (65_536, good),
        (u32::MAX, good),
        (16, [good[0] + 1, good[1], good[2]]),
        (16, [good[0], good[1] + 1, good[2]]),
        (16, [good[0], good[1], good[2] + 2]),
        (16, [ram - 16, good[1], good[2]]),
        (16, [good[0], ram, good[2]]),
        (16, [good[0], good[1], u64::MAX - 3]),
        (16, [u64::from(WINDOWS), good[1], good[2]]),
    ];
    for (size, areas) in places {
        target.negotiate(script, 0);
        for queue in 0..target.queues {
            target.place(script, queue, size, areas);
            script.expect(target.register(0x44), 0);
        }
        target.set(script, STATUS, 15);
        // DEVICE_NEEDS_RESET.
        script.expect(target.register(STATUS), 15 | 64);
    }
    // All three parts and all queues in one place are allowed, and the driver's own harm.
    target.negotiate(script, EVENT_INDEX);
    for queue in 0..target.queues {
        target.place(script, queue, SIZE.into(), [good[0]; 3]);
    }
    target.set(script, STATUS, 15);
    target.notify(script, 0);
}

/// Notifications by the ten thousand, of queues that are there and of others.
#[test]
fn storms_of_notifications() {
    Scene::run_beside(|scene| {
        let mut script = Script::new();
        for target in ALL {
            target.start(&mut script, target.features);
            for queue in [0, 1, 2, 3, 0xffff, u32::MAX] {
                script.storm(target.register(QUEUE_NOTIFY), queue, 4_000);
            }
        }
        scene.endure("notifications", &script);
    });
}

/// Ports that nobody owns, and the console's in widths that it has not and faster than anybody reads.
#[test]
fn ports() {
    Scene::run_beside(|scene| {
        let mut random = random("ports");
        let mut script = Script::new();
        for _ in 0..3_000 {
            let width = random.of(&[Width::One, Width::Two, Width::Four]);
            let port = random.next() as u16;
            // What the console's ports and those KVM has of a PC's are is another matter.
            let is_kept = port < 0x100 || port.abs_diff(RESET_PORT) < 4 || (0x3f0..0x400).contains(&port);
            match random.below(2) {
                _ if is_kept || (0x4d0..0x4d2).contains(&port) => {}
                0 => script.port_read(width, port),
                _ => script.port_write(width, port, random.next() as u32),
            }
        }
        for port in CONSOLE_PORTS {
            for width in [Width::One, Width::Two, Width::Four] {
                script.port_read(width, port);
            }
        }
        scene.endure(&format!("ports, seed {}", seed()), &script);

        let mut script = Script::new();
        script.preset(SCRATCH_OF_PORTS, &[b'x'; 4096]);
        for _ in 0..66 {
            script.port_flood(0x3f8, SCRATCH_OF_PORTS, 4096);
        }
        scene.endure("a console that is flooded", &script);
    });
}

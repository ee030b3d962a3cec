//! What the guest's kernel owes programs where it is emulated: vector registers across context switches, which are the
//! VMM's work there, and timers that are never early, though it ticks less often.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use image_builder::Layout;
use image_builder::busybox::{self, Program};
use tests::{Installation, Wall, binary};

/// Of an image with this program, which is built beside the other binaries; none where there are no microVMs.
fn with_program(name: &str) -> Option<Installation> {
    let bulkhead = Installation::for_wall(Wall::MicroVm)?;
    let layout = bulkhead.scratch("image");
    let program = Program {
        file: binary(name),
        destination: format!("/bin/{name}"),
    };
    let image = busybox::image(busybox::BUSYBOX.as_ref(), &[program]).unwrap();
    Layout::new().add(&image, "latest").write_folder(&layout).unwrap();
    Some(bulkhead.with_image(layout))
}

#[test]
fn four_processes_on_two_processors_keep_their_registers_over_ten_thousand_switches() {
    let Some(bulkhead) = with_program("avx-switch") else {
        return;
    };
    // Two processors' worth of time makes a machine of two processors.
    let finished = bulkhead
        .run(Wall::MicroVm, &["--cpus", "2"], &["avx-switch", "10000"])
        .expect(0);
    assert!(finished.stdout.starts_with("ok 10"), "{}", finished.stdout);
}

#[test]
fn a_kernel_that_ticks_less_often_ends_no_wait_too_early() {
    let Some(bulkhead) = with_program("kernel-timers") else {
        return;
    };
    let finished = bulkhead
        .run(Wall::MicroVm, &[], &["kernel-timers", "60"])
        .expect(0);
    assert!(finished.stdout.starts_with("ok, "), "{}", finished.stdout);
}

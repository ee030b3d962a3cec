//! Vector registers across context switches inside a guest: where KVM emulates the guest's kernel, saving and restoring
//! them is the VMM's work.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::path::PathBuf;

use image_builder::Layout;
use image_builder::busybox::{self, Program};
use tests::{Installation, Wall, binary};

#[test]
fn four_processes_on_two_processors_keep_their_registers_over_ten_thousand_switches() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let layout = bulkhead.scratch("image");
    let program = Program {
        file: avx_switch(),
        destination: "/bin/avx-switch".to_owned(),
    };
    let image = busybox::image(busybox::BUSYBOX.as_ref(), &[program]).unwrap();
    Layout::new().add(&image, "latest").write_folder(&layout).unwrap();
    let bulkhead = bulkhead.with_image(layout);
    // Two processors' worth of time makes a machine of two processors.
    let finished = bulkhead
        .run(Wall::MicroVm, &["--cpus", "2"], &["avx-switch", "10000"])
        .expect(0);
    assert!(finished.stdout.starts_with("ok 10"), "{}", finished.stdout);
}

/// Built beside the other binaries.
fn avx_switch() -> PathBuf {
    binary("avx-switch")
}

//! Fifty runs in a row behind each wall, nothing left after the last.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use tests::{Installation, Wall};

const RUNS: usize = 50;

fn runs_leave_nothing(wall: Wall) {
    let Some(bulkhead) = Installation::for_wall(wall) else {
        return;
    };
    for number in 0..RUNS {
        let finished = bulkhead.shell(wall, &[], &format!("echo run {number}")).expect(0);
        assert_eq!(finished.stdout, format!("run {number}\n"));
    }
    // The installation looks for leftovers when it goes.
}

#[test]
fn fifty_runs_on_the_hosts_kernel_leave_nothing() {
    runs_leave_nothing(Wall::SharedKernel);
}

#[test]
fn fifty_microvms_leave_nothing() {
    runs_leave_nothing(Wall::MicroVm);
}

//! Many runs in a row behind each wall, nothing left after the last: fifty on the host's kernel, and as many microVMs as
//! `BULKHEAD_MICROVM_RUNS` says, because where KVM emulates the guest's kernel each cold boot takes its time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use tests::{Installation, Wall};

const HOST_RUNS: usize = 50;

/// Without `BULKHEAD_MICROVM_RUNS`.
const MICROVM_RUNS: usize = 10;

fn runs_leave_nothing(wall: Wall, runs: usize) {
    let Some(bulkhead) = Installation::for_wall(wall) else {
        return;
    };
    for number in 0..runs {
        let finished = bulkhead.shell(wall, &[], &format!("echo run {number}")).expect(0);
        assert_eq!(finished.stdout, format!("run {number}\n"));
    }
    // The installation looks for leftovers when it goes.
}

#[test]
fn fifty_runs_on_the_hosts_kernel_leave_nothing() {
    runs_leave_nothing(Wall::SharedKernel, HOST_RUNS);
}

#[test]
fn many_microvms_leave_nothing() {
    let runs = std::env::var("BULKHEAD_MICROVM_RUNS").map(|runs| runs.parse().expect("a number"));
    runs_leave_nothing(Wall::MicroVm, runs.unwrap_or(MICROVM_RUNS));
}

//! Many runs behind each wall, in a row and at once, nothing left after the last.
//!
//! `BULKHEAD_TEST_RUNS` says how many microVMs in a row; without it 4, since one takes seconds where the guest's kernel is
//! emulated.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::process::{Child, Stdio};

use tests::{Installation, Wall, finish, guests_are_too_slow};

/// Rows of runs beside each other: as many as there are processors on the least machine.
const ROWS: usize = 2;

const AT_ONCE: usize = 10;

fn runs_leave_nothing(wall: Wall, runs: usize) {
    let Some(bulkhead) = Installation::for_wall(wall) else {
        return;
    };
    std::thread::scope(|scope| {
        for row in 0..ROWS {
            let bulkhead = &bulkhead;
            scope.spawn(move || {
                for number in (row..runs).step_by(ROWS) {
                    let finished = bulkhead.shell(wall, &[], &format!("echo run {number}")).expect(0);
                    assert_eq!(finished.stdout, format!("run {number}\n"));
                }
            });
        }
    });
    // The installation looks for leftovers when it goes.
}

#[test]
fn fifty_runs_on_the_hosts_kernel_leave_nothing() {
    runs_leave_nothing(Wall::SharedKernel, 50);
}

#[test]
fn microvms_in_a_row_leave_nothing() {
    let runs = std::env::var("BULKHEAD_TEST_RUNS").map_or(4, |text| text.parse().expect("a number"));
    runs_leave_nothing(Wall::MicroVm, runs);
}

#[test]
fn ten_microvms_at_once_each_end_as_their_command_does() {
    if guests_are_too_slow() {
        return;
    }
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    finish(bulkhead.bulkhead().args(["template", "build"])).expect(0);
    let runs: Vec<Child> = (0..AT_ONCE)
        .map(|number| {
            let script = format!("echo run {number}; exit {number}");
            let options = ["--template", "require"];
            let mut run = bulkhead.run_command(Wall::MicroVm, &options, &["sh", "-c", &script]);
            let run = run.stdout(Stdio::piped()).stderr(Stdio::piped());
            run.spawn().unwrap()
        })
        .collect();
    for (number, run) in runs.into_iter().enumerate() {
        let output = run.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (i32::try_from(number).ok(), format!("run {number}\n")),
            "{}",
            text(&output.stderr)
        );
    }
    // The installation looks for leftovers when it goes.
}

//! The ways to end a machine that would go on, and what is left then.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use vmm::control::{Request, Response};
use vmm::status::ExitKind;

use crate::flat_guest::{LOOP, elf};
use crate::program::{Machine, PATIENCE, kvm_is_missing};

fn endless() -> Machine {
    let mut machine = Machine::of(&elf(LOOP));
    machine.config.control_socket = Some(machine.path("control"));
    machine
}

#[test]
fn sigterm_ends_a_machine_with_status_0() {
    if kvm_is_missing() {
        return;
    }
    let machine = endless();
    let running = machine.start().wait_for_first_run();
    running.signal(libc::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.exit().reason.kind, ExitKind::Stopped);
    assert_eq!(finished.exit().reason.message, "stopped by SIGTERM");
    assert_eq!(finished.status.code(), Some(0));
    assert_eq!(finished.errors, "");
    machine.assert_nothing_left();
}

#[test]
fn sigterm_ends_a_machine_whose_other_vcpus_never_started() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = endless();
    machine.config.vcpus = 4;
    let running = machine.start().wait_for_first_run();
    running.signal(libc::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.exit().reason.kind, ExitKind::Stopped);
    assert_eq!(finished.exit().vcpus.len(), 4);
    assert_eq!(
        finished.errors, "",
        "a vCPU that does not leave the guest is told there"
    );
}

#[test]
fn a_control_request_ends_a_machine_with_status_0() {
    if kvm_is_missing() {
        return;
    }
    let machine = endless();
    let running = machine.start().wait_for_first_run();
    assert_eq!(machine.ask(Request::Stop), Response::Stopping);
    let finished = running.finish();
    assert_eq!(finished.exit().reason.message, "stopped by a control request");
    assert_eq!(finished.status.code(), Some(0));
    machine.assert_nothing_left();
}

#[test]
fn a_running_machine_tells_its_statistics() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = endless();
    machine.config.vcpus = 2;
    let running = machine.start().wait_for_first_run();
    let Response::Statistics {
        vcpus, guest_memory, ..
    } = machine.ask(Request::Statistics)
    else {
        panic!("no statistics")
    };
    assert_eq!(vcpus.iter().map(|vcpu| vcpu.index).collect::<Vec<_>>(), [0, 1]);
    assert!(vcpus[0].kvm.contains_key("exits"), "{:?}", vcpus[0].kvm);
    let guest_memory: u64 = guest_memory.iter().map(|range| range.bytes).sum();
    assert_eq!(guest_memory, u64::from(machine.config.memory_mib) << 20);
    running.signal(libc::SIGTERM);
    running.finish();
}

#[test]
fn a_machine_that_is_to_die_with_its_parent_does() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = endless();
    machine.config.die_with_parent = true;
    let mut parent = Command::new("sh")
        .args(["-c", "\"$0\" --config \"$1\" >\"$2\" & echo $!; wait"])
        .args([
            env!("CARGO_BIN_EXE_bulkhead-vmm").as_ref(),
            machine.write_config().as_os_str(),
        ])
        .arg(machine.path("events"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut process = String::new();
    io::BufRead::read_line(
        &mut io::BufReader::new(parent.stdout.take().unwrap()),
        &mut process,
    )
    .unwrap();
    wait_until("the guest runs", || {
        fs::read_to_string(machine.path("events")).is_ok_and(|events| events.contains("first-run"))
    });
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_until("the machine is gone", || has_ended(process.trim()));
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Gone, or dead and waiting for a parent that does not wait.
fn has_ended(process: &str) -> bool {
    fs::read_to_string(format!("/proc/{process}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('Z')))
        .unwrap_or(true)
}

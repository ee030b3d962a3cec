//! The container engine's own tests behind the microVM wall: what is true of a container on the host's kernel is true of
//! it there, through `bulkhead-oci`, the attendant, the VMM and the agent.
//!
//! Each makes machines of its own, which takes seconds where KVM emulates the guest's kernel. So a part runs by default,
//! and all of them with `BULKHEAD_ENGINE_PARITY=all`. `docs/parity.md` tells which are of the other wall alone, and why.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::process::Command;

use tests::engine_program::engine_program;
use tests::kvm_is_there;

/// A few of each kind.
const PART: [&str; 10] = [
    "devices::the_default_devices_and_links_are_there_and_work",
    "exec::a_process_gets_what_it_asks_for_and_no_more",
    "exit_codes::a_script_without_its_interpreter_is_127_at_start",
    "life::each_stage_of_a_life_is_told",
    "mounts::every_attribute_reaches_a_bind_mount",
    "namespaces::sysctls_stay_in_the_container",
    "privileges::the_five_capability_sets_are_the_configured_ones",
    "seccomp::a_joining_process_is_filtered",
    "terminal::a_terminal_is_the_callers_and_has_the_configured_size",
    "update::a_new_limit_of_processes_holds",
];

#[test]
fn what_is_true_of_containers_on_the_hosts_kernel_is_true_in_microvms() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: containers need root");
        return;
    }
    if !kvm_is_there() {
        return;
    }
    let Some(engine) = engine_program() else {
        return;
    };
    let mut command = Command::new(engine);
    command.env("BULKHEAD_ENGINE_WALL", "microvm");
    let all = std::env::var("BULKHEAD_ENGINE_PARITY").is_ok_and(|value| value == "all");
    if !all {
        command.args(PART);
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", output.status);
    assert!(said.contains("test result: ok"));
    if !all {
        // One that has another name by now would be no part of it.
        assert!(said.contains(&format!("running {} tests", PART.len())));
    }
}

//! A machine whose process sees nothing of the host's files but the directory it was started in.

use std::fs;
use std::process::Command;

use vmm::config::SharedDirectory;
use vmm::control::Request;

use crate::flat_guest::{LOOP, elf};
use crate::program::{Machine, Running, kvm_is_missing};

#[test]
fn the_hosts_files_are_out_of_sight_once_the_machine_runs() {
    if kvm_is_missing() {
        return;
    }
    let mut machine = Machine::of(&elf(LOOP));
    machine.config.own_root = true;
    machine.config.console_ring = "console".into();
    machine.config.control_socket = Some("control".into());
    machine.config.shared_directories = vec![SharedDirectory {
        tag: "shared".into(),
        path: "export".into(),
        read_only: false,
    }];
    fs::create_dir(machine.path("export")).unwrap();
    fs::write(machine.path("export/file"), "").unwrap();
    let config = machine.write_config();
    let running = Running::spawn(
        Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
            .current_dir(machine.directory.path())
            .arg("--config")
            .arg(&config),
    )
    .wait_for_first_run();

    let own = format!("/proc/{}", running.process_id());
    let mounts = fs::read_to_string(format!("{own}/mountinfo")).unwrap();
    let mut points: Vec<&str> = mounts
        .lines()
        .map(|line| line.split(' ').nth(4).unwrap())
        .collect();
    points.sort_unstable();
    assert_eq!(points, ["/", "/export", "/proc"], "{mounts}");
    let export = mounts.lines().find(|line| line.contains(" /export ")).unwrap();
    assert!(export.contains(" /export ro,nosuid,nodev"), "{export}");
    let mut names: Vec<String> = fs::read_dir(format!("{own}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "config",
            "console",
            "control",
            "export",
            "initramfs",
            "kernel",
            "proc"
        ]
    );

    machine.config.control_socket = Some(machine.path("control"));
    machine.ask(Request::Stop);
    let finished = running.finish();
    assert_eq!(finished.errors, "");
    assert!(
        !machine.path("control").exists(),
        "the socket is removed from inside"
    );
    let here = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !here.contains(machine.directory.path().to_str().unwrap()),
        "{here}"
    );
}

//! What `bulkhead check` says of this machine, and of configurations that lack something.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use serde_json::Value;
use tests::{Installation, Wall, finish, microvm_configuration};

/// The answer for programs and the exit code, with a configuration file of this text.
fn check(bulkhead: &Installation, configuration: &str) -> (i32, Value) {
    let finished = finish(
        bulkhead
            .bulkhead()
            .arg("--config")
            .arg(bulkhead.configuration(configuration))
            .args(["check", "--format", "json"]),
    );
    assert_eq!(finished.stderr, "");
    let report = serde_json::from_str(&finished.stdout).expect("JSON");
    (finished.code, report)
}

/// What was found of `check`.
fn finding<'a>(report: &'a Value, check: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("a list of findings");
    findings
        .iter()
        .find(|finding| finding["check"] == check)
        .unwrap_or_else(|| panic!("{check} was not checked: {report:#}"))
}

#[test]
fn where_microvms_run_they_can_be_had() {
    let Some(bulkhead) = Installation::for_wall(Wall::MicroVm) else {
        return;
    };
    let (code, report) = check(&bulkhead, &microvm_configuration());
    assert_eq!((code, &report["usable"]), (0, &Value::Bool(true)), "{report:#}");
    assert_eq!(report["isolation"], "microvm");
    for part in [
        "kvm",
        "kvm capabilities",
        "vmm",
        "guest kernel",
        "guest initramfs",
    ] {
        assert_eq!(finding(&report, part)["status"], "ok", "{report:#}");
    }
}

#[test]
fn a_missing_device_forbids_microvms_and_nothing_else() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let microvm = "[microvm]\nkvm = \"/nonexistent/kvm\"";
    let (code, report) = check(&bulkhead, microvm);
    assert_eq!((code, &report["usable"]), (1, &Value::Bool(false)));
    let kvm = finding(&report, "kvm");
    assert_eq!(
        (&kvm["status"], &kvm["only_for"]),
        (&"missing".into(), &"microvm".into())
    );
    assert!(
        kvm["detail"].as_str().unwrap().contains("/nonexistent/kvm"),
        "{kvm}"
    );

    let (code, report) = check(&bulkhead, &format!("isolation = \"shared-kernel\"\n{microvm}"));
    assert_eq!((code, &report["usable"]), (0, &Value::Bool(true)), "{report:#}");
    assert_eq!(finding(&report, "kvm")["status"], "missing");
}

#[test]
fn what_is_missing_is_said_to_people_with_what_to_do() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let configuration = bulkhead.configuration("[microvm]\nkernel = \"/nonexistent/vmlinux\"");
    let finished = finish(
        bulkhead
            .bulkhead()
            .arg("--config")
            .arg(configuration)
            .arg("check"),
    )
    .expect(1);
    for part in [
        "missing",
        "/nonexistent/vmlinux",
        "-> build it, or set microvm.kernel",
        "cannot be had behind microvm",
    ] {
        assert!(
            finished.stdout.contains(part),
            "{part:?} is missing from:\n{}",
            finished.stdout
        );
    }
}

#[test]
fn a_check_makes_no_folder() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    check(&bulkhead, "");
    assert!(!bulkhead.root().exists() && !bulkhead.run_root().exists());
}

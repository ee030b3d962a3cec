//! What `bulkhead explain` says of a pod's machine and wall.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tests::{Installation, Wall, finish};

/// A bundle whose configuration says no more than this.
fn bundle(bulkhead: &Installation, config: &Value) -> PathBuf {
    let folder = bulkhead.scratch("bundle");
    std::fs::write(folder.join("config.json"), config.to_string()).expect("a configuration");
    folder
}

fn explained(bulkhead: &Installation, configuration: &str, bundle: &Path) -> Value {
    let finished = finish(
        bulkhead
            .bulkhead()
            .arg("--config")
            .arg(bulkhead.configuration(configuration))
            .args(["explain", "--format", "json"])
            .arg(bundle),
    );
    serde_json::from_str(&finished.expect(0).stdout).expect("JSON")
}

#[test]
fn the_arithmetic_of_a_pod_is_explained() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let bundle = bundle(
        &bulkhead,
        &json!({
            "ociVersion": "1.0.0",
            "annotations": {
                "dev.bulkhead.isolation": "microvm",
                "io.kubernetes.cri.sandbox-memory": "67108864"
            },
            "linux": {"resources": {"memory": {"limit": 5}, "cpu": {"quota": 150_000, "period": 100_000}}}
        }),
    );
    let explained = explained(&bulkhead, "isolation = \"shared-kernel\"", &bundle);
    assert_eq!(explained["isolation"], "microvm");
    assert_eq!(explained["chosen_by"], "annotation");
    assert_eq!(
        explained["asked"]["memory"],
        json!({"limit": 67_108_864, "read_from": "io.kubernetes.cri.sandbox-memory"})
    );
    assert_eq!(explained["machine"]["memory_mib"], 128);
    assert_eq!(explained["machine"]["vcpus"], 2);
    assert_eq!(explained["host_cgroup"]["memory"], 192 << 20);
    assert_eq!(explained["host_cgroup"]["cpu_quota"], 150_000);
}

#[test]
fn the_wall_is_explained_by_who_chose_it() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let bundle = bundle(&bulkhead, &json!({"ociVersion": "1.0.0"}));
    let by_default = explained(&bulkhead, "", &bundle);
    assert_eq!(
        (&by_default["isolation"], &by_default["chosen_by"]),
        (&json!("microvm"), &json!("default"))
    );
    let configured = explained(&bulkhead, "isolation = \"shared-kernel\"", &bundle);
    assert_eq!(
        (&configured["isolation"], &configured["chosen_by"]),
        (&json!("shared-kernel"), &json!("configuration"))
    );
    assert_eq!(configured["machine"], Value::Null);
}

#[test]
fn options_are_explained_for_people() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let explain = [
        "explain",
        "--isolation=microvm",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
    ];
    let text = finish(bulkhead.bulkhead().args(explain)).expect(0).stdout;
    for part in [
        "microvm, by --isolation",
        "67108864 bytes of memory (--memory)",
        "128 MiB",
        "1 vCPU",
    ] {
        assert!(text.contains(part), "{part:?} is missing from:\n{text}");
    }
}

#[test]
fn an_unknown_annotation_of_ours_is_refused_by_name() {
    let Some(bulkhead) = Installation::for_wall(Wall::SharedKernel) else {
        return;
    };
    let bundle = bundle(
        &bulkhead,
        &json!({"ociVersion": "1.0.0", "annotations": {"dev.bulkhead.isolatoin": "microvm"}}),
    );
    finish(bulkhead.bulkhead().arg("explain").arg(&bundle))
        .expect(125)
        .complains_of(&["dev.bulkhead.isolatoin", "config.json"]);
}

//! `bulkhead-oci update`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::io::Write;
use std::process::Stdio;

use serde_json::json;
use tests::oci::Containers;

/// The values are looked for where version 1 controllers are.
fn containers() -> Option<Containers> {
    if !std::path::Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        println!("SKIPPED: the controllers here are not on cgroup version 1");
        return None;
    }
    Containers::new()
}

#[test]
fn each_option_sets_its_limit() {
    let Some(containers) = containers() else { return };
    let web = containers.start("web", "sleep 60", |_| {});
    containers
        .run(&[
            "update",
            "--memory",
            "512M",
            "--memory-swap",
            "1g",
            "--memory-reservation",
            "64m",
            "--pids-limit",
            "77",
            "--cpu-period",
            "50000",
            "--cpu-quota",
            "25000",
            "--cpu-burst",
            "1000",
            "--cpu-share",
            "512",
            "--cpuset-cpus",
            "0",
            "--cpuset-mems",
            "0",
            "--blkio-weight",
            "300",
            &web.id,
        ])
        .expect(0);
    for (controller, file, value) in [
        ("memory", "memory.limit_in_bytes", "536870912"),
        ("memory", "memory.memsw.limit_in_bytes", "1073741824"),
        ("memory", "memory.soft_limit_in_bytes", "67108864"),
        ("pids", "pids.max", "77"),
        ("cpu", "cpu.cfs_period_us", "50000"),
        ("cpu", "cpu.cfs_quota_us", "25000"),
        ("cpu", "cpu.cfs_burst_us", "1000"),
        ("cpu", "cpu.shares", "512"),
        ("cpuset", "cpuset.cpus", "0"),
        ("cpuset", "cpuset.mems", "0"),
    ] {
        assert_eq!(web.cgroup_value(controller, file), value, "{file}");
    }
    containers.run(&["update", &web.id, "--cpu-idle", "1"]).expect(0);
    assert_eq!(web.cgroup_value("cpu", "cpu.idle"), "1");
    containers
        .run(&[
            "update",
            &web.id,
            "--memory",
            "-1",
            "--cpu-quota",
            "-1",
            "--pids-limit=-1",
        ])
        .expect(0);
    assert_eq!(web.cgroup_value("cpu", "cpu.cfs_quota_us"), "-1");
    assert_eq!(web.cgroup_value("pids", "pids.max"), "max");
    containers.run(&["delete", "-f", &web.id]).expect(0);
}

#[test]
fn limits_are_read_from_a_file_and_from_standard_input() {
    let Some(containers) = containers() else { return };
    let web = containers.start("web", "sleep 60", |_| {});
    let file = containers.directory().join("resources.json");
    std::fs::write(&file, json!({ "memory": { "limit": 64 << 20 } }).to_string()).unwrap();
    containers
        .run(&[
            "update",
            "--resources",
            file.to_str().unwrap(),
            "--pids-limit",
            "5",
            &web.id,
        ])
        .expect(0);
    assert_eq!(web.cgroup_value("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(web.cgroup_value("pids", "pids.max"), "max");
    let mut update = containers.command(&["update", "-r", "-", &web.id]);
    let mut update = update.stdin(Stdio::piped()).spawn().unwrap();
    let changes =
        json!({ "pids": { "limit": 44 }, "devices": [{ "allow": true }], "blockIO": {}, "cpu": {} });
    update
        .stdin
        .take()
        .unwrap()
        .write_all(changes.to_string().as_bytes())
        .unwrap();
    assert!(update.wait().unwrap().success());
    assert_eq!(web.cgroup_value("pids", "pids.max"), "44");
    assert_eq!(web.cgroup_value("memory", "memory.limit_in_bytes"), "67108864");
    containers.run(&["delete", "-f", &web.id]).expect(0);
}

#[test]
fn what_is_refused_is_named_and_changes_nothing() {
    let Some(containers) = containers() else { return };
    let web = containers.start("web", "sleep 60", |configuration| {
        configuration["linux"]["resources"]["pids"] = json!({ "limit": 55 });
    });
    for (words, complaint) in [
        (
            &["--cpuset-cpus", "9999", "--pids-limit", "5"][..],
            "linux.resources.cpu.cpus",
        ),
        (
            &["--memory", "64M", "--memory-swap", "32M", "--pids-limit", "5"],
            "linux.resources.memory.swap",
        ),
        (&["--blkio-weight", "5"], "linux.resources.blockIO.weight"),
        (&["--memory", "4096"], "that are in use"),
        (&["--resources", "/does/not/exist"], "/does/not/exist"),
    ] {
        let mut update = vec!["update", &web.id];
        update.extend(words);
        containers.run(&update).expect(1).complains_of(&[complaint]);
        assert_eq!(web.cgroup_value("pids", "pids.max"), "55");
    }
    let file = containers.directory().join("resources.json");
    let update = ["update", "--resources", file.to_str().unwrap(), &web.id];
    for (text, field) in [
        (r#"{"memory":{"limit":"lots"}}"#, ": memory.limit: "),
        (
            r#"{"hugepageLimits":[{"pageSize":2}]}"#,
            ": hugepageLimits[0].pageSize: ",
        ),
        ("{", ": .: "),
    ] {
        std::fs::write(&file, text).unwrap();
        containers.run(&update).expect(1).complains_of(&[field]);
    }
    containers
        .run(&["update", &web.id, "--memory", "lots"])
        .complains_of(&["lots", "512M"]);
    containers
        .run(&["update", &web.id, "--kernel-memory", "64M"])
        .expect(0)
        .complains_of(&["linux.resources.memory.kernel", "ignored"]);
    containers.run(&["delete", "-f", &web.id]).expect(0);
    containers
        .run(&["update", &web.id, "--memory", "64M"])
        .expect(1)
        .complains_of(&["does not exist"]);
}

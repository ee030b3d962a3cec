//! `bulkhead-oci events` and `ps`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use serde_json::{Value, json};
use tests::oci::{Containers, wait_until};

fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

#[test]
fn use_is_told_once() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let web = containers.start("web", "sleep 60 & sleep 60 & wait", |configuration| {
        configuration["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    });
    wait_until(|| containers.json(&["events", "--stats", &web.id])["data"]["pids"]["current"] == 3);
    let event = containers.json(&["events", "--stats", &web.id]);
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(web.id)));
    let data = &event["data"];
    assert_eq!(data["memory"]["usage"]["limit"], 64 << 20);
    for pointer in [
        "/cpu/usage/total",
        "/cpu/usage/kernel",
        "/cpu/throttling/throttledTime",
        "/memory/usage/usage",
        "/memory/swap/limit",
        "/memory/raw/pgfault",
        "/memory/cache",
        "/pids/limit",
    ] {
        assert!(
            data.pointer(pointer).is_some_and(Value::is_u64),
            "{pointer} in {data}"
        );
    }
    assert!(data["blkio"].is_object() && data["hugetlb"].is_object());
    containers.run(&["delete", "-f", &web.id]).expect(0);
    containers
        .run(&["events", "--stats", &web.id])
        .expect(1)
        .complains_of(&["does not exist"]);
}

#[test]
fn use_is_told_again_and_again_until_the_end() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let web = containers.start("web", "sleep 60", |_| {});
    let output = containers.directory().join("events");
    let mut events = containers.spawn(&["events", "--interval", "50ms", &web.id], &output);
    wait_until(|| lines(&output).len() >= 3);
    containers.run(&["kill", &web.id, "KILL"]).expect(0);
    wait_until(|| events.try_wait().unwrap().is_some());
    assert!(events.wait().unwrap().success());
    assert!(lines(&output).iter().all(|event| event["type"] == "stats"));
    containers
        .run(&["events", &web.id])
        .expect(1)
        .complains_of(&["not running"]);
    containers.run(&["delete", &web.id]).expect(0);
    containers
        .run(&["events", "--interval", "0s", &web.id])
        .complains_of(&["0s"]);
}

#[test]
fn want_of_memory_is_told() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let script = "while [ ! -e /run/go ]; do sleep 0.01; done; a=x; while :; do a=$a$a; done";
    let web = containers.start("web", script, |configuration| {
        configuration["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
        let mounts = configuration["mounts"].as_array_mut().unwrap();
        mounts.push(
            json!({ "destination": "/run", "type": "bind", "source": containers.directory(),
            "options": ["bind", "ro"] }),
        );
    });
    let output = containers.directory().join("events");
    let mut events = containers.spawn(&["events", "--interval", "100ms", &web.id], &output);
    wait_until(|| !lines(&output).is_empty());
    std::fs::write(containers.directory().join("go"), "").unwrap();
    wait_until(|| events.try_wait().unwrap().is_some());
    assert!(
        lines(&output)
            .iter()
            .any(|event| event["type"] == "oom" && event["id"] == web.id)
    );
    containers.run(&["delete", &web.id]).expect(0);
}

#[test]
fn processes_are_shown_in_every_form() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let web = containers.start("web", "sleep 6543 & sleep 6544 & wait", |_| {});
    wait_until(|| {
        containers
            .json(&["ps", "--format", "json", &web.id])
            .as_array()
            .unwrap()
            .len()
            == 3
    });
    let pids = containers.json(&["ps", "-f", "json", &web.id]);
    let first = containers.json(&["state", &web.id])["pid"].clone();
    assert!(pids.as_array().unwrap().contains(&first), "{pids}");
    let with_ps = std::env::var_os("PATH").unwrap_or_default();
    let without_ps = containers.directory().join("no-programs");
    for path in [with_ps.as_os_str(), without_ps.as_os_str()] {
        let table = tests::finish(containers.command(&["ps", &web.id]).env("PATH", path)).expect(0);
        assert_eq!(table.stdout.lines().count(), 4, "{}", table.stdout);
        assert!(
            table.stdout.contains("sleep 6543") && table.stdout.contains("PID"),
            "{}",
            table.stdout
        );
    }
    tests::finish(
        containers
            .command(&["ps", &web.id, "-ef"])
            .env("PATH", &without_ps),
    )
    .expect(1)
    .complains_of(&["ps is not installed"]);
    let wide = containers.run(&["ps", &web.id, "-o", "pid,args"]);
    if wide.code == 0 {
        assert_eq!(wide.stdout.lines().count(), 4, "{}", wide.stdout);
    }
    containers.run(&["delete", "-f", &web.id]).expect(0);
}

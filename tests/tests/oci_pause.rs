//! `bulkhead-oci pause`, `resume`, and what they mean to other verbs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use tests::oci::{Containers, wait_until};

fn status(containers: &Containers, id: &str) -> String {
    containers.json(&["state", id])["status"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_paused_container_stands_still_says_so_and_goes_on() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let script = "while :; do echo x >>/run/count; sleep 0.01; done";
    let web = containers.start("web", script, |configuration| {
        let mounts = configuration["mounts"].as_array_mut().unwrap();
        mounts.push(serde_json::json!({ "destination": "/run", "type": "bind",
            "source": containers.directory(), "options": ["bind", "rw"] }));
    });
    let count = || std::fs::metadata(containers.directory().join("count")).map_or(0, |file| file.len());
    wait_until(|| count() > 2);
    containers.run(&["pause", &web.id]).expect(0);
    assert_eq!(status(&containers, &web.id), "paused");
    let before = count();
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(count(), before);
    containers
        .run(&["pause", &web.id])
        .expect(1)
        .complains_of(&[&web.id, "is paused"]);
    containers
        .run(&["delete", &web.id])
        .expect(1)
        .complains_of(&["is paused"]);
    containers.run(&["resume", &web.id]).expect(0);
    wait_until(|| count() > before);
    assert_eq!(status(&containers, &web.id), "running");
    containers
        .run(&["resume", &web.id])
        .expect(1)
        .complains_of(&["is running"]);
    containers.run(&["delete", "--force", &web.id]).expect(0);
}

#[test]
fn a_process_joins_a_paused_container_only_when_asked_to_and_waits_until_it_goes_on() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let web = containers.start("web", "sleep 60", |_| {});
    containers.run(&["pause", &web.id]).expect(0);
    containers
        .run(&["exec", &web.id, "true"])
        .expect(1)
        .complains_of(&["is paused"]);
    let said = containers.directory().join("said");
    let mut joining = containers.spawn(&["exec", "--ignore-paused", &web.id, "echo", "said"], &said);
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(joining.try_wait().unwrap().is_none());
    assert_eq!(std::fs::read_to_string(&said).unwrap(), "");
    containers.run(&["resume", &web.id]).expect(0);
    assert!(joining.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(&said).unwrap(), "said\n");
    containers.run(&["delete", "--force", &web.id]).expect(0);
}

#[test]
fn a_paused_container_can_be_killed_and_force_deleted() {
    let Some(containers) = Containers::new() else {
        return;
    };
    let killed = containers.start("killed", "sleep 60", |_| {});
    containers.run(&["pause", &killed.id]).expect(0);
    containers.run(&["kill", &killed.id, "KILL"]).expect(0);
    wait_until(|| status(&containers, &killed.id) == "stopped");
    containers.run(&["delete", &killed.id]).expect(0);
    let forced = containers.start("forced", "sleep 60 & sleep 60", |_| {});
    containers.run(&["pause", &forced.id]).expect(0);
    containers.run(&["delete", "--force", &forced.id]).expect(0);
}

#[test]
fn a_container_that_is_none_or_ended_cannot_be_paused() {
    let Some(containers) = Containers::new() else {
        return;
    };
    containers
        .run(&["pause", "nobody"])
        .expect(1)
        .complains_of(&["nobody", "does not exist"]);
    let short = containers.start("short", "true", |_| {});
    wait_until(|| status(&containers, &short.id) == "stopped");
    containers
        .run(&["pause", &short.id])
        .expect(1)
        .complains_of(&["is stopped"]);
    containers
        .run(&["resume", &short.id])
        .expect(1)
        .complains_of(&["is stopped"]);
    containers.run(&["delete", &short.id]).expect(0);
}

//! `bulkhead-oci` killed at any moment: what it leaves can be deleted, and then nothing is left.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs::File;
use std::time::{Duration, Instant};

use serde_json::json;
use tests::oci_container::OciContainer;

/// Kills of each verb.
const KILLS: u32 = 100;

/// Runs `verb` to its end once, for its time, then kills it at moments spread evenly over somewhat more than that.
fn kill_at_any_moment(verb: &str) {
    let Some(mut container) = OciContainer::new(&["sh", "-c", "true & sleep 0.002"]) else {
        return;
    };
    // Hooks run by the caller and by the container's process; what they write is the test's own folder.
    let hook = json!([{ "path": "/bin/true" }]);
    container.config["hooks"] = json!({ "createRuntime": hook, "createContainer": hook, "poststop": hook });
    container.config["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 });
    let messages = File::create(container.scratch().join("messages")).unwrap();
    let spawn = || {
        let mut command = container.command(verb);
        command.arg(container.id());
        command.stdout(messages.try_clone().unwrap());
        command.stderr(messages.try_clone().unwrap());
        command.spawn().unwrap()
    };
    let begun = Instant::now();
    assert!(spawn().wait().unwrap().success());
    let whole = begun.elapsed() * 12 / 10;
    container.on("delete", &["--force"]).expect(0);
    let mut left = 0;
    for kill in 0..KILLS {
        let mut child = spawn();
        std::thread::sleep(whole * kill / KILLS);
        // It may have ended by itself.
        let _ = child.kill();
        child.wait().unwrap();
        left += u32::from(container.on("state", &[]).code == 0);
        let begun = Instant::now();
        container.on("delete", &["--force"]).expect(0);
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "deleting took {:?}",
            begun.elapsed()
        );
        // Nothing in the way of the next one, and nothing found by the check at the end, which sees processes, mounts
        // and cgroups.
        container.on("state", &[]).expect(1);
    }
    println!("{left} of {KILLS} kills of {verb} left something to delete");
    assert!(
        left > KILLS / 10,
        "the kills came too late or too early to mean anything"
    );
}

#[test]
fn create_killed_at_any_moment() {
    kill_at_any_moment("create");
}

#[test]
fn run_killed_at_any_moment() {
    kill_at_any_moment("run");
}

//! What the processes that stand for a container behind the microVM wall do when one of them dies, and what is left then.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::microvm_life::{create, delete, idle, start, wait_until};
use tests::oci_container::OciContainer;
use tests::{busy_factor, is_alive};

/// A container that runs until this one of those that stand for it dies, which is noticed, told where there is a reason, and
/// cleaned up.
fn dies_and_is_missed(bundle: &OciContainer, victim: Victim, reason: Option<&str>) {
    let messages = bundle.scratch().join("messages");
    let mut creation = bundle.command("create");
    creation.args(["--bundle", ".", &bundle.id()]);
    creation
        .stdout(Stdio::null())
        .stderr(fs::File::create(&messages).unwrap());
    assert!(creation.status().unwrap().success());
    bundle.on("start", &[]).expect(0);
    let (attendant, machine) = (bundle.attendant(), bundle.vmm());
    let events = bundle.scratch().join("events");
    let mut watch = bundle.command("events");
    watch.args(["--interval", "100ms", &bundle.id()]);
    watch.stdout(fs::File::create(&events).unwrap());
    let mut watch = watch.spawn().unwrap();
    wait_until(|| fs::read_to_string(&events).unwrap().contains("\"stats\""));
    match victim {
        Victim::Attendant => kill_process(attendant, Signal::KILL).unwrap(),
        Victim::Vmm => kill_process(machine, Signal::KILL).unwrap(),
        Victim::Agent => drop(bundle.on("exec", &["busybox", "reboot", "-f"])),
        Victim::VmmForMemory => {
            let group = format!("/sys/fs/cgroup/memory/bulkhead-{}", bundle.id());
            let group = Path::new(&group);
            let used = fs::read_to_string(group.join("memory.usage_in_bytes")).unwrap();
            let limit = used.trim().parse::<u64>().unwrap() + (4 << 20);
            fs::write(group.join("memory.limit_in_bytes"), limit.to_string()).unwrap();
            bundle.on(
                "exec",
                &["dd", "if=/dev/zero", "of=/tmp/file", "bs=1M", "count=40"],
            );
        }
    }
    wait_until(|| {
        !is_alive(if victim == Victim::Attendant {
            attendant
        } else {
            machine
        })
    });
    let begun = Instant::now();
    wait_until(|| bundle.status() == "stopped");
    wait_until(|| !is_alive(attendant));
    let limit = Duration::from_secs(1) * busy_factor();
    assert!(begun.elapsed() < limit, "{victim:?}: {:?}", begun.elapsed());
    if victim == Victim::Attendant {
        // The agent kills what nobody stands for any more, as fast as its guest is.
        wait_until(|| bundle.on("ps", &[]).expect(0).stdout.lines().count() == 1);
    }
    assert!(watch.wait().unwrap().success());
    let is_told = fs::read_to_string(events).unwrap().contains("\"oom\"");
    assert_eq!(is_told, victim == Victim::VmmForMemory);
    let end = &bundle.state()["vm"]["end"];
    let told = fs::read_to_string(messages).unwrap();
    match reason {
        None => assert!(end.is_null() && told.is_empty(), "{end} {told}"),
        Some(reason) => {
            assert!(end["reason"].as_str().unwrap().contains(reason), "{end}");
            assert_eq!(end["outOfMemory"], victim == Victim::VmmForMemory);
            assert!(
                told.contains("bulkhead: the microVM has ended: ") && told.contains(reason),
                "{told}"
            );
        }
    }
    let begun = Instant::now();
    bundle.on("delete", &[]).expect(0);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(!is_alive(machine));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Attendant,
    Vmm,
    /// Its kernel is the guest's, and goes with the agent.
    Agent,
    /// By the host's kernel, for want of memory.
    VmmForMemory,
}

#[test]
fn whatever_dies_the_others_notice_and_delete_cleans_up() {
    let Some(mut bundle) = idle() else { return };
    // Its processes are in the guest's own pid namespace and can end it as a kernel would.
    for set in ["bounding", "effective", "permitted"] {
        let set = &mut bundle.config["process"]["capabilities"][set];
        set.as_array_mut().unwrap().push(json!("CAP_SYS_BOOT"));
    }
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    for (victim, reason) in [
        (Victim::Attendant, None),
        (Victim::Vmm, Some("was killed")),
        (Victim::Agent, Some("the guest reset itself")),
        (Victim::VmmForMemory, Some("for want of memory: ")),
    ] {
        if victim == Victim::VmmForMemory && !Path::new("/sys/fs/cgroup/memory/tasks").exists() {
            println!("SKIPPED: memory is not limited by version 1 of cgroups here");
            continue;
        }
        dies_and_is_missed(&bundle, victim, reason);
    }
    // One that stands still.
    start(&bundle);
    bundle.on("pause", &[]).expect(0);
    let machine = bundle.vmm();
    let begun = Instant::now();
    delete(&bundle);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(!is_alive(machine));
    // Another version's record.
    start(&bundle);
    let machine = bundle.vmm();
    let path = bundle
        .scratch()
        .join("states")
        .join(bundle.id())
        .join("container.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record["more"] = json!(1);
    fs::write(&path, record.to_string()).unwrap();
    bundle.on("delete", &[]).expect(1).complains_of(&["damaged"]);
    delete(&bundle);
    assert!(!is_alive(machine));
}

#[test]
fn a_creation_that_is_killed_leaves_nothing_that_delete_does_not_find() {
    let Some(bundle) = idle() else { return };
    // The template is built by the first.
    create(&bundle);
    delete(&bundle);
    for milliseconds in [3, 20, 60, 150, 400, 900, 1500] {
        let mut creation = bundle.command("create");
        let id = bundle.id();
        let log = tempfile::tempfile().unwrap();
        creation
            .args(["--bundle", ".", &id])
            .stderr(log.try_clone().unwrap());
        let mut creation = creation.stdout(log).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        creation.kill().unwrap();
        creation.wait().unwrap();
        let begun = Instant::now();
        delete(&bundle);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_machine_ends_with_the_last_of_its_containers() {
    let Some(founder) = idle() else { return };
    start(&founder);
    let machine = founder.vmm();
    let neighbour = founder.sibling("neighbour", &["sleep", "600"], |config| {
        config["annotations"] = json!({ "dev.bulkhead.sandbox": founder.id() });
    });
    let folder = neighbour.folder.to_str().unwrap();
    founder
        .oci("create", &["--bundle", folder, &neighbour.id])
        .expect(0);
    founder.oci("start", &[&neighbour.id]).expect(0);
    founder.on("kill", &["KILL"]).expect(0);
    wait_until(|| founder.status() == "stopped");
    founder.oci("exec", &[&neighbour.id, "true"]).expect(0);
    assert!(is_alive(machine));
    founder.oci("kill", &[&neighbour.id, "KILL"]).expect(0);
    wait_until(|| !is_alive(machine));
    assert!(founder.state()["vm"]["end"].is_null(), "it was meant to end");
    founder.oci("delete", &[&neighbour.id]).expect(0);
    founder.on("delete", &[]).expect(0);
}

//! What a container of a pod used of its machine's memory is the host's again when it has ended.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::Wall;
use tests::oci_container::OciContainer;

/// Ten times what the goal is on a quiet host, where the guest's kernel is emulated and others use the processors too.
const PATIENCE: Duration = Duration::from_secs(100);

/// Of a guest too small for Linux' own way of reporting free memory (docs/memory.md).
const MACHINE_MIB: u64 = 80;

/// What the container uses, as page cache and of its program each, and what of both is seen at once; and how much more than
/// before may be left, as pages of others lie between.
const USED_MIB: u64 = 6;
const SEEN_MIB: u64 = 10;
const LEFT_MIB: u64 = 7;

/// The VMM's anonymous memory: what the guest has written of its own, in KiB.
fn private_memory(vmm: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn memory_that_a_container_used_is_the_hosts_again() {
    let Some(mut pod) = OciContainer::behind(Wall::MicroVm, &["sleep", "600"]) else {
        return;
    };
    pod.config["annotations"] = json!({
        "io.kubernetes.cri.container-type": "sandbox",
        "dev.bulkhead.machine.memory_mib": MACHINE_MIB.to_string(),
    });
    pod.on("create", &["--bundle", "."]).expect(0);
    pod.on("start", &[]).expect(0);
    let record = pod.scratch().join("states").join(pod.id()).join("sandbox.json");
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    let vmm = record["machine"]["pid"].as_u64().unwrap();

    let script =
        format!("cat /large > /dev/null; dd if=/dev/zero of=/dev/null bs={USED_MIB}M count=1; sleep 600");
    let annotations = json!({ "dev.bulkhead.sandbox": pod.id() });
    let user = pod.sibling("user", &["sh", "-c", &script], |config| {
        config["annotations"] = annotations;
    });
    let folder = user.folder.to_str().unwrap();
    fs::write(
        user.folder.join("rootfs/large"),
        vec![1; (USED_MIB << 20) as usize],
    )
    .unwrap();
    let before = private_memory(vmm);
    let wait_until = |what: &str, holds: &dyn Fn(u64) -> bool| {
        let begun = Instant::now();
        while !holds(private_memory(vmm)) {
            let now = private_memory(vmm);
            assert!(
                begun.elapsed() < PATIENCE,
                "{what}: {before} KiB before, now {now} KiB"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        println!(
            "{what}: {before} KiB before, {} KiB after {:?}",
            private_memory(vmm),
            begun.elapsed()
        );
    };
    pod.oci("create", &["--bundle", folder, &user.id]).expect(0);
    pod.oci("start", &[&user.id]).expect(0);
    wait_until("used", &|now| now > before + (SEEN_MIB << 10));
    pod.oci("delete", &["--force", &user.id]).expect(0);
    wait_until("given back", &|now| now < before + (LEFT_MIB << 10));
    pod.on("delete", &["--force"]).expect(0);
}

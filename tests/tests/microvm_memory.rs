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

/// Linux reports memory two seconds after it was freed: what has not become less for this long is what is left.
const AT_REST: Duration = Duration::from_secs(6);

/// Of a guest too small for Linux' own way of reporting free memory (docs/memory.md).
const MACHINE_MIB: u64 = 80;

/// What the container uses, as page cache and of its program; what of both is seen at once; and how much more may be left
/// than after a container that used nothing.
const READ_MIB: u64 = 6;
const TOUCHED_MIB: u64 = 12;
const SEEN_MIB: u64 = 15;
const LEFT_MIB: u64 = 3;

/// The VMM's anonymous memory: what the guest has written of its own, in KiB.
fn private_memory(vmm: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The same when it becomes less no more.
fn private_memory_at_rest(vmm: u64) -> u64 {
    let mut least = private_memory(vmm);
    let mut since = Instant::now();
    while since.elapsed() < AT_REST {
        std::thread::sleep(Duration::from_millis(50));
        let now = private_memory(vmm);
        if now < least {
            (least, since) = (now, Instant::now());
        }
    }
    least
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

    let joining = |name: &str, script: &str| {
        let annotations = json!({ "dev.bulkhead.sandbox": pod.id() });
        let sibling = pod.sibling(name, &["sh", "-c", script], |config| {
            config["annotations"] = annotations;
        });
        fs::write(
            sibling.folder.join("rootfs/large"),
            vec![1; (READ_MIB << 20) as usize],
        )
        .unwrap();
        let folder = sibling.folder.to_str().unwrap();
        pod.oci("create", &["--bundle", folder, &sibling.id]).expect(0);
        pod.oci("start", &[&sibling.id]).expect(0);
        sibling
    };
    // The first one leaves what the guest's kernel keeps of containers for the next.
    let first = joining("first", "sleep 600");
    pod.oci("delete", &["--force", &first.id]).expect(0);
    let before = private_memory_at_rest(vmm);

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
    let script =
        format!("cat /large > /dev/null; dd if=/dev/zero of=/dev/null bs={TOUCHED_MIB}M count=1; sleep 600");
    let user = joining("user", &script);
    wait_until("used", &|now| now > before + (SEEN_MIB << 10));
    pod.oci("delete", &["--force", &user.id]).expect(0);
    wait_until("given back", &|now| now < before + (LEFT_MIB << 10));
    println!("at rest: {} KiB", private_memory_at_rest(vmm));
    pod.on("delete", &["--force"]).expect(0);
}

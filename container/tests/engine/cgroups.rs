//! Limits that hold, in both versions of cgroups where this kernel has them.

use std::fs;
use std::path::{Path, PathBuf};

use container::{CgroupError, CreateError, Stdio};
use rustix::mount::{MountFlags, mount};
use serde_json::json;

use crate::bundle::{TestBundle, chain, wait, wait_until};

crate::tests!(
    too_much_memory_is_137,
    too_many_processes_fail_to_fork,
    limits_are_written_to_the_files,
    a_cgroups_path_is_taken_as_given_and_removed_with_its_parents,
    a_cgroup_with_somebody_in_it_is_refused,
    cgroups_are_mounted_read_only_and_show_the_containers_own,
    without_a_cgroup_namespace_the_containers_own_are_bound,
    a_limit_the_kernel_refuses_is_named_and_undone,
    cgroups_made_inside_the_container_go_with_it,
    cgroup2_alone_holds_a_container_and_its_devices,
);

fn too_much_memory_is_137() {
    let mut bundle = TestBundle::shell("head -c 64m /dev/zero | tail -c 64m | wc -c; exit 0");
    // The shell itself, so that its own death is what is seen.
    bundle.config["process"]["args"] = json!(["sh", "-c", "a=x; while :; do a=$a$a; done"]);
    bundle.config["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    let mut container = bundle
        .create(Stdio::Inherit)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    container.start().unwrap();
    assert_eq!(wait(&container), 137);
    let statistics = container.statistics().unwrap();
    assert_eq!(statistics.memory_limit, Some(16 << 20));
    assert_eq!(statistics.out_of_memory_kills, Some(1));
    container.delete(false).unwrap();
}

fn too_many_processes_fail_to_fork() {
    let mut bundle = TestBundle::shell("for i in $(seq 20); do sleep 5 & done; exit 0");
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 5 });
    let outcome = bundle.run();
    assert!(outcome.stderr.contains("can't fork"), "{outcome:?}");
}

/// The folder of a controller's hierarchy for a container without a path.
fn folder(bundle: &TestBundle, controller: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup")
        .join(controller)
        .join("bulkhead")
        .join(bundle.id.as_str())
}

fn limits_are_written_to_the_files() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["resources"] = json!({
        "memory": { "limit": 64 << 20, "reservation": 32 << 20 },
        "cpu": { "quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0" },
        "pids": { "limit": 99 }
    });
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    for (controller, file, value) in [
        ("memory", "memory.limit_in_bytes", "67108864"),
        ("memory", "memory.soft_limit_in_bytes", "33554432"),
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("cpu", "cpu.shares", "512"),
        ("cpuset", "cpuset.cpus", "0"),
        ("pids", "pids.max", "99"),
    ] {
        let path = folder(&bundle, controller).join(file);
        assert_eq!(
            fs::read_to_string(&path).unwrap().trim(),
            value,
            "{}",
            path.display()
        );
    }
    container.delete(true).unwrap();
    wait(&container);
}

fn a_cgroups_path_is_taken_as_given_and_removed_with_its_parents() {
    let mut bundle = TestBundle::command(&["true"]);
    let path = format!("/{}/deep/er", bundle.id);
    bundle.config["linux"]["cgroupsPath"] = path.as_str().into();
    let mut container = bundle.create(Stdio::Inherit).unwrap();
    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", container.pid().unwrap())).unwrap();
    assert!(cgroup.lines().all(|line| line.ends_with(&path)), "{cgroup}");
    container.delete(true).unwrap();
    wait(&container);
    assert!(!fs::exists(format!("/sys/fs/cgroup/memory/{}", bundle.id)).unwrap());
}

fn a_cgroup_with_somebody_in_it_is_refused() {
    let path = format!("/{}", TestBundle::command(&["true"]).id);
    let with_path = |suffix| {
        let mut bundle = TestBundle::named(suffix, &["true"]);
        bundle.config["linux"]["cgroupsPath"] = path.as_str().into();
        bundle
    };
    let mut first = with_path("-first").create(Stdio::Inherit).unwrap();
    let error = with_path("-second").create(Stdio::Inherit).unwrap_err();
    assert!(
        matches!(error, CreateError::Cgroup(CgroupError::Occupied { .. })),
        "{}",
        chain(&error)
    );
    assert_eq!(first.status().unwrap(), container::Status::Created);
    first.delete(true).unwrap();
    wait(&first);
}

fn cgroups_are_mounted_read_only_and_show_the_containers_own() {
    let script = "cat /sys/fs/cgroup/pids/pids.max; mkdir /sys/fs/cgroup/pids/x || mkdir /sys/fs/cgroup/x";
    let mut bundle = TestBundle::shell(script);
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 77 });
    let outcome = bundle.run();
    assert_eq!(outcome.stdout, "77\n");
    assert_eq!(
        outcome.stderr.matches("Read-only file system").count(),
        2,
        "{outcome:?}"
    );
}

fn without_a_cgroup_namespace_the_containers_own_are_bound() {
    let mut bundle = TestBundle::shell("cat /sys/fs/cgroup/pids/pids.max");
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|namespace| namespace["type"] != "cgroup");
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 66 });
    assert_eq!(bundle.output(), "66\n");
}

fn a_limit_the_kernel_refuses_is_named_and_undone() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["resources"]["cpu"] = json!({ "cpus": "9999" });
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("linux.resources.cpu.cpus") && message.contains("9999"),
        "{message}"
    );
}

fn cgroups_made_inside_the_container_go_with_it() {
    let mut bundle =
        TestBundle::shell("mkdir -p /sys/fs/cgroup/pids/a/b && echo 1 >/sys/fs/cgroup/pids/a/b/cgroup.procs");
    let cgroup = bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .last_mut()
        .unwrap();
    cgroup["options"] = json!(["nosuid", "noexec", "nodev"]);
    bundle.output();
}

/// Puts cgroup2 alone on /sys/fs/cgroup of this test's own mount namespace, as it is in a guest. The machine's cgroup2
/// tree has no controllers to limit with, but it has processes and devices.
fn cgroup2_alone_holds_a_container_and_its_devices() {
    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None).unwrap();
    let script = "cat /proc/self/cgroup | grep 0::; head -c 3 /dev/zero | wc -c; \
                  mknod /dev/disk b 259 7 && echo made; head -c 1 /dev/disk; \
                  mknod /dev/tun c 10 200; : >/dev/tun && echo wrote; sh -c ': </dev/tun'; ls /sys/fs/cgroup/cgroup.procs";
    let mut bundle = TestBundle::shell(script);
    for set in ["bounding", "permitted", "effective"] {
        bundle.config["process"]["capabilities"][set]
            .as_array_mut()
            .unwrap()
            .push("CAP_MKNOD".into());
    }
    bundle.config["linux"]["resources"]["devices"] =
        json!([{ "allow": false }, { "allow": true, "type": "c", "major": 10, "minor": 200, "access": "w" }]);
    let outcome = bundle.run();
    assert_eq!(
        outcome.stdout, "0::/\n3\nmade\nwrote\n/sys/fs/cgroup/cgroup.procs\n",
        "{outcome:?}"
    );
    assert_eq!(
        outcome.stderr.matches("Operation not permitted").count(),
        2,
        "{outcome:?}"
    );

    let mut forced = TestBundle::named("-forced", &["sh", "-c", "sleep 60 & sleep 60 & wait"]);
    forced.config["linux"]["resources"] = json!({});
    let mut container = forced.create(Stdio::Inherit).unwrap();
    container.start().unwrap();
    wait_until(|| container.processes().unwrap().len() == 3);
    container.delete(true).unwrap();
    wait(&container);
}

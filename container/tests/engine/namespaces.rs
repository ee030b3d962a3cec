//! What a container sees of the machine, and what the machine keeps.

use std::fs;

use container::Stdio;
use serde_json::json;

use crate::bundle::{TestBundle, chain, files, wait, wait_until};

crate::tests!(
    a_container_is_alone_with_its_own_names,
    loopback_is_up_in_a_new_network,
    the_cgroup_namespace_begins_at_the_containers_cgroup,
    an_existing_network_is_joined,
    an_existing_pid_namespace_is_joined_and_the_caller_keeps_its_own,
    a_namespace_that_does_not_exist_is_named,
    a_user_namespace_maps_root_to_somebody_else,
    a_time_namespace_has_its_own_clocks,
    sysctls_stay_in_the_container,
);

fn a_container_is_alone_with_its_own_names() {
    let mut bundle =
        TestBundle::shell("hostname; echo $$; ps | grep -c '[0-9]'; cat /proc/sys/kernel/domainname");
    bundle.config["domainname"] = "example.org".into();
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    // The shell, ps, grep.
    assert_eq!(bundle.output(), "bulkhead\n1\n3\nexample.org\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

fn loopback_is_up_in_a_new_network() {
    let output = TestBundle::shell("ip addr show; ls /sys/class/net").output();
    assert!(
        output.contains("LOOPBACK,UP") && output.contains("127.0.0.1/8"),
        "{output}"
    );
    assert!(output.ends_with("\nlo\n"), "{output}");
}

fn the_cgroup_namespace_begins_at_the_containers_cgroup() {
    let output = TestBundle::command(&["cat", "/proc/self/cgroup"]).output();
    assert!(
        !output.is_empty() && output.lines().all(|line| line.ends_with(":/")),
        "{output}"
    );
}

/// Runs a container that sleeps, and gives another's configuration a namespace of it.
fn beside_a_sleeper(kind: &str, script: &str, check: impl Fn(i32, &TestBundle)) {
    let sleeper = TestBundle::named("-sleeper", &["sleep", "60"]);
    let mut sleeping = sleeper.create(Stdio::Inherit).unwrap();
    sleeping.start().unwrap();
    let pid = sleeping.pid().unwrap();
    let file = if kind == "network" { "net" } else { kind };
    let mut bundle = TestBundle::shell(script);
    for namespace in bundle.config["linux"]["namespaces"].as_array_mut().unwrap() {
        if namespace["type"] == kind {
            namespace["path"] = format!("/proc/{pid}/ns/{file}").into();
        }
    }
    check(pid, &bundle);
    sleeping.delete(true).unwrap();
    wait(&sleeping);
}

fn an_existing_network_is_joined() {
    beside_a_sleeper("network", "readlink /proc/self/ns/net", |pid, bundle| {
        let theirs = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        assert_eq!(bundle.output().trim(), theirs.to_str().unwrap());
    });
}

fn an_existing_pid_namespace_is_joined_and_the_caller_keeps_its_own() {
    let own = fs::read_link("/proc/self/ns/pid_for_children").unwrap();
    beside_a_sleeper("pid", "ps", |_, bundle| {
        let output = bundle.output();
        assert!(output.contains("sleep 60"), "{output}");
    });
    assert_eq!(fs::read_link("/proc/self/ns/pid_for_children").unwrap(), own);
}

fn a_namespace_that_does_not_exist_is_named() {
    let mut bundle = TestBundle::command(&["true"]);
    bundle.config["linux"]["namespaces"][1]["path"] = "/no/such/namespace".into();
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("linux.namespaces") && message.contains("/no/such/namespace"),
        "{message}"
    );
    bundle.config["linux"]["namespaces"][1]["path"] = "/etc/passwd".into();
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("/etc/passwd") && message.contains("Invalid argument"),
        "{message}"
    );
}

fn a_user_namespace_maps_root_to_somebody_else() {
    let mut bundle = TestBundle::shell(
        "id -u; cat /proc/self/uid_map; echo x >/dev/null && stat -c %F /dev/null; sleep 60",
    );
    bundle.in_a_user_namespace();
    let (stdio, output) = files(&bundle.folder);
    let mut container = bundle
        .create(stdio)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    container.start().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid().unwrap())).unwrap();
    assert!(
        status.contains("Uid:\t200000\t200000\t200000\t200000"),
        "{status}"
    );
    wait_until(|| {
        assert_eq!(
            container.status().unwrap(),
            container::Status::Running,
            "{:?}",
            output.outcome(0)
        );
        output.outcome(0).stdout.lines().count() == 3
    });
    let seen = output.outcome(0).stdout;
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(
        words,
        ["0", "0", "200000", "65536", "character", "special", "file"]
    );
    container.delete(true).unwrap();
    wait(&container);
}

fn a_time_namespace_has_its_own_clocks() {
    let mut bundle = TestBundle::shell("cat /proc/uptime");
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "time" }));
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1_000_000_000 } });
    let uptime: f64 = bundle.output().split(' ').next().unwrap().parse().unwrap();
    assert!(uptime > 1_000_000_000.0, "{uptime}");
}

fn sysctls_stay_in_the_container() {
    let file = "/proc/sys/net/ipv4/ip_forward";
    let before = fs::read_to_string(file).unwrap();
    let other = if before.trim() == "1" { "0" } else { "1" };
    let mut bundle = TestBundle::shell(&format!("cat {file} /proc/sys/kernel/shm_rmid_forced"));
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": other, "kernel.shm_rmid_forced": "1" });
    assert_eq!(bundle.output(), format!("{other}\n1\n"));
    assert_eq!(fs::read_to_string(file).unwrap(), before);
}

//! Network devices that are moved into containers.

use std::process::Command;

use container::Stdio;
use serde_json::json;

use crate::bundle::{TestBundle, chain};

crate::tests!(
    a_device_is_moved_with_its_addresses_under_its_new_name,
    a_device_is_moved_into_a_network_that_is_joined,
    devices_change_their_names_with_each_other,
    a_device_that_cannot_be_moved_is_named,
);

const IP: &str = "/sbin/ip";

/// Runs ip(8), which makes devices in the network of this test.
fn ip(arguments: &str) {
    let output = Command::new(IP).args(arguments.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Leaves the machine's network for one of this test's own, with a pair of devices in it. False without the means.
fn in_own_network() -> bool {
    if !std::path::Path::new(IP).exists() {
        println!("SKIPPED: needs {IP}: apt-get install iproute2");
        return false;
    }
    // SAFETY: a new network namespace touches no descriptors.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    ip("link add veth-a type veth peer name veth-b");
    ip("link set veth-a address 02:00:00:00:00:aa mtu 1400 up");
    ip("link set veth-b up");
    ip("addr add 192.0.2.7/24 dev veth-a");
    ip("addr add 2001:db8::7/64 dev veth-a nodad");
    ip("addr add 169.254.3.3/16 scope link dev veth-a");
    true
}

fn a_device_is_moved_with_its_addresses_under_its_new_name() {
    if !in_own_network() {
        return;
    }
    let mut bundle = TestBundle::shell("ip addr show eth0; ls /sys/class/net");
    bundle.config["linux"]["netDevices"] = json!({ "veth-a": { "name": "eth0" } });
    let output = bundle.output();
    for expected in [
        "UP",
        "mtu 1400",
        "link/ether 02:00:00:00:00:aa",
        "inet 192.0.2.7/24 scope global eth0",
        "inet6 2001:db8::7/64 scope global",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    assert!(!output.contains("169.254.3.3"), "{output}");
    assert!(output.ends_with("\neth0\nlo\n"), "{output}");
    let left = Command::new(IP)
        .args(["link", "show", "veth-a"])
        .output()
        .unwrap();
    assert!(!left.status.success(), "{left:?}");
}

fn a_device_is_moved_into_a_network_that_is_joined() {
    if !in_own_network() {
        return;
    }
    let sleeper = TestBundle::named("-sleeper", &["sleep", "60"]);
    let mut sleeping = sleeper.create(Stdio::Inherit).unwrap();
    let mut bundle = TestBundle::shell("ip addr show veth-a");
    let path = format!("/proc/{}/ns/net", sleeping.pid().unwrap());
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    bundle.config["linux"]["namespaces"][1]["path"] = path.into();
    bundle.config["linux"]["netDevices"] = json!({ "veth-a": {} });
    assert!(bundle.output().contains("192.0.2.7/24"));
    assert_eq!(std::fs::read_link("/proc/self/ns/net").unwrap(), own);
    // It is there already.
    let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
    assert!(
        message.contains("linux.netDevices.veth-a: cannot find it: No such device"),
        "{message}"
    );
    sleeping.delete(true).unwrap();
    crate::bundle::wait(&sleeping);
}

fn devices_change_their_names_with_each_other() {
    if !in_own_network() {
        return;
    }
    let mut bundle = TestBundle::shell("cat /sys/class/net/veth-b/address; ls /sys/class/net");
    bundle.config["linux"]["netDevices"] =
        json!({ "veth-a": { "name": "veth-b" }, "veth-b": { "name": "veth-a" } });
    assert_eq!(bundle.output(), "02:00:00:00:00:aa\nlo\nveth-a\nveth-b\n");
}

fn a_device_that_cannot_be_moved_is_named() {
    if !in_own_network() {
        return;
    }
    for (device, name, problem) in [
        ("no-such-device", "eth0", "cannot find it: No such device"),
        ("lo", "lo0", "cannot move it into the container's network: "),
        (
            "veth-a",
            "lo",
            "cannot move it into the container's network: File exists",
        ),
    ] {
        let mut bundle = TestBundle::command(&["true"]);
        bundle.config["linux"]["netDevices"] = json!({ device: { "name": name } });
        let message = chain(&bundle.create(Stdio::Inherit).unwrap_err());
        assert!(
            message.contains(&format!("linux.netDevices.{device}: {problem}")),
            "{message}"
        );
        std::fs::remove_dir_all(&bundle.folder).unwrap();
    }
}

//! What goes wrong on the host under a container behind the microVM wall: its bundle is removed, a disk or the folder of states
//! is full, its network is deleted. It is told, the container goes on where it can, and it can be deleted.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::finish;
use tests::microvm_life::{idle, start};
use tests::own_mounts::{mount_memory, unmount, with_own_mounts};

#[test]
fn a_folder_of_states_without_room_keeps_nothing_of_a_container() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: mounts need root");
        return;
    }
    with_own_mounts(|| {
        let Some(bundle) = idle() else { return };
        let states = bundle.scratch().join("states");
        mount_memory(&states, "size=4k");
        let record = states.join(bundle.id());
        let record = record.to_str().unwrap();
        bundle.on("create", &["--bundle", "."]).expect(1).complains_of(&[
            "cannot write",
            record,
            "No space left",
        ]);
        assert_eq!(fs::read_dir(&states).unwrap().count(), 0);
        unmount(&states);
    });
}

/// A network namespace with an interface, kept by a process of ours.
struct Network(Child);

impl Network {
    fn new() -> Self {
        let script = "busybox ip link set lo up
            busybox ip link add name eth0 type veth
            busybox ip address add 10.98.0.2/24 dev eth0
            busybox ip link set eth0 up
            echo ready; exec sleep 86400";
        let mut holder = Command::new("setpriv")
            // It does not outlive a test that is killed.
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-ec", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let output = holder.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "the namespace could not be made");
        Self(holder)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn shell(&self, script: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path()));
        finish(command.args(["sh", "-ec", script])).expect(0).stdout
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // It has ended by itself if this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn set_network(config: &mut Value, path: &str) {
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    for namespace in namespaces {
        if namespace["type"] == "network" {
            namespace["path"] = json!(path);
        }
    }
}

#[test]
fn a_container_outlives_its_network_a_full_volume_and_its_bundle() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: mounts need root");
        return;
    }
    with_own_mounts(|| {
        let Some(mut bundle) = idle() else { return };
        let network = Network::new();
        set_network(&mut bundle.config, &network.path());
        let volume = bundle.scratch().join("volume");
        mount_memory(&volume, "size=64k");
        let mount =
            json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["rbind"] });
        bundle.config["mounts"].as_array_mut().unwrap().push(mount);
        start(&bundle);

        bundle
            .on(
                "exec",
                &["dd", "if=/dev/zero", "of=/volume/file", "bs=4k", "count=40"],
            )
            .expect(1)
            .complains_of(&["No space left on device"]);
        bundle
            .on("exec", &["sh", "-c", "rm /volume/file; echo fits > /volume/file"])
            .expect(0);
        assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "fits\n");

        // The pod's interface, its other end, and the tap that stands for it.
        let links = "busybox ip -o link | busybox sed 's/^[0-9]*: \\([^:@]*\\).*/\\1/'";
        let before = network.shell(links);
        assert!(before.lines().count() > 2, "{before}");
        network.shell(&format!(
            "for link in $({links}); do [ $link = lo ] || busybox ip link del $link 2>/dev/null || true; done"
        ));
        assert_eq!(network.shell(links), "lo\n");
        bundle.on("exec", &["true"]).expect(0);

        let folder = bundle.folder().to_owned();
        fs::remove_dir_all(&folder).unwrap();
        // The command line is called from there.
        fs::create_dir(&folder).unwrap();
        assert_eq!(bundle.status(), "running");
        bundle.on("ps", &[]).expect(0);
        assert_ne!(bundle.on("exec", &["no-longer"]).code, 0);
        bundle.on("kill", &["KILL"]).expect(0);
        // The emulated kernel of a guest takes its time.
        let deadline = Instant::now() + Duration::from_secs(60);
        while bundle.status() != "stopped" {
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(20));
        }
        bundle.on("delete", &[]).expect(0);
        unmount(&volume);
    });
}

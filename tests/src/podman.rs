//! Podman with the runtime under test, in a place of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::client_namespace::{ClientNamespace, OciRuntime};
use crate::{Finished, Wall, finish};

/// The name under which Podman knows the busybox image.
pub const IMAGE: &str = "localhost/busybox:latest";

/// Raising a limit takes a capability that root in a container or a sandbox lacks.
const CONFIGURATION: &str = r#"[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"

[network]
network_backend = "netavark"
"#;

/// An installation of Podman that knows the busybox image. Its containers are removed when it goes, and must leave
/// nothing.
#[derive(Debug)]
pub struct Podman {
    namespace: ClientNamespace,
    runtime: OciRuntime,
}

impl Podman {
    /// A fresh installation whose containers are on the host's kernel; `None`, said aloud, where Podman is missing.
    pub fn install() -> Option<Podman> {
        Self::install_behind(Wall::SharedKernel)
    }

    /// A fresh installation whose containers stand behind this wall; `None`, said aloud, where it cannot be had.
    pub fn install_behind(wall: Wall) -> Option<Podman> {
        if wall == Wall::MicroVm && !crate::kvm_is_there() {
            return None;
        }
        let programs = ["podman", "conmon", "/usr/lib/podman/netavark", "iptables"];
        let namespace = ClientNamespace::for_clients(&programs)?;
        namespace.file("containers.conf", CONFIGURATION);
        let podman = Podman {
            runtime: OciRuntime::under_test(&namespace, wall),
            namespace,
        };
        let archive = podman.namespace.directory().join("busybox.tar");
        crate::busybox_layout(IMAGE)
            .write_archive(&archive)
            .expect("an image");
        finish(podman.command("load").arg("--input").arg(&archive)).expect(0);
        Some(podman)
    }

    /// The place it is in.
    pub fn namespace(&self) -> &ClientNamespace {
        &self.namespace
    }

    /// A verb of Podman's, to which more arguments can be added.
    pub fn command(&self, verb: &str) -> Command {
        let folder = |name: &str| self.namespace.folder(name);
        let mut command = self.namespace.command("podman");
        command
            .env(
                "CONTAINERS_CONF",
                self.namespace.directory().join("containers.conf"),
            )
            .env("HOME", folder("home"))
            .arg("--root")
            .arg(folder("storage"))
            .arg("--runroot")
            .arg(folder("run-storage"))
            .arg("--tmpdir")
            .arg(folder("libpod"))
            .arg("--network-config-dir")
            .arg(folder("networks"))
            .arg("--runtime")
            .arg(&self.runtime.program);
        for option in &self.runtime.options {
            command.arg("--runtime-flag").arg(option.trim_start_matches("--"));
        }
        command.arg(verb);
        if matches!(verb, "run" | "create" | "build") {
            command.arg("--cgroup-parent").arg(self.namespace.cgroup());
        }
        command
    }

    /// Runs a verb to its end.
    pub fn podman(&self, verb: &str, arguments: &[&str]) -> Finished {
        finish(self.command(verb).args(arguments))
    }

    /// `podman run --rm OPTIONS busybox sh -c SCRIPT`, to its end.
    pub fn shell(&self, options: &[&str], script: &str) -> Finished {
        let mut run = self.command("run");
        run.arg("--rm").args(options).args([IMAGE, "sh", "-c", script]);
        finish(&mut run)
    }

    /// The same in the background, under a name, without removing it.
    pub fn start(&self, name: &str, options: &[&str], script: &str) {
        let mut run = self.command("run");
        run.args(["--detach", "--name", name])
            .args(options)
            .args([IMAGE, "sh", "-c", script]);
        finish(&mut run).expect(0);
    }

    /// `podman run` of busybox in a pod, in the background, to which the command is to be added.
    pub fn in_pod(&self, pod: &str, name: &str) -> Command {
        let mut run = self.command("run");
        run.args(["--detach", "--pod", pod, "--name", name, IMAGE]);
        run
    }

    /// One field of `podman inspect`.
    pub fn inspect(&self, name: &str, field: &str) -> String {
        let format = format!("{{{{{field}}}}}");
        let finished = self.podman("inspect", &["--format", &format, name]);
        finished.expect(0).stdout.trim().to_owned()
    }

    /// Waits until what the container has written holds this.
    pub fn wait_for_output(&self, name: &str, text: &str) {
        let begun = Instant::now();
        loop {
            let written = self.podman("logs", &[name]).expect(0).stdout;
            if written.contains(text) {
                return;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{name} wrote only: {written}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A file of the test's own.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        self.namespace.file(name, text)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // A test that failed has shown enough; what cannot be removed is then found by the namespace.
        let pods = self.podman("pod", &["rm", "--all", "--force", "--time", "0"]);
        let containers = self.podman("rm", &["--all", "--force", "--time", "0"]);
        if !std::thread::panicking() {
            pods.expect(0);
            containers.expect(0);
        }
    }
}

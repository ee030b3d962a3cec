//! Docker Engine with the runtime under test, in a place of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::client_namespace::{ClientNamespace, OciRuntime};
use crate::daemon::{Daemon, PATIENCE};
use crate::{Finished, Wall, finish};

/// The name under which Docker knows the busybox image.
pub const IMAGE: &str = "busybox:latest";

/// The client of the distribution's package; another in front of it in `PATH` may be of another version.
const CLIENT: &str = "/usr/bin/docker";

/// A daemon, which starts a containerd of its own, and knows the busybox image. Its containers are removed when it goes,
/// and must leave nothing.
#[derive(Debug)]
pub struct Docker {
    // Before its place, which goes after it.
    _daemon: Daemon,
    namespace: ClientNamespace,
}

impl Docker {
    /// A fresh daemon whose containers stand behind this wall; `None`, said aloud, where it cannot be had.
    pub fn start(wall: Wall) -> Option<Docker> {
        if wall == Wall::MicroVm && !crate::kvm_is_there() {
            return None;
        }
        let programs = [
            "dockerd",
            CLIENT,
            "containerd",
            "containerd-shim-runc-v2",
            "runc",
            "iptables",
        ];
        let namespace = ClientNamespace::for_clients(&programs)?;
        let runtime = OciRuntime::under_test(&namespace, wall).wrapper(&namespace);
        let folder = |name: &str| namespace.folder(name).display().to_string();
        let settings = namespace.file("daemon.json", "{}");
        let mut command = namespace.command("dockerd");
        command
            // What it is not told it would read from, or write to, the machine's own places.
            .arg("--config-file")
            .arg(settings)
            .args(["--data-root", &folder("data"), "--exec-root", &folder("exec")])
            .arg("--pidfile")
            .arg(namespace.directory().join("docker.pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket(&namespace).display()))
            .arg("--add-runtime")
            .arg(format!("bulkhead={}", runtime.display()))
            .args(["--default-runtime", "bulkhead", "--storage-driver", "overlay2"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent"])
            .arg(namespace.cgroup())
            // Of an address range of the test's own, so that none of the machine's is asked about.
            .args(["--bip", "10.198.0.1/24"]);
        let log = namespace.directory().join("docker.log");
        let docker = Docker {
            _daemon: Daemon::start("dockerd", &mut command, &socket(&namespace), log),
            namespace,
        };
        docker.import_busybox();
        Some(docker)
    }

    /// This version does not load OCI layouts, but takes a root file system.
    fn import_busybox(&self) {
        let written = crate::busybox_image().write().expect("an image");
        let [layer] = written.layers.as_slice() else {
            panic!("busybox has one layer");
        };
        let file = self.namespace.directory().join("busybox.tar.gz");
        fs::write(&file, layer.content.as_deref().expect("its bytes")).expect("a file");
        finish(self.command("import").arg(file).arg(IMAGE)).expect(0);
    }

    /// The place it is in.
    pub fn namespace(&self) -> &ClientNamespace {
        &self.namespace
    }

    /// A verb of the client, to which more arguments can be added.
    pub fn command(&self, verb: &str) -> Command {
        let mut command = self.namespace.command(CLIENT);
        command
            .env("HOME", self.namespace.folder("home"))
            .arg("--host")
            .arg(format!("unix://{}", socket(&self.namespace).display()))
            .arg(verb);
        command
    }

    /// Runs a verb to its end.
    pub fn docker(&self, verb: &str, arguments: &[&str]) -> Finished {
        finish(self.command(verb).args(arguments))
    }

    /// `docker run --rm OPTIONS busybox sh -c SCRIPT`, to its end.
    pub fn shell(&self, options: &[&str], script: &str) -> Finished {
        let mut run = self.command("run");
        run.arg("--rm").args(options).args([IMAGE, "sh", "-c", script]);
        finish(&mut run)
    }

    /// The same in the background, under a name, without removing it.
    pub fn start_container(&self, name: &str, options: &[&str], script: &str) {
        let mut run = self.command("run");
        run.args(["--detach", "--name", name])
            .args(options)
            .args([IMAGE, "sh", "-c", script]);
        finish(&mut run).expect(0);
    }

    /// One field of `docker inspect`.
    pub fn inspect(&self, name: &str, field: &str) -> String {
        let format = format!("{{{{{field}}}}}");
        let finished = self.docker("inspect", &["--format", &format, name]);
        finished.expect(0).stdout.trim().to_owned()
    }

    /// Waits until what the container has written holds this.
    pub fn wait_for_output(&self, name: &str, text: &str) {
        let begun = Instant::now();
        loop {
            let written = self.docker("logs", &[name]).expect(0).stdout;
            if written.contains(text) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{name} wrote only: {written}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn socket(namespace: &ClientNamespace) -> PathBuf {
    namespace.directory().join("docker.sock")
}

impl Drop for Docker {
    fn drop(&mut self) {
        let listed = self.docker("ps", &["--all", "--quiet"]).stdout;
        let names: Vec<&str> = listed.split_whitespace().collect();
        if !names.is_empty() {
            let removed = self.docker("rm", &[&["--force"], names.as_slice()].concat());
            // A test that failed has shown enough; what cannot be removed is then found by the namespace.
            if !std::thread::panicking() {
                removed.expect(0);
            }
        }
    }
}

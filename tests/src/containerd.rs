//! containerd with its own shim and the runtime under test, in a place of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::client_namespace::{ClientNamespace, OciRuntime};
use crate::daemon::{Daemon, PATIENCE};
use crate::{Finished, Wall, finish};

/// The name under which containerd knows the busybox image.
pub const IMAGE: &str = "localhost/busybox:latest";

/// The name of the image that a pod's first container runs: one that waits.
pub const PAUSE_IMAGE: &str = "localhost/pause:latest";

/// `@DIRECTORY@` is the test's folder, `@RUNTIME@` the runtime.
const CONFIGURATION: &str = r#"version = 2
root = "@DIRECTORY@/root"
state = "@DIRECTORY@/state"

[grpc]
address = "@DIRECTORY@/containerd.sock"

[ttrpc]
address = "@DIRECTORY@/containerd.sock.ttrpc"

[plugins."io.containerd.internal.v1.opt"]
path = "@DIRECTORY@/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:latest"
disable_apparmor = true
# Below the daemon's own score nothing can be set without CAP_SYS_RESOURCE.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "@DIRECTORY@/cni"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "@RUNTIME@"
"#;

/// The network of pods: a bridge, with ports of the host forwarded.
const NETWORK: &str = r#"{
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge", "bridge": "pods0", "isGateway": true, "ipMasq": true,
            "ipam": {
                "type": "host-local", "dataDir": "@DIRECTORY@/addresses",
                "ranges": [[{ "subnet": "10.199.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }]
            }
        },
        { "type": "portmap", "capabilities": { "portMappings": true } }
    ]
}"#;

/// A daemon that knows the busybox image. Its containers must be gone when it goes, and leave nothing.
#[derive(Debug)]
pub struct Containerd {
    // Before its place, which goes after it.
    _daemon: Daemon,
    namespace: ClientNamespace,
    runtime: PathBuf,
}

impl Containerd {
    /// A fresh daemon whose containers stand behind this wall; `None`, said aloud, where it cannot be had.
    pub fn start_behind(wall: Wall) -> Option<Containerd> {
        if wall == Wall::MicroVm && !crate::kvm_is_there() {
            return None;
        }
        let programs = [
            "containerd",
            "ctr",
            "containerd-shim-runc-v2",
            "iptables",
            "/usr/lib/cni/bridge",
        ];
        let namespace = ClientNamespace::for_clients(&programs)?;
        let runtime = OciRuntime::under_test(&namespace, wall).wrapper(&namespace);
        let directory = namespace.directory().display().to_string();
        let fill = |text: &str| {
            text.replace("@DIRECTORY@", &directory)
                .replace("@RUNTIME@", &runtime.display().to_string())
        };
        namespace.folder("cni");
        namespace.file("cni/pods.conflist", &fill(NETWORK));
        let file = namespace.file("config.toml", &fill(CONFIGURATION));
        let log = namespace.directory().join("containerd.log");
        let mut command = namespace.command("containerd");
        command.arg("--config").arg(&file);
        let daemon = Daemon::start("containerd", &mut command, &socket(&namespace), log);
        let containerd = Containerd {
            _daemon: daemon,
            namespace,
            runtime,
        };
        let archive = containerd.namespace.directory().join("busybox.tar");
        let pause = crate::busybox_image().cmd(["sleep", "86400"]);
        crate::busybox_layout(IMAGE)
            .add(&pause, PAUSE_IMAGE)
            .write_archive(&archive)
            .expect("an image");
        for namespace in ["default", "k8s.io"] {
            let mut import = containerd.ctr_in(namespace, &["images", "import"]);
            finish(import.arg(&archive)).expect(0);
        }
        Some(containerd)
    }

    /// The place it is in.
    pub fn namespace(&self) -> &ClientNamespace {
        &self.namespace
    }

    /// Where it serves.
    pub fn socket(&self) -> PathBuf {
        socket(&self.namespace)
    }

    /// `ctr`.
    pub fn ctr(&self, arguments: &[&str]) -> Command {
        self.ctr_in("default", arguments)
    }

    fn ctr_in(&self, namespace: &str, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command("ctr");
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", namespace])
            .args(arguments);
        command
    }

    /// `ctr run OPTIONS busybox NAME`, to which the command is to be added.
    pub fn run(&self, options: &[&str], name: &str) -> Command {
        let mut command = self.ctr(&["run", "--runc-binary"]);
        let group = format!("{}/{name}", self.namespace.cgroup());
        command.arg(&self.runtime).args(["--cgroup", &group]);
        command.args(options).args([IMAGE, name]);
        command
    }

    /// Runs a verb of `ctr` to its end.
    pub fn finish(&self, arguments: &[&str]) -> Finished {
        finish(&mut self.ctr(arguments))
    }

    /// Waits until a task of `ctr` is in this state.
    pub fn wait_for_state(&self, name: &str, state: &str) {
        let begun = Instant::now();
        loop {
            let listed = self.finish(&["tasks", "ls"]).expect(0).stdout;
            let found = listed
                .lines()
                .find(|line| line.split_whitespace().next() == Some(name));
            if found.is_some_and(|line| line.ends_with(state)) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{name} is not {state}:\n{listed}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn socket(namespace: &ClientNamespace) -> PathBuf {
    namespace.directory().join("containerd.sock")
}

//! One container of the OCI command line, for tests that follow a single one through its life.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Pid;
use serde_json::{Value, json};

use crate::oci::{Containers, OciBundle};
use crate::{Finished, Wall, finish};

/// A bundle, its configuration, and the verbs about the container made of it.
#[derive(Debug)]
pub struct OciContainer {
    wall: Wall,
    configuration: PathBuf,
    containers: Containers,
    bundle: OciBundle,
    /// What `config.json` will hold.
    pub config: Value,
}

impl OciContainer {
    /// A bundle that runs `arguments` on the host's kernel; `None`, said aloud, where containers cannot be made.
    pub fn new(arguments: &[&str]) -> Option<Self> {
        Self::behind(Wall::SharedKernel, arguments)
    }

    /// A bundle that runs `arguments` behind this wall; `None`, said aloud, where it cannot be had.
    pub fn behind(wall: Wall, arguments: &[&str]) -> Option<Self> {
        if wall == Wall::MicroVm && !crate::kvm_is_there() {
            return None;
        }
        let containers = Containers::new()?;
        let config = configuration(arguments);
        let bundle = containers.bundle("one", "true", |_| {});
        let configuration = containers.directory().join("bulkhead.toml");
        std::fs::write(&configuration, crate::microvm_configuration()).expect("a file");
        Some(Self {
            wall,
            containers,
            bundle,
            config,
            configuration,
        })
    }

    /// The bundle's folder.
    pub fn folder(&self) -> &Path {
        &self.bundle.folder
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle.folder.join("rootfs")
    }

    /// A folder for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.containers.directory()
    }

    /// An id that no other container of this machine has.
    pub fn id(&self) -> String {
        self.bundle.id.clone()
    }

    /// Another container of the same root file system, under an id of its own and in the same root of states.
    pub fn sibling(&self, name: &str, arguments: &[&str], configure: impl FnOnce(&mut Value)) -> OciBundle {
        let sibling = self.containers.bundle(name, "true", |_| {});
        let path = sibling.folder.join("config.json");
        let mut configuration = configuration(arguments);
        configure(&mut configuration);
        std::fs::write(path, configuration.to_string()).expect("config.json");
        sibling
    }

    /// `bulkhead-oci VERB`, in the bundle's folder.
    pub fn command(&self, verb: &str) -> Command {
        let path = self.bundle.folder.join("config.json");
        let text = self.config.to_string();
        // Another verb may be reading it.
        if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            std::fs::write(path, text).expect("config.json");
        }
        let mut command = self
            .containers
            .command(&["--isolation", self.wall.word(), "--config"]);
        command.arg(&self.configuration).arg(verb);
        command.current_dir(&self.bundle.folder);
        command
    }

    /// The same with another copy of the binary.
    pub fn command_of(&self, binary: &Path, verb: &str) -> Command {
        let ours = self.command(verb);
        let mut command = Command::new(binary);
        command.args(ours.get_args()).current_dir(&self.bundle.folder);
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Runs a verb to its end.
    pub fn oci(&self, verb: &str, arguments: &[&str]) -> Finished {
        finish(self.command(verb).args(arguments))
    }

    /// A verb about the container.
    pub fn on(&self, verb: &str, arguments: &[&str]) -> Finished {
        finish(self.command(verb).arg(&self.bundle.id).args(arguments))
    }

    /// What `state` tells.
    pub fn state(&self) -> Value {
        self.containers.json(&["state", &self.bundle.id])
    }

    /// The container's status.
    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("a status").to_owned()
    }

    /// The process that stands for the container, which is its first or an attendant.
    pub fn attendant(&self) -> Pid {
        pid(&self.state()["pid"])
    }

    /// The VMM, as it is written down in the folder of the container, which founded its sandbox.
    pub fn vmm(&self) -> Pid {
        let path = self
            .containers
            .states()
            .join(&self.bundle.id)
            .join("sandbox.json");
        let record = std::fs::read(path).expect("the sandbox's record");
        let record: Value = serde_json::from_slice(&record).expect("JSON");
        pid(&record["machine"]["pid"])
    }
}

fn pid(value: &Value) -> Pid {
    let number = value.as_i64().and_then(|number| number.try_into().ok());
    number.and_then(Pid::from_raw).expect("a process")
}

fn configuration(arguments: &[&str]) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs" },
        "hostname": "bulkhead",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] }
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "cgroup" }
            ]
        }
    })
}

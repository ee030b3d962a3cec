//! Bundles of busybox for the OCI command line, with state of their own.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Finished, binary, finish, leftovers, unique};

const APPLETS: [&str; 26] = [
    "cat", "chmod", "cp", "dd", "echo", "env", "false", "grep", "hostname", "id", "kill", "ln", "ls",
    "mkdir", "ps", "pwd", "readlink", "rm", "sh", "sleep", "stty", "sync", "test", "touch", "true", "tty",
];

/// A bundle, and a folder of states for its containers; checked for leftovers when it goes.
#[derive(Debug)]
pub struct OciBundle {
    directory: TempDir,
    /// What `config.json` will hold.
    pub config: Value,
}

impl OciBundle {
    /// A bundle that runs `arguments`; `None`, said aloud, where containers cannot be made.
    pub fn new(arguments: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: containers need root");
            return None;
        }
        let directory = tempfile::Builder::new()
            .prefix("bulkhead-test-")
            .tempdir()
            .expect("a temporary folder");
        let bin = directory.path().join("bundle/rootfs/bin");
        std::fs::create_dir_all(&bin).expect("a root file system");
        std::fs::copy(image_builder::busybox::BUSYBOX, bin.join("busybox"))
            .expect("Debian's busybox-static; `make deps` installs it");
        for applet in APPLETS {
            symlink("busybox", bin.join(applet)).expect("a link");
        }
        Some(Self {
            directory,
            config: configuration(arguments),
        })
    }

    /// The bundle's folder.
    pub fn folder(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.folder().join("rootfs")
    }

    /// A folder for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// An id that no other container of this machine has.
    pub fn id(&self) -> String {
        self.named("c")
    }

    /// One of several.
    pub fn named(&self, name: &str) -> String {
        format!("{name}-{}", unique(self.directory.path()))
    }

    /// `bulkhead-oci VERB` with states of its own, behind the shared-kernel wall.
    pub fn command(&self, verb: &str) -> Command {
        std::fs::write(self.folder().join("config.json"), self.config.to_string()).expect("config.json");
        self.command_of(&binary("bulkhead-oci"), verb)
    }

    /// The same with another copy of the binary.
    pub fn command_of(&self, binary: &Path, verb: &str) -> Command {
        let mut command = Command::new(binary);
        command
            .arg("--root")
            .arg(self.directory.path().join("states"))
            .args(["--isolation", "shared-kernel", verb])
            .current_dir(self.folder())
            .stdin(Stdio::null());
        command
    }

    /// Runs a verb to its end.
    pub fn oci(&self, verb: &str, arguments: &[&str]) -> Finished {
        finish(self.command(verb).args(arguments))
    }

    /// A verb about the one container.
    pub fn on(&self, verb: &str, arguments: &[&str]) -> Finished {
        let id = self.id();
        finish(self.command(verb).arg(id).args(arguments))
    }

    /// The status of the one container.
    pub fn status(&self) -> String {
        let state = self.on("state", &[]).expect(0).stdout;
        let state: Value = serde_json::from_str(&state).expect("a state");
        state["status"].as_str().expect("a status").to_owned()
    }
}

impl Drop for OciBundle {
    fn drop(&mut self) {
        let mut left = leftovers::of(self.directory.path(), Path::new("/none"), Path::new("/none"));
        let states = std::fs::read_dir(self.directory.path().join("states"));
        for state in states.into_iter().flatten().flatten() {
            left.push(format!("state {}", state.path().display()));
        }
        if std::thread::panicking() {
            // The test has said enough, and what it left would trouble others.
            for state in std::fs::read_dir(self.directory.path().join("states"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let _ = finish(self.command("delete").arg("--force").arg(state.file_name()));
            }
        } else {
            assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
        }
    }
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

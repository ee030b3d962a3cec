//! Containers of the OCI command line, each test's with a folder of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Finished, binary, finish, leftovers, unique};

const APPLETS: [&str; 31] = [
    "cat", "chmod", "cp", "cut", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "kill",
    "ln", "ls", "mkdir", "nproc", "ps", "pwd", "readlink", "rm", "seq", "sh", "sleep", "stty", "sync",
    "taskset", "test", "touch", "true", "tty",
];

/// A root of states and bundles, checked for leftovers when it goes.
#[derive(Debug)]
pub struct Containers {
    directory: TempDir,
}

/// A bundle of busybox and the container to be made of it.
#[derive(Debug)]
pub struct OciBundle {
    /// The container's id, which no other of this machine has.
    pub id: String,
    /// The bundle's folder.
    pub folder: PathBuf,
}

impl Containers {
    /// A fresh root; `None`, said aloud, where containers cannot be made.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: containers need root");
            return None;
        }
        let directory = tempfile::Builder::new()
            .prefix("bulkhead-test-")
            .tempdir()
            .expect("a temporary folder");
        Some(Self { directory })
    }

    /// Where everything is.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where the containers' states are.
    pub fn states(&self) -> PathBuf {
        self.directory.path().join("states")
    }

    /// `bulkhead-oci` with our root and these words.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary("bulkhead-oci"));
        command.arg("--root").arg(self.states()).args(words);
        command.stdin(Stdio::null());
        command
    }

    /// The same, run to its end.
    pub fn run(&self, words: &[&str]) -> Finished {
        finish(&mut self.command(words))
    }

    /// The JSON that a verb answers with.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let finished = self.run(words).expect(0);
        serde_json::from_str(&finished.stdout).expect("JSON")
    }

    /// A bundle whose program is this script for busybox's shell, changed by `configure`.
    pub fn bundle(&self, name: &str, script: &str, configure: impl FnOnce(&mut Value)) -> OciBundle {
        let folder = self.directory.path().join(name);
        let programs = folder.join("rootfs/bin");
        std::fs::create_dir_all(&programs).expect("a folder");
        std::fs::copy(image_builder::busybox::BUSYBOX, programs.join("busybox"))
            .expect("Debian's busybox-static; `make deps` installs it");
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", programs.join(applet)).expect("a link");
        }
        finish(
            self.command(&["--isolation", "shared-kernel", "spec", "--bundle"])
                .arg(&folder),
        )
        .expect(0);
        let path = folder.join("config.json");
        let text = std::fs::read(&path).expect("a configuration");
        let mut configuration: Value = serde_json::from_slice(&text).expect("JSON");
        configuration["process"]["terminal"] = json!(false);
        configuration["process"]["args"] = json!(["sh", "-c", script]);
        configure(&mut configuration);
        std::fs::write(&path, configuration.to_string()).expect("a configuration");
        OciBundle {
            id: format!("{}-{}", name_for_id(name), unique(self.directory.path())),
            folder,
        }
    }

    /// A container of this script that runs.
    #[track_caller]
    pub fn start(&self, name: &str, script: &str, configure: impl FnOnce(&mut Value)) -> OciBundle {
        let bundle = self.bundle(name, script, configure);
        let folder = bundle.folder.to_str().expect("a name in UTF-8");
        self.run(&["create", "--bundle", folder, &bundle.id]).expect(0);
        self.run(&["start", &bundle.id]).expect(0);
        bundle
    }

    /// A verb that goes on, with its output in `output`.
    pub fn spawn(&self, words: &[&str], output: &Path) -> Child {
        self.command(words)
            .stdout(std::fs::File::create(output).expect("a file"))
            .spawn()
            .expect("the binary; `make build` makes it")
    }
}

/// What of a bundle's name can be in its container's id.
fn name_for_id(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).collect()
}

impl OciBundle {
    /// The first line of a file of the container's cgroup in a version 1 hierarchy.
    #[track_caller]
    pub fn cgroup_value(&self, controller: &str, file: &str) -> String {
        let path = Path::new("/sys/fs/cgroup")
            .join(controller)
            .join(format!("bulkhead-{}", self.id))
            .join(file);
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.lines().next().unwrap_or_default().to_owned()
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        let mut left = leftovers::of(
            self.directory.path(),
            self.directory.path(),
            self.directory.path(),
        );
        let states = std::fs::read_dir(self.states()).into_iter().flatten().flatten();
        left.extend(states.map(|entry| format!("state: {}", entry.path().display())));
        // A test that has failed already says enough.
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
        }
    }
}

/// Waits for something that takes a moment.
#[track_caller]
pub fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! containerd with its own shim and the runtime under test, in a place of its own.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::client_namespace::{ClientNamespace, OciRuntime};
use crate::{Finished, finish};

/// The name under which containerd knows the busybox image.
pub const IMAGE: &str = "localhost/busybox:latest";

/// How long the daemon may take to start and to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon that knows the busybox image. Its containers must be gone when it goes, and leave nothing.
#[derive(Debug)]
pub struct Containerd {
    namespace: ClientNamespace,
    daemon: Child,
    runtime: PathBuf,
}

impl Containerd {
    /// A fresh daemon with further configuration, in which `@DIRECTORY@` and `@RUNTIME@` stand for the test's folder and
    /// the runtime; `None`, said aloud, where containerd is missing.
    pub fn start(programs: &[&str], configuration: &str) -> Option<Containerd> {
        let programs: Vec<&str> = ["containerd", "ctr", "containerd-shim-runc-v2"]
            .iter()
            .chain(programs)
            .copied()
            .collect();
        let namespace = ClientNamespace::for_clients(&programs)?;
        let runtime = OciRuntime::under_test().wrapper(&namespace);
        let directory = namespace.directory().display().to_string();
        let text = format!(
            "version = 2\nroot = \"{directory}/root\"\nstate = \"{directory}/state\"\n\
             [grpc]\naddress = \"{directory}/containerd.sock\"\n\
             [ttrpc]\naddress = \"{directory}/containerd.sock.ttrpc\"\n\
             {configuration}"
        );
        let text = text
            .replace("@DIRECTORY@", &directory)
            .replace("@RUNTIME@", &runtime.display().to_string());
        let file = namespace.file("config.toml", &text);
        let log = fs::File::create(namespace.directory().join("containerd.log")).expect("a log");
        let daemon = namespace
            .command("containerd")
            .arg("--config")
            .arg(&file)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("containerd");
        let mut containerd = Containerd {
            namespace,
            daemon,
            runtime,
        };
        containerd.wait_until_it_serves();
        let archive = containerd.namespace.directory().join("busybox.tar");
        crate::busybox_layout(IMAGE)
            .write_archive(&archive)
            .expect("an image");
        for namespace in ["default", "k8s.io"] {
            let mut import = containerd.ctr_in(namespace, &["images", "import"]);
            finish(import.arg(&archive)).expect(0);
        }
        Some(containerd)
    }

    fn wait_until_it_serves(&mut self) {
        let socket = self.socket();
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            let ended = self.daemon.try_wait().expect("containerd");
            assert!(
                ended.is_none() && begun.elapsed() < PATIENCE,
                "containerd does not serve:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The place it is in.
    pub fn namespace(&self) -> &ClientNamespace {
        &self.namespace
    }

    /// Where it serves.
    pub fn socket(&self) -> PathBuf {
        self.namespace.directory().join("containerd.sock")
    }

    /// What the daemon and its shims have written.
    pub fn log(&self) -> String {
        fs::read_to_string(self.namespace.directory().join("containerd.log")).expect("the log")
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

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd wrote:\n{}", self.log());
        }
        let pid = rustix::process::Pid::from_child(&self.daemon);
        // nsenter has become the daemon.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let begun = Instant::now();
        while matches!(self.daemon.try_wait(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                let _ = self.daemon.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

//! Bundles of busybox, and containers run to their end.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use container::{Bundle, ContainerId, CreateError, CreateOptions, Stdio};
use serde_json::{Value, json};

use crate::command_line;
use crate::wall::{Container, Refusal, Wall, wait_for};

pub(crate) const BUSYBOX: &str = "/bin/busybox";
/// Names the folder that a test may write to.
pub(crate) const FOLDER: &str = "BULKHEAD_ENGINE_FOLDER";

/// A container to be, in a folder of the test's own.
pub(crate) struct TestBundle {
    pub(crate) folder: PathBuf,
    pub(crate) id: ContainerId,
    pub(crate) config: Value,
}

/// How a container ended and what it said.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// 128 and the signal's number where one ended it, as a shell says it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl TestBundle {
    /// A container that runs `script` in busybox's shell.
    pub(crate) fn shell(script: &str) -> TestBundle {
        TestBundle::command(&["/bin/sh", "-c", script])
    }

    pub(crate) fn command(arguments: &[&str]) -> TestBundle {
        TestBundle::named("", arguments)
    }

    /// One of several containers of a test.
    pub(crate) fn named(suffix: &str, arguments: &[&str]) -> TestBundle {
        let tests = PathBuf::from(std::env::var_os(FOLDER).unwrap());
        let name = format!("{}{suffix}", tests.file_name().unwrap().to_str().unwrap());
        let folder = tests.join(format!("bundle{suffix}"));
        let rootfs = folder.join("rootfs");
        fs::create_dir_all(rootfs.join("bin")).unwrap();
        fs::create_dir_all(rootfs.join("etc")).unwrap();
        fs::copy(BUSYBOX, rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
        )
        .unwrap();
        TestBundle {
            folder,
            id: name.parse().unwrap(),
            config: config(arguments),
        }
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.folder.join("rootfs")
    }

    pub(crate) fn states(&self) -> PathBuf {
        self.folder.parent().unwrap().join("states")
    }

    pub(crate) fn mount(&mut self, mount: Value) -> &mut TestBundle {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    /// Gives it users of its own, from the host's 200,000 on.
    pub(crate) fn in_a_user_namespace(&mut self) {
        let mapping = json!([{ "containerID": 0, "hostID": 200_000, "size": 65_536 }]);
        self.config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": "user" }));
        self.config["linux"]["uidMappings"] = mapping.clone();
        self.config["linux"]["gidMappings"] = mapping;
        // The root file system is where others may enter; mount points exist already, since root inside may not make
        // them.
        for folder in ["proc", "dev", "sys"] {
            fs::create_dir(self.rootfs().join(folder)).unwrap();
        }
        for folder in self.rootfs().ancestors().take(3) {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    /// Writes the configuration where it is looked for.
    pub(crate) fn write(&self) {
        fs::write(self.folder.join("config.json"), self.config.to_string()).unwrap();
    }

    pub(crate) fn bundle(&self) -> Bundle {
        self.write();
        Bundle::load(&self.folder).unwrap()
    }

    pub(crate) fn create(&self, stdio: Stdio) -> Result<Container, Refusal<CreateError>> {
        match Wall::chosen() {
            Wall::SharedKernel => {
                let (states, bundle) = (self.states(), self.bundle());
                let options = CreateOptions::new(&states, &self.id, &bundle).stdio(stdio);
                Ok(container::create(options)?.into())
            }
            Wall::MicroVm => command_line::Container::create(self, stdio)
                .map(Container::from)
                .map_err(Refusal::CommandLine),
        }
    }

    /// The same with the terminal sent to whoever listens at this socket.
    pub(crate) fn create_with_console(&self, socket: &Path) -> Result<Container, Refusal<CreateError>> {
        match Wall::chosen() {
            Wall::SharedKernel => {
                let (states, bundle) = (self.states(), self.bundle());
                let options = CreateOptions::new(&states, &self.id, &bundle).console_socket(Some(socket));
                Ok(container::create(options)?.into())
            }
            Wall::MicroVm => command_line::Container::create_with_console(self, socket)
                .map(Container::from)
                .map_err(Refusal::CommandLine),
        }
    }

    /// Creates, starts, waits and deletes.
    pub(crate) fn run(&self) -> Outcome {
        let (stdio, output) = files(&self.folder);
        let mut container = self
            .create(stdio)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        container
            .start()
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let code = wait(&container);
        container
            .delete(false)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        output.outcome(code)
    }

    /// The output of a script that succeeds.
    pub(crate) fn output(&self) -> String {
        let outcome = self.run();
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.stdout
    }
}

/// Where a container's output goes.
pub(crate) struct Output {
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Output {
    pub(crate) fn outcome(&self, code: i32) -> Outcome {
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Outcome {
            code,
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
        }
    }
}

/// Streams that end in files.
pub(crate) fn files(folder: &Path) -> (Stdio, Output) {
    let output = Output {
        stdout: folder.join("stdout"),
        stderr: folder.join("stderr"),
    };
    let file = |path: &Path| OwnedFd::from(fs::File::create(path).unwrap());
    let stdio = Stdio::Files {
        stdin: OwnedFd::from(fs::File::open("/dev/null").unwrap()),
        stdout: file(&output.stdout),
        stderr: file(&output.stderr),
    };
    (stdio, output)
}

/// The other ends of streams that are pipes.
pub(crate) struct PipeEnds {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Streams that are pipes.
pub(crate) fn pipes() -> (Stdio, PipeEnds) {
    use rustix::pipe::{PipeFlags, pipe_with};
    let [input, output, messages] = [(); 3].map(|()| pipe_with(PipeFlags::CLOEXEC).unwrap());
    let stdio = Stdio::Files {
        stdin: input.0,
        stdout: output.1,
        stderr: messages.1,
    };
    let ends = PipeEnds {
        stdin: input.1,
        stdout: output.0,
        stderr: messages.0,
    };
    (stdio, ends)
}

impl PipeEnds {
    /// Writes the input, which is to fit into a pipe, and returns what comes out until nobody can write any more.
    pub(crate) fn converse(self, input: &str) -> (String, String) {
        fs::File::from(self.stdin).write_all(input.as_bytes()).unwrap();
        let read = |end: OwnedFd| std::io::read_to_string(fs::File::from(end)).unwrap();
        (read(self.stdout), read(self.stderr))
    }
}

/// Waits for the process that stands for a container, which is this process's child.
pub(crate) fn wait(container: &Container) -> i32 {
    wait_for(container.pid().unwrap())
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

const APPLETS: [&str; 34] = [
    "sh", "true", "false", "cat", "echo", "ls", "mount", "id", "pwd", "env", "sleep", "mkdir", "touch", "rm",
    "mknod", "hostname", "readlink", "stat", "grep", "head", "dd", "kill", "ip", "tr", "wc", "umask", "date",
    "tty", "stty", "chmod", "ln", "ps", "test", "seq",
];

/// What `runc spec` and its like write, as far as the engine goes today.
fn config(arguments: &[&str]) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "bulkhead",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "cgroup" }
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/proc/scsi", "/sys/firmware",
                            "/proc/does-not-exist"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// Waits for something that takes a moment, looking less and less often.
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) {
    let patience = if Wall::is_slow() { 200 } else { 30 };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(patience);
    let mut pause = std::time::Duration::from_millis(1);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "waited too long");
        std::thread::sleep(pause);
        pause = pause.mul_f32(1.5).min(std::time::Duration::from_millis(100));
    }
}

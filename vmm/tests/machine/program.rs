//! `bulkhead-vmm` as a child process, in a directory of its own that must be as empty after it as before.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmm::config::MachineConfig;
use vmm::control::{Request, Response};
use vmm::status::{Event, Exit, Phase};

use crate::cpio;

/// How long anything here may take; only a hang takes it all. A kernel that is emulated on a busy host takes minutes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// Says so loudly when there is no KVM to test with.
pub(crate) fn kvm_is_missing() -> bool {
    let missing = !Path::new("/dev/kvm").exists();
    if missing {
        eprintln!("\n*** SKIPPED: this host has no /dev/kvm, no microVM was booted ***\n");
    }
    missing
}

/// A machine's description and the directory its files are in.
pub(crate) struct Machine {
    pub(crate) directory: TempDir,
    pub(crate) config: MachineConfig,
}

impl Machine {
    /// A machine with `kernel` as its kernel's bytes.
    pub(crate) fn of(kernel: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (kernel_path, initramfs_path) = (
            directory.path().join("kernel"),
            directory.path().join("initramfs"),
        );
        fs::write(&kernel_path, kernel).unwrap();
        fs::write(&initramfs_path, cpio::end()).unwrap();
        let config = MachineConfig {
            kernel: kernel_path,
            initramfs: initramfs_path,
            command_line: String::new(),
            vcpus: 1,
            memory_mib: 64,
            console_ring: directory.path().join("console"),
            vsock: None,
            shared_directories: Vec::new(),
            block_devices: Vec::new(),
            disk_slots: 0,
            network_devices: Vec::new(),
            control_socket: None,
            die_with_parent: false,
            own_root: false,
            restore: None,
        };
        Self { directory, config }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the description and gives its path.
    pub(crate) fn write_config(&self) -> PathBuf {
        let path = self.path("config");
        fs::write(&path, serde_json::to_vec(&self.config).unwrap()).unwrap();
        path
    }

    pub(crate) fn start(&self) -> Running {
        let config = self.write_config();
        Running::spawn(
            Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
                .arg("--config")
                .arg(config),
        )
    }

    /// Runs the machine to its end and checks that it left nothing but its console.
    pub(crate) fn run(&self) -> Finished {
        let finished = self.start().finish();
        self.assert_nothing_left();
        finished
    }

    pub(crate) fn assert_nothing_left(&self) {
        let expected = ["config", "console", "initramfs", "kernel"];
        let unexpected: Vec<_> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !expected.contains(&name.as_str()))
            .collect();
        assert_eq!(unexpected, Vec::<String>::new(), "left behind");
    }

    /// Sends one control request, whose answer comes on the stream that is returned.
    pub(crate) fn send(&self, request: Request) -> UnixStream {
        let mut stream = UnixStream::connect(self.config.control_socket.as_ref().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut line = serde_json::to_vec(&request).unwrap();
        line.push(b'\n');
        stream.write_all(&line).unwrap();
        stream
    }

    /// Asks one control request.
    pub(crate) fn ask(&self, request: Request) -> Response {
        let stream = self.send(request);
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}

/// A running program; killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    /// Taken when the end is waited for.
    output: Option<BufReader<ChildStdout>>,
    events: Vec<Event>,
}

/// What is left of it.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) events: Vec<Event>,
    pub(crate) errors: String,
}

impl Finished {
    /// The last event.
    pub(crate) fn exit(&self) -> &Exit {
        match self.events.last() {
            Some(Event::Exit(exit)) => exit,
            other => panic!("the last event is {other:?}; the errors are:\n{}", self.errors),
        }
    }
}

impl Running {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            output: Some(output),
            events: Vec::new(),
        }
    }

    pub(crate) fn process_id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Waits until the guest runs.
    pub(crate) fn wait_for_first_run(mut self) -> Self {
        while !matches!(
            self.events.last(),
            Some(Event::Phase {
                name: Phase::FirstRun,
                ..
            })
        ) {
            let event = self.next_event();
            let event = event.unwrap_or_else(|| panic!("ended before the guest ran: {:?}", self.events));
            self.events.push(event);
        }
        self
    }

    fn next_event(&mut self) -> Option<Event> {
        next_event(self.output.as_mut().unwrap())
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: The child has not been waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(self.process_id(), signal) }, 0);
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> Finished {
        let deadline = Instant::now() + PATIENCE;
        // The last event has the guest's last words in it, which may be more than a pipe holds.
        let mut output = self.output.take().unwrap();
        let rest = thread::spawn(move || std::iter::from_fn(|| next_event(&mut output)).collect::<Vec<_>>());
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "still running after {PATIENCE:?}");
            thread::sleep(Duration::from_millis(1));
        };
        self.events.extend(rest.join().unwrap());
        let mut errors = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut errors)
            .unwrap();
        Finished {
            status,
            events: std::mem::take(&mut self.events),
            errors,
        }
    }
}

fn next_event(output: &mut impl BufRead) -> Option<Event> {
    let mut line = String::new();
    let length = output.read_line(&mut line).unwrap();
    (length > 0).then(|| serde_json::from_str(&line).unwrap())
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

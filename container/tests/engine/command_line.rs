//! Containers behind the microVM wall, by the verbs of `bulkhead-oci`.
//!
//! What a verb leaves running, an attendant, becomes a child of the test, as it does of podman's conmon: so it can be
//! waited for like a container's process on the host's kernel.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use container::{ContainerId, OciState, Signal, Status, Stdio};
use oci_spec::runtime::{LinuxResources, Process};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use crate::bundle::{FOLDER, TestBundle};

/// The folders of our programs, of the guest's parts and of templates, as the other tests have them.
const FOLDERS: [(&str, &str); 3] = [
    ("BULKHEAD_BIN", "out/bin"),
    ("BULKHEAD_SHARE", "out/share/bulkhead"),
    ("BULKHEAD_TEMPLATES", "out/templates"),
];

/// In the folder of a test: the configuration file of the command line, and its log.
const CONFIGURATION: &str = "bulkhead.toml";
const LOG: &str = "log";

/// A container that was made by a verb, or found by one.
#[derive(Debug)]
pub(crate) struct Container {
    verbs: Verbs,
    id: ContainerId,
    /// Its attendant.
    pub(crate) pid: Option<i32>,
    /// Its process, as it was configured when it was made or found.
    process: Value,
    pub(crate) terminal: Option<OwnedFd>,
    warnings: Vec<String>,
}

/// A process that a verb has run in a container.
#[derive(Debug)]
pub(crate) struct Executed {
    /// Its attendant.
    pub(crate) pid: i32,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) warnings: Vec<String>,
}

/// What a verb ended with that failed, and said.
#[derive(Debug)]
pub(crate) struct Complaint {
    pub(crate) code: i32,
    pub(crate) text: String,
}

/// What a verb that succeeded said.
struct Answer {
    text: String,
    warnings: Vec<String>,
}

/// Makes this process the parent of what its verbs leave running.
pub(crate) fn adopt_attendants() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// Writes the configuration file for the test in this folder.
pub(crate) fn configure(folder: &Path) {
    let [bin, share, templates] = FOLDERS.map(folder_of);
    let text = format!(
        "[microvm]\nvmm = {:?}\nkernel = {:?}\ninitramfs = {:?}\ntemplates = {templates:?}\n",
        bin.join("bulkhead-vmm"),
        share.join("vmlinux"),
        share.join("initramfs.cpio"),
    );
    fs::write(folder.join(CONFIGURATION), text).unwrap();
}

/// Deletes what a test in this folder has left, whatever state it is in.
pub(crate) fn clean_up(folder: &Path) {
    let verbs = Verbs::of(folder);
    for entry in fs::read_dir(folder.join("states"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let id = entry.file_name();
        let _ = verbs.command("delete").arg("--force").arg(id).status();
    }
}

fn folder_of((variable, default): (&str, &str)) -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::env::var_os(variable).map_or_else(|| checkout.join(default), PathBuf::from)
}

/// The command line as the test in a folder uses it.
#[derive(Clone, Debug)]
struct Verbs {
    folder: PathBuf,
}

impl Verbs {
    fn of(folder: &Path) -> Verbs {
        Verbs {
            folder: folder.to_owned(),
        }
    }

    fn of_this_test() -> Verbs {
        Verbs::of(Path::new(&std::env::var_os(FOLDER).unwrap()))
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(folder_of(FOLDERS[0]).join("bulkhead-oci"));
        command
            .arg("--root")
            .arg(self.folder.join("states"))
            .arg("--config")
            .arg(self.folder.join(CONFIGURATION))
            .arg("--log")
            .arg(self.folder.join(LOG))
            .args(["--log-format", "json", "--isolation", "microvm", verb]);
        command
    }

    /// Runs a verb whose answer is on its standard output.
    fn ask(&self, command: &mut Command) -> Result<Answer, Complaint> {
        let path = self.folder.join("answer");
        let file = File::create(&path).unwrap();
        command.stdin(File::open("/dev/null").unwrap());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let warnings = self.run(command)?;
        let text = fs::read_to_string(path).unwrap();
        Ok(Answer { text, warnings })
    }

    /// Runs a verb with the streams it has. What it complains and warns of is read in the log: its standard error is
    /// the container's too.
    fn run(&self, command: &mut Command) -> Result<Vec<String>, Complaint> {
        let log = self.folder.join(LOG);
        let _ = fs::remove_file(&log);
        let status = command.status();
        let status =
            status.unwrap_or_else(|error| panic!("{command:?}: {error}; `make build kernel` makes it"));
        let lines: Vec<Value> = fs::read_to_string(&log)
            .unwrap_or_default()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let messages = |level: &str| -> Vec<String> {
            let those = lines.iter().filter(|line| line["level"] == level);
            those
                .map(|line| line["msg"].as_str().unwrap().to_owned())
                .collect()
        };
        if status.success() {
            return Ok(messages("warning"));
        }
        Err(Complaint {
            code: status.code().unwrap_or(-1),
            text: messages("error").join("\n"),
        })
    }

    /// Runs a verb that leaves a process, with these streams for it. Returns its number, its terminal and warnings.
    fn leave(&self, command: &mut Command, stdio: Stdio) -> Result<Executed, Complaint> {
        let pid_file = self.folder.join("pid");
        let _ = fs::remove_file(&pid_file);
        command.arg("--pid-file").arg(&pid_file);
        let mut listener = None;
        match stdio {
            Stdio::Inherit => {}
            Stdio::Files {
                stdin,
                stdout,
                stderr,
            } => {
                command.stdin(stdin).stdout(stdout).stderr(stderr);
            }
            Stdio::Terminal => {
                let path = self.folder.join("console");
                let _ = fs::remove_file(&path);
                listener = Some(UnixListener::bind(&path).unwrap());
                command.arg("--console-socket").arg(path);
            }
        }
        let warnings = self.run(command)?;
        // The command would keep its copies of the streams open.
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        Ok(Executed {
            pid: fs::read_to_string(pid_file).unwrap().parse().unwrap(),
            terminal: listener.map(|listener| take_terminal(&listener)),
            warnings,
        })
    }
}

/// The terminal that was sent to this socket.
fn take_terminal(listener: &UnixListener) -> OwnedFd {
    let (client, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let mut buffers = [IoSliceMut::new(&mut name)];
    recvmsg(&client, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptors.next().unwrap()
}

impl Container {
    /// `create`
    pub(crate) fn create(bundle: &TestBundle, stdio: Stdio) -> Result<Container, Complaint> {
        Container::create_as(bundle, &[], stdio)
    }

    pub(crate) fn create_with_console(bundle: &TestBundle, socket: &Path) -> Result<Container, Complaint> {
        let option = ["--console-socket", socket.to_str().unwrap()];
        Container::create_as(bundle, &option, Stdio::Inherit)
    }

    fn create_as(bundle: &TestBundle, options: &[&str], stdio: Stdio) -> Result<Container, Complaint> {
        bundle.write();
        let verbs = Verbs::of_this_test();
        let mut command = verbs.command("create");
        command.args(options).arg("--bundle").arg(&bundle.folder);
        let created = verbs.leave(command.arg(bundle.id.as_str()), stdio)?;
        Ok(Container {
            verbs,
            id: bundle.id.clone(),
            pid: Some(created.pid),
            process: bundle.config["process"].clone(),
            terminal: created.terminal,
            warnings: created.warnings,
        })
    }

    /// The container that `state` tells of.
    pub(crate) fn load(bundle: &TestBundle) -> Result<Container, Complaint> {
        let mut found = Container {
            verbs: Verbs::of_this_test(),
            id: bundle.id.clone(),
            pid: None,
            process: bundle.config["process"].clone(),
            terminal: None,
            warnings: Vec::new(),
        };
        found.pid = found.state()?.pid;
        Ok(found)
    }

    fn on(&self, verb: &str, arguments: &[&str]) -> Result<Answer, Complaint> {
        let mut command = self.verbs.command(verb);
        self.verbs.ask(command.arg(self.id.as_str()).args(arguments))
    }

    pub(crate) fn start(&self) -> Result<(), Complaint> {
        self.on("start", &[]).map(drop)
    }

    pub(crate) fn state(&self) -> Result<OciState, Complaint> {
        Ok(serde_json::from_str(&self.on("state", &[])?.text).unwrap())
    }

    pub(crate) fn status(&self) -> Result<Status, Complaint> {
        Ok(self.state()?.status)
    }

    pub(crate) fn kill(&self, signal: Signal) -> Result<(), Complaint> {
        self.on("kill", &[&signal.to_string()]).map(drop)
    }

    pub(crate) fn kill_all(&self, signal: Signal) -> Result<(), Complaint> {
        self.on("kill", &["--all", &signal.to_string()]).map(drop)
    }

    pub(crate) fn pause(&self) -> Result<(), Complaint> {
        self.on("pause", &[]).map(drop)
    }

    pub(crate) fn resume(&self) -> Result<(), Complaint> {
        self.on("resume", &[]).map(drop)
    }

    pub(crate) fn delete(&mut self, force: bool) -> Result<(), Complaint> {
        let arguments: &[&str] = if force { &["--force"] } else { &[] };
        self.warnings = self.on("delete", arguments)?.warnings;
        Ok(())
    }

    /// Those in the guest, by its numbers. What programs are told are the host's, of what stands for them there.
    pub(crate) fn processes(&self) -> Result<Vec<i32>, Complaint> {
        let table = self.on("ps", &[])?.text;
        let pid = |line: &str| line.split_whitespace().nth(1).unwrap().parse().unwrap();
        Ok(table.lines().skip(1).map(pid).collect())
    }

    pub(crate) fn statistics(&self) -> Result<Value, Complaint> {
        let mut event: Value = serde_json::from_str(&self.on("events", &["--stats"])?.text).unwrap();
        Ok(event["data"].take())
    }

    pub(crate) fn update(&mut self, changes: &LinuxResources) -> Result<(), Complaint> {
        let path = self.verbs.folder.join("resources");
        fs::write(&path, serde_json::to_string(changes).unwrap()).unwrap();
        let answer = self.on("update", &["--resources", path.to_str().unwrap()])?;
        self.warnings = answer.warnings;
        Ok(())
    }

    pub(crate) fn configured_process(&self) -> Process {
        serde_json::from_value(self.process.clone()).unwrap()
    }

    pub(crate) fn exec(&self, process: &Process, stdio: Stdio) -> Result<Executed, Complaint> {
        let path = self.verbs.folder.join("process");
        fs::write(&path, serde_json::to_string(process).unwrap()).unwrap();
        let mut command = self.verbs.command("exec");
        command.args(["--detach", "--process"]).arg(path);
        self.verbs.leave(command.arg(self.id.as_str()), stdio)
    }

    pub(crate) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }
}

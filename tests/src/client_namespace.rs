//! A place of its own for each test of a container engine: private mount and network namespaces, in which `/run` and
//! `/var/lib` are empty and everything else the engine writes is below one temporary folder.
//!
//! The engines' cgroups are in the machine's hierarchies, below a group of the test's own. Where the machine has both
//! generations of cgroups only the first is shown, because clients disagree about what such a mixture is.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{Wall, leftovers};

/// Runs in the new namespaces, says `ready`, and stays for as long as they do. `$1` is the test's folder.
const HOLDER: &str = r#"
set -eu
mount --make-rprivate /
if [ -d /sys/fs/cgroup/unified ]; then
	mkdir "$1/hierarchies"
	mount --rbind /sys/fs/cgroup "$1/hierarchies"
	umount -R -l /sys/fs/cgroup
	mount -t tmpfs -o mode=755 cgroups /sys/fs/cgroup
	for hierarchy in "$1/hierarchies"/*; do
		name=${hierarchy##*/}
		if [ "$name" = unified ]; then
			continue
		elif [ -L "$hierarchy" ]; then
			cp -d "$hierarchy" /sys/fs/cgroup/
		else
			mkdir "/sys/fs/cgroup/$name"
			mount --rbind "$hierarchy" "/sys/fs/cgroup/$name"
		fi
	done
	umount -R -l "$1/hierarchies"
	rmdir "$1/hierarchies"
fi
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=755 lib /var/lib
mkdir /run/lock /run/netns
busybox ip link set lo up
mount --make-rshared /
echo ready
exec sleep 86400
"#;

/// How long what was told to end may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The namespaces, and the folder for everything private. When it goes, so does all that lives in it, and it is an
/// error of the test if a container left anything.
#[derive(Debug)]
pub struct ClientNamespace {
    directory: TempDir,
    holder: Child,
}

impl ClientNamespace {
    /// New namespaces for a test of these programs; `None`, said aloud, where one of them is missing.
    pub fn for_clients(programs: &[&str]) -> Option<ClientNamespace> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: containers need root");
            return None;
        }
        for program in programs {
            if !is_installed(program) {
                println!("SKIPPED: {program} is not installed");
                return None;
            }
        }
        let directory = tempfile::Builder::new()
            .prefix("bulkhead-test-")
            .tempdir()
            .expect("a temporary folder");
        let mut holder = Command::new("setpriv")
            // It does not outlive a test that is killed.
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--net"])
            .args(["sh", "-c", HOLDER, "holder"])
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut said = String::new();
        BufReader::new(holder.stdout.take().expect("its output"))
            .read_line(&mut said)
            .expect("its output");
        let namespace = ClientNamespace { directory, holder };
        assert_eq!(said, "ready\n", "the namespaces could not be made");
        Some(namespace)
    }

    /// The folder for everything private.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A folder in it, made if it is missing.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::create_dir_all(&path).expect("a folder");
        path
    }

    /// Writes a file into it.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    }

    /// The group below which the test's containers are to be, as a path in each hierarchy.
    pub fn cgroup(&self) -> String {
        let name = self.directory.path().file_name().and_then(OsStr::to_str);
        format!("/{}", name.expect("a name"))
    }

    /// `program` in the namespaces.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--target"]);
        command.arg(self.holder.id().to_string()).arg("--").arg(program);
        command.env("TMPDIR", self.folder("tmp")).stdin(Stdio::null());
        command
    }

    /// A file or folder of the namespaces, seen from outside them.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// A file of a group below the test's own: the first is of a hierarchy of the first generation and its controller,
    /// the second of the second generation.
    pub fn limit(&self, group: &str, (controller, first): (&str, &str), second: &str) -> String {
        let own = self.cgroup();
        let paths = [
            format!("/sys/fs/cgroup/{controller}{own}/{group}/{first}"),
            format!("/sys/fs/cgroup{own}/{group}/{second}"),
        ];
        let read = paths
            .iter()
            .find_map(|path| fs::read_to_string(self.path(path)).ok());
        read.unwrap_or_else(|| panic!("none of {paths:?}"))
            .trim()
            .to_owned()
    }

    /// Everything that a test's containers left, in words: call it when there should be none any more.
    fn left(&self) -> Vec<String> {
        let mut left = self.processes();
        let groups = self.cgroups();
        let of_containers = groups.iter().filter(|group| !is_the_clients(group));
        left.extend(of_containers.map(|path| format!("cgroup: {}", path.display())));
        for folder in ["/run/bulkhead-oci", "/run/netns"] {
            let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("in {folder}: {}", entry.file_name().display())));
        }
        left
    }

    fn processes(&self) -> Vec<String> {
        let holder = format!("process {}:", self.holder.id());
        let mut found = leftovers::processes(self.directory.path());
        found.retain(|process| !process.starts_with(&holder));
        found
    }

    /// Groups below the test's own, a parent before its children.
    fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders: Vec<PathBuf> = self.own_cgroups();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(entry.path());
                    found.push(entry.path());
                }
            }
        }
        found
    }

    /// The test's own group in each hierarchy that has it.
    fn own_cgroups(&self) -> Vec<PathBuf> {
        let root = self.path("/sys/fs/cgroup");
        let own = &self.cgroup()[1..];
        let hierarchies = fs::read_dir(&root).into_iter().flatten().flatten();
        hierarchies
            .map(|entry| entry.path())
            .chain([root.clone()])
            .map(|hierarchy| hierarchy.join(own))
            .filter(|group| group.is_dir())
            .collect()
    }
}

impl Drop for ClientNamespace {
    fn drop(&mut self) {
        let begun = Instant::now();
        // What was told to end, such as a container's monitor, may still be at it.
        let mut left = self.left();
        while !left.is_empty() && begun.elapsed() < PATIENCE && !std::thread::panicking() {
            std::thread::sleep(Duration::from_millis(50));
            left = self.left();
        }
        self.clear();
        // A test that has failed already says enough.
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
        }
    }
}

impl ClientNamespace {
    /// Ends what a failed test left, by pid and path.
    fn clear(&mut self) {
        let begun = Instant::now();
        loop {
            let mut groups = self.cgroups();
            for group in &groups {
                // Only a hierarchy that has the freezer has the file; what is frozen does not die.
                let _ = fs::write(group.join("freezer.state"), "THAWED");
            }
            let processes = self.processes();
            for process in &processes {
                kill(process);
            }
            groups.sort();
            for group in groups.iter().rev().chain(&self.own_cgroups()) {
                // It goes when the last process has gone; the next round tries again.
                let _ = fs::remove_dir(group);
            }
            if (processes.is_empty() && self.own_cgroups().is_empty()) || begun.elapsed() > PATIENCE {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.holder.kill().expect("the holder is ours");
        self.holder.wait().expect("the holder is ours");
    }
}

/// Whether a client keeps this group for itself: that of Podman's monitors, and those of its pods, which it removes only
/// from hierarchies that have a controller.
fn is_the_clients(group: &Path) -> bool {
    let name = group.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let is_pod = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    name == "conmon" || (is_pod && group.to_string_lossy().contains("/systemd/"))
}

/// `process` is a line of [`leftovers::processes`].
fn kill(process: &str) {
    let pid = process
        .strip_prefix("process ")
        .and_then(|rest| rest.split_once(':'))
        .and_then(|(pid, _)| rustix::process::Pid::from_raw(pid.parse().ok()?));
    if let Some(pid) = pid {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .chain([PathBuf::from(program)])
        .any(|candidate| candidate.is_absolute() && candidate.exists())
}

/// The OCI runtime under test and what selects the wall in it: ours, or the one that the variable
/// `BULKHEAD_OCI_UNDER_TEST` names, to see whether it is the test that is wrong.
#[derive(Debug, Clone)]
pub struct OciRuntime {
    /// The program.
    pub program: PathBuf,
    /// Options that stand before the verb.
    pub options: Vec<String>,
}

impl OciRuntime {
    /// The runtime of this run of the tests, behind this wall. Ours is copied to where it can be seen wherever the
    /// checkout is.
    pub fn under_test(namespace: &ClientNamespace, wall: Wall) -> OciRuntime {
        if let Some(program) = std::env::var_os("BULKHEAD_OCI_UNDER_TEST") {
            return OciRuntime {
                program: program.into(),
                options: Vec::new(),
            };
        }
        let copied = |name: &str| {
            let copy = namespace.directory().join(name);
            fs::copy(crate::binary(name), &copy).expect("the binary; `make build` makes it");
            copy
        };
        let program = copied("bulkhead-oci");
        let mut options = vec![format!("--isolation={}", wall.word())];
        if wall == Wall::MicroVm {
            copied("bulkhead-attendant");
            let file = namespace.file("bulkhead.toml", &crate::microvm_configuration());
            options.push(format!("--config={}", file.display()));
        }
        OciRuntime { program, options }
    }

    /// A program without options that runs the runtime with them, for a client that knows no others.
    pub fn wrapper(&self, namespace: &ClientNamespace) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let text = format!(
            "#!/bin/sh\nexec '{}' {} \"$@\"\n",
            self.program.display(),
            self.options.join(" ")
        );
        let path = namespace.file("runtime", &text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
        path
    }
}

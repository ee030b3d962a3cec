//! A private installation of Bulkhead for each black-box test, and the proof that a test has left nothing.
//!
//! The binaries are those of `make build`, found through `BULKHEAD_BIN` and `BULKHEAD_SHARE` (by default `out/bin` and
//! `out/share/bulkhead` of the checkout).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

pub mod client_namespace;
pub mod containerd;
pub mod cri;
pub mod daemon;
pub mod docker;
pub mod engine_program;
pub mod initramfs;
pub mod leftovers;
pub mod microvm_life;
pub mod oci;
pub mod oci_container;
pub mod own_mounts;
pub mod podman;
pub mod protobuf;
pub mod terminal;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

/// Each of these functions of a wall is a test behind either.
#[macro_export]
macro_rules! behind_both_walls {
    ($($test:ident),+ $(,)?) => {
        mod shared_kernel {
            $(#[test] fn $test() { super::$test($crate::Wall::SharedKernel) })+
        }
        mod microvm {
            $(#[test] fn $test() { super::$test($crate::Wall::MicroVm) })+
        }
    };
}

/// The two walls, as the command line names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wall {
    /// A virtual machine.
    MicroVm,
    /// The host's kernel.
    SharedKernel,
}

impl Wall {
    /// The word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::MicroVm => "microvm",
            Self::SharedKernel => "shared-kernel",
        }
    }
}

/// Roots of its own, checked for leftovers when it goes.
#[derive(Debug)]
pub struct Installation {
    directory: TempDir,
    image: PathBuf,
    names: AtomicU32,
    templates: PathBuf,
}

impl Installation {
    /// Fresh roots and the busybox image; `None`, said aloud, where the test cannot run behind `wall`.
    pub fn for_wall(wall: Wall) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: containers need root");
            return None;
        }
        if wall == Wall::MicroVm && !kvm_is_there() {
            return None;
        }
        let directory = tempfile::Builder::new()
            .prefix("bulkhead-test-")
            .tempdir()
            .expect("a temporary folder");
        let image = directory.path().join("busybox");
        write_busybox_image(&image);
        Some(Self {
            directory,
            image,
            names: AtomicU32::new(0),
            templates: shared_templates(),
        })
    }

    /// A folder for the test's own files.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join("scratch").join(name);
        std::fs::create_dir_all(&path).expect("a scratch folder");
        path
    }

    /// Where the state of what runs is kept.
    pub fn run_root(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// Where images and writable layers are kept.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// The reference of the busybox image.
    pub fn image(&self) -> String {
        format!("oci:{}", self.image.display())
    }

    /// A name no other container of this machine has.
    pub fn fresh_name(&self) -> String {
        let number = self.names.fetch_add(1, Ordering::Relaxed);
        format!(
            "t{}-{number}-{}",
            std::process::id(),
            unique(self.directory.path())
        )
    }

    /// Takes this image layout in place of busybox.
    #[must_use]
    pub fn with_image(mut self, layout: PathBuf) -> Self {
        self.image = layout;
        self
    }

    /// Takes an empty folder of templates in place of the one that all tests share.
    #[must_use]
    pub fn with_own_templates(self) -> Self {
        let folder = self.directory.path().join("templates");
        self.with_templates_in(folder)
    }

    /// Takes this folder of templates in place of the one that all tests share.
    #[must_use]
    pub fn with_templates_in(mut self, folder: PathBuf) -> Self {
        self.templates = folder;
        self
    }

    /// Where templates are kept.
    pub fn templates(&self) -> &Path {
        &self.templates
    }

    /// `bulkhead` with our roots.
    pub fn bulkhead(&self) -> Command {
        let mut command = Command::new(binary("bulkhead"));
        command
            .arg("--root")
            .arg(self.root())
            .arg("--run-root")
            .arg(self.run_root())
            .arg("--templates")
            .arg(&self.templates);
        command.stdin(Stdio::null());
        command
    }

    /// `bulkhead run --rm` of the busybox image behind `wall`; `arguments` begin with further options.
    pub fn run_command(&self, wall: Wall, options: &[&str], command: &[&str]) -> Command {
        let mut run = self.bulkhead();
        run.args([
            "run",
            "--rm",
            "--isolation",
            wall.word(),
            "--name",
            &self.fresh_name(),
        ]);
        run.args(options).arg(self.image()).args(command);
        run
    }

    /// The same, run to its end.
    pub fn run(&self, wall: Wall, options: &[&str], command: &[&str]) -> Finished {
        finish(&mut self.run_command(wall, options, command))
    }

    /// The same through a shell inside.
    pub fn shell(&self, wall: Wall, options: &[&str], script: &str) -> Finished {
        self.run(wall, options, &["sh", "-c", script])
    }

    /// A configuration file of this text.
    pub fn configuration(&self, text: &str) -> PathBuf {
        let path = self.scratch("configuration").join("config.toml");
        std::fs::write(&path, text).expect("a configuration file");
        path
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let left = leftovers::of(self.directory.path(), &self.run_root(), &self.root());
        // A test that has failed already says enough.
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Finished {
    /// Asserts the exit code, showing everything else when it differs.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "stdout:\n{}\nstderr:\n{}",
            self.stdout, self.stderr
        );
        self
    }

    /// Asserts that the complaint holds each of these texts.
    #[track_caller]
    pub fn complains_of(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(
                self.stderr.contains(text),
                "{text:?} is missing from:\n{}",
                self.stderr
            );
        }
        self
    }
}

/// Runs a command to its end. Its output goes to files: a pipe would stay open for as long as anything it left behind.
pub fn finish(command: &mut Command) -> Finished {
    let stdout = tempfile::NamedTempFile::new().expect("a file for the output");
    let stderr = tempfile::NamedTempFile::new().expect("a file for the errors");
    command
        .stdout(stdout.reopen().expect("the file"))
        .stderr(stderr.reopen().expect("the file"));
    let status = command.status().expect("the binary; `make build` makes it");
    let text = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).expect("the file")).into_owned();
    Finished {
        code: status.code().unwrap_or(-1),
        stdout: text(stdout.path()),
        stderr: text(stderr.path()),
    }
}

/// A binary of ours.
pub fn binary(name: &str) -> PathBuf {
    folder("BULKHEAD_BIN", "out/bin").join(name)
}

/// Whether there can be microVMs; said aloud where not.
pub fn kvm_is_there() -> bool {
    let is_there = Path::new("/dev/kvm").exists();
    if !is_there {
        println!("SKIPPED: microVMs need /dev/kvm");
    }
    is_there
}

/// Whether a test that makes many microVMs would take too long here, as `.ci/test` finds out; said aloud.
pub fn guests_are_too_slow() -> bool {
    let slow = std::env::var_os("BULKHEAD_TEST_SLOW_GUESTS").is_some_and(|value| !value.is_empty());
    if slow {
        println!(
            "SKIPPED: the guests of this host are slow; BULKHEAD_TEST_SLOW_GUESTS= has them made all the same"
        );
    }
    slow
}

/// Whether a process is there and has not ended.
pub fn is_alive(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| {
        !stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    })
}

/// How much longer things may take because of others.
pub fn busy_factor() -> u32 {
    let load = std::fs::read_to_string("/proc/loadavg").expect("the load");
    let load: f64 = load
        .split(' ')
        .next()
        .unwrap_or_default()
        .parse()
        .expect("a number");
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    1 + (load / processors as f64) as u32
}

/// A configuration file for a copy of ours elsewhere: the parts of a microVM are where they were built, so that templates
/// are those that every test may clone from.
pub fn microvm_configuration() -> String {
    format!(
        "[microvm]\nvmm = {:?}\nkernel = {:?}\ninitramfs = {:?}\ntemplates = {:?}\n",
        binary("bulkhead-vmm"),
        guest_part("vmlinux"),
        guest_part("initramfs.cpio"),
        shared_templates()
    )
}

/// Templates that every test may clone from, kept for the next run: they depend on nothing but what was built.
fn shared_templates() -> PathBuf {
    folder("BULKHEAD_TEMPLATES", "out/templates")
}

/// A guest's part of ours: `vmlinux` or `initramfs.cpio`.
pub fn guest_part(name: &str) -> PathBuf {
    folder("BULKHEAD_SHARE", "out/share/bulkhead").join(name)
}

fn folder(variable: &str, default: &str) -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace");
    std::env::var_os(variable).map_or_else(|| checkout.join(default), PathBuf::from)
}

/// Debian's static busybox as an OCI layout in a new folder.
fn write_busybox_image(folder: &Path) {
    busybox_layout("latest")
        .write_folder(folder)
        .expect("an image layout");
}

/// Debian's static busybox under this name.
pub fn busybox_layout(name: &str) -> image_builder::Layout {
    image_builder::Layout::new().add(&busybox_image(), name)
}

/// Debian's static busybox.
pub fn busybox_image() -> image_builder::Image {
    let image = image_builder::busybox::image(Path::new(image_builder::busybox::BUSYBOX), &[]);
    image.expect("Debian's busybox-static; `make deps` installs it")
}

fn unique(path: &Path) -> String {
    path.file_name()
        .and_then(OsStr::to_str)
        .unwrap_or_default()
        .trim_start_matches("bulkhead-test-")
        .to_lowercase()
}

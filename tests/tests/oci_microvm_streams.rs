//! Much through the standard streams of a container behind the microVM wall, each way, by programs that end at once behind
//! their last byte: none is lost.
//!
//! `BULKHEAD_TEST_STREAM_MIB` says how much; without it 2 MiB, since a guest whose kernel is emulated moves a few MiB a
//! second.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test they are assertions"
)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::json;
use tests::Wall;
use tests::oci_container::OciContainer;

/// A container and a file of random bytes that it has in its root.
struct Scene {
    container: OciContainer,
    data: PathBuf,
    mib: usize,
}

impl Scene {
    fn new() -> Option<Self> {
        let mut container = OciContainer::behind(Wall::MicroVm, &["sleep", "600"])?;
        // A cgroup beside all others, of much weight: what else runs on the host is not to decide how long things take.
        container.config["linux"]["cgroupsPath"] = json!(format!("/{}", container.id()));
        container.config["linux"]["resources"]["cpu"] = json!({ "shares": 32_768 });
        let mib = std::env::var("BULKHEAD_TEST_STREAM_MIB").map_or(2, |text| text.parse().expect("a number"));
        let data = container.rootfs().join("data");
        let mut random = File::open("/dev/urandom").unwrap().take(1 << 20);
        let mut one = Vec::new();
        random.read_to_end(&mut one).unwrap();
        let mut file = File::create(&data).unwrap();
        for number in 0_usize..mib {
            // No two are the same, so that none can stand for another.
            one[..8].copy_from_slice(&number.to_le_bytes());
            file.write_all(&one).unwrap();
        }
        // A page more or less would hide in whole blocks.
        file.write_all(b"the end").unwrap();
        Some(Self { container, data, mib })
    }

    /// Has the file come out of the program that `command` runs.
    fn out(&self, what: &str, mut command: Command) {
        let begun = Instant::now();
        let output = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        self.tell(what, begun);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*errors), (Some(0), ""), "{what}");
        let expected = fs::read(&self.data).unwrap();
        assert_eq!(output.stdout.len(), expected.len(), "{what}");
        assert!(output.stdout == expected, "{what}: other bytes");
    }

    /// Has the file go into the program that `command` runs, which tells its checksum.
    fn feed(&self, what: &str, mut command: Command) {
        let begun = Instant::now();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut data = File::open(&self.data).unwrap();
        std::io::copy(&mut data, &mut stdin).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        self.tell(what, begun);
        assert_eq!(output.status.code(), Some(0), "{what}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said.split(' ').next(), Some(&*checksum(&self.data)), "{what}");
    }

    fn tell(&self, what: &str, begun: Instant) {
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{what}: {} MiB in {seconds:.1} s, {:.1} MiB/s",
            self.mib,
            self.mib as f64 / seconds
        );
    }
}

fn checksum(path: &Path) -> String {
    let mut sum = Command::new(image_builder::busybox::BUSYBOX);
    let output = sum.arg("sha256sum").arg(path).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.split(' ').next().unwrap().to_owned()
}

#[test]
fn nothing_is_lost_through_run() {
    let Some(mut scene) = Scene::new() else { return };
    let id = scene.container.id();
    scene.container.config["process"]["args"] = json!(["cat", "/data"]);
    let mut run = scene.container.command("run");
    run.arg(&id);
    scene.out("out of run", run);
    scene.container.config["process"]["args"] = json!(["busybox", "sha256sum"]);
    let mut run = scene.container.command("run");
    run.arg(&id);
    scene.feed("into run", run);
}

#[test]
fn nothing_is_lost_through_exec() {
    let Some(scene) = Scene::new() else { return };
    scene.container.on("create", &["--bundle", "."]).expect(0);
    scene.container.on("start", &[]).expect(0);
    let exec = |arguments: &[&str]| {
        let mut exec = scene.container.command("exec");
        exec.arg(scene.container.id()).args(arguments);
        exec
    };
    scene.out("out of exec", exec(&["cat", "/data"]));
    scene.feed("into exec", exec(&["busybox", "sha256sum"]));
    scene.container.on("delete", &["--force"]).expect(0);
}

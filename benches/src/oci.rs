//! The OCI command line beside crun and runc: each step of a container's life on one bundle, `run` and `exec` of
//! `true`, a hundred at once, and the memory it takes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::rounds::{median, milliseconds};

/// Containers started at once.
const AT_ONCE: usize = 100;
const BUSYBOX: &str = "/bin/busybox";

/// A runtime by its binary and what it is told before the verb.
struct Contender {
    name: &'static str,
    binary: PathBuf,
    options: Vec<String>,
    directory: PathBuf,
    times: [Vec<Duration>; STEPS.len()],
    /// In KiB.
    peak_memory: Vec<u64>,
}

/// What is timed, in the order of a round.
const STEPS: [&str; 6] = [
    "create",
    "start",
    "delete",
    "create + start + delete",
    "run",
    "exec",
];

/// Every contender in turn, so that each meets the same noise; prints the medians.
pub(crate) fn measure(bin: &Path, rounds: usize) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let ours = bin.join("bulkhead-oci");
    let mut contenders = Vec::new();
    for (name, binary, options) in [
        ("bulkhead-oci", ours.clone(), vec!["--isolation", "shared-kernel"]),
        ("crun", "crun".into(), Vec::new()),
        ("runc", "runc".into(), Vec::new()),
    ] {
        if Command::new(&binary)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            println!("{name} is not installed and is left out");
            continue;
        }
        let folder = directory.path().join(name);
        fs::create_dir(&folder)?;
        let root = folder
            .join("states")
            .to_str()
            .context("a name in UTF-8")?
            .to_owned();
        let options = options
            .into_iter()
            .map(str::to_owned)
            .chain(["--root".into(), root]);
        contenders.push(Contender {
            name,
            binary,
            options: options.collect(),
            directory: folder,
            times: Default::default(),
            peak_memory: Vec::new(),
        });
    }
    let bundle = make_bundle(&ours, directory.path())?;
    for contender in &contenders {
        contender.once(&bundle, "warm-up", "run", &[])?;
        contender.once(&bundle, "idle", "run", &["--detach"])?;
    }
    for round in 0..rounds {
        for contender in &mut contenders {
            contender.round(&bundle, round)?;
        }
    }
    let mut at_once = Vec::new();
    for contender in &contenders {
        contender.once(&bundle, "idle", "delete", &["--force"])?;
        at_once.push(contender.at_once(&bundle)?);
    }
    print(&contenders, &at_once, rounds);
    Ok(())
}

impl Contender {
    fn command(&self, bundle: &Bundle, id: &str, verb: &str, options: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(&self.options).arg(verb).args(options);
        match (verb, options.contains(&"--detach")) {
            ("create", _) | ("run", false) => command.arg("--bundle").arg(&bundle.of_true),
            ("run", true) => command.arg("--bundle").arg(&bundle.of_sleep),
            _ => &mut command,
        };
        command.arg(format!("bench-{}-{id}", std::process::id()));
        if verb == "exec" {
            command.arg("true");
        }
        command
    }

    /// Runs a verb to its end. What it prints goes to a file: a container keeps the streams of its `create`.
    fn once(&self, bundle: &Bundle, id: &str, verb: &str, options: &[&str]) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let status = self.spawn(self.command(bundle, id, verb, options))?.wait()?;
        let time = begun.elapsed();
        let said = fs::read_to_string(self.directory.join("said")).unwrap_or_default();
        ensure!(
            status.success(),
            "{} {verb} ended with {status}: {said}",
            self.name
        );
        Ok(time)
    }

    fn spawn(&self, mut command: Command) -> anyhow::Result<Child> {
        let said = File::create(self.directory.join("said"))?;
        command
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .with_context(|| format!("starting {}", self.name))
    }

    fn round(&mut self, bundle: &Bundle, round: usize) -> anyhow::Result<()> {
        let id = format!("steps-{round}");
        let create = self.once(bundle, &id, "create", &[])?;
        let start = self.once(bundle, &id, "start", &[])?;
        // The program is `true`; the container has ended when its cgroups can be removed.
        std::thread::sleep(Duration::from_millis(10));
        let delete = self.once(bundle, &id, "delete", &[])?;
        let run = self.once(bundle, &format!("run-{round}"), "run", &[])?;
        let exec = self.once(bundle, "idle", "exec", &[])?;
        let times = [create, start, delete, create + start + delete, run, exec];
        for (all, time) in self.times.iter_mut().zip(times) {
            all.push(time);
        }
        self.peak_memory.push(self.peak_memory_of_run(bundle, round)?);
        Ok(())
    }

    /// The kernel counts what a process was before it executed its program too, so a small one stands in between.
    fn peak_memory_of_run(&self, bundle: &Bundle, round: usize) -> anyhow::Result<u64> {
        let run = self.command(bundle, &format!("memory-{round}"), "run", &[]);
        let mut command = Command::new(BUSYBOX);
        command.arg("env").arg(run.get_program()).args(run.get_args());
        let child = self.spawn(command)?;
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the child is ours and not waited for by anyone else, and both pointers are good for the call.
        let waited = unsafe { libc::wait4(child.id() as i32, std::ptr::null_mut(), 0, usage.as_mut_ptr()) };
        ensure!(waited == child.id() as i32, "waiting for {}", self.name);
        // SAFETY: zeroed is a value of it, and the call filled it in.
        let usage = unsafe { usage.assume_init() };
        Ok(usage.ru_maxrss.unsigned_abs())
    }

    /// From the first of a hundred to the end of the last.
    fn at_once(&self, bundle: &Bundle) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let mut children = Vec::new();
        for number in 0..AT_ONCE {
            children.push(self.spawn(self.command(bundle, &format!("many-{number}"), "run", &[]))?);
        }
        for mut child in children {
            let status = child.wait()?;
            ensure!(
                status.success(),
                "{}, one of {AT_ONCE}, ended with {status}",
                self.name
            );
        }
        Ok(begun.elapsed())
    }
}

/// One root file system with two configurations.
struct Bundle {
    of_true: PathBuf,
    of_sleep: PathBuf,
}

/// The default configuration, as our `spec` writes it, in a version that all understand.
fn make_bundle(ours: &Path, directory: &Path) -> anyhow::Result<Bundle> {
    let rootfs = directory.join("rootfs");
    fs::create_dir_all(rootfs.join("bin"))?;
    fs::copy(BUSYBOX, rootfs.join("bin/busybox")).context("copying Debian's busybox")?;
    for applet in ["true", "sleep"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet))?;
    }
    let make = |name: &str, arguments: Value| -> anyhow::Result<PathBuf> {
        let folder = directory.join(name);
        fs::create_dir(&folder)?;
        let made = Command::new(ours).arg("spec").current_dir(&folder).status()?;
        ensure!(made.success(), "`bulkhead-oci spec` ended with {made}");
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["ociVersion"] = json!("1.0.2");
        config["root"]["path"] = json!(rootfs);
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = arguments;
        fs::write(&path, config.to_string())?;
        Ok(folder)
    };
    Ok(Bundle {
        of_true: make("true", json!(["true"]))?,
        of_sleep: make("sleep", json!(["sleep", "600"]))?,
    })
}

fn print(contenders: &[Contender], at_once: &[Duration], rounds: usize) {
    let Some((ours, others)) = contenders.split_first() else {
        return;
    };
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    let mut header = vec![format!("medians of {rounds}"), ours.name.to_owned()];
    for other in others {
        header.extend([other.name.to_owned(), "ours to it".to_owned()]);
    }
    table.set_header(header);
    let mut row = |heading: String, figures: Vec<f64>, shown: &dyn Fn(f64) -> String| {
        let mut row = vec![heading];
        for (index, figure) in figures.iter().enumerate() {
            row.push(shown(*figure));
            if index > 0 {
                row.push(format!("{:.2}", figures[0] / figure));
            }
        }
        table.add_row(row);
    };
    let time = |seconds: f64| milliseconds(Duration::from_secs_f64(seconds));
    for (step, name) in STEPS.iter().enumerate() {
        let medians = contenders
            .iter()
            .map(|contender| median(&contender.times[step]).as_secs_f64());
        row((*name).to_owned(), medians.collect(), &time);
    }
    row(
        format!("run, {AT_ONCE} at once, all"),
        at_once.iter().map(Duration::as_secs_f64).collect(),
        &time,
    );
    let memory = contenders
        .iter()
        .map(|contender| median(&contender.peak_memory) as f64);
    row("peak memory of run".to_owned(), memory.collect(), &|kib| {
        format!("{:.1} MiB", kib / 1024.0)
    });
    println!("{table}\n");
}

//! `bulkhead run IMAGE true` behind each wall, and what crun and runc take for the same root file system; what a microVM's
//! run is made of, and how many instructions of its guest's kernel were emulated for it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use vmm::status::Event;

use crate::machine::emulated;
use crate::rounds::{median, milliseconds};

/// A clone takes seconds where KVM emulates the guest's kernel.
const CLONES: usize = 10;
/// How many of them are looked into.
const EXAMINED: usize = 3;

/// One way to run `true`.
struct Contender {
    name: &'static str,
    rounds: usize,
    command: Box<dyn Fn() -> Command>,
    times: Vec<Duration>,
}

/// Runs every contender in turn, so that each meets the same noise, and prints the medians.
pub(crate) fn measure(bin: &Path, rounds: usize, boots: usize) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("image");
    let busybox = image_builder::busybox::image(Path::new(image_builder::busybox::BUSYBOX), &[])?;
    image_builder::Layout::new()
        .add(&busybox, "latest")
        .write_folder(&image)?;
    let ours = |options: &'static [&'static str]| -> Box<dyn Fn() -> Command> {
        let (binary, roots, image) = (bin.join("bulkhead"), directory.path().to_owned(), image.clone());
        Box::new(move || {
            let mut command = Command::new(&binary);
            command
                .arg("--root")
                .arg(roots.join("root"))
                .arg("--run-root")
                .arg(roots.join("run"));
            command.args(["run", "--rm"]).args(options);
            command.arg(format!("oci:{}", image.display())).arg("true");
            command
        })
    };
    let mut contenders = vec![
        Contender {
            name: "bulkhead run, shared-kernel",
            rounds,
            command: ours(&["--isolation", "shared-kernel"]),
            times: Vec::new(),
        },
        Contender {
            name: "bulkhead run, microvm, cloned",
            rounds: rounds.min(CLONES),
            command: ours(&["--isolation", "microvm", "--template", "require"]),
            times: Vec::new(),
        },
        Contender {
            name: "bulkhead run, microvm, booted",
            rounds: boots,
            command: ours(&["--isolation", "microvm", "--template", "never"]),
            times: Vec::new(),
        },
    ];
    let bundle = directory.path().join("bundle");
    for runtime in ["crun", "runc"] {
        if Command::new(runtime)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            println!("{runtime} is not installed and is left out");
            continue;
        }
        make_bundle(&bundle, runtime)?;
        let bundle = bundle.clone();
        let command = Box::new(move || {
            let mut command = Command::new(runtime);
            command
                .arg("run")
                .arg("--bundle")
                .arg(&bundle)
                .arg(format!("bench-{}", std::process::id()));
            command
        });
        contenders.push(Contender {
            name: runtime,
            rounds,
            command,
            times: Vec::new(),
        });
    }
    // The first runs unpack the image and build the template.
    for contender in &contenders[..2] {
        once(&contender.command)?;
    }
    for round in 0..rounds.max(boots) {
        for contender in contenders.iter_mut().filter(|contender| round < contender.rounds) {
            let time = once(&contender.command).with_context(|| contender.name.to_owned())?;
            contender.times.push(time);
        }
    }
    let base = median(&contenders[0].times).as_secs_f64();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "run `true`",
        "median",
        "rounds",
        "times ours on the host's kernel",
    ]);
    for contender in &contenders {
        let time = median(&contender.times);
        let ratio = format!("{:.2}", time.as_secs_f64() / base);
        table.add_row([
            contender.name,
            &milliseconds(time),
            &contender.times.len().to_string(),
            &ratio,
        ]);
    }
    println!("{table}");
    let examined: Vec<Examined> = (0..EXAMINED)
        .map(|_| examine(bin, directory.path(), &image))
        .collect::<Result<_, _>>()
        .context("looking into a clone's run")?;
    println!("{}", parts_of_a_run(&examined));
    Ok(())
}

/// What a clone's run was made of.
struct Examined {
    /// Its parts and their microseconds, as the sandbox's record has them.
    phases: Vec<(String, u64)>,
    /// Instructions of the guest's kernel that KVM emulated, until the machine was ended.
    instructions: u64,
}

/// Runs `true` in a clone whose record is kept, and whose VMM's last words are caught.
fn examine(bin: &Path, roots: &Path, image: &Path) -> anyhow::Result<Examined> {
    const NAME: &str = "examined";
    let bulkhead = || {
        let mut command = Command::new(bin.join("bulkhead"));
        command.arg("--root").arg(roots.join("root"));
        command.arg("--run-root").arg(roots.join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    let mut run = bulkhead();
    run.args([
        "run",
        "--isolation",
        "microvm",
        "--template",
        "require",
        "--name",
        NAME,
    ]);
    let mut run = run.arg(format!("oci:{}", image.display())).arg("true").spawn()?;
    let folder = roots.join("run/sandboxes").join(NAME);
    let caught = roots.join("vmm.status");
    // The file goes with the machine; what it was is still to be read by another name.
    let status = loop {
        if !caught.exists() {
            let _ = fs::hard_link(folder.join("vm/vmm.status"), &caught);
        }
        match run.try_wait()? {
            Some(status) => break status,
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    ensure!(status.success(), "`true` ended with {status}");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("record.json"))?)?;
    let phases = record
        .pointer("/start/phases")
        .context("its record has no phases")?;
    let phases = serde_json::from_value(phases.clone())?;
    let last = fs::read_to_string(&caught).context("the VMM's status was not caught")?;
    fs::remove_file(&caught)?;
    let last = last.lines().last().context("the VMM said nothing")?;
    let Event::Exit(exit) = serde_json::from_str(last)? else {
        anyhow::bail!("the VMM's last word was {last}");
    };
    let removed = bulkhead().args(["rm", NAME]).status()?;
    ensure!(removed.success(), "`rm` ended with {removed}");
    Ok(Examined {
        phases,
        instructions: emulated(&exit.vcpus),
    })
}

/// The medians of each part.
fn parts_of_a_run(examined: &[Examined]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["part of a clone's run", "median"]);
    let first = examined.first().map_or(&[][..], |first| &first.phases);
    for (place, (name, _)) in first.iter().enumerate() {
        let times: Vec<Duration> = examined
            .iter()
            .filter_map(|run| run.phases.get(place))
            .map(|(_, microseconds)| Duration::from_micros(*microseconds))
            .collect();
        table.add_row([name.as_str(), &milliseconds(median(&times))]);
    }
    let instructions: Vec<u64> = examined.iter().map(|run| run.instructions).collect();
    let millions = median(&instructions) as f64 / 1e6;
    table.add_row([
        "guest kernel instructions emulated",
        &format!("{millions:.2} million"),
    ]);
    table
}

fn once(command: &dyn Fn() -> Command) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let status = command().stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    let time = begun.elapsed();
    ensure!(status.success(), "`true` ended with {status}");
    Ok(time)
}

/// A bundle as `spec` of the runtime makes it, without a terminal, running `true` in busybox.
fn make_bundle(bundle: &Path, runtime: &str) -> anyhow::Result<()> {
    let bin = bundle.join("rootfs/bin");
    fs::create_dir_all(&bin)?;
    if bundle.join("config.json").exists() {
        return Ok(());
    }
    fs::copy("/bin/busybox", bin.join("busybox")).context("copying Debian's busybox")?;
    std::os::unix::fs::symlink("busybox", bin.join("true"))?;
    let made = Command::new(runtime).arg("spec").current_dir(bundle).status()?;
    ensure!(made.success(), "`{runtime} spec` ended with {made}");
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    if let Some(process) = config
        .get_mut("process")
        .and_then(serde_json::Value::as_object_mut)
    {
        process.insert("terminal".into(), false.into());
        process.insert("args".into(), serde_json::json!(["true"]));
    }
    fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(())
}

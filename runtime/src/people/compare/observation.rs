//! One image behind one wall, looked at from inside and from the host.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::host_view::{HostProcess, emulated_instructions};
use crate::configuration::Configuration;
use crate::isolation::Isolation;
use crate::micro_vm::machine_files::MachineFiles;
use crate::sandbox::directory;
use crate::sandbox::record::SandboxRecord;

/// What the container says of itself, then waits to be looked at until its input ends.
const SELF_PORTRAIT: &str = "echo; uname -r; cat /proc/sys/kernel/random/boot_id; echo $$; id -u; cat";

/// Reads 200 MiB into memory at once.
const MEMORY_HOG: &str = "exec dd if=/dev/zero of=/dev/null bs=200M count=1";

/// Less than [`MEMORY_HOG`] takes.
const MEMORY_LIMIT: &str = "32m";

/// What was seen.
#[derive(Debug)]
pub(crate) struct Observation {
    /// By the process inside.
    pub(crate) kernel_release: String,
    /// By the process inside.
    pub(crate) boot_id: String,
    /// By the process inside.
    pub(crate) pid_inside: String,
    /// By the process inside.
    pub(crate) uid_inside: String,
    /// The process that stands for the container on the host.
    pub(crate) host: HostProcess,
    /// The exit code of a command that takes more memory than its limit.
    pub(crate) overrun_exit: i32,
    /// From the command line to the first byte; that of a clone, behind the microVM wall.
    pub(crate) first_output: Duration,
    /// The same of a machine that boots; `None` without a machine.
    pub(crate) first_output_booting: Option<Duration>,
    /// Instructions of the guest's kernel that KVM emulated; `None` without a guest.
    pub(crate) emulated_instructions: Option<u64>,
}

/// Runs `image` behind `wall` and looks at it.
pub(crate) fn observe(
    configuration: &Configuration,
    image: &str,
    wall: Isolation,
) -> anyhow::Result<Observation> {
    let name = format!("compare-{}-{wall}", std::process::id());
    let first_output_booting = match wall {
        Isolation::SharedKernel => None,
        Isolation::MicroVm => {
            let begun = Instant::now();
            let (mut child, mut lines) = introduced(configuration, wall, &["--template", "never"], image)?;
            let first_output = begun.elapsed();
            drop(child.stdin.take());
            // To the end: it must not find its output closed.
            lines.try_for_each(|line| line.map(drop))?;
            let status = child.wait()?;
            ensure!(
                status.success(),
                "the container in a machine that boots ended with {status}"
            );
            // So that what is measured is a clone and not the building of its template.
            let built = ourselves(configuration)?
                .args(["template", "build"])
                .stdout(Stdio::null())
                .status()?;
            ensure!(built.success(), "building the template ended with {built}");
            Some(first_output)
        }
    };
    let begun = Instant::now();
    let options: &[&str] = match wall {
        Isolation::SharedKernel => &["--name", &name],
        Isolation::MicroVm => &["--name", &name, "--template", "require"],
    };
    let (mut child, mut lines) = introduced(configuration, wall, options, image)?;
    let first_output = begun.elapsed();
    let mut next = || lines.next().transpose().map(Option::unwrap_or_default);
    let [kernel_release, boot_id, pid_inside, uid_inside] = [next()?, next()?, next()?, next()?];
    ensure!(
        !uid_inside.is_empty(),
        "the container behind {wall} ended before it had introduced itself"
    );

    let folder = directory::path_of(&configuration.run_root, &name);
    let record = SandboxRecord::read(&folder)?;
    let stands_for_it = record
        .vmm
        .or(record.init)
        .context("the record names no process on the host")?;
    let host = HostProcess::examine(stands_for_it.pid)?;
    let emulated_instructions = match wall {
        Isolation::SharedKernel => None,
        Isolation::MicroVm => Some(emulated_instructions(
            &MachineFiles::of(&folder.join("vm")).control_socket(),
        )?),
    };
    drop(child.stdin.take());
    let status = child.wait()?;
    ensure!(
        status.success(),
        "the container behind {wall} ended with {status}"
    );

    let overrun = run(
        configuration,
        wall,
        &["--memory", MEMORY_LIMIT],
        image,
        MEMORY_HOG,
    )?
    .stdin(Stdio::null())
    .stderr(Stdio::null())
    .status()?;
    let overrun_exit = overrun.code().context("our own process was killed")?;
    Ok(Observation {
        kernel_release,
        boot_id,
        pid_inside,
        uid_inside,
        host,
        overrun_exit,
        first_output,
        first_output_booting,
        emulated_instructions,
    })
}

/// A container that has written its first line, and what it writes next.
fn introduced(
    configuration: &Configuration,
    wall: Isolation,
    options: &[&str],
    image: &str,
) -> anyhow::Result<(Child, Lines<BufReader<ChildStdout>>)> {
    let options = [&["--interactive"], options].concat();
    let mut child = run(configuration, wall, &options, image, SELF_PORTRAIT)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("running ourselves")?;
    let mut lines = BufReader::new(child.stdout.take().context("a pipe from the container")?).lines();
    let first = lines.next().transpose()?;
    ensure!(
        first.is_some(),
        "the container behind {wall} ended without a word"
    );
    Ok((child, lines))
}

/// This very binary, with the folders in force.
fn ourselves(configuration: &Configuration) -> anyhow::Result<Command> {
    let mut command = Command::new(container::own_program_path().context("finding our own binary")?);
    if let Some(file) = &configuration.file {
        command.arg("--config").arg(file);
    }
    command
        .arg("--root")
        .arg(&configuration.root)
        .arg("--run-root")
        .arg(&configuration.run_root)
        .arg("--templates")
        .arg(&configuration.microvm.templates);
    Ok(command)
}

/// `bulkhead run --rm` of a script.
fn run(
    configuration: &Configuration,
    wall: Isolation,
    options: &[&str],
    image: &str,
    script: &str,
) -> anyhow::Result<Command> {
    let mut command = ourselves(configuration)?;
    command
        .args(["run", "--rm", "--isolation", wall.as_str()])
        .args(options);
    command.arg(image).args(["sh", "-c", script]);
    Ok(command)
}

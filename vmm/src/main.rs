//! `bulkhead-vmm --config FILE`: runs the microVM that FILE describes. See [`vmm::config`] for the file, and
//! [`vmm::status`] for what appears on the standard output. `bulkhead-vmm --verify DIRECTORY`: checks a
//! [snapshot](vmm::snapshot).

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use vmm::config::MachineConfig;
use vmm::machine::build::Machine;
use vmm::machine::opened::OpenedMachine;
use vmm::machine::signals::StopSignals;
use vmm::own_root::OwnRoot;
use vmm::status::{Exit, ExitKind, ExitReason, Phase, StatusChannel};

const USAGE: &str = "usage: bulkhead-vmm --config FILE\n       bulkhead-vmm --verify DIRECTORY\n\n\
    Runs the microVM that the JSON document FILE describes; `-` is the standard input.\n\
    Each line of the standard output is a JSON object with an \"event\"; the last one says how the machine ended.\n\
    SIGTERM and SIGINT end it. The exit status is 0 if it was asked to end, and 1 otherwise.\n\n\
    With --verify, checks instead that the snapshot in DIRECTORY is whole, and says what is wrong if it is not.\n";

fn main() -> ExitCode {
    let start = Instant::now();
    let parent = getppid();
    // A thread that panicked cannot be replaced: its vCPU or device would hang, and the machine with it.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));

    let status = StatusChannel::new(start);
    let config = match parse_arguments(std::env::args_os().skip(1)) {
        Ok(Invocation::Run(config)) => config,
        Ok(Invocation::Verify(directory)) => {
            return match vmm::snapshot::verify(&directory) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("bulkhead-vmm: {}", vmm::status::chain(&error));
                    ExitCode::FAILURE
                }
            };
        }
        Ok(Invocation::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("bulkhead-vmm: {error:#}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let exit = run(&config, parent, &status).unwrap_or_else(|error| Exit {
        reason: ExitReason {
            kind: ExitKind::StartFailed,
            message: format!("{error:#}"),
        },
        console: Vec::new(),
        vcpus: Vec::new(),
    });
    let code = if exit.reason.kind == ExitKind::Stopped {
        ExitCode::SUCCESS
    } else {
        eprintln!("bulkhead-vmm: {}", exit.reason.message);
        ExitCode::FAILURE
    };
    match status.exit(exit) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("bulkhead-vmm: {}", vmm::status::chain(&error));
            ExitCode::FAILURE
        }
    }
}

enum Invocation {
    Run(PathBuf),
    Verify(PathBuf),
    Print(String),
}

/// Two options need no parser, whose start-up would be part of every microVM's.
fn parse_arguments(arguments: impl Iterator<Item = std::ffi::OsString>) -> anyhow::Result<Invocation> {
    let mut config = None;
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--help" | "-h") => return Ok(Invocation::Print(USAGE.into())),
            Some("--version") => {
                return Ok(Invocation::Print(format!(
                    "bulkhead-vmm {}\n",
                    env!("CARGO_PKG_VERSION")
                )));
            }
            Some("--verify") => {
                let directory = arguments.next().context("--verify needs a directory")?;
                ensure!(
                    config.is_none() && arguments.next().is_none(),
                    "--verify goes with no other argument"
                );
                return Ok(Invocation::Verify(directory.into()));
            }
            Some("--config") => {
                ensure!(config.is_none(), "--config is given twice");
                config = Some(PathBuf::from(arguments.next().context("--config needs a file")?));
            }
            _ => bail!("unknown argument {argument:?}"),
        }
    }
    config.map(Invocation::Run).context("--config is missing")
}

fn run(config: &Path, parent: Option<Pid>, status: &StatusChannel) -> anyhow::Result<Exit> {
    let config = MachineConfig::read(config)?;
    if config.die_with_parent {
        die_with(parent)?;
    }
    let signals = StopSignals::take().context("taking over SIGTERM and SIGINT")?;
    let own_root = if config.own_root {
        let shared = config.shared_directories.iter();
        Some(OwnRoot::prepare(shared.map(|shared| shared.path.as_path()))?)
    } else {
        None
    };
    let opened = OpenedMachine::open(&config)?;
    own_root.map_or(Ok(()), OwnRoot::enter)?;
    status.phase(Phase::FilesOpened)?;
    Ok(Machine::build(opened, status)?.run(&signals, status)?)
}

/// Has this process killed when the thread that started it ends. `parent` is the parent at the start of `main`: one
/// that ended since then sends no signal any more.
fn die_with(parent: Option<Pid>) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .context("asking to be killed with the parent process")?;
    ensure!(getppid() == parent, "the parent process ended during the start");
    Ok(())
}

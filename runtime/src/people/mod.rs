//! The commands of `bulkhead`, one file each.

mod check;
mod compare;
mod explain;
mod foreground;
mod ps;
mod rm;
mod run;
mod template;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use image::bundle::{ByteSize, CpuCount};
use tokio::runtime::Runtime;

use crate::configuration::{Configuration, Folders};
use crate::sizing::PodLimits;

/// What a shell gets when bulkhead itself has failed, as with other container tools.
const OWN_FAILURE: u8 = 125;

/// One OCI image, two walls: containers on the host's kernel or in a microVM of their own.
#[derive(Debug, Parser)]
#[command(
    name = "bulkhead",
    version,
    about = "Run containers behind one of two walls: a microVM, or the host's kernel"
)]
struct Cli {
    /// Configuration file (TOML) [default: /etc/bulkhead/config.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    folders: Folders,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a command in a new container and wait for it
    Run(Box<run::Arguments>),
    /// List the containers that run, have ended, or were abandoned
    Ps(ps::Arguments),
    /// Run an image behind both walls and print what differs
    Compare(compare::Arguments),
    /// Build, list and remove the templates that microVMs are cloned from
    Template(template::Arguments),
    /// Say whether microVMs and containers can be had here, and what to do where not
    Check(check::Arguments),
    /// Say how large a pod's machine would be, behind which wall, and why
    Explain(explain::Arguments),
    /// Remove containers that have ended, with their writable layers
    Rm(rm::Arguments),
}

/// The commands that may put a process into a container on this kernel.
const ENTERING: [&str; 2] = ["compare", "run"];

/// Runs the command line.
pub fn main() -> ExitCode {
    // Before anything else, since it does it all again.
    if std::env::args_os().any(|word| ENTERING.iter().any(|command| word == *command))
        && let Err(error) = container::keep_own_program_out_of_reach()
    {
        eprintln!("bulkhead: {:#}", anyhow::Error::from(error));
        return ExitCode::from(OWN_FAILURE);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refusal) => {
            // Help and version are no failures; where they cannot be printed nobody is listening.
            let _ = refusal.print();
            return ExitCode::from(if refusal.use_stderr() { OWN_FAILURE } else { 0 });
        }
    };
    match execute(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("bulkhead: {error:#}");
            ExitCode::from(OWN_FAILURE)
        }
    }
}

/// What calls to the VMM and the agent run on: this very thread, because the engine forks and may have no other.
fn event_loop() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// The limits that options of ours ask for.
fn pod_limits(memory: Option<ByteSize>, cpus: Option<CpuCount>) -> PodLimits {
    PodLimits {
        memory: memory.map(|ByteSize(bytes)| bytes),
        millicpus: cpus.map(|cpus| cpus.thousandths()),
        ..PodLimits::default()
    }
}

fn execute(cli: Cli) -> anyhow::Result<u8> {
    let configuration = Configuration::load(cli.config.as_deref(), &cli.folders)?;
    match cli.command {
        Command::Run(arguments) => run::run(&configuration, *arguments),
        Command::Compare(arguments) => compare::compare(&configuration, &arguments),
        Command::Ps(arguments) => ps::ps(&configuration, &arguments),
        Command::Template(arguments) => template::template(&configuration, &arguments),
        Command::Check(arguments) => check::check(&configuration, &arguments),
        Command::Explain(arguments) => explain::explain(&configuration, &arguments),
        Command::Rm(arguments) => rm::rm(&configuration, &arguments),
    }
}

//! The OCI command line, with runc's names, options and meanings.
//!
//! It starts once for each step of a container's life, so its own start is part of every container's: it uses the
//! engine and nothing else, has one thread, and makes no other process than the container's.

mod create;
mod delete;
mod descriptors;
mod error;
mod events;
mod exec;
mod features;
mod foreground;
pub mod guest;
mod kill;
mod list;
mod log;
mod moment;
mod pause;
mod ps;
mod resume;
mod run;
mod spec;
mod start;
mod state;
mod update;
mod vm_state;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as _, Command, FromArgMatches as _, Parser, Subcommand};
use container::{Container, ContainerId};

pub use error::OciError;

use crate::isolation::{Isolation, UnknownIsolation};
use crate::oci_pod::DEFAULT_ROOT;
use crate::oci_pod::record::GuestContainer;
use crate::printable::printable;
use log::{Log, LogFormat};

const NAME: &str = "bulkhead-oci";

/// Runs containers of OCI bundles.
#[derive(Debug, Parser)]
#[command(name = NAME, version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    verb: Verb,
}

/// What may stand before or after the verb.
#[derive(Debug, clap::Args)]
struct GlobalOptions {
    /// The folder of the containers' states
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_ROOT)]
    root: PathBuf,
    /// A file to which errors and warnings are appended, and what the start of a virtual machine took; errors also go to
    /// standard error
    #[arg(long, global = true, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How the log is written
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Also log what is done
    #[arg(long, global = true)]
    debug: bool,
    /// Refused: this runtime talks to no systemd
    #[arg(long, global = true, hide = true)]
    systemd_cgroup: bool,
    /// Whether to do without root's privileges: auto and false are accepted, and true by spec, which can write for it
    #[arg(long, global = true, hide = true, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    rootless: Option<String>,
    /// The wall a new container stands behind, microvm or shared-kernel; it wins over the annotation
    #[arg(long, global = true, value_name = "WALL", value_parser = parse_isolation)]
    isolation: Option<Isolation>,
    /// The configuration file, which says how microVMs are made [default: /etc/bulkhead/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl GlobalOptions {
    fn is_rootless(&self) -> bool {
        self.rootless.as_deref() == Some("true")
    }
}

fn parse_isolation(word: &str) -> Result<Isolation, UnknownIsolation> {
    word.parse()
}

// The arguments of a verb are described to the parser when they are asked for.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Verb {
    /// Create a container from a bundle; its program waits for start
    Create(create::CreateArguments),
    /// Create a container, run its program, wait for its end and remove it
    Run(Box<run::RunArguments>),
    /// Run one more process in a running container
    Exec(Box<exec::ExecArguments>),
    /// Run the program of a created container
    Start(start::StartArguments),
    /// Print the state of a container as JSON
    State(state::StateArguments),
    /// Send a signal to the first process of a container, or to all
    Kill(kill::KillArguments),
    /// Remove a stopped container and all it left
    Delete(delete::DeleteArguments),
    /// Stop all processes of a container where they stand
    Pause(pause::PauseArguments),
    /// Let the processes of a paused container go on
    Resume(resume::ResumeArguments),
    /// Change the limits of a container; all are set, or none
    Update(Box<update::UpdateArguments>),
    /// Tell what a container uses, and when it runs out of memory, a line of JSON for each event
    Events(events::EventsArguments),
    /// Show the processes of a container
    Ps(ps::PsArguments),
    /// List the containers whose state is in the root folder
    List(list::ListArguments),
    /// Write a config.json to begin a bundle with: a shell in a terminal; with --rootless, for a user without root's
    /// privileges, who is root inside
    Spec(spec::SpecArguments),
    /// Print what of the runtime specification this runtime recognizes, as JSON
    Features(features::FeaturesArguments),
}

/// The verbs that put a process into a container.
const ENTERING: [&str; 3] = ["create", "exec", "run"];

impl Arguments {
    /// Reads the command line; where there is something to say about it, says it and ends the process.
    fn of_this_process() -> Arguments {
        if let Some(arguments) = Arguments::with_one_verb(std::env::args_os().collect()) {
            return arguments;
        }
        Arguments::try_parse().unwrap_or_else(|error| {
            // It quotes words that it does not understand as they are.
            let is_harmless = |word: OsString| !word.to_string_lossy().contains(char::is_control);
            if std::env::args_os().all(is_harmless) {
                error.exit();
            }
            let said = error.render().to_string();
            said.lines().for_each(|line| eprintln!("{}", printable(line)));
            std::process::exit(error.exit_code())
        })
    }

    /// What the words say to a parser that knows only the verb among them. It gives every verb that it knows a copy of
    /// every global option, which takes as long as making some containers' cgroups. None where it does not understand
    /// them, as when the word was not meant as the verb, or where help is asked for: the whole parser has the answer.
    fn with_one_verb(words: Vec<OsString>) -> Option<Arguments> {
        let verb = {
            let verbs = Verb::augment_subcommands(Command::new(NAME));
            let mut named = words.iter().skip(1);
            named.find_map(|word| verbs.find_subcommand(word).cloned())?
        };
        let command = GlobalOptions::augment_args(Command::new(NAME)).subcommand(verb);
        let matches = command.try_get_matches_from(words).ok()?;
        Arguments::from_arg_matches(&matches).ok()
    }

    fn run(&self, log: &Log) -> Result<i32, OciError> {
        if self.global.systemd_cgroup {
            return Err(OciError::SystemdCgroup);
        }
        if self.global.is_rootless() && !matches!(self.verb, Verb::Spec(_)) {
            return Err(OciError::Rootless);
        }
        self.verb.run(&self.global, log)
    }
}

/// Runs the command line of this process, which is called `name`.
fn main_as(name: &str) -> ExitCode {
    // Before anything else, since it does it all again.
    let out_of_reach = if std::env::args_os().any(|word| ENTERING.iter().any(|verb| word == *verb)) {
        container::keep_own_program_out_of_reach()
    } else {
        Ok(())
    };
    let mut arguments = Arguments::of_this_process();
    // Other processes than this one go on with it, from other folders. A folder of ours that has been removed has no paths.
    if let Ok(root) = std::path::absolute(&arguments.global.root) {
        arguments.global.root = root;
    }
    let log = match Log::open(
        arguments.global.log.as_deref(),
        arguments.global.log_format,
        arguments.global.debug,
    ) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("{name}: error: {}", log::chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let done = match out_of_reach {
        Ok(()) => arguments.run(&log),
        Err(error) => Err(error.into()),
    };
    match done {
        // Exit codes have 8 bits.
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            let message = log::chain(&error);
            log.error(&message);
            // Callers that look for the word `error` here, and not at the exit code, exist.
            eprintln!("{name}: error: {message}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs `bulkhead-oci`.
pub fn main() -> ExitCode {
    main_as(NAME)
}

impl Verb {
    /// The exit code of a verb that succeeds, which is that of the program it waited for.
    fn run(&self, global: &GlobalOptions, log: &Log) -> Result<i32, OciError> {
        if let Some(id) = self.container()
            && GuestContainer::exists(&global.root, id)
        {
            if let Verb::Exec(arguments) = self {
                arguments.check_for_guest()?;
            }
            return guest::run(self, global, log);
        }
        match self {
            Verb::Exec(arguments) => return arguments.run(global, log),
            Verb::Run(arguments) => return arguments.run(global, log),
            Verb::Create(arguments) => arguments.run(global, log),
            Verb::Start(arguments) => arguments.run(global, log),
            Verb::State(arguments) => arguments.run(global, log),
            Verb::Kill(arguments) => arguments.run(global, log),
            Verb::Delete(arguments) => arguments.run(global, log),
            Verb::Pause(arguments) => arguments.run(global, log),
            Verb::Resume(arguments) => arguments.run(global, log),
            Verb::Update(arguments) => arguments.run(global, log),
            Verb::Events(arguments) => arguments.run(global),
            Verb::Ps(arguments) => arguments.run(global),
            Verb::List(arguments) => arguments.run(global, log),
            Verb::Spec(arguments) => arguments.run(global),
            Verb::Features(arguments) => arguments.run(global),
        }
        .map(|()| 0)
    }
}

impl Verb {
    /// The container that has to exist, for a verb that asks or changes something beyond what is written down of it.
    fn container(&self) -> Option<&ContainerId> {
        match self {
            Verb::Exec(arguments) => Some(&arguments.id),
            Verb::Start(arguments) => Some(&arguments.id),
            Verb::Kill(arguments) => Some(&arguments.id),
            Verb::Delete(arguments) => Some(&arguments.id),
            Verb::Pause(arguments) => Some(&arguments.id),
            Verb::Resume(arguments) => Some(&arguments.id),
            Verb::Update(arguments) => Some(&arguments.id),
            Verb::Events(arguments) => Some(&arguments.id),
            Verb::Ps(arguments) => Some(&arguments.id),
            Verb::Create(_)
            | Verb::Run(_)
            | Verb::State(_)
            | Verb::List(_)
            | Verb::Spec(_)
            | Verb::Features(_) => None,
        }
    }
}

fn load(global: &GlobalOptions, id: &ContainerId) -> Result<Container, OciError> {
    Ok(Container::load(&global.root, id)?)
}

/// Writes an answer to standard output.
fn print(text: &[u8]) -> Result<(), OciError> {
    let mut output = std::io::stdout().lock();
    output
        .write_all(text)
        .and_then(|()| output.flush())
        .map_err(OciError::Output)
}

/// Writes an answer as JSON on lines of its own.
fn print_json(answer: &impl serde::Serialize) -> Result<(), OciError> {
    let mut text = serde_json::to_vec_pretty(answer).map_err(|error| OciError::Output(error.into()))?;
    text.push(b'\n');
    print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn options_are_accepted_before_and_after_the_id() {
        let before = [
            "bulkhead-oci",
            "--root",
            "/r",
            "create",
            "--bundle",
            "/b",
            "--isolation",
            "shared-kernel",
            "web",
        ];
        let after = [
            "bulkhead-oci",
            "create",
            "web",
            "-b",
            "/b",
            "--isolation=shared-kernel",
            "--root=/r",
        ];
        for words in [&before[..], &after[..]] {
            let arguments = Arguments::try_parse_from(words).unwrap();
            assert_eq!(arguments.global.root, PathBuf::from("/r"));
            assert_eq!(arguments.global.isolation, Some(Isolation::SharedKernel));
        }
    }

    #[test]
    fn a_parser_of_one_verb_reads_what_the_whole_one_reads_and_nothing_else() {
        let words = |line: &str| -> Vec<OsString> { line.split(' ').map(OsString::from).collect() };
        for line in [
            "bulkhead-oci --root /r --debug create --bundle /b --isolation shared-kernel web",
            "bulkhead-oci exec --env A=b --log=/l web sh -c list",
            "bulkhead-oci list --format json --root /r",
            "bulkhead-oci run web",
        ] {
            let whole = Arguments::try_parse_from(words(line)).unwrap();
            let one = Arguments::with_one_verb(words(line)).unwrap();
            assert_eq!(format!("{one:?}"), format!("{whole:?}"));
        }
        for line in [
            "bulkhead-oci",
            "bulkhead-oci --version",
            "bulkhead-oci create --help",
            "bulkhead-oci help create",
            "bulkhead-oci --root list state web",
            "bulkhead-oci state",
        ] {
            assert!(Arguments::with_one_verb(words(line)).is_none(), "{line}");
        }
    }

    #[test]
    fn unknown_walls_flags_and_ids_are_errors() {
        for words in [
            &["bulkhead-oci", "--isolation", "none", "state", "web"][..],
            &["bulkhead-oci", "create", "--no-such-flag", "web"],
            &["bulkhead-oci", "state", "../web"],
            &["bulkhead-oci", "kill", "web", "NOPE"],
            &["bulkhead-oci", "state"],
        ] {
            assert!(Arguments::try_parse_from(words).is_err(), "{words:?}");
        }
    }
}

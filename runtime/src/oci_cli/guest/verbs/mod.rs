//! The verbs, one file each. Each finds what is written down of the container, and asks the agent in its guest.

mod create;
mod delete;
mod error;
mod events;
mod exec;
mod found;
mod kill;
mod new_network;
mod pause;
mod ps;
mod run;
mod start;
mod update;

use std::process::ExitCode;

use tokio::runtime::Runtime;

use super::super::{GlobalOptions, OciError, Verb, main_as};
use crate::configuration::{Configuration, Folders};
use crate::isolation::Isolation;
use crate::oci_cli::log::Log;
use crate::oci_pod::attendant;

pub(in crate::oci_cli) use create::create;
pub use error::GuestError;
pub(in crate::oci_cli) use run::run as run_container;

/// Runs `bulkhead-attendant`: as an attendant if it is told so, or else as the command line.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == attendant::WORD)
        && let Some(descriptor) = words.next().and_then(|word| word.to_str()?.parse().ok())
    {
        return ExitCode::from(attendant::attend(descriptor));
    }
    main_as("bulkhead-oci")
}

/// A verb that finds its container there.
pub(in crate::oci_cli) fn run(verb: &Verb, global: &GlobalOptions, log: &Log) -> Result<i32, OciError> {
    match verb {
        Verb::Exec(arguments) => return exec::exec(arguments, global, log),
        Verb::Start(arguments) => start::start(arguments, global, log),
        Verb::Kill(arguments) => kill::kill(arguments, global, log),
        Verb::Delete(arguments) => delete::delete(arguments, global, log),
        Verb::Pause(arguments) => pause::pause(&arguments.id, global, log),
        Verb::Resume(arguments) => pause::resume(&arguments.id, global, log),
        Verb::Update(arguments) => update::update(arguments, global, log),
        Verb::Events(arguments) => events::events(arguments, global),
        Verb::Ps(arguments) => ps::ps(arguments, global),
        Verb::Create(_)
        | Verb::Run(_)
        | Verb::State(_)
        | Verb::List(_)
        | Verb::Spec(_)
        | Verb::Features(_) => Ok(()),
    }
    .map(|()| 0)
}

/// The wall of containers that do not choose one.
pub(in crate::oci_cli) fn configured_isolation(
    global: &GlobalOptions,
) -> Result<Option<Isolation>, OciError> {
    Ok(configuration(global)?.isolation)
}

fn configuration(global: &GlobalOptions) -> Result<Configuration, GuestError> {
    Ok(Configuration::load(
        global.config.as_deref(),
        &Folders::default(),
    )?)
}

/// What calls to the VMM and the agent run on.
fn event_loop() -> Result<Runtime, GuestError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(GuestError::EventLoop)
}

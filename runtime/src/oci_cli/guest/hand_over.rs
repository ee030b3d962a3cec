//! Leaving a verb to `bulkhead-attendant`.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use container::Bundle;

use crate::isolation::Isolation;
use crate::oci_cli::create::Creation;
use crate::oci_cli::log::Log;
use crate::oci_cli::run::RunArguments;
use crate::oci_cli::{GlobalOptions, OciError, Verb};

/// The program, in our own folder.
const ATTENDANT: &str = "bulkhead-attendant";

pub(in crate::oci_cli) fn run(_: &Verb, _: &GlobalOptions, _: &Log) -> Result<i32, OciError> {
    hand_over()
}

pub(in crate::oci_cli) fn create(
    _: &Creation,
    _: &Bundle,
    _: &GlobalOptions,
    _: &Log,
) -> Result<(), OciError> {
    hand_over()
}

pub(in crate::oci_cli) fn run_container(
    _: &RunArguments,
    _: &Bundle,
    _: &GlobalOptions,
    _: &Log,
) -> Result<i32, OciError> {
    hand_over()
}

/// The wall of containers that do not choose one. The configuration file is read by whom the default is handed over to.
pub(in crate::oci_cli) fn configured_isolation(_: &GlobalOptions) -> Result<Option<Isolation>, OciError> {
    Ok(None)
}

/// Executes the same command line there. Returns only on failure.
pub(in crate::oci_cli) fn hand_over<T>() -> Result<T, OciError> {
    let own = container::own_program_path().unwrap_or_default();
    let program = own.with_file_name(ATTENDANT);
    let source = Command::new(&program).args(std::env::args_os().skip(1)).exec();
    Err(OciError::HandOver { program, source })
}

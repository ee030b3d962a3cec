//! `bulkhead-attendant`: what `bulkhead-oci` executes for a container behind the microVM wall: its verbs there, and the
//! process that stands on the host for one in the guest.

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::oci_cli::guest::main()
}

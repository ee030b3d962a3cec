//! `bulkhead`: the people's command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    runtime::people::main()
}

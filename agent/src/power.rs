//! Ending the machine.

use std::process::ExitCode;

use rustix::system::{RebootCommand, reboot};

/// Restarts the machine at once; the VMM takes a restart for the guest's end. Returns only where the kernel refuses,
/// and then PID 1's exit makes the kernel panic, which the VMM reports as well.
pub(crate) fn restart() -> ExitCode {
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::Restart) {
        eprintln!("bulkhead-agent: restarting the machine: {error}");
    }
    ExitCode::FAILURE
}

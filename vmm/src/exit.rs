//! How a machine's end is told: which kind of reason it was, and what the console says about it.

use crate::status::{Exit, ExitKind, ExitReason, chain};
use crate::stop::Stop;

/// The end of the console that goes into the exit event.
const MAX_CONSOLE_LINES: usize = 50;
/// What is kept of a line.
const MAX_LINE_BYTES: usize = 1024;
/// How the kernel begins its last words (`panic()` in Linux's kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing: ";
/// How it ends them; the same words come once more there.
const END_OF_PANIC: &str = "end Kernel panic";

/// Why a machine that ran is over.
#[derive(Debug)]
pub enum End<'a> {
    /// It was asked to stop; by what.
    Stopped(&'static str),
    /// It stopped by itself.
    Itself(&'a Stop),
}

/// Tells the end of a machine whose console showed `console` at last.
pub fn tell(end: &End<'_>, console: &[u8]) -> Exit {
    let lines = last_lines(console);
    let reason = match end {
        End::Stopped(by) => ExitReason {
            kind: ExitKind::Stopped,
            message: format!("stopped by {by}"),
        },
        // A kernel that panics resets; one whose panic goes wrong crashes on the way.
        End::Itself(Stop::Reset | Stop::TripleFault { .. }) if let Some(message) = panic(&lines) => {
            ExitReason {
                kind: ExitKind::GuestPanic,
                message,
            }
        }
        End::Itself(stop) => ExitReason {
            kind: kind(stop),
            message: chain(*stop),
        },
    };
    Exit {
        reason,
        console: lines,
        vcpus: Vec::new(),
    }
}

fn kind(stop: &Stop) -> ExitKind {
    match stop {
        Stop::Reset => ExitKind::GuestReset,
        Stop::TripleFault { .. } => ExitKind::TripleFault,
        Stop::Completion { .. } => ExitKind::EmulationFailure,
        Stop::InternalError { .. }
        | Stop::EntryRefused { .. }
        | Stop::UnexpectedExit { .. }
        | Stop::Run { .. } => ExitKind::KvmError,
        Stop::Device(_) => ExitKind::DeviceFailure,
    }
}

/// The message of the kernel's panic, if one of `lines` is one.
fn panic(lines: &[String]) -> Option<String> {
    lines
        .iter()
        .filter(|line| !line.contains(END_OF_PANIC))
        .find_map(|line| line.split_once(PANIC))
        .map(|(_, message)| message.to_owned())
}

fn last_lines(console: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> = console
        .split(|byte| *byte == b'\n')
        .rev()
        .map(|line| line.trim_ascii_end())
        .filter(|line| !line.is_empty())
        .take(MAX_CONSOLE_LINES)
        .map(|line| String::from_utf8_lossy(line.get(..MAX_LINE_BYTES).unwrap_or(line)).into_owned())
        .collect();
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const PANICKED: &[u8] = b"[    0.1] something\r\n[    0.2] Kernel panic - not syncing: No working init found.\r\n\
        [    0.3] CPU: 0 PID: 1\n[    0.4] ---[ end Kernel panic - not syncing: No working init found. ]---\n";

    #[test]
    fn a_reset_after_a_panic_is_the_panic_with_its_message() {
        let exit = tell(&End::Itself(&Stop::Reset), PANICKED);
        assert_eq!(exit.reason.kind, ExitKind::GuestPanic);
        assert_eq!(exit.reason.message, "No working init found.");
        assert_eq!(exit.console.len(), 4);
        assert_eq!(exit.console[0], "[    0.1] something");
    }

    #[test]
    fn a_reset_without_a_panic_is_a_reset() {
        assert_eq!(
            tell(&End::Itself(&Stop::Reset), b"bye").reason.kind,
            ExitKind::GuestReset
        );
    }

    #[test]
    fn a_stop_is_a_stop_whatever_the_console_says() {
        let exit = tell(&End::Stopped("SIGTERM"), PANICKED);
        assert_eq!(exit.reason.kind, ExitKind::Stopped);
        assert_eq!(exit.reason.message, "stopped by SIGTERM");
    }

    #[test]
    fn a_triple_fault_says_where() {
        let stop = Stop::TripleFault {
            vcpu: 1,
            rip: Some(0x20_0000),
            cr2: None,
        };
        let exit = tell(&End::Itself(&stop), b"");
        assert_eq!(exit.reason.kind, ExitKind::TripleFault);
        assert_eq!(
            exit.reason.message,
            "vCPU 1 triple-faulted at 0x200000 (last page fault at an unknown address)"
        );
        assert!(exit.console.is_empty());
    }

    #[test]
    fn only_the_last_lines_are_told_and_long_ones_cut() {
        let console = [vec![b'x'; 5000], b"\n".repeat(3), b"line\n".repeat(60)].concat();
        let lines = last_lines(&console);
        assert_eq!(lines.len(), MAX_CONSOLE_LINES);
        assert_eq!(last_lines(&[b'x'; 5000])[0].len(), MAX_LINE_BYTES);
    }

    #[test]
    fn bytes_that_are_not_text_do_not_break_the_line() {
        assert_eq!(last_lines(b"\xff\x00ok"), vec!["\u{fffd}\u{0}ok"]);
    }
}

//! Signals by name and number.

use std::fmt;
use std::str::FromStr;

/// A signal's number, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// A word that names no signal.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a signal: give a name such as TERM, SIGKILL or RTMIN+3, or a number from 1 to 64")]
pub struct UnknownSignal(String);

/// The first real-time signal as programs count them: two below it are glibc's own.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

const NAMES: [(&str, i32); 34] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

impl Signal {
    /// Asks a process to end.
    pub const TERM: Signal = Signal(libc::SIGTERM);
    /// Ends a process, whatever it does.
    pub const KILL: Signal = Signal(libc::SIGKILL);

    /// The number the kernel knows it by.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl TryFrom<i32> for Signal {
    type Error = UnknownSignal;

    fn try_from(number: i32) -> Result<Signal, UnknownSignal> {
        if (1..=RTMAX).contains(&number) {
            Ok(Signal(number))
        } else {
            Err(UnknownSignal(number.to_string()))
        }
    }
}

impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Signal, UnknownSignal> {
        let unknown = || UnknownSignal(text.to_owned());
        if let Ok(number) = text.parse::<i32>() {
            return Signal::try_from(number);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(Signal(*number));
        }
        let number = if let Some(offset) = name.strip_prefix("RTMIN") {
            RTMIN.checked_add(real_time_offset(offset, '+').ok_or_else(unknown)?)
        } else if let Some(offset) = name.strip_prefix("RTMAX") {
            RTMAX.checked_sub(real_time_offset(offset, '-').ok_or_else(unknown)?)
        } else {
            None
        };
        match number {
            Some(number) if (RTMIN..=RTMAX).contains(&number) => Ok(Signal(number)),
            _ => Err(unknown()),
        }
    }
}

/// What follows RTMIN or RTMAX: nothing, or a sign and a number.
fn real_time_offset(text: &str, sign: char) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign)?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(formatter, "SIG{name}"),
            None => write!(formatter, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_prefix_in_any_case_and_numbers_mean_the_same_signal() {
        for text in ["TERM", "SIGTERM", "term", "sigterm", "15"] {
            assert_eq!(text.parse(), Ok(Signal::TERM));
        }
    }

    #[test]
    fn real_time_signals_are_counted_from_both_ends() {
        assert_eq!("RTMIN".parse::<Signal>().unwrap().number(), 34);
        assert_eq!("SIGRTMIN+3".parse::<Signal>().unwrap().number(), 37);
        assert_eq!("RTMAX-14".parse::<Signal>().unwrap().number(), 50);
    }

    #[test]
    fn words_and_numbers_that_are_no_signal_are_refused() {
        for text in [
            "", "0", "65", "-9", "SIG", "NOPE", "RTMIN+99", "RTMIN-1", "RTMAX+1", "RTMIN++1", "9 ",
        ] {
            assert!(text.parse::<Signal>().is_err(), "{text:?}");
        }
    }
}

//! `avx-switch [SWITCHES]`: four processes check that each finds its own vector registers after a context switch.
//!
//! Each process fills its registers with a pattern of its own, makes a system call that lets another process run, and
//! looks at the registers as they come back, until the kernel has counted as many context switches as asked for.
//!
//! Prints `ok <switches asked for> <switches counted, voluntary and involuntary>`. Otherwise the first difference is
//! printed and the exit code is 1; it is 2 if the program could not do its work.

mod pattern;
mod registers;
mod ring;
mod tally;

use std::fmt;
use std::io;
use std::process::ExitCode;

use registers::VectorUnit;
use ring::{PROCESSES, Ring};
use tally::Tally;

const DEFAULT_SWITCHES: u32 = 10_000;

/// Why there is no `ok`.
enum Failure {
    /// The registers of a process changed; the process has printed how.
    Registers,
    Usage(String),
    NoAvx,
    System(&'static str, io::Error),
    Process(u32, i32),
    TooFewSwitches(u64, u64),
}

fn main() -> ExitCode {
    match run() {
        Ok(tally) => {
            println!("ok {} {}", tally.wanted(), tally.counted());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("avx-switch: {failure}");
            if matches!(failure, Failure::Registers) {
                ExitCode::from(1)
            } else {
                ExitCode::from(2)
            }
        }
    }
}

fn run() -> Result<Tally, Failure> {
    let wanted = match std::env::args().nth(1) {
        None => DEFAULT_SWITCHES,
        Some(word) => word.parse().map_err(|_| Failure::Usage(word))?,
    };
    let unit = VectorUnit::of_this_processor().ok_or(Failure::NoAvx)?;
    let tally = Tally::new(wanted).map_err(|error| Failure::System("map shared memory", error))?;
    let ring = Ring::new().map_err(|error| Failure::System("make the pipes", error))?;
    let mut children = Vec::new();
    for process in 0..PROCESSES {
        // SAFETY: this program has one thread, so the child may go on as if nothing had happened.
        match unsafe { libc::fork() } {
            -1 => return Err(Failure::System("fork", io::Error::last_os_error())),
            0 => ring.take_part(process, &tally, unit),
            child => children.push(child),
        }
    }
    drop(ring);

    let mut outcome = Ok(());
    for (process, child) in (0..).zip(children) {
        // A difference ends one process and breaks the ring for the others: it is what to report.
        match wait_for(child)? {
            0 => {}
            ring::REGISTERS_DIFFER => outcome = Err(Failure::Registers),
            code if outcome.is_ok() => outcome = Err(Failure::Process(process, code)),
            _ => {}
        }
    }
    outcome?;
    if !tally.is_complete() {
        return Err(Failure::TooFewSwitches(tally.wanted(), tally.counted()));
    }
    Ok(tally)
}

/// Waits for a child's end: its exit code, or minus the signal that killed it.
fn wait_for(child: libc::pid_t) -> Result<i32, Failure> {
    let mut status = 0;
    // SAFETY: the place is ours.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(Failure::System("wait for a process", io::Error::last_os_error()));
    }
    Ok(if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        -libc::WTERMSIG(status)
    })
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Registers => write!(formatter, "a process found other registers than its own"),
            Failure::Usage(word) => {
                write!(
                    formatter,
                    "\"{word}\" is no number; usage: avx-switch [SWITCHES], {DEFAULT_SWITCHES} if left out"
                )
            }
            Failure::NoAvx => write!(
                formatter,
                "this processor has no AVX, so there is nothing to check"
            ),
            Failure::System(what, error) => write!(formatter, "{what}: {error}"),
            Failure::Process(process, code) if *code < 0 => {
                write!(formatter, "process {process} was killed by signal {}", -code)
            }
            Failure::Process(process, code) => write!(formatter, "process {process} ended with {code}"),
            Failure::TooFewSwitches(wanted, counted) => {
                write!(
                    formatter,
                    "of {wanted} context switches only {counted} happened: nothing to switch to?"
                )
            }
        }
    }
}

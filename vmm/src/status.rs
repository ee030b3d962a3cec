//! What a machine tells the process that started it: one JSON object a line on its standard output.

use std::error::Error;
use std::io::{self, Write};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::control::VcpuStatistics;

/// A line of the status channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A phase of the start is over.
    Phase {
        /// Which.
        name: Phase,
        /// The time since this process entered `main`; what the system needs to get it there comes on top.
        microseconds: u64,
    },
    /// The machine is over; the last line.
    Exit(Exit),
}

/// The phases of a start, in order. Each is reported when it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Every file and socket is open and checked.
    FilesOpened,
    /// The kernel, the initial file system and the boot structures are guest memory.
    KernelLoaded,
    /// Devices and vCPUs are there.
    MachineBuilt,
    /// The guest's first instruction is next.
    FirstRun,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// The last lines of the guest's console.
    pub console: Vec<String>,
    /// What the vCPUs had counted, if the machine ran.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vcpus: Vec<VcpuStatistics>,
}

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReason {
    /// The kind of reason.
    pub kind: ExitKind,
    /// The reason in words, with its causes.
    pub message: String,
}

/// The kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitKind {
    /// It was asked to stop, by a signal or a control request. The only kind with exit status 0.
    Stopped,
    /// It never ran: its description, a file or the host did not allow it.
    StartFailed,
    /// The guest reset itself.
    GuestReset,
    /// The guest's kernel panicked; the message is the kernel's. What the guest's console shows is the guest's word:
    /// a program in it can write such a line too.
    GuestPanic,
    /// The guest crashed without a word.
    TripleFault,
    /// An instruction that neither KVM nor its completion can execute.
    EmulationFailure,
    /// KVM failed.
    KvmError,
    /// A device failed, through no fault of the guest.
    DeviceFailure,
}

/// The writing end of the channel.
#[derive(Debug)]
pub struct StatusChannel {
    start: Instant,
}

/// The process that started this one is not listening any more.
#[derive(Debug, thiserror::Error)]
#[error("writing to the status channel (standard output)")]
pub struct StatusError(#[source] io::Error);

impl StatusChannel {
    /// The channel of a process that entered `main` at `start`.
    pub fn new(start: Instant) -> Self {
        Self { start }
    }

    /// Reports that `phase` is over.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn phase(&self, name: Phase) -> Result<(), StatusError> {
        let microseconds = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        send(&Event::Phase { name, microseconds })
    }

    /// Reports the end.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn exit(&self, exit: Exit) -> Result<(), StatusError> {
        send(&Event::Exit(exit))
    }
}

fn send(event: &Event) -> Result<(), StatusError> {
    let mut line = serde_json::to_vec(event).map_err(|error| StatusError(error.into()))?;
    line.push(b'\n');
    let mut output = io::stdout().lock();
    output
        .write_all(&line)
        .and_then(|()| output.flush())
        .map_err(StatusError)
}

/// `error` and its causes as one line.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_a_flat_object() {
        let event = Event::Phase {
            name: Phase::KernelLoaded,
            microseconds: 1234,
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            r#"{"event":"phase","name":"kernel-loaded","microseconds":1234}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }

    #[test]
    fn an_exit_names_its_kind_and_carries_the_console() {
        let event = Event::Exit(Exit {
            reason: ExitReason {
                kind: ExitKind::GuestPanic,
                message: "no init".into(),
            },
            console: vec!["last".into()],
            vcpus: Vec::new(),
        });
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            r#"{"event":"exit","reason":{"kind":"guest-panic","message":"no init"},"console":["last"]}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }

    #[test]
    fn a_chain_has_every_cause_once() {
        let error = StatusError(io::Error::other("nobody there"));
        assert_eq!(
            chain(&error),
            "writing to the status channel (standard output): nobody there"
        );
    }
}

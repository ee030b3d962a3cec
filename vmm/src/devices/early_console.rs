//! The first serial port of a PC, as far as a kernel without a driver for it writes to it: output, without waiting
//! and without interrupts. It carries what the kernel says before the virtio console is there.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::console_ring::ConsoleRing;

/// The first port, and how many registers follow.
const BASE: u16 = 0x3f8;
const REGISTERS: u16 = 8;

/// Registers of a 16550 (its data sheet, table 2): transmitter or divisor, line control, line status.
const TRANSMITTER: u16 = 0;
const LINE_CONTROL: u16 = 3;
const LINE_STATUS: u16 = 5;
/// Line control: the first two registers are the divisor.
const DIVISOR_LATCH: u8 = 0x80;
/// Line status: the transmitter is empty.
const TRANSMITTER_EMPTY: u8 = 0x60;

/// What a snapshot says of the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyConsoleState {
    divisor_latch: bool,
}

/// The port.
#[derive(Debug)]
pub struct EarlyConsole {
    ring: Arc<ConsoleRing>,
    divisor_latch: bool,
}

impl EarlyConsole {
    /// A port whose output goes to `ring`.
    pub fn new(ring: Arc<ConsoleRing>) -> Self {
        Self {
            ring,
            divisor_latch: false,
        }
    }

    /// The port's state.
    pub fn save(&self) -> EarlyConsoleState {
        EarlyConsoleState {
            divisor_latch: self.divisor_latch,
        }
    }

    /// Brings the port to `state`.
    pub fn restore(&mut self, state: EarlyConsoleState) {
        self.divisor_latch = state.divisor_latch;
    }

    /// The register behind `port`, if it is one of this device.
    pub fn register(port: u16) -> Option<u16> {
        port.checked_sub(BASE).filter(|register| *register < REGISTERS)
    }

    /// The value of `register`.
    pub fn read(&self, register: u16) -> u8 {
        if register == LINE_STATUS {
            TRANSMITTER_EMPTY
        } else {
            0
        }
    }

    /// Takes bytes for `register`.
    pub fn write(&mut self, register: u16, bytes: &[u8]) {
        match (register, bytes) {
            (TRANSMITTER, _) if !self.divisor_latch => self.ring.append(bytes),
            (LINE_CONTROL, [.., last]) => self.divisor_latch = last & DIVISOR_LATCH != 0,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (EarlyConsole, Arc<ConsoleRing>, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let ring = Arc::new(ConsoleRing::create(&directory.path().join("console"), 4096).unwrap());
        (EarlyConsole::new(Arc::clone(&ring)), ring, directory)
    }

    #[test]
    fn a_byte_for_the_transmitter_reaches_the_ring() {
        let (mut console, ring, _directory) = console();
        console.write(TRANSMITTER, b"!");
        assert_eq!(ring.tail(), b"!");
    }

    #[test]
    fn the_divisor_is_not_output() {
        let (mut console, ring, _directory) = console();
        console.write(LINE_CONTROL, &[DIVISOR_LATCH | 3]);
        console.write(TRANSMITTER, &[1]);
        console.write(LINE_CONTROL, &[3]);
        console.write(TRANSMITTER, b"x");
        assert_eq!(ring.tail(), b"x");
    }

    #[test]
    fn the_transmitter_is_always_empty() {
        assert_eq!(console().0.read(LINE_STATUS) & 0x20, 0x20);
    }

    #[test]
    fn only_eight_ports_belong_to_it() {
        assert_eq!(EarlyConsole::register(0x3f7), None);
        assert_eq!(EarlyConsole::register(0x3ff), Some(7));
        assert_eq!(EarlyConsole::register(0x400), None);
    }
}

//! Which instruction it is that failed.

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use super::error::{Cause, Stop};
use super::exception::Exception;
use super::failure::{InstructionBytes, MAX_INSTRUCTION_BYTES};
use super::linear_memory::{Access, LinearMemory};
use super::{Completed, Outcome};

/// The instruction being completed, as far as it is known.
pub(super) struct FailingInstruction {
    pub(super) rip: u64,
    pub(super) bytes: InstructionBytes,
    pub(super) instruction: Instruction,
}

impl FailingInstruction {
    pub(super) fn unknown() -> FailingInstruction {
        FailingInstruction {
            rip: 0,
            bytes: InstructionBytes::default(),
            instruction: Instruction::default(),
        }
    }

    /// Decodes the bytes that KVM handed over. Those it did not, or not wholly, are fetched as the processor would.
    pub(super) fn decode(&mut self, memory: &mut LinearMemory<'_>) -> Result<(), Stop> {
        if self.decode_bytes() {
            return Ok(());
        }
        self.bytes = InstructionBytes::default();
        while self.bytes.len() < MAX_INSTRUCTION_BYTES {
            let mut byte = [0];
            memory.read_as(
                Access::Fetch,
                self.rip.wrapping_add(self.bytes.len() as u64),
                &mut byte,
            )?;
            self.bytes.push(byte[0]);
            if self.decode_bytes() {
                return Ok(());
            }
        }
        // Longer than any instruction may be (SDM volume 3, 6.15, #GP).
        Err(Stop::Fault(Exception::general_protection(0)))
    }

    /// Whether the bytes hold a whole instruction, valid or not.
    fn decode_bytes(&mut self) -> bool {
        let mut decoder = Decoder::with_ip(64, self.bytes.as_slice(), self.rip, DecoderOptions::NONE);
        self.instruction = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return false;
        }
        self.bytes.truncate(self.instruction.len());
        true
    }

    /// What it amounts to that nothing was done: the guest executes the instruction again, or cannot go on.
    pub(super) fn stopped(&self, stop: Stop) -> Result<Completed, Cause> {
        match stop {
            Stop::Failed(cause) => Err(cause),
            Stop::Again | Stop::Fault(_) | Stop::Trap(_) => Ok(self.completed(Outcome::Resume)),
        }
    }

    pub(super) fn completed(&self, outcome: Outcome) -> Completed {
        Completed {
            outcome,
            mnemonic: self.instruction.mnemonic(),
        }
    }
}

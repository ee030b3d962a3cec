//! The instructions, one file for each or for each kin.

mod breakpoint;
mod cache_line_write_back;
mod compare_exchange_16;
mod extended_control;
mod population_count;
mod segment_access;
mod sse_control;
mod supervisor_access;
mod time_stamp;
mod x87_wait;

use iced_x86::{Instruction, Mnemonic};

use super::cpu::Cpu;
use super::error::{Cause, Stop};
use super::xsave::{self, RestoreForm, SaveForm};

/// Does what the processor would have done. Registers change only where this returns `Ok` or [`Stop::Trap`].
pub(super) fn execute(instruction: &Instruction, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    match instruction.mnemonic() {
        Mnemonic::Xsave | Mnemonic::Xsave64 => xsave::save_state(instruction, cpu, SaveForm::Standard),
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => xsave::save_state(instruction, cpu, SaveForm::Optimised),
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => xsave::save_state(instruction, cpu, SaveForm::Compacted),
        Mnemonic::Xsaves | Mnemonic::Xsaves64 => xsave::save_state(instruction, cpu, SaveForm::Supervisor),
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => xsave::restore_state(instruction, cpu, RestoreForm::User),
        Mnemonic::Xrstors | Mnemonic::Xrstors64 => {
            xsave::restore_state(instruction, cpu, RestoreForm::Supervisor)
        }
        Mnemonic::Wait => x87_wait::execute(cpu),
        Mnemonic::Popcnt => population_count::execute(instruction, cpu),
        Mnemonic::Stac => supervisor_access::allow_user_pages(cpu),
        Mnemonic::Clac => supervisor_access::forbid_user_pages(cpu),
        Mnemonic::Xgetbv => extended_control::read(cpu),
        Mnemonic::Ldmxcsr => sse_control::load(instruction, cpu),
        Mnemonic::Stmxcsr => sse_control::store(instruction, cpu),
        Mnemonic::Cmpxchg16b => compare_exchange_16::execute(instruction, cpu),
        Mnemonic::Rdtscp => time_stamp::execute(cpu),
        Mnemonic::Clwb => cache_line_write_back::execute(instruction, cpu),
        Mnemonic::Verr => segment_access::verify_readable(instruction, cpu),
        Mnemonic::Verw => segment_access::verify_writable(instruction, cpu),
        Mnemonic::Lsl => segment_access::load_limit(instruction, cpu),
        Mnemonic::Lar => segment_access::load_access_rights(instruction, cpu),
        Mnemonic::Int3 => Err(breakpoint::breakpoint()),
        // What is no instruction at all raises the same exception as those that exist to raise it.
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::INVALID => {
            Err(breakpoint::invalid_opcode())
        }
        _ => Err(Cause::Unsupported.into()),
    }
}

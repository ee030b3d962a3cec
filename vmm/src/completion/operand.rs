//! Operands of a decoded instruction: general registers and linear addresses.

use iced_x86::{Instruction, OpKind, Register};
use kvm_bindings::kvm_regs;

use super::cpu::Cpu;
use super::error::{Cause, Stop};
use super::exception::Exception;

impl Cpu<'_> {
    /// The linear address of memory operand `index`.
    ///
    /// A non-canonical address raises #SS(0) if it is relative to the stack segment, else #GP(0).
    pub(super) fn operand_address(&self, instruction: &Instruction, index: u32) -> Result<u64, Stop> {
        let value_of = |register, _, _| match register {
            Register::FS => Some(self.sregs.fs.base),
            Register::GS => Some(self.sregs.gs.base),
            // In 64-bit mode the other segments start at 0, whatever their descriptors say.
            Register::CS | Register::DS | Register::ES | Register::SS => Some(0),
            _ => general_register(&self.regs, register),
        };
        let linear = instruction
            .virtual_address(index, 0, value_of)
            .ok_or(Cause::Unsupported)?;
        if self.memory.is_canonical(linear) {
            Ok(linear)
        } else if instruction.memory_segment() == Register::SS {
            Err(Stop::Fault(Exception::stack(0)))
        } else {
            Err(Stop::Fault(Exception::general_protection(0)))
        }
    }

    /// Reads a 16-, 32- or 64-bit operand, register or memory, zero-extended.
    pub(super) fn read_operand(&mut self, instruction: &Instruction, index: u32) -> Result<u64, Stop> {
        if instruction.op_kind(index) == OpKind::Register {
            let register = instruction.op_register(index);
            let value = general_register(&self.regs, register).ok_or(Cause::Unsupported)?;
            return Ok(value & mask(register.size()));
        }
        let linear = self.operand_address(instruction, index)?;
        let mut bytes = [0; 8];
        let size = instruction.memory_size().size();
        let read = bytes.get_mut(..size).ok_or(Cause::Unsupported)?;
        self.memory.read(linear, read)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a register operand as 64-bit mode does: 32 bits clear the upper half, 16 bits keep the rest.
    pub(super) fn write_register(&mut self, register: Register, value: u64) -> Result<(), Stop> {
        let whole = general_register_mut(&mut self.regs, register).ok_or(Cause::Unsupported)?;
        *whole = match register.size() {
            8 => value,
            4 => value & mask(4),
            size => *whole & !mask(size) | value & mask(size),
        };
        Ok(())
    }
}

fn mask(bytes: usize) -> u64 {
    if bytes >= 8 {
        u64::MAX
    } else {
        (1 << (8 * bytes)) - 1
    }
}

/// The 64-bit register that `register` is, or is part of. Not for AH, BH, CH, DH.
fn general_register(regs: &kvm_regs, register: Register) -> Option<u64> {
    let mut copy = *regs;
    general_register_mut(&mut copy, register).map(|value| *value)
}

fn general_register_mut(regs: &mut kvm_regs, register: Register) -> Option<&mut u64> {
    Some(match register.full_register() {
        Register::RAX => &mut regs.rax,
        Register::RBX => &mut regs.rbx,
        Register::RCX => &mut regs.rcx,
        Register::RDX => &mut regs.rdx,
        Register::RSI => &mut regs.rsi,
        Register::RDI => &mut regs.rdi,
        Register::RSP => &mut regs.rsp,
        Register::RBP => &mut regs.rbp,
        Register::R8 => &mut regs.r8,
        Register::R9 => &mut regs.r9,
        Register::R10 => &mut regs.r10,
        Register::R11 => &mut regs.r11,
        Register::R12 => &mut regs.r12,
        Register::R13 => &mut regs.r13,
        Register::R14 => &mut regs.r14,
        Register::R15 => &mut regs.r15,
        _ => return None,
    })
}

//! `cmpxchg16b`: compares 16 bytes of memory with RDX:RAX and exchanges them with RCX:RBX.

use std::arch::asm;

use iced_x86::Instruction;
use kvm_bindings::kvm_regs;

use crate::completion::cpu::Cpu;
use crate::completion::error::{Cause, Stop};
use crate::completion::exception::Exception;
use crate::completion::linear_memory::Access;

const OPERAND_BYTES: usize = 16;
const ZERO: u64 = 1 << 6;

/// Without a lock prefix it is atomic all the same, which no guest can tell.
pub(super) fn execute(instruction: &Instruction, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    let linear = cpu.operand_address(instruction, 0)?;
    if !linear.is_multiple_of(OPERAND_BYTES as u64) {
        return Err(Stop::Fault(Exception::general_protection(0)));
    }
    if !is_x86_feature_detected!("cmpxchg16b") {
        return Err(Cause::Unsupported.into());
    }
    // The processor writes whether or not it exchanges, so the page must be writable in any case.
    let operand = cpu.memory.slice(linear, OPERAND_BYTES, Access::Write)?;
    let guard = operand.ptr_guard_mut();
    // SAFETY: the slice is 16 mapped bytes of guest memory, held by the guard, and every other access to guest memory
    // is volatile or atomic too. It is aligned: the linear address is, and guest pages are at page-aligned host
    // addresses. The instruction exists: it was asked for above.
    let exchanged = unsafe { compare_exchange(guard.as_ptr(), &mut cpu.regs) };
    cpu.regs.rflags = if exchanged {
        cpu.regs.rflags | ZERO
    } else {
        cpu.regs.rflags & !ZERO
    };
    Ok(())
}

/// The instruction itself. The standard library's is not to be had without a 16-byte atomic library.
///
/// # Safety
/// `operand` is valid for reads and writes of 16 bytes, aligned, and the processor has `cmpxchg16b`.
unsafe fn compare_exchange(operand: *mut u8, regs: &mut kvm_regs) -> bool {
    let exchanged: u8;
    // SAFETY: the caller's promise. RBX, which the compiler keeps for itself, is put back.
    unsafe {
        asm!(
            "xchg {rbx}, rbx", "lock cmpxchg16b [{operand}]", "mov rbx, {rbx}", "sete {exchanged}",
            operand = in(reg) operand, rbx = inout(reg) regs.rbx => _, exchanged = lateout(reg_byte) exchanged,
            inout("rax") regs.rax, inout("rdx") regs.rdx, in("rcx") regs.rcx, options(nostack)
        );
    }
    exchanged != 0
}

#[cfg(test)]
mod tests {
    use crate::completion::error::Stop;
    use crate::completion::test_cpu::TestMachine;

    const LOCK_CMPXCHG16B: [u8; 5] = [0xf0, 0x48, 0x0f, 0xc7, 0x0f];

    fn machine() -> TestMachine {
        let mut machine = TestMachine::new();
        machine.regs.rdi = 0x4010;
        machine.write(0x4010, &(5_u128 << 64 | 6).to_le_bytes());
        (machine.regs.rcx, machine.regs.rbx) = (7, 8);
        machine
    }

    #[test]
    fn equal_operands_are_exchanged() {
        let mut machine = machine();
        (machine.regs.rdx, machine.regs.rax) = (5, 6);
        machine.execute(&LOCK_CMPXCHG16B).unwrap();
        assert_eq!(machine.read(0x4010), (7_u128 << 64 | 8).to_le_bytes());
        assert_eq!(machine.regs.rflags, 0x42);
    }

    #[test]
    fn different_operands_are_loaded() {
        let mut machine = machine();
        machine.regs.rflags |= 0x40;
        machine.execute(&LOCK_CMPXCHG16B).unwrap();
        assert_eq!(
            (machine.regs.rdx, machine.regs.rax, machine.regs.rflags),
            (5, 6, 2)
        );
        assert_eq!(machine.read(0x4010), (5_u128 << 64 | 6).to_le_bytes());
    }

    #[test]
    fn an_unaligned_operand_is_general_protection() {
        let mut machine = machine();
        machine.regs.rdi += 8;
        let Stop::Fault(fault) = machine.execute(&LOCK_CMPXCHG16B).unwrap_err() else {
            panic!("no fault")
        };
        assert_eq!(fault.vector, 13);
    }

    #[test]
    fn a_read_only_page_faults_as_a_write_even_if_nothing_is_exchanged() {
        let mut machine = machine();
        machine.regs.rdi = machine.read_only();
        let Stop::Fault(fault) = machine.execute(&LOCK_CMPXCHG16B).unwrap_err() else {
            panic!("no fault")
        };
        assert_eq!((fault.vector, fault.error_code), (14, Some(3)));
    }
}

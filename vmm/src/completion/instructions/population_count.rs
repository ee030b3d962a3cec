//! `popcnt`: how many bits of the source are set.

use iced_x86::Instruction;

use crate::completion::cpu::Cpu;
use crate::completion::error::Stop;

const ZERO: u64 = 1 << 6;
/// OF, SF, ZF, AF, PF, CF.
const ARITHMETIC_FLAGS: u64 = 0x8d5;

pub(super) fn execute(instruction: &Instruction, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    let source = cpu.read_operand(instruction, 1)?;
    cpu.write_register(instruction.op0_register(), source.count_ones().into())?;
    cpu.regs.rflags &= !ARITHMETIC_FLAGS;
    if source == 0 {
        cpu.regs.rflags |= ZERO;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::arch::asm;

    use crate::completion::error::Stop;
    use crate::completion::test_cpu::TestMachine;

    /// The processor's own answer: `popcnt rax, rcx` (or ecx, cx), with all flags set before.
    macro_rules! native {
        ($form:literal, $destination:expr, $source:expr) => {{
            let (result, flags): (u64, u64);
            // SAFETY: popcnt has no effect but on its destination and the flags; the stack is balanced.
            unsafe {
                asm!("push {all}", "popfq", $form, "pushfq", "pop {flags}",
                     all = in(reg) 0x8d7_u64, flags = lateout(reg) flags,
                     inout("rax") $destination => result, in("rcx") $source)
            };
            (result, flags & 0x8d5)
        }};
    }

    const SOURCES: [u64; 5] = [0, 1, u64::MAX, 0xffff_0000, 0x8000_0000_0001_0000];

    fn completed(bytes: &[u8], destination: u64, source: u64) -> (u64, u64) {
        let mut machine = TestMachine::new();
        (machine.regs.rax, machine.regs.rcx, machine.regs.rflags) = (destination, source, 0x8d7);
        machine.execute(bytes).unwrap();
        (machine.regs.rax, machine.regs.rflags & 0x8d5)
    }

    #[test]
    fn of_64_bits_agrees_with_the_processor() {
        for source in SOURCES {
            let native = native!("popcnt rax, rcx", u64::MAX, source);
            assert_eq!(
                completed(&[0xf3, 0x48, 0x0f, 0xb8, 0xc1], u64::MAX, source),
                native,
                "{source:#x}"
            );
        }
    }

    #[test]
    fn of_32_bits_agrees_with_the_processor_and_clears_the_upper_half() {
        for source in SOURCES {
            let native = native!("popcnt eax, ecx", u64::MAX, source);
            assert_eq!(
                completed(&[0xf3, 0x0f, 0xb8, 0xc1], u64::MAX, source),
                native,
                "{source:#x}"
            );
        }
    }

    #[test]
    fn of_16_bits_agrees_with_the_processor_and_keeps_the_rest() {
        for source in SOURCES {
            let native = native!("popcnt ax, cx", u64::MAX, source);
            assert_eq!(
                completed(&[0x66, 0xf3, 0x0f, 0xb8, 0xc1], u64::MAX, source),
                native,
                "{source:#x}"
            );
        }
    }

    #[test]
    fn of_extended_registers_uses_them() {
        let mut machine = TestMachine::new();
        machine.regs.r9 = 0b111;
        machine.execute(&[0xf3, 0x4d, 0x0f, 0xb8, 0xe1]).unwrap(); // popcnt r12, r9
        assert_eq!(machine.regs.r12, 3);
    }

    #[test]
    fn of_memory_uses_base_index_scale_displacement_and_segment() {
        let mut machine = TestMachine::new();
        machine.sregs.gs.base = 0x4000;
        (machine.regs.rdi, machine.regs.rcx) = (0x100, 2);
        machine.write(0x4000 + 0x100 + 2 * 8 + 0x10, &0xff00_u64.to_le_bytes());
        machine
            .execute(&[0x65, 0xf3, 0x48, 0x0f, 0xb8, 0x44, 0xcf, 0x10])
            .unwrap(); // gs:[rdi+rcx*8+0x10]
        assert_eq!(machine.regs.rax, 8);
    }

    #[test]
    fn of_memory_relative_to_rip_counts_from_the_next_instruction() {
        let mut machine = TestMachine::new();
        machine.write(TestMachine::RIP + 9 + 0x20, &7_u64.to_le_bytes());
        machine
            .execute(&[0xf3, 0x48, 0x0f, 0xb8, 0x05, 0x20, 0, 0, 0])
            .unwrap();
        assert_eq!(machine.regs.rax, 3);
    }

    #[test]
    fn of_memory_across_a_page_whose_second_half_is_missing_faults_at_the_second_page() {
        let mut machine = TestMachine::new();
        machine.regs.rdi = machine.unmapped() - 4;
        let Stop::Fault(fault) = machine.execute(&[0xf3, 0x48, 0x0f, 0xb8, 0x07]).unwrap_err() else {
            panic!("no fault");
        };
        assert_eq!((fault.vector, fault.error_code), (14, Some(0)));
        assert_eq!(fault.fault_address, Some(machine.unmapped()));
    }

    #[test]
    fn of_a_non_canonical_address_is_general_protection_and_of_a_stack_address_stack_fault() {
        let mut machine = TestMachine::new();
        (machine.regs.rdi, machine.regs.rbp) = (1 << 63, 1 << 63);
        let Stop::Fault(general) = machine.execute(&[0xf3, 0x48, 0x0f, 0xb8, 0x07]).unwrap_err() else {
            panic!("no fault");
        };
        let Stop::Fault(stack) = machine.execute(&[0xf3, 0x48, 0x0f, 0xb8, 0x45, 0]).unwrap_err() else {
            panic!("no fault");
        };
        assert_eq!((general.vector, stack.vector), (13, 12));
    }
}

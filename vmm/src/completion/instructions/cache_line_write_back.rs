//! `clwb`: asks for a cache line to be written back. Memory shared with a VMM is coherent: nothing is left to do.

use iced_x86::Instruction;

use crate::completion::cpu::Cpu;
use crate::completion::error::Stop;
use crate::completion::linear_memory::Access;

pub(super) fn execute(instruction: &Instruction, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    let linear = cpu.operand_address(instruction, 0)?;
    cpu.memory.check(linear, 1, Access::Read)
}

#[cfg(test)]
mod tests {
    use crate::completion::test_cpu::TestMachine;

    const CLWB: [u8; 4] = [0x66, 0x0f, 0xae, 0x37];

    #[test]
    fn a_mapped_line_is_fine_and_an_unmapped_one_faults() {
        let mut machine = TestMachine::new();
        machine.regs.rdi = 0x4000;
        machine.execute(&CLWB).unwrap();
        machine.regs.rdi = machine.unmapped();
        assert!(machine.execute(&CLWB).is_err());
    }
}

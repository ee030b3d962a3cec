//! `ldmxcsr` and `stmxcsr`: the control and status register of SSE. Linux sets it before it uses vectors itself.

use iced_x86::Instruction;

use crate::completion::cpu::Cpu;
use crate::completion::error::Stop;
use crate::completion::exception::Exception;

const CR0_EMULATION: u64 = 1 << 2;
const CR4_OSFXSR: u64 = 1 << 9;

pub(super) fn load(instruction: &Instruction, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    require_sse(cpu)?;
    let value = cpu.read_operand(instruction, 0)? as u32;
    if value & !cpu.layout.mxcsr_mask() != 0 {
        return Err(Stop::Fault(Exception::general_protection(0)));
    }
    cpu.extended.image()?.set_mxcsr(value);
    Ok(cpu.extended.store_image()?)
}

pub(super) fn store(instruction: &Instruction, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    require_sse(cpu)?;
    let linear = cpu.operand_address(instruction, 0)?;
    let value = cpu.extended.image()?.mxcsr();
    cpu.memory.write(linear, &value.to_le_bytes())
}

fn require_sse(cpu: &Cpu<'_>) -> Result<(), Stop> {
    if cpu.sregs.cr0 & CR0_EMULATION != 0 || cpu.sregs.cr4 & CR4_OSFXSR == 0 {
        return Err(Stop::Fault(Exception::INVALID_OPCODE));
    }
    cpu.require_extended_state()
}

#[cfg(test)]
mod tests {
    use crate::completion::test_cpu::TestMachine;

    const LDMXCSR: [u8; 3] = [0x0f, 0xae, 0x17];
    const STMXCSR: [u8; 3] = [0x0f, 0xae, 0x1f];

    #[test]
    fn a_loaded_value_is_stored_again() {
        let mut machine = TestMachine::new();
        machine.regs.rdi = 0x4000;
        machine.write(0x4000, &0x3f80_u32.to_le_bytes());
        machine.execute(&LDMXCSR).unwrap();
        assert!(machine.extended.stored);
        machine.regs.rdi = 0x4010;
        machine.execute(&STMXCSR).unwrap();
        assert_eq!(machine.read::<4>(0x4010), 0x3f80_u32.to_le_bytes());
    }

    #[test]
    fn reserved_bits_are_general_protection_and_change_nothing() {
        let mut machine = TestMachine::new();
        machine.regs.rdi = 0x4000;
        machine.write(0x4000, &0x8000_1f80_u32.to_le_bytes());
        assert!(machine.execute(&LDMXCSR).is_err());
        assert!(!machine.extended.stored);
    }
}

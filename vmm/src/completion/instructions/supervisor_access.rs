//! `stac` and `clac`: whether supervisor-mode access prevention is lifted (RFLAGS.AC).

use crate::completion::cpu::Cpu;
use crate::completion::error::Stop;
use crate::completion::exception::Exception;

const ALIGNMENT_CHECK: u64 = 1 << 18;

pub(super) fn allow_user_pages(cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    cpu.require_kernel_mode(Exception::INVALID_OPCODE)?;
    cpu.regs.rflags |= ALIGNMENT_CHECK;
    Ok(())
}

pub(super) fn forbid_user_pages(cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    cpu.require_kernel_mode(Exception::INVALID_OPCODE)?;
    cpu.regs.rflags &= !ALIGNMENT_CHECK;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::completion::test_cpu::TestMachine;

    const STAC: [u8; 3] = [0x0f, 0x01, 0xcb];
    const CLAC: [u8; 3] = [0x0f, 0x01, 0xca];

    #[test]
    fn stac_sets_and_clac_clears_the_flag() {
        let mut machine = TestMachine::new();
        machine.execute(&STAC).unwrap();
        assert_eq!(machine.regs.rflags, 1 << 18 | 2);
        machine.execute(&CLAC).unwrap();
        assert_eq!(machine.regs.rflags, 2);
    }

    #[test]
    fn in_user_mode_both_are_invalid() {
        let mut machine = TestMachine::new();
        machine.sregs.ss.dpl = 3;
        assert!(machine.execute(&STAC).is_err());
        assert!(machine.execute(&CLAC).is_err());
    }
}

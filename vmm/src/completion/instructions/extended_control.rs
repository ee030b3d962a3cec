//! `xgetbv`: XCR0, or which of its components are in use.

use crate::completion::cpu::Cpu;
use crate::completion::error::Stop;
use crate::completion::exception::Exception;

pub(super) fn read(cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    cpu.require_osxsave()?;
    let value = match cpu.regs.rcx as u32 {
        0 => cpu.extended.xcr0()?,
        1 if cpu.layout.has_in_use_register() => {
            cpu.extended.xcr0()? & cpu.extended.image()?.components_in_use()
        }
        _ => return Err(Stop::Fault(Exception::general_protection(0))),
    };
    cpu.set_edx_eax(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::completion::test_cpu::TestMachine;

    const XGETBV: [u8; 3] = [0x0f, 0x01, 0xd0];

    #[test]
    fn of_zero_is_xcr0_in_edx_eax() {
        let mut machine = TestMachine::new();
        (machine.regs.rax, machine.regs.rdx) = (u64::MAX, u64::MAX);
        machine.extended.xcr0 = 0x2_0000_00e7;
        machine.execute(&XGETBV).unwrap();
        assert_eq!((machine.regs.rdx, machine.regs.rax), (2, 0xe7));
    }

    #[test]
    fn of_one_is_what_is_in_use() {
        let mut machine = TestMachine::new();
        machine.regs.rcx = 1;
        machine.extended.image.set_components_in_use(0x25);
        machine.execute(&XGETBV).unwrap();
        assert_eq!(machine.regs.rax, 0x25);
    }

    #[test]
    fn of_two_is_general_protection_and_without_osxsave_it_is_invalid() {
        let mut machine = TestMachine::new();
        machine.regs.rcx = 2;
        assert!(machine.execute(&XGETBV).is_err());
        machine.regs.rcx = 0;
        machine.sregs.cr4 &= !(1 << 18);
        assert!(machine.execute(&XGETBV).is_err());
    }
}

//! `rdtscp`: the time-stamp counter, and in ECX the number the kernel gave the CPU.

use crate::completion::cpu::Cpu;
use crate::completion::error::Stop;
use crate::completion::exception::Exception;

const IA32_TSC: u32 = 0x10;
const IA32_TSC_AUX: u32 = 0xc000_0103;
const CR4_TIME_STAMP_DISABLE: u64 = 1 << 2;

pub(super) fn execute(cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    if cpu.sregs.cr4 & CR4_TIME_STAMP_DISABLE != 0 {
        cpu.require_kernel_mode(Exception::general_protection(0))?;
    }
    let [counter, number] = cpu.extended.msrs([IA32_TSC, IA32_TSC_AUX])?;
    cpu.set_edx_eax(counter);
    cpu.regs.rcx = number & 0xffff_ffff;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::completion::test_cpu::TestMachine;

    const RDTSCP: [u8; 3] = [0x0f, 0x01, 0xf9];

    #[test]
    fn gives_the_counter_in_edx_eax_and_the_number_in_ecx() {
        let mut machine = TestMachine::new();
        machine.extended.msrs = vec![
            (0x10, 0x0000_0012_3456_789a),
            (0xc000_0103, 0xffff_0000_0000_0003),
        ];
        machine.execute(&RDTSCP).unwrap();
        assert_eq!(
            (machine.regs.rdx, machine.regs.rax, machine.regs.rcx),
            (0x12, 0x3456_789a, 3)
        );
    }

    #[test]
    fn in_user_mode_with_the_counter_disabled_it_is_general_protection() {
        let mut machine = TestMachine::new();
        machine.sregs.ss.dpl = 3;
        machine.sregs.cr4 |= 1 << 2;
        assert!(machine.execute(&RDTSCP).is_err());
    }
}

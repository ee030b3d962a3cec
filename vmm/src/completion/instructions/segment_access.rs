//! `verr`, `verw`, `lsl` and `lar`: questions about a segment descriptor, answered in ZF.
//!
//! Linux executes `verw` to clear buffers that leak between privilege levels, and `lsl` to learn the CPU's number early
//! in an NMI.

use iced_x86::{Instruction, OpKind};

use crate::completion::cpu::Cpu;
use crate::completion::error::Stop;
use crate::completion::linear_memory::Access;

const ZERO: u64 = 1 << 6;
const LOCAL_TABLE: u16 = 1 << 2;

/// A segment descriptor: the first 8 bytes of it, which are all that counts here (SDM volume 3, 3.4.5).
#[derive(Clone, Copy)]
struct Descriptor(u64);

impl Descriptor {
    fn kind(self) -> u8 {
        (self.0 >> 40 & 0xf) as u8
    }

    fn is_code_or_data(self) -> bool {
        self.0 >> 44 & 1 != 0
    }

    fn is_code(self) -> bool {
        self.is_code_or_data() && self.kind() & 8 != 0
    }

    fn is_conforming_code(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    fn privilege_level(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    fn is_readable(self) -> bool {
        self.is_code_or_data() && (!self.is_code() || self.kind() & 2 != 0)
    }

    fn is_writable(self) -> bool {
        self.is_code_or_data() && !self.is_code() && self.kind() & 2 != 0
    }

    /// The offset of the last byte.
    fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        let in_pages = self.0 >> 55 & 1 != 0;
        if in_pages { limit << 12 | 0xfff } else { limit }
    }

    fn access_rights(self) -> u32 {
        (self.0 >> 32) as u32 & 0x00ff_ff00
    }
}

pub(super) fn verify_readable(instruction: &Instruction, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    let selector = read_selector(instruction, 0, cpu)?;
    let descriptor = accessible_descriptor(selector, cpu)?.filter(|found| found.is_readable());
    set_zero_flag(cpu, descriptor.is_some());
    Ok(())
}

pub(super) fn verify_writable(instruction: &Instruction, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    let selector = read_selector(instruction, 0, cpu)?;
    let descriptor = accessible_descriptor(selector, cpu)?.filter(|found| found.is_writable());
    set_zero_flag(cpu, descriptor.is_some());
    Ok(())
}

pub(super) fn load_limit(instruction: &Instruction, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    // Of the system segments an LDT and both kinds of 64-bit TSS have a limit.
    load(
        instruction,
        cpu,
        |found| found.is_code_or_data() || matches!(found.kind(), 2 | 9 | 11),
        Descriptor::limit,
    )
}

pub(super) fn load_access_rights(instruction: &Instruction, cpu: &mut Cpu<'_>) -> Result<(), Stop> {
    // As above, and the call gate.
    let has_rights = |found: &Descriptor| found.is_code_or_data() || matches!(found.kind(), 2 | 9 | 11 | 12);
    load(instruction, cpu, has_rights, Descriptor::access_rights)
}

fn load(
    instruction: &Instruction,
    cpu: &mut Cpu<'_>,
    suits: impl Fn(&Descriptor) -> bool,
    value: impl Fn(Descriptor) -> u32,
) -> Result<(), Stop> {
    let selector = read_selector(instruction, 1, cpu)?;
    let descriptor = accessible_descriptor(selector, cpu)?.filter(suits);
    if let Some(descriptor) = descriptor {
        cpu.write_register(instruction.op0_register(), value(descriptor).into())?;
    }
    set_zero_flag(cpu, descriptor.is_some());
    Ok(())
}

/// A selector is 16 bits wide, in memory too, whatever the operand's nominal size.
fn read_selector(instruction: &Instruction, index: u32, cpu: &mut Cpu<'_>) -> Result<u16, Stop> {
    if instruction.op_kind(index) == OpKind::Register {
        return Ok(cpu.read_operand(instruction, index)? as u16);
    }
    let linear = cpu.operand_address(instruction, index)?;
    let mut bytes = [0; 2];
    cpu.memory.read(linear, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

/// The descriptor, if there is one and the program's and the selector's privilege suffice to look at it.
fn accessible_descriptor(selector: u16, cpu: &mut Cpu<'_>) -> Result<Option<Descriptor>, Stop> {
    let (base, limit) = match selector & LOCAL_TABLE {
        0 => (cpu.sregs.gdt.base, u32::from(cpu.sregs.gdt.limit)),
        _ => (cpu.sregs.ldt.base, cpu.sregs.ldt.limit),
    };
    let offset = u32::from(selector & !7);
    let is_null = selector & !3 == 0;
    if is_null || offset + 7 > limit {
        return Ok(None);
    }
    let mut bytes = [0; 8];
    cpu.memory
        .read_as(Access::System, base.wrapping_add(offset.into()), &mut bytes)?;
    let descriptor = Descriptor(u64::from_le_bytes(bytes));
    let requested = (selector & 3) as u8;
    let allowed = descriptor.is_conforming_code()
        || descriptor.privilege_level() >= requested.max(cpu.privilege_level());
    Ok(allowed.then_some(descriptor))
}

fn set_zero_flag(cpu: &mut Cpu<'_>, set: bool) {
    cpu.regs.rflags = if set {
        cpu.regs.rflags | ZERO
    } else {
        cpu.regs.rflags & !ZERO
    };
}

#[cfg(test)]
mod tests {
    use crate::completion::test_cpu::TestMachine;

    const GDT: u64 = 0x3000;
    const ZERO: u64 = 1 << 6;
    const FLAT_CODE: u64 = 0x00af_9b00_0000_ffff;
    const FLAT_DATA: u64 = 0x00cf_9300_0000_ffff;
    const READ_ONLY_DATA: u64 = 0x00cf_9100_0000_ffff;
    /// Linux's CPU number: a data segment for user mode whose limit is the number.
    const CPU_NUMBER: u64 = 0x0040_f500_0000_0007;

    fn machine(selector: u16) -> TestMachine {
        let mut machine = TestMachine::new();
        (machine.sregs.gdt.base, machine.sregs.gdt.limit) = (GDT, 5 * 8 - 1);
        let table = [0, FLAT_CODE, FLAT_DATA, READ_ONLY_DATA, CPU_NUMBER];
        machine.write(GDT, &table.map(u64::to_le_bytes).concat());
        machine.regs.rbx = selector.into();
        machine.regs.rax = u64::MAX;
        machine
    }

    fn answer(bytes: &[u8], selector: u16) -> (bool, u64) {
        let mut machine = machine(selector);
        machine.execute(bytes).unwrap();
        (machine.regs.rflags & ZERO != 0, machine.regs.rax)
    }

    const VERR_BX: [u8; 3] = [0x0f, 0x00, 0xe3];
    const VERW_BX: [u8; 3] = [0x0f, 0x00, 0xeb];
    const LSL_EAX_EBX: [u8; 3] = [0x0f, 0x03, 0xc3];
    const LAR_EAX_EBX: [u8; 3] = [0x0f, 0x02, 0xc3];

    #[test]
    fn verw_accepts_writable_data_only() {
        assert!(answer(&VERW_BX, 16).0);
        assert!(!answer(&VERW_BX, 24).0);
        assert!(!answer(&VERW_BX, 8).0);
    }

    #[test]
    fn verr_accepts_data_and_readable_code() {
        assert!(answer(&VERR_BX, 8).0);
        assert!(answer(&VERR_BX, 24).0);
    }

    #[test]
    fn null_and_out_of_table_selectors_are_refused() {
        assert!(!answer(&VERR_BX, 0).0);
        assert!(!answer(&VERR_BX, 3).0);
        assert!(!answer(&VERR_BX, 5 * 8).0);
    }

    #[test]
    fn a_selector_of_lower_privilege_than_the_segment_is_refused() {
        assert!(!answer(&VERR_BX, 16 | 3).0);
        assert!(answer(&VERR_BX, 32 | 3).0);
    }

    #[test]
    fn lsl_gives_the_limit_in_bytes() {
        assert_eq!(answer(&LSL_EAX_EBX, 32), (true, 7));
        assert_eq!(answer(&LSL_EAX_EBX, 16), (true, 0xffff_ffff));
    }

    #[test]
    fn lar_gives_the_access_rights() {
        assert_eq!(answer(&LAR_EAX_EBX, 16), (true, 0x00cf_9300));
    }

    #[test]
    fn a_refused_selector_leaves_the_destination() {
        assert_eq!(answer(&LSL_EAX_EBX, 0), (false, u64::MAX));
    }

    #[test]
    fn verw_of_memory_reads_two_bytes() {
        let mut machine = machine(0);
        machine.regs.rdi = machine.unmapped() - 2;
        machine.write(machine.unmapped() - 2, &16_u16.to_le_bytes());
        machine.execute(&[0x0f, 0x00, 0x2f]).unwrap();
        assert_ne!(machine.regs.rflags & ZERO, 0);
    }
}

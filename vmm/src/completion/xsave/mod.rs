//! The XSAVE family: saving and restoring extended state (SDM volume 1, chapter 13).
//!
//! KVM hands out and takes a vCPU's extended state as an [`image`] in the standard format. An instruction copies part
//! of it to or from an area in guest memory, in the standard or the compacted format. Which part, and where it lies,
//! is decided in [`save`] and [`restore`], which know nothing of KVM: the tests hold them against the processor's own
//! instructions.

mod area;
pub(super) mod image;
pub(super) mod layout;
mod restore;
mod save;

#[cfg(test)]
mod native;
#[cfg(test)]
mod oracle_tests;

use iced_x86::{Instruction, Mnemonic};

use super::cpu::Cpu;
use super::error::{Cause, Stop};
use super::exception::Exception;
use area::LinearArea;
use restore::{Header, Restore};
use save::Save;

/// The alignment of an area.
const ALIGNMENT: u64 = 64;

/// Which saving instruction it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaveForm {
    /// XSAVE.
    Standard,
    /// XSAVEOPT: does not write what is in its initial configuration.
    Optimised,
    /// XSAVEC: as XSAVEOPT, compacted.
    Compacted,
    /// XSAVES: as XSAVEC, with supervisor components.
    Supervisor,
}

/// Which restoring instruction it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RestoreForm {
    /// XRSTOR: both formats.
    User,
    /// XRSTORS: compacted only, with supervisor components.
    Supervisor,
}

/// XSAVE, XSAVEOPT, XSAVEC, XSAVES.
pub(super) fn save_state(instruction: &Instruction, cpu: &mut Cpu<'_>, form: SaveForm) -> Result<(), Stop> {
    let start = area_address(instruction, cpu, form == SaveForm::Supervisor)?;
    let enabled = enabled_components(cpu, cpu.edx_eax(), form == SaveForm::Supervisor)?;
    let request = Save {
        components: enabled & cpu.edx_eax(),
        form,
        wide_pointers: has_wide_pointers(instruction.mnemonic()),
    };
    let image = cpu.extended.image()?;
    save::save(
        image,
        cpu.layout,
        &request,
        &mut LinearArea {
            memory: &mut cpu.memory,
            start,
        },
    )
}

/// XRSTOR, XRSTORS.
pub(super) fn restore_state(
    instruction: &Instruction,
    cpu: &mut Cpu<'_>,
    form: RestoreForm,
) -> Result<(), Stop> {
    let start = area_address(instruction, cpu, form == RestoreForm::Supervisor)?;
    let requested = cpu.edx_eax();
    let mut area = LinearArea {
        memory: &mut cpu.memory,
        start,
    };
    let header = Header::read(&mut area)?;
    let enabled = enabled_components(
        cpu,
        requested | header.components(),
        form == RestoreForm::Supervisor,
    )?;
    let request = Restore {
        components: enabled & requested,
        enabled,
        form,
        wide_pointers: has_wide_pointers(instruction.mnemonic()),
    };
    let format = header.check(&request)?;
    // An image that will be filled entirely need not be read first.
    let image = match request.sets_everything(cpu.layout) {
        true => cpu.extended.initial_image(),
        false => cpu.extended.image()?,
    };
    let mut area = LinearArea {
        memory: &mut cpu.memory,
        start,
    };
    restore::restore(image, cpu.layout, &request, &header, format, &mut area)?;
    Ok(cpu.extended.store_image()?)
}

/// Checks what all of them check first, and gives the area's linear address.
fn area_address(instruction: &Instruction, cpu: &Cpu<'_>, kernel_only: bool) -> Result<u64, Stop> {
    cpu.require_osxsave()?;
    if kernel_only {
        cpu.require_kernel_mode(Exception::general_protection(0))?;
    }
    cpu.require_extended_state()?;
    let start = cpu.operand_address(instruction, 0)?;
    if start.is_multiple_of(ALIGNMENT) {
        Ok(start)
    } else {
        Err(Stop::Fault(Exception::general_protection(0)))
    }
}

/// The components that are enabled: those of XCR0 and, for the supervisor forms, of IA32_XSS. Only what is in `wanted`
/// need be current.
fn enabled_components(cpu: &mut Cpu<'_>, wanted: u64, supervisor: bool) -> Result<u64, Stop> {
    let user = cpu.extended.xcr0_covering(wanted)?;
    let supervisor = if supervisor { cpu.extended.xss()? } else { 0 };
    if supervisor & wanted != 0 {
        return Err(Cause::SupervisorState(supervisor).into());
    }
    Ok(user)
}

/// With REX.W the x87 instruction and data pointers are 64 bits wide; without, 32 bits and a selector.
fn has_wide_pointers(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Xsave64
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaves64
            | Mnemonic::Xrstor64
            | Mnemonic::Xrstors64
    )
}

#[cfg(test)]
mod tests {
    use super::image::{SSE, X87};
    use super::*;
    use crate::completion::test_cpu::TestMachine;

    const AVX: u64 = 4;
    const AREA: u64 = 0x8000;

    /// Each instruction on `[rdi]`, with and without REX.W.
    const FORMS: [(&str, &[u8]); 12] = [
        ("xsave", &[0x0f, 0xae, 0x27]),
        ("xsave64", &[0x48, 0x0f, 0xae, 0x27]),
        ("xsaveopt", &[0x0f, 0xae, 0x37]),
        ("xsaveopt64", &[0x48, 0x0f, 0xae, 0x37]),
        ("xsavec", &[0x0f, 0xc7, 0x27]),
        ("xsavec64", &[0x48, 0x0f, 0xc7, 0x27]),
        ("xsaves", &[0x0f, 0xc7, 0x2f]),
        ("xsaves64", &[0x48, 0x0f, 0xc7, 0x2f]),
        ("xrstor", &[0x0f, 0xae, 0x2f]),
        ("xrstor64", &[0x48, 0x0f, 0xae, 0x2f]),
        ("xrstors", &[0x0f, 0xc7, 0x1f]),
        ("xrstors64", &[0x48, 0x0f, 0xc7, 0x1f]),
    ];

    fn bytes_of(name: &str) -> &'static [u8] {
        FORMS.iter().find(|(form, _)| *form == name).unwrap().1
    }

    /// All components enabled and requested, with an area that every restoring instruction accepts.
    fn machine() -> TestMachine {
        let mut machine = TestMachine::new();
        machine.regs.rdi = AREA;
        (machine.regs.rax, machine.regs.rdx) = (u64::MAX, u64::MAX);
        machine.extended.xcr0 = machine.layout.user_components();
        machine.write(AREA + 520, &(1_u64 << 63 | machine.extended.xcr0).to_le_bytes());
        machine
    }

    fn faulting_vector(machine: &mut TestMachine, bytes: &[u8]) -> u8 {
        match machine.execute(bytes) {
            Err(Stop::Fault(exception)) => exception.vector,
            other => panic!("{bytes:02x?} did not fault: {other:?}"),
        }
    }

    #[test]
    fn every_form_is_executed() {
        for (name, bytes) in FORMS {
            let mut machine = machine();
            machine
                .execute(bytes)
                .unwrap_or_else(|stop| panic!("{name}: {stop:?}"));
            assert_eq!(machine.extended.stored, name.starts_with("xrstor"), "{name}");
            assert_eq!(machine.regs.rip, TestMachine::RIP + bytes.len() as u64, "{name}");
        }
    }

    #[test]
    fn every_form_without_osxsave_is_invalid() {
        for (name, bytes) in FORMS {
            let mut machine = machine();
            machine.sregs.cr4 &= !(1 << 18);
            assert_eq!(faulting_vector(&mut machine, bytes), 6, "{name}");
        }
    }

    #[test]
    fn every_form_after_a_lazy_task_switch_is_device_not_available() {
        for (name, bytes) in FORMS {
            let mut machine = machine();
            machine.sregs.cr0 |= 1 << 3;
            assert_eq!(faulting_vector(&mut machine, bytes), 7, "{name}");
        }
    }

    #[test]
    fn every_form_on_an_unaligned_area_is_general_protection() {
        for (name, bytes) in FORMS {
            let mut machine = machine();
            machine.regs.rdi += 32;
            assert_eq!(faulting_vector(&mut machine, bytes), 13, "{name}");
        }
    }

    #[test]
    fn the_supervisor_forms_in_user_mode_are_general_protection() {
        for name in ["xsaves", "xrstors"] {
            let mut machine = machine();
            machine.sregs.ss.dpl = 3;
            assert_eq!(faulting_vector(&mut machine, bytes_of(name)), 13, "{name}");
        }
    }

    #[test]
    fn every_form_on_an_unmapped_page_is_a_page_fault_with_its_direction() {
        for (name, bytes) in FORMS {
            let mut machine = machine();
            machine.regs.rdi = machine.unmapped();
            let Stop::Fault(fault) = machine.execute(bytes).unwrap_err() else {
                panic!("{name}: no fault")
            };
            assert_eq!(fault.vector, 14, "{name}");
            assert_eq!(
                fault.fault_address.unwrap() & !0xfff,
                machine.unmapped(),
                "{name}"
            );
            let expected = if name.starts_with("xrstor") { 0 } else { 2 };
            assert_eq!(fault.error_code, Some(expected), "{name}");
        }
    }

    #[test]
    fn a_save_whose_second_page_is_missing_faults_there_and_writes_nothing() {
        let mut machine = machine();
        machine.regs.rdi = machine.unmapped() - 640;
        let before: [u8; 640] = machine.read(machine.regs.rdi);
        let Stop::Fault(fault) = machine.execute(bytes_of("xsave64")).unwrap_err() else {
            panic!("no fault")
        };
        assert_eq!((fault.vector, fault.error_code), (14, Some(2)));
        assert_eq!(fault.fault_address, Some(machine.unmapped()));
        assert_eq!(machine.read::<640>(machine.regs.rdi), before);
    }

    #[test]
    fn a_save_to_a_read_only_page_is_a_write_protection_fault() {
        let mut machine = machine();
        machine.regs.rdi = machine.read_only();
        let Stop::Fault(fault) = machine.execute(bytes_of("xsavec64")).unwrap_err() else {
            panic!("no fault")
        };
        assert_eq!((fault.vector, fault.error_code), (14, Some(3)));
    }

    #[test]
    fn a_restore_whose_second_page_is_missing_changes_nothing() {
        let mut machine = machine();
        machine.regs.rdi = machine.unmapped() - 640;
        machine.write(machine.regs.rdi + 512, &(X87 | SSE | AVX).to_le_bytes());
        machine.write(machine.regs.rdi + 520, &[0; 56]);
        let Stop::Fault(fault) = machine.execute(bytes_of("xrstor64")).unwrap_err() else {
            panic!("no fault")
        };
        assert_eq!((fault.vector, fault.error_code), (14, Some(0)));
        assert_eq!(fault.fault_address, Some(machine.unmapped()));
        assert!(!machine.extended.stored);
    }

    #[test]
    fn components_outside_xcr0_are_neither_saved_nor_marked() {
        let mut machine = machine();
        machine.extended.xcr0 = X87 | SSE;
        machine.extended.image.set_components_in_use(X87 | SSE | AVX);
        machine.write(AREA, &[0xee; 1024]);
        machine.execute(bytes_of("xsavec64")).unwrap();
        assert_eq!(machine.read::<8>(AREA + 512), (X87 | SSE).to_le_bytes());
        assert_eq!(machine.read::<8>(AREA + 520), (X87 | SSE | 1 << 63).to_le_bytes());
        assert_eq!(machine.read::<8>(AREA + 576), [0xee; 8]);
    }

    #[test]
    fn without_rex_w_pointers_are_saved_with_32_bits_and_no_selectors() {
        let mut machine = machine();
        machine.extended.image.set_components_in_use(X87);
        machine.extended.image.bytes_mut()[8..24].fill(0xee);
        machine.execute(bytes_of("xsave64")).unwrap();
        assert_eq!(machine.read::<16>(AREA + 8), [0xee; 16]);
        machine.execute(bytes_of("xsave")).unwrap();
        let narrow = u64::from(0xeeee_eeee_u32).to_le_bytes();
        assert_eq!(
            (machine.read(AREA + 8), machine.read(AREA + 16)),
            (narrow, narrow)
        );
    }

    #[test]
    fn a_restore_that_sets_everything_does_not_read_the_state_first() {
        let mut machine = machine();
        machine.execute(bytes_of("xrstor64")).unwrap();
        assert_eq!(machine.extended.reads, 0);
        machine.regs.rax = X87 | SSE;
        machine.execute(bytes_of("xrstor64")).unwrap();
        assert_eq!(machine.extended.reads, 1);
    }

    #[test]
    fn xsaves_with_a_supervisor_component_enabled_says_which() {
        let mut machine = machine();
        machine.extended.xss = 1 << 11;
        let stop = machine.execute(bytes_of("xsaves64")).unwrap_err();
        assert!(
            matches!(stop, Stop::Failed(Cause::SupervisorState(0x800))),
            "{stop:?}"
        );
    }
}

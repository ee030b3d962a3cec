//! The registers a kernel is entered with.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs};
use kvm_ioctls::VcpuFd;

use super::segments::{GDT_LIMIT, Segments, boot_segments};
use crate::memory::layout;

/// CR0: protected mode, extension type, paging (Intel SDM volume 3, section 2.5).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode, enabled and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: the bit that is always set.
const RFLAGS: u64 = 1 << 1;

/// IA32_MISC_ENABLE with fast string operations, as firmware leaves it.
const MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE with memory types enabled and write-back where no range says otherwise, as firmware leaves it.
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Why a vCPU is not ready to be entered.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// KVM refused a set of registers.
    #[error("{0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    /// KVM took fewer model-specific registers than it was given.
    #[error("setting model-specific register {index:#x}: KVM does not take it")]
    ModelSpecific {
        /// The register.
        index: u32,
    },
}

/// Makes `vcpu` the one that boots: 64-bit mode, RSI at the zero page, the next instruction at `entry`.
///
/// # Errors
/// When KVM refuses a register.
pub fn set_boot_registers(vcpu: &VcpuFd, entry: u64) -> Result<(), RegistersError> {
    let Segments { code, data, task } = boot_segments();
    let mut system = vcpu
        .get_sregs()
        .map_err(|error| RegistersError::Kvm("reading system registers", error))?;
    system.cs = code;
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.tr = task;
    system.gdt.base = layout::GDT;
    system.gdt.limit = GDT_LIMIT;
    system.idt.base = 0;
    system.idt.limit = 0;
    system.cr0 = CR0_PE | CR0_ET | CR0_PG;
    system.cr3 = layout::PAGE_TABLES;
    system.cr4 = CR4_PAE;
    system.efer = EFER_LME | EFER_LMA;
    vcpu.set_sregs(&system)
        .map_err(|error| RegistersError::Kvm("setting system registers", error))?;

    let general = kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rflags: RFLAGS,
        ..Default::default()
    };
    vcpu.set_regs(&general)
        .map_err(|error| RegistersError::Kvm("setting general registers", error))
}

/// Sets the model-specific registers that firmware sets on every processor.
///
/// # Errors
/// When KVM refuses one.
pub fn set_model_specific_registers(vcpu: &VcpuFd) -> Result<(), RegistersError> {
    for (index, data) in [
        (MISC_ENABLE, FAST_STRINGS),
        (MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK),
    ] {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        // One entry is far below the greatest number.
        let Ok(registers) = Msrs::from_entries(&[entry]) else {
            return Err(RegistersError::ModelSpecific { index });
        };
        let taken = vcpu
            .set_msrs(&registers)
            .map_err(|error| RegistersError::Kvm("setting model-specific registers", error))?;
        if taken != 1 {
            return Err(RegistersError::ModelSpecific { index });
        }
    }
    Ok(())
}

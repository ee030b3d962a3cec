//! What an instruction can see and change.

use kvm_bindings::{kvm_regs, kvm_sregs};

use super::error::Stop;
use super::exception::Exception;
use super::extended_state::ExtendedState;
use super::linear_memory::LinearMemory;
use super::xsave::layout::XsaveLayout;

const CR0_TASK_SWITCHED: u64 = 1 << 3;
const CR4_OSXSAVE: u64 = 1 << 18;

/// One vCPU in the middle of one instruction. RIP is already behind it; a fault discards all changes to registers.
pub(super) struct Cpu<'a> {
    pub(super) regs: kvm_regs,
    pub(super) sregs: &'a kvm_sregs,
    pub(super) memory: LinearMemory<'a>,
    pub(super) layout: &'a XsaveLayout,
    pub(super) extended: &'a mut dyn ExtendedState,
}

impl Cpu<'_> {
    /// The current privilege level, 0 to 3.
    pub(super) fn privilege_level(&self) -> u8 {
        self.sregs.ss.dpl
    }

    /// Raises `otherwise` unless the program runs at privilege level 0.
    pub(super) fn require_kernel_mode(&self, otherwise: Exception) -> Result<(), Stop> {
        if self.privilege_level() == 0 {
            Ok(())
        } else {
            Err(Stop::Fault(otherwise))
        }
    }

    /// #UD unless the operating system has enabled the XSAVE family.
    pub(super) fn require_osxsave(&self) -> Result<(), Stop> {
        if self.sregs.cr4 & CR4_OSXSAVE != 0 {
            Ok(())
        } else {
            Err(Stop::Fault(Exception::INVALID_OPCODE))
        }
    }

    /// #NM if extended state belongs to a task switched away from.
    pub(super) fn require_extended_state(&self) -> Result<(), Stop> {
        if self.sregs.cr0 & CR0_TASK_SWITCHED == 0 {
            Ok(())
        } else {
            Err(Stop::Fault(Exception::DEVICE_NOT_AVAILABLE))
        }
    }

    /// The 64 bits of EDX:EAX.
    pub(super) fn edx_eax(&self) -> u64 {
        self.regs.rdx << 32 | self.regs.rax & 0xffff_ffff
    }

    /// Sets EDX:EAX, and with it clears the upper halves of RDX and RAX.
    pub(super) fn set_edx_eax(&mut self, value: u64) {
        (self.regs.rdx, self.regs.rax) = (value >> 32, value & 0xffff_ffff);
    }
}

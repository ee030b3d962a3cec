//! Completes the instructions that a KVM without hardware virtualization cannot emulate.
//!
//! Under kvm-pvm the kernel mode of an ordinary guest is emulated instruction by instruction, and the emulator lacks
//! some: the XSAVE family, `popcnt`, `fwait`, `int3` and a few more. With `KVM_CAP_EXIT_ON_EMULATION_FAILURE` such an
//! instruction ends `KVM_RUN` with its bytes and the state of the vCPU untouched. This module does what the processor
//! would have done, so that the guest can go on.
//!
//! With hardware virtualization there are no such exits, and nothing here is ever called.
//!
//! ```text
//! KVM_EXIT_INTERNAL_ERROR ─ EmulationFailure::from_run ─ Completer::complete
//!                                                          │ decode (iced-x86)
//!                                                          │ instructions::execute ── xsave, popcnt, …
//!                                                          │     over Cpu: registers, memory, extended state
//!                                                          └ delivery: an exception goes through the guest's IDT,
//!                                                            or is the triple fault that the guest asked for
//! ```
//!
//! # Cost
//! The guest meets this on each context switch, and a vCPU ioctl costs as much as half an exit (4.8 us and 8.4 us on
//! the kvm-pvm this was measured on). So general and system registers and events travel in the shared `kvm_run` page
//! (`KVM_CAP_SYNC_REGS`, switched on by the first failure, so that other hosts never pay for it), addresses are
//! translated by a page walk of our own (under 0.1 us, where `KVM_TRANSLATE` takes 4.9 us for each page), and the
//! XSAVE family uses one ioctl to save and one to restore.
//!
//! # Before reading the vCPU's state
//! What [`Completer::complete`] changes reaches KVM with the next `KVM_RUN`. Whoever reads registers by ioctl in
//! between (a snapshot) first calls `KVM_RUN` once with `immediate_exit`, as after port I/O.

mod cpu;
mod delivery;
mod error;
mod exception;
mod extended_state;
mod failing_instruction;
mod failure;
mod instructions;
mod linear_memory;
mod operand;
mod paging;
mod shared_registers;
mod xsave;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod test_cpu;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;

pub use error::{Cause, CompletionError};
pub use failure::{EmulationFailure, InstructionBytes, MAX_INSTRUCTION_BYTES};
pub use iced_x86::Mnemonic;

use cpu::Cpu;
use delivery::{Delivery, deliver};
use error::Stop;
use exception::Exception;
use extended_state::{ExtendedState, KvmExtendedState, StateCache};
use failing_instruction::FailingInstruction;
use linear_memory::LinearMemory;
use paging::Paging;
use shared_registers::{commit, share_registers};
use xsave::layout::XsaveLayout;

const RFLAGS_TRAP: u64 = 1 << 8;
const CR4_PKE: u64 = 1 << 22;

/// What to do with the vCPU after an instruction was completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Call `KVM_RUN` again.
    Resume,
    /// The instruction raised an exception that the guest has no way to receive: on a processor, a reset. Linux
    /// stops a machine like that when booted with `reboot=t`.
    TripleFault,
}

/// An instruction that was completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// What to do next.
    pub outcome: Outcome,
    /// Which instruction it was, for counting.
    pub mnemonic: Mnemonic,
}

/// Completes the instructions of one vCPU. Costs nothing until the first failure.
#[derive(Default)]
pub struct Completer {
    processor: Option<Processor>,
    state: StateCache,
}

/// What a vCPU's CPUID says of the processor it is.
struct Processor {
    layout: XsaveLayout,
    physical_address_bits: u8,
}

impl Completer {
    /// A completer for one vCPU. Its processor is read from its CPUID when the first instruction fails.
    pub fn new() -> Completer {
        Completer::default()
    }

    /// Completes the instruction that KVM could not emulate, on the vCPU whose last `KVM_RUN` reported `failure`.
    ///
    /// # Errors
    /// The instruction is not one of those known here, it is executed outside 64-bit mode, its operand is not in the
    /// guest's memory, or KVM refuses the state. The guest cannot go on; its state is as before the instruction.
    pub fn complete(
        &mut self,
        vcpu: &mut VcpuFd,
        memory: &GuestMemoryMmap,
        failure: &EmulationFailure,
    ) -> Result<Completed, CompletionError> {
        let mut failing = FailingInstruction::unknown();
        self.complete_failing(vcpu, memory, failure, &mut failing)
            .map_err(|cause| CompletionError {
                mnemonic: failing.instruction.mnemonic(),
                bytes: failing.bytes,
                rip: failing.rip,
                cause,
            })
    }

    fn complete_failing(
        &mut self,
        vcpu: &mut VcpuFd,
        memory: &GuestMemoryMmap,
        failure: &EmulationFailure,
        failing: &mut FailingInstruction,
    ) -> Result<Completed, Cause> {
        share_registers(vcpu)?;
        let before = vcpu.sync_regs();
        failing.rip = before.regs.rip;
        failing.bytes = failure.bytes;
        if !in_64_bit_mode(&before.sregs) {
            return Err(Cause::NotIn64BitMode);
        }

        let processor = match &mut self.processor {
            Some(processor) => processor,
            empty => empty.insert(Processor::of(vcpu)?),
        };
        let mut extended = KvmExtendedState::new(vcpu, &mut self.state, &processor.layout);
        let protection_keys = match before.sregs.cr4 & CR4_PKE {
            0 => None,
            _ => Some(processor.layout.protection_keys(extended.image()?)),
        };
        let paging = Paging::new(
            &before.sregs,
            before.regs.rflags,
            processor.physical_address_bits,
            protection_keys,
        );
        let mut cpu = Cpu {
            regs: before.regs,
            sregs: &before.sregs,
            memory: LinearMemory::new(memory, paging),
            layout: &processor.layout,
            extended: &mut extended,
        };

        let executed = failing.decode(&mut cpu.memory).and_then(|()| {
            cpu.regs.rip = failing.instruction.next_ip();
            instructions::execute(&failing.instruction, &mut cpu)
        });
        let stepping = before.regs.rflags & RFLAGS_TRAP != 0;
        let (regs, exception) = match executed {
            Ok(()) if stepping => (cpu.regs, Some(Exception::SINGLE_STEP)),
            Ok(()) => (cpu.regs, None),
            Err(Stop::Trap(exception)) => (cpu.regs, Some(exception)),
            Err(Stop::Fault(exception)) => (before.regs, Some(exception)),
            Err(stop) => return failing.stopped(stop),
        };
        let delivery = match exception.map(|exception| deliver(exception, &before.sregs, &mut cpu.memory)) {
            None => Delivery::None,
            Some(Ok(delivery)) => delivery,
            Some(Err(stop)) => return failing.stopped(stop),
        };
        Ok(failing.completed(commit(vcpu, regs, delivery)?))
    }
}

impl Processor {
    fn of(vcpu: &VcpuFd) -> Result<Processor, Cause> {
        let cpuid = vcpu
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(Cause::kvm("KVM_GET_CPUID2"))?;
        let address_sizes = cpuid.as_slice().iter().find(|leaf| leaf.function == 0x8000_0008);
        Ok(Processor {
            layout: XsaveLayout::from_cpuid(&cpuid)?,
            // A processor without the leaf has 36 bits (SDM volume 3, 4.1.4); 52 is the architecture's limit.
            physical_address_bits: address_sizes.map_or(36, |leaf| (leaf.eax as u8).clamp(36, 52)),
        })
    }
}

fn in_64_bit_mode(sregs: &kvm_sregs) -> bool {
    const EFER_LMA: u64 = 1 << 10;
    sregs.efer & EFER_LMA != 0 && sregs.cs.l == 1
}

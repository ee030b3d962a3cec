//! Why an instruction could not be completed, and what stops one that can.

use iced_x86::Mnemonic;
use thiserror::Error;

use super::exception::Exception;
use super::failure::InstructionBytes;

/// An instruction that KVM could not emulate could not be completed either. The guest cannot go on.
#[derive(Debug, Error)]
#[error("complete the guest's instruction {mnemonic:?} ({bytes}) at {rip:#x}")]
pub struct CompletionError {
    /// The instruction; `INVALID` if it was not decoded.
    pub mnemonic: Mnemonic,
    /// Its bytes, as far as they are known.
    pub bytes: InstructionBytes,
    /// Its linear address; 0 if even the registers could not be read.
    pub rip: u64,
    /// What went wrong.
    #[source]
    pub cause: Cause,
}

/// What went wrong in completing an instruction.
#[derive(Debug, Error)]
pub enum Cause {
    /// The instruction is not one of those implemented here.
    #[error(
        "the host's KVM does not emulate this instruction and neither do we; build the guest kernel without it \
         (vector code in the kernel is the usual origin)"
    )]
    Unsupported,
    /// Real, protected or compatibility mode.
    #[error("instructions are completed in 64-bit mode only, and the guest is in another")]
    NotIn64BitMode,
    /// A page table or an operand lies outside guest memory.
    #[error("guest-physical address {0:#x} is not memory")]
    NotMemory(u64),
    /// XSAVES or XRSTORS with a supervisor component, which KVM's XSAVE image does not hold.
    #[error(
        "supervisor state components {0:#x} are enabled in IA32_XSS; mask them from CPUID leaf 0xd, subleaf 1"
    )]
    SupervisorState(u64),
    /// A component that does not lie within KVM's 4 KiB XSAVE image.
    #[error(
        "CPUID places XSAVE component {component} at {offset:#x} with {size:#x} bytes, outside KVM's image"
    )]
    ComponentOutsideImage {
        /// Its bit in XCR0.
        component: u32,
        /// First byte in the standard format.
        offset: usize,
        /// Size in bytes.
        size: usize,
    },
    /// KVM refused an ioctl.
    #[error("{call}")]
    Kvm {
        /// The ioctl's name.
        call: &'static str,
        /// What KVM answered.
        #[source]
        source: kvm_ioctls::Error,
    },
}

impl Cause {
    /// For `map_err` on the ioctl `call`.
    pub(super) fn kvm(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Cause {
        move |source| Cause::Kvm { call, source }
    }
}

/// Why an instruction did not simply finish.
#[derive(Debug)]
pub(super) enum Stop {
    /// An exception raised instead of the instruction: registers stay as before it.
    Fault(Exception),
    /// An exception raised after it, such as `int3`'s.
    Trap(Exception),
    /// Another vCPU changed the page tables under us: execute the instruction again from the start.
    Again,
    /// It cannot be completed.
    Failed(Cause),
}

impl From<Cause> for Stop {
    fn from(cause: Cause) -> Stop {
        Stop::Failed(cause)
    }
}

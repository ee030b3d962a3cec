//! What the VMM uses of KVM beyond its first interface, for those who ask before there is a machine.

use kvm_bindings::{
    KVM_CAP_ADJUST_CLOCK, KVM_CAP_BINARY_STATS_FD, KVM_CAP_DEBUGREGS, KVM_CAP_EXIT_ON_EMULATION_FAILURE,
    KVM_CAP_EXT_CPUID, KVM_CAP_GET_TSC_KHZ, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD, KVM_CAP_IRQCHIP,
    KVM_CAP_IRQFD, KVM_CAP_MP_STATE, KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_SET_TSS_ADDR, KVM_CAP_SYNC_REGS,
    KVM_CAP_USER_MEMORY, KVM_CAP_VCPU_EVENTS, KVM_CAP_XCRS, KVM_CAP_XSAVE, KVM_CAP_XSAVE2,
};

/// A capability by the name and number of `KVM_CHECK_EXTENSION` (Linux's Documentation/virt/kvm/api.rst, section 4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// As in `<linux/kvm.h>`, without `KVM_CAP_`.
    pub name: &'static str,
    /// Its number.
    pub number: u32,
    /// What goes without it.
    pub used: Use,
}

/// What needs a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Every machine or every snapshot.
    Always,
    /// Every machine whose kernel mode is [emulated](crate::kernel_mode::KernelMode::Emulated).
    EmulatedKernelMode,
    /// Only what is told of a machine's cost.
    Statistics,
}

/// What `KVM_CAP_XSAVE2` answers at most where `KVM_GET_XSAVE` gives the whole extended state, in bytes.
pub const LARGEST_EXTENDED_STATE: i32 = 4096;

/// The size of the extended state in bytes; 0 where KVM does not say, and it fits.
pub const EXTENDED_STATE_SIZE: Capability = capability("XSAVE2", KVM_CAP_XSAVE2, Use::Always);

/// All that can be missing.
pub const CAPABILITIES: [Capability; 18] = [
    capability("USER_MEMORY", KVM_CAP_USER_MEMORY, Use::Always),
    capability("IRQCHIP", KVM_CAP_IRQCHIP, Use::Always),
    capability("IRQFD", KVM_CAP_IRQFD, Use::Always),
    capability("IOEVENTFD", KVM_CAP_IOEVENTFD, Use::Always),
    capability("SET_TSS_ADDR", KVM_CAP_SET_TSS_ADDR, Use::Always),
    capability(
        "SET_IDENTITY_MAP_ADDR",
        KVM_CAP_SET_IDENTITY_MAP_ADDR,
        Use::Always,
    ),
    capability("EXT_CPUID", KVM_CAP_EXT_CPUID, Use::Always),
    capability("MP_STATE", KVM_CAP_MP_STATE, Use::Always),
    capability("VCPU_EVENTS", KVM_CAP_VCPU_EVENTS, Use::Always),
    capability("DEBUGREGS", KVM_CAP_DEBUGREGS, Use::Always),
    capability("XSAVE", KVM_CAP_XSAVE, Use::Always),
    capability("XCRS", KVM_CAP_XCRS, Use::Always),
    capability("ADJUST_CLOCK", KVM_CAP_ADJUST_CLOCK, Use::Always),
    capability("GET_TSC_KHZ", KVM_CAP_GET_TSC_KHZ, Use::Always),
    capability("IMMEDIATE_EXIT", KVM_CAP_IMMEDIATE_EXIT, Use::Always),
    capability("SYNC_REGS", KVM_CAP_SYNC_REGS, Use::EmulatedKernelMode),
    capability(
        "EXIT_ON_EMULATION_FAILURE",
        KVM_CAP_EXIT_ON_EMULATION_FAILURE,
        Use::EmulatedKernelMode,
    ),
    capability("BINARY_STATS_FD", KVM_CAP_BINARY_STATS_FD, Use::Statistics),
];

const fn capability(name: &'static str, number: u32, used: Use) -> Capability {
    Capability { name, number, used }
}

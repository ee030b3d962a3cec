//! How this host's KVM runs the guest's kernel mode.

use std::arch::x86_64::{__cpuid, __get_cpuid_max};
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// CPUID leaf 1, ECX: VT-x (Intel SDM volume 2, CPUID).
const VMX: u32 = 1 << 5;
/// CPUID leaf 0x8000_0001, ECX: AMD-V (AMD APM volume 3, appendix E).
const SVM: u32 = 1 << 2;
const EXTENDED: u32 = 0x8000_0000;

/// How the guest's kernel mode runs. All that differs between the two stands where this type is matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelMode {
    /// By the processor, through VT-x or AMD-V.
    Hardware,
    /// Instruction by instruction in KVM (kvm-pvm): what the kernel executes is what a boot costs.
    Emulated,
}

impl KernelMode {
    /// How the KVM of this host runs it: a KVM on a processor without VT-x and AMD-V can only be kvm-pvm, and on one
    /// with them it is where its module is there, because KVM has one such module at a time.
    pub fn detect() -> Self {
        if Path::new("/sys/module/kvm_pvm").exists() || !processor_virtualizes() {
            Self::Emulated
        } else {
            Self::Hardware
        }
    }
}

impl fmt::Display for KernelMode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Hardware => "hardware",
            Self::Emulated => "emulated",
        })
    }
}

fn processor_virtualizes() -> bool {
    let (highest_extended, _) = __get_cpuid_max(EXTENDED);
    let vmx = __cpuid(1).ecx & VMX != 0;
    let svm = highest_extended > EXTENDED && __cpuid(EXTENDED + 1).ecx & SVM != 0;
    vmx || svm
}

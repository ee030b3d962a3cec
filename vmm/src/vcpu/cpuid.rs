//! What a vCPU says about itself: what this KVM supports, with the machine's own topology, and without what an
//! emulated kernel mode is better off not using.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::kernel_mode::KernelMode;

/// Leaf 1, ECX.
const CMPXCHG16B: u32 = 1 << 13;
const TSC_DEADLINE_TIMER: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the count of logical processors is valid.
const MULTI_THREADING: u32 = 1 << 28;

/// The leaf of KVM's own features (Documentation/virt/kvm/x86/cpuid.rst), and in its EAX those that have the guest's kernel
/// make hypercalls: waking a vCPU that waits for a lock, interrupting several at once, yielding to one.
const KVM_FEATURES: u32 = 0x4000_0001;
const KVM_HYPERCALLS: u32 = 1 << 7 | 1 << 11 | 1 << 13;

/// Leaves that describe caches, on Intel's and on AMD's processors.
const INTEL_CACHES: u32 = 4;
const AMD_CACHES: u32 = 0x8000_001d;
/// Leaves that describe the levels of the topology.
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Level types of the topology leaves.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// One vCPU among those of its machine: each is a core of one thread in one package.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The vCPU's index, which is its APIC id.
    pub index: u8,
    /// How many there are.
    pub vcpus: u8,
}

/// Why a vCPU has no CPUID.
#[derive(Debug, thiserror::Error)]
#[error("CPUID would have {entries} entries, more than KVM takes")]
pub struct TooManyEntries {
    entries: usize,
}

/// The CPUID of the vCPU at `place`, from what KVM supports.
///
/// # Errors
/// When there would be more entries than KVM takes.
pub fn compose(supported: &CpuId, place: Place, kernel_mode: KernelMode) -> Result<CpuId, TooManyEntries> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .copied()
        // The second topology leaf would say the same as the first; without it the kernel reads the first.
        .filter(|entry| entry.function != TOPOLOGY && entry.function != TOPOLOGY_V2)
        .collect();
    for entry in &mut entries {
        describe_place(entry, place);
        if kernel_mode == KernelMode::Emulated {
            hide_what_emulation_lacks(entry);
        }
    }
    entries.extend(topology(place));
    CpuId::from_entries(&entries).map_err(|_| TooManyEntries {
        entries: entries.len(),
    })
}

/// The bits of an APIC id that number the vCPUs.
fn id_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

fn describe_place(entry: &mut kvm_cpuid_entry2, Place { index, vcpus }: Place) {
    let (id, count) = (u32::from(index), u32::from(vcpus));
    match entry.function {
        1 => {
            entry.ebx = (entry.ebx & 0xffff) | count << 16 | id << 24;
            // KVM's local APIC has the deadline timer whether the list of supported bits names it or not.
            entry.ecx |= TSC_DEADLINE_TIMER | HYPERVISOR;
            set_if(&mut entry.edx, MULTI_THREADING, count > 1);
        }
        INTEL_CACHES | AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = (entry.eax & 0x3fff) | sharing << 14;
            if entry.function == INTEL_CACHES {
                entry.eax |= (count - 1).min(0x3f) << 26;
            }
        }
        AMD_SIZES => entry.ecx = (entry.ecx & !0xf0ff) | (count - 1) | id_bits(vcpus) << 12,
        AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

/// `cmpxchg16b` is not emulated, nor is Intel's `vmcall`, which is an invalid instruction then. Other bits that would be better away, kvm-pvm puts back: guest user mode runs on the
/// processor itself and sees the processor's own. The kernel command line hides those from the kernel alone.
fn hide_what_emulation_lacks(entry: &mut kvm_cpuid_entry2) {
    match entry.function {
        1 => entry.ecx &= !CMPXCHG16B,
        KVM_FEATURES => entry.eax &= !KVM_HYPERCALLS,
        _ => {}
    }
}

/// The topology leaf: a level of one thread a core, a level of all cores in the package, and the end.
fn topology(Place { index, vcpus }: Place) -> [kvm_cpuid_entry2; 3] {
    let level = |subleaf: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: TOPOLOGY,
        index: subleaf,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: subleaf | kind << 8,
        edx: u32::from(index),
        ..Default::default()
    };
    [
        level(0, 0, 1, LEVEL_THREAD),
        level(1, id_bits(vcpus), u32::from(vcpus), LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

fn set_if(register: &mut u32, bit: u32, condition: bool) {
    *register = if condition {
        *register | bit
    } else {
        *register & !bit
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = u32::MAX;

    fn supported() -> CpuId {
        let entry = |function, eax| kvm_cpuid_entry2 {
            function,
            eax,
            ebx: ALL,
            ecx: ALL & !TSC_DEADLINE_TIMER,
            edx: ALL,
            ..Default::default()
        };
        CpuId::from_entries(&[
            entry(1, ALL),
            entry(4, 0x21 | 0xfff << 14),
            entry(4, 0x63 | 0xfff << 14),
            entry(7, 0),
            entry(KVM_FEATURES, ALL),
            entry(TOPOLOGY, ALL),
            entry(TOPOLOGY_V2, ALL),
        ])
        .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, nth: usize) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .filter(|entry| entry.function == function)
            .nth(nth)
            .unwrap()
    }

    fn second_of_three(kernel_mode: KernelMode) -> CpuId {
        compose(&supported(), Place { index: 1, vcpus: 3 }, kernel_mode).unwrap()
    }

    #[test]
    fn the_second_of_three_vcpus_has_apic_id_1_everywhere() {
        let cpuid = second_of_three(KernelMode::Hardware);
        assert_eq!(leaf(&cpuid, 1, 0).ebx, 0x0103_ffff);
        assert_eq!(
            [0, 1, 2].map(|level| leaf(&cpuid, TOPOLOGY, level).edx),
            [1, 1, 1]
        );
    }

    #[test]
    fn three_vcpus_need_two_bits_of_the_apic_id() {
        let cores = leaf(&second_of_three(KernelMode::Hardware), TOPOLOGY, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (2, 3, 0x201));
    }

    #[test]
    fn only_the_third_level_of_cache_is_shared() {
        let cpuid = second_of_three(KernelMode::Hardware);
        assert_eq!(leaf(&cpuid, INTEL_CACHES, 0).eax, 0x21 | 2 << 26);
        assert_eq!(leaf(&cpuid, INTEL_CACHES, 1).eax, 0x63 | 2 << 14 | 2 << 26);
    }

    #[test]
    fn the_deadline_timer_is_announced() {
        assert_ne!(
            leaf(&second_of_three(KernelMode::Hardware), 1, 0).ecx & TSC_DEADLINE_TIMER,
            0
        );
    }

    #[test]
    fn only_emulated_kernel_mode_loses_cmpxchg16b() {
        let bit = |kernel_mode| leaf(&second_of_three(kernel_mode), 1, 0).ecx & CMPXCHG16B;
        assert_eq!(bit(KernelMode::Hardware), CMPXCHG16B);
        assert_eq!(bit(KernelMode::Emulated), 0);
    }

    #[test]
    fn only_emulated_kernel_mode_makes_no_hypercalls() {
        let features = |kernel_mode| leaf(&second_of_three(kernel_mode), KVM_FEATURES, 0).eax;
        assert_eq!(features(KernelMode::Hardware), ALL);
        assert_eq!(features(KernelMode::Emulated), ALL & !KVM_HYPERCALLS);
    }

    #[test]
    fn the_second_topology_leaf_is_left_out() {
        let cpuid = second_of_three(KernelMode::Hardware);
        assert!(cpuid.as_slice().iter().all(|entry| entry.function != TOPOLOGY_V2));
    }
}

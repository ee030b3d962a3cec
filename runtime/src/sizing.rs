//! How large a pod's virtual machine is: one function, so that what is shown is what is done.

/// What a guest needs beside its containers, in MiB: its kernel, the agent, page tables and slack. Measured: a guest
/// of 64 MiB with no container has 38 MiB free.
pub const GUEST_OVERHEAD_MIB: u64 = 64;

/// What stands on the host for a machine beside its memory, in MiB: the VMM, an attendant for each process, page tables,
/// and room for the host to cache the files that its containers read. Measured: 3 MiB for the VMM and 3 for an attendant.
pub const HOST_OVERHEAD_MIB: u64 = 64;

/// The memory that containers without a limit share, in MiB.
pub const DEFAULT_CONTAINER_MEMORY_MIB: u64 = 192;

/// The most vCPUs a pod is given.
pub const MOST_VCPUS: u8 = 32;

/// What a pod asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// The sum of its containers' memory limits in bytes; `None` when one has no limit.
    pub memory: Option<u64>,
    /// The sum of its containers' processor limits in thousandths of a processor; `None` when one has no limit.
    pub millicpus: Option<u32>,
    /// The memory of its machine in MiB, where that is said itself.
    pub machine_memory_mib: Option<u32>,
    /// The virtual processors of its machine, where they are.
    pub machine_vcpus: Option<u8>,
}

/// What its machine gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineSize {
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// The number of virtual processors.
    pub vcpus: u8,
}

/// A limit that no machine can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a memory limit of {memory} bytes and {GUEST_OVERHEAD_MIB} MiB for the guest exceed what a machine can have"
)]
pub struct TooLarge {
    memory: u64,
}

/// What the pod's containers may use of their machine's memory, in MiB: what the guest leaves of what is said of the
/// machine, or else the pod's limit, rounded up.
pub fn container_memory_mib(limits: &PodLimits) -> u64 {
    match (limits.machine_memory_mib, limits.memory) {
        (Some(machine), _) => u64::from(machine).saturating_sub(GUEST_OVERHEAD_MIB),
        (None, Some(bytes)) => bytes.div_ceil(1 << 20),
        (None, None) => DEFAULT_CONTAINER_MEMORY_MIB,
    }
}

/// The size of the machine for a pod: what is said of the machine; or else its memory limit, rounded up to whole MiB, plus
/// the guest's overhead, and its processor limit rounded up to whole processors, one without a limit.
///
/// # Errors
/// When the sum does not fit.
pub fn machine_size(limits: &PodLimits) -> Result<MachineSize, TooLarge> {
    let memory_mib = container_memory_mib(limits)
        .checked_add(GUEST_OVERHEAD_MIB)
        .and_then(|total| u32::try_from(total).ok())
        .ok_or(TooLarge {
            memory: limits.memory.unwrap_or_default(),
        })?;
    let rounded_up = |millicpus: u32| u8::try_from(millicpus.div_ceil(1000)).unwrap_or(MOST_VCPUS);
    let vcpus = limits.machine_vcpus.or(limits.millicpus.map(rounded_up));
    let vcpus = vcpus.unwrap_or(1).clamp(1, MOST_VCPUS);
    Ok(MachineSize { memory_mib, vcpus })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(memory: Option<u64>, millicpus: Option<u32>) -> MachineSize {
        machine_size(&PodLimits {
            memory,
            millicpus,
            ..PodLimits::default()
        })
        .unwrap()
    }

    #[test]
    fn a_pod_without_limits_gets_the_default_and_one_processor() {
        assert_eq!(
            size(None, None),
            MachineSize {
                memory_mib: 256,
                vcpus: 1
            }
        );
    }

    #[test]
    fn a_memory_limit_is_rounded_up_and_the_overhead_added() {
        assert_eq!(size(Some((64 << 20) + 1), None).memory_mib, 65 + 64);
    }

    #[test]
    fn half_a_processor_is_one_and_two_and_a_half_are_three() {
        assert_eq!(size(None, Some(500)).vcpus, 1);
        assert_eq!(size(None, Some(2500)).vcpus, 3);
    }

    #[test]
    fn what_is_said_of_the_machine_wins() {
        let limits = PodLimits {
            memory: Some(1 << 40),
            millicpus: Some(9000),
            machine_memory_mib: Some(100),
            machine_vcpus: Some(2),
        };
        let expected = MachineSize {
            memory_mib: 100,
            vcpus: 2,
        };
        assert_eq!(machine_size(&limits).unwrap(), expected);
        assert_eq!(container_memory_mib(&limits), 100 - GUEST_OVERHEAD_MIB);
    }

    #[test]
    fn an_absurd_memory_limit_is_refused() {
        assert!(
            machine_size(&PodLimits {
                memory: Some(u64::MAX),
                ..PodLimits::default()
            })
            .is_err()
        );
    }
}
